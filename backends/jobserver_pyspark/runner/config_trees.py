"""Configurations for jobs: pyhocon's ``ConfigTree``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, cast

from jobserver_pyspark.protocol.converter import JsonObject

_CONTAINERS = (dict, list)

FALLBACK_PATH = "JOBSERVER_FALLBACK_PATH"
"""The environment variable with a directory that has pyhocon, for interpreters that have none."""


def add_fallback() -> None:
    """Make pyhocon importable if the context's interpreter does not have it."""
    directory = os.environ.get(FALLBACK_PATH)
    if directory and directory not in sys.path:
        sys.path.append(directory)


def tree(values: JsonObject) -> Any:
    """Return a ConfigTree of the values, as pyhocon would parse them: a key with a dot is a quoted one."""
    from pyhocon import ConfigTree  # noqa: PLC0415 - jobs' interpreters import it late

    return _tree(_maker(ConfigTree), values)


def _maker(kind: Any) -> Callable[[], Any]:
    """Return a function that makes an empty ConfigTree, of which a large configuration has thousands.

    The constructor takes most of the time of a tree, and only sets this attribute.
    """
    if vars(kind()) != {"root": False}:
        return cast("Callable[[], Any]", kind)  # another version of pyhocon
    new = kind.__new__

    def make() -> Any:
        made = new(kind)
        made.root = False
        return made

    return make


def _tree(make: Callable[[], Any], values: JsonObject) -> Any:
    made = make()
    for key, value in values.items():
        made[f'"{key}"' if "." in key else key] = _of(make, value) if type(value) in _CONTAINERS else value
    return made


def _of(make: Callable[[], Any], container: Any) -> Any:
    if isinstance(container, dict):
        return _tree(make, container)
    return [_of(make, value) if type(value) in _CONTAINERS else value for value in container]


def laid_over(upper: JsonObject, lower: JsonObject) -> JsonObject:
    """Return both merged deeply; where both have a value, the upper wins."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = (
            laid_over(value, below) if isinstance(value, dict) and isinstance(below, dict) else value
        )
    return merged
