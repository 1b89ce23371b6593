"""Which keys the settings of a context may have."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from jobserver_core.errors import InvalidSetting

__all__ = ["check_keys"]

_KEYS = (
    "num-cpu-cores",
    "memory-per-node",
    "context-factory",
    "dependent-jar-uris",
    "cp",
    "stop-context-on-job-error",
    "python.executable",
    "python.paths",
    "python.process",
    "jvm.isolation",
)
_PREFIXES = ("spark.", "passthrough.", "hadoop.", "launcher.", "streaming.")
_OLD = frozenset(
    {"context-per-jvm", "is-python", "sync", "timeout", "context-init-timeout", "forked-jvm-init-timeout"}
)
"""Keys that clients and files of the old server have, and that have no effect here."""


def check_keys(keys: Iterable[str]) -> None:
    """Check the dotted keys of a context's settings.

    Raises:
        InvalidSetting: there are unknown keys; it names all of them, and the nearest match of the first.

    """
    unknown = [key for key in keys if key not in _KEYS and not key.startswith(_PREFIXES) and key not in _OLD]
    if not unknown:
        return
    patterns = [f"{prefix}*" for prefix in _PREFIXES]
    near = difflib.get_close_matches(unknown[0], [*_KEYS, *patterns], n=1, cutoff=0.6)
    message = "a context has no such setting"
    if len(unknown) > 1:
        message += f", nor {', '.join(map(repr, unknown[1:]))}"
    if not near:
        message += "; it takes " + ", ".join([*_KEYS, *patterns])
    raise InvalidSetting(key=unknown[0], message=message, nearest=near[0] if near else None)
