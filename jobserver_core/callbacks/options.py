"""The options that all transports share: ``jobserver.callbacks.options`` of the configuration."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from jobserver_core.config.setting_types import setting_key
from jobserver_core.errors import InvalidSetting, TransportError
from jobserver_core.models.arguments import are_strings
from jobserver_core.ports.transport import Transport

if TYPE_CHECKING:
    from jobserver_core.config.settings import CallbackSettings


def check_options(callbacks: CallbackSettings, transports: Sequence[Transport]) -> None:
    """Refuse a top-level key of the options that no transport reads, if each of them names its own.

    Without any transport, nothing is refused.

    Raises:
        InvalidSetting: Names the most similar option, or setting of callbacks.
        TransportError: The options of a transport are not a list of names.
    """
    known = [options_of(type(transport)) for transport in transports]
    if not known or None in known:
        return
    names = {name for options in known for name in options or ()}
    prefix = setting_key(callbacks.prefix, "options")
    for key in callbacks.options:
        if key not in names:
            expected = f"expected one of {', '.join(sorted(names))}" if names else "they have none"
            raise InvalidSetting(
                key=f"{prefix}.{key}",
                message=f"is not an option of the configured transports; {expected}",
                nearest=_nearest(key, callbacks, names),
            )


def options_of(transport: type[Transport]) -> Collection[str] | None:
    """Return the options that a transport names itself, or None.

    A subclass may read more than the class it extends, so what it inherits says nothing about it.

    Raises:
        TransportError: They are not a list of names.
    """
    options: Collection[str] | None = transport.__dict__.get("options")
    if options is not None and not are_strings(options):
        raise TransportError(
            message=f"the transport {transport.__name__} must name its options as a tuple: "
            f"options = ('topic',), or () if it has none, not {options!r}"
        )
    return options


def _nearest(key: str, callbacks: CallbackSettings, options: set[str]) -> str | None:
    prefix = setting_key(callbacks.prefix, "options")
    settings = [setting_key(callbacks.prefix, name) for name in callbacks.setting_types()]
    known = {setting.rpartition(".")[2]: setting for setting in settings if setting != prefix}
    known |= {name: f"{prefix}.{name}" for name in options}
    found = difflib.get_close_matches(key, known, n=1)
    return known[found[0]] if found else None
