"""Settings of Spark, which may have a value and settings below it.

Spark has ``spark.speculation`` and ``spark.speculation.interval``. In HOCON, of a value and an object at one
path the later definition hides the earlier, which would lose one of the two settings. So beside the tree,
the parser keeps a flat table of all settings that stand where Spark's are read from, the last definition
of each path. What the tree has no place for is taken from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jobserver_core.config.hocon.nodes import Node, Path

__all__ = ["hidden_settings", "is_spark_setting"]

_SECTIONS: dict[Path, int] = {("spark", "context-settings"): 2, ("spark", "contexts"): 3}
"""Where settings of Spark stand, and how long the paths are below which each key is one."""
_SCALARS = (str, int, float)


def is_spark_setting(path: Path) -> bool:
    """Return whether a path is that of a setting of Spark."""
    return len(path) > _SECTIONS.get(path[:2], len(path))


def hidden_settings(
    settings: Mapping[Path, Node], tree: Mapping[str, Any], value_of: Callable[[Node], Any]
) -> dict[Path, dict[str, Any]]:
    """Return those settings of a text that its tree has no place for: by section, and dotted path in it.

    Only a scalar has settings below it: what a list or a null replaces is gone.
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
