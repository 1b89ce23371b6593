"""Keys with a dot in the configuration of a job, and the hint for a job that misses the path they look like.

In HOCON, ``input.path = x`` is a path. In JSON and in mappings, ``{"input.path": x}`` has one key with a dot
in its name, and a job that reads the path ``input.path`` finds nothing. So a message about such a path says
how to nest the key. No other key gives a hint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from jobserver_core.models.json_values import Json, JsonMapping

_WORDS = re.compile(r"[\w.\-]+")


def hint_for_missing(config: JsonMapping, missing: str) -> str:
    """Return how to nest a key that a job has missed at this path, or at a longer one; otherwise ``""``."""
    return _hint(config, lambda path: f"{path}.".startswith(f"{missing}."))


def hint_for_lookup(config: JsonMapping, name: str) -> str:
    """Like :func:`hint_for_missing`, for one name of a path, whose place in the configuration is unknown."""
    return _hint(config, lambda path: f".{name}." in f".{path}.")


def hint_for_message(config: JsonMapping, message: str) -> str:
    """Return how to nest a key whose path is a word of a message, and missing; otherwise ``""``."""
    mentioned = {word.strip(".") for word in _WORDS.findall(message)}
    return _hint(config, mentioned.__contains__)


def _hint(config: JsonMapping, is_wanted: Callable[[str], bool]) -> str:
    for place, key in _dotted_keys(config, ()):
        if is_wanted(".".join((*place, key))) and not _has(config, [*place, *key.split(".")]):
            names = key.split(".")
            nested = "".join(f'{{"{name}": ' for name in names) + "…" + "}" * len(names)
            where = f" in {'.'.join(place)}" if place else ""
            return f"the configuration has a key named {key!r} with a dot{where}; nest it: {nested}"
    return ""


def _dotted_keys(tree: JsonMapping, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the keys with a dot in their names, and the places where they are."""
    for key, value in tree.items():
        if "." in key:
            yield place, key
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, (*place, key))


def _has(tree: Json, names: list[str]) -> bool:
    for name in names:
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True
