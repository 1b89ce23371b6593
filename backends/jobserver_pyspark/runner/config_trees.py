"""Configurations for jobs: pyhocon's ``ConfigTree``."""

from __future__ import annotations

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from jobserver_core.models.json_values import Json, JsonObject

FALLBACK_PATH = "JOBSERVER_FALLBACK_PATH"
"""The environment variable with a directory that has pyhocon, for interpreters that have none."""


def add_fallback() -> None:
    """Make pyhocon importable if the context's interpreter does not have it."""
    directory = os.environ.get(FALLBACK_PATH)
    if directory and directory not in sys.path:
        sys.path.append(directory)


def read(text: str | bytes) -> OrderedDict[str, Json]:
    """Return the ConfigTree of a JSON object, as pyhocon would parse it: a key with a dot is a quoted one."""
    new = _maker()

    def tree(values: JsonObject) -> OrderedDict[str, Json]:
        made = new()
        for key, value in values.items():
            made[f'"{key}"' if "." in key else key] = value
        return made

    made: OrderedDict[str, Json] = json.loads(text, object_hook=tree)
    return made


def laid_over(upper: JsonObject, lower: JsonObject) -> OrderedDict[str, Json]:
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


def plain(config: Json) -> Json:
    """Return the mappings of a ConfigTree as those of JSON: a key with a dot is not in quotes."""
    if not isinstance(config, dict):
        return config
    return {key[1:-1] if key.startswith('"') else key: plain(value) for key, value in dict.items(config)}


def _maker() -> Callable[[], OrderedDict[str, Json]]:
    """Return a function that makes an empty ConfigTree, of which a large configuration has thousands.

    The constructor takes most of the time of a tree, and only sets this attribute.
    """
    from pyhocon import ConfigTree  # noqa: PLC0415 - jobs' interpreters import it late

    kind: Any = ConfigTree
    if vars(kind()) != {"root": False}:
        return cast("Callable[[], OrderedDict[str, Json]]", kind)  # another version of pyhocon
    new = kind.__new__

    def make() -> Any:
        made = new(kind)
        made.root = False
        return made

    return make
