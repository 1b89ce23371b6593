"""Configurations for jobs: pyhocon's ``ConfigTree``."""

from __future__ import annotations

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, cast

FALLBACK_PATH = "JOBSERVER_FALLBACK_PATH"
"""The environment variable with a directory that has pyhocon, for interpreters that have none."""


def add_fallback() -> None:
    """Make pyhocon importable if the context's interpreter does not have it."""
    directory = os.environ.get(FALLBACK_PATH)
    if directory and directory not in sys.path:
        sys.path.append(directory)


def read(text: str | bytes) -> Any:
    """Return the ConfigTree of a JSON object, as pyhocon would parse it: a key with a dot is a quoted one."""
    new = _maker()

    def tree(values: dict[str, Any]) -> Any:
        made = new()
        for key, value in values.items():
            made[f'"{key}"' if "." in key else key] = value
        return made

    return json.loads(text, object_hook=tree)


def laid_over(upper: Any, lower: Any) -> Any:
    """Return a tree with both merged deeply; where both have a value, the upper wins.

    The result shares values with both. Their items are read as those of a ``dict``: the methods of a
    ConfigTree take a key for a path and parse it.
    """
    merged = _maker()()
    OrderedDict.update(merged, [*dict.items(lower), *dict.items(upper)])
    for key in dict.keys(lower) & dict.keys(upper):
        above, below = dict.__getitem__(upper, key), dict.__getitem__(lower, key)
        if isinstance(above, dict) and isinstance(below, dict):
            merged[key] = laid_over(above, below)
    return merged


def nesting_hint(config: Any, is_wanted: Callable[[str], bool]) -> str:
    """Return how to write a key with a dot in its name, if its path is wanted, but missing; otherwise ``""``.

    In JSON and in mappings, such a key is one name, and not a path as in HOCON.
    """
    for place, key in _dotted_keys(config, ()):
        path = ".".join((*place, key))
        if is_wanted(path) and not _has(config, path):
            names = key.split(".")
            nested = "".join(f'{{"{name}": ' for name in names) + "…" + "}" * len(names)
            where = f" in {'.'.join(place)}" if place else ""
            return f"the configuration has a key named {key!r} with a dot{where}; nest it: {nested}"
    return ""


def _dotted_keys(tree: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the keys with a dot in their names, which a ConfigTree has in quotes, and where they are."""
    for key, value in dict.items(tree):
        if key.startswith('"'):
            yield place, key[1:-1]
        if isinstance(value, dict):
            yield from _dotted_keys(value, (*place, key))


def _has(config: Any, path: str) -> bool:
    try:
        return path in config
    except Exception:  # noqa: BLE001 - pyhocon's errors for odd keys have no common class
        return False


def _maker() -> Callable[[], Any]:
    """Return a function that makes an empty ConfigTree, of which a large configuration has thousands.

    The constructor takes most of the time of a tree, and only sets this attribute.
    """
    from pyhocon import ConfigTree  # noqa: PLC0415 - jobs' interpreters import it late

    kind: Any = ConfigTree
    if vars(kind()) != {"root": False}:
        return cast("Callable[[], Any]", kind)  # another version of pyhocon
    new = kind.__new__

    def make() -> Any:
        made = new(kind)
        made.root = False
        return made

    return make
