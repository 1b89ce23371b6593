"""Settings of Spark, which may have both a value and settings below them.

Spark has ``spark.speculation`` and ``spark.speculation.interval``. In HOCON, if a path has both a value and
an object, the later definition hides the earlier, which would lose one of the two settings. So in addition to
the tree, the parser keeps a flat table of all settings in the sections for Spark, with the last definition of
each path. Settings that have no place in the tree are taken from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jobserver_core.config.hocon.nodes import Node, Path

__all__ = ["hidden_settings", "is_spark_setting"]

_SECTIONS: dict[Path, int] = {("spark", "context-settings"): 2, ("spark", "contexts"): 3}
"""The sections for settings of Spark, and the lengths of the paths below which each key is a setting."""
_SCALARS = (str, int, float)


def is_spark_setting(path: Path) -> bool:
    """Return whether a path belongs to a setting of Spark."""
    return len(path) > _SECTIONS.get(path[:2], len(path))


def hidden_settings(
    settings: Mapping[Path, Node], tree: Mapping[str, Any], value_of: Callable[[Node], Any]
) -> dict[Path, dict[str, Any]]:
    """Return the settings of a text that have no place in its tree, by section and dotted path in it.

    Only a scalar has settings below it: a list or a null removes the settings that it replaces.
    """
    hidden: dict[Path, dict[str, Any]] = {}
    for path, node in settings.items():
        if _is_hidden(path, tree):
            value = value_of(node)
            if isinstance(value, _SCALARS):
                size = _SECTIONS[path[:2]]
                hidden.setdefault(path[:size], {})[".".join(path[size:])] = value
    return hidden


def _is_hidden(path: Path, tree: Mapping[str, Any]) -> bool:
    section = _SECTIONS[path[:2]]
    value: Any = tree
    for depth, key in enumerate(path):
        if not isinstance(value, Mapping):
            return isinstance(value, _SCALARS) and depth > section
        if key not in value:
            return False
        value = value[key]
    return isinstance(value, Mapping)
