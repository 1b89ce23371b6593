"""Trees of settings: nested mappings whose keys can also be dotted, as in HOCON and query strings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from jobserver_core.errors import InvalidSetting
from jobserver_core.models.json_values import Json, JsonMapping, JsonObject

T = TypeVar("T")
Path = tuple[str, ...]

_MOST_SETTINGS, _LONGEST_NAME, _MOST_PARTS = 10_000, 1000, 100
"""Limits of a tree of settings. All dotted paths below a long key repeat it, and each dot is a level."""
_SHOWN = 40
"""The most characters of a key that an error shows; the key may be as long as the request."""


def flatten(tree: JsonMapping, prefix: str = "") -> JsonObject:
    """Return the leaves by dotted path. Lists and empty mappings are leaves.

    This can take far more memory than the tree: call :func:`check_settings_fit` for a tree from outside.
    """
    leaves: JsonObject = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            leaves.update(flatten(value, f"{path}."))
        else:
            leaves.pop(path, None)
            leaves[path] = value
    return leaves


def check_settings_fit(tree: JsonMapping) -> None:
    """Check that a tree of settings can be flattened, with as many settings and such names as a context has.

    Raises:
        InvalidSetting: There are too many settings, or a name is too long.
    """
    count = 0
    mappings: list[tuple[JsonMapping, str, int, int]] = [(tree, "", 0, 0)]
    while mappings:
        mapping, start, length, parts = mappings.pop()
        for key, value in mapping.items():
            own_length, own_parts = length + len(key), parts + key.count(".") + 1
            shown = f"{start}{key[:_SHOWN]}"[:_SHOWN]
            _check_name(shown, own_length, own_parts)
            if isinstance(value, Mapping) and value:
                mappings.append((value, f"{shown}.", own_length + 1, own_parts))
            elif (count := count + 1) > _MOST_SETTINGS:
                raise InvalidSetting(
                    key=shown, message=f"a context can have at most {_MOST_SETTINGS} settings"
                )


def _check_name(shown: str, length: int, parts: int) -> None:
    if length > _LONGEST_NAME or parts > _MOST_PARTS:
        problem = f"the name of a setting can have at most {_LONGEST_NAME} characters and {_MOST_PARTS} parts"
        raise InvalidSetting(key=f"{shown}…", message=problem)


def without(tree: Json, path: Sequence[str]) -> Json:
    """Return a tree without the value at a path, and without the sections that lead to it alone."""
    first, *others = path
    inner = without(tree[first], others) if others else {}
    rest = {key: value for key, value in tree.items() if key != first}
    return rest if inner == {} else {**rest, first: inner}


def nested(leaves: JsonMapping) -> JsonObject:
    """Build a tree from dotted paths.

    Spark has settings below settings (``spark.speculation`` and ``spark.speculation.interval``). If a path
    leads through a leaf, its remainder stays one dotted key, so that nothing is lost.
    """
    tree: JsonObject = {}
    for path in sorted(leaves):
        value = _copied(leaves[path])
        node, parts = tree, path.split(".")
        for number, part in enumerate(parts[:-1]):
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                node[".".join(parts[number:])] = value
                break
            node = child
        else:
            node[parts[-1]] = value
    return tree


def _copied(value: Json) -> Json:
    """Return a copy that shares no container with the original, such as the defaults of all contexts."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def as_objects(tree: JsonMapping) -> JsonObject:
    """Return a tree without dotted keys: a value that has settings below it gives way to them.

    This is what Typesafe Config makes of settings without an order, such as system properties.
    """
    leaves = flatten(tree)
    parents = {path[:index] for path in leaves for index, char in enumerate(path) if char == "."}
    return nested({path: value for path, value in leaves.items() if path not in parents})


def merged(*trees: JsonMapping) -> JsonObject:
    """Merge trees leaf by leaf. Later trees take precedence.

    Raises:
        InvalidSetting: A tree has too many settings, or a name that is too long.
    """
    leaves: JsonObject = {}
    for tree in trees:
        check_settings_fit(tree)
        leaves.update(flatten(tree))
    return nested(leaves)


def overlaid(below: JsonMapping, above: JsonMapping) -> JsonObject:
    """Merge two trees as HOCON does: objects are merged, and dotted keys are not split."""
    tree = dict(below)
    for key, value in above.items():
        under = tree.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = overlaid(under, value)  # noqa: PLW2901
        tree[key] = value
    return tree


# -- settings of Spark, which may have both a value and settings below them ------------------------------
#
# Spark has spark.speculation and spark.speculation.interval. In HOCON, if a path has both a value and an
# object, the later definition hides the earlier, which would lose one of the two settings. So in addition to
# the tree, the parser keeps a flat table of all settings in the sections for Spark, with the last definition
# of each path. Settings that have no place in the tree are taken from there.

_SECTIONS: dict[Path, int] = {("spark", "context-settings"): 2, ("spark", "contexts"): 3}
"""The sections for settings of Spark, and the lengths of the paths below which each key is a setting."""
_SCALARS = (str, int, float)


def is_spark_setting(path: Path) -> bool:
    """Return whether a path belongs to a setting of Spark."""
    return len(path) > _SECTIONS.get(path[:2], len(path))


def hidden_settings(
    settings: Mapping[Path, T], tree: JsonMapping, value_of: Callable[[T], Json]
) -> dict[Path, JsonObject]:
    """Return the settings of a text that have no place in its tree, by section and dotted path in it.

    Only a scalar has settings below it: a list or a null removes the settings that it replaces.

    Raises:
        InvalidSetting: The name of a setting is too long.
    """
    hidden: dict[Path, JsonObject] = {}
    for path, node in settings.items():
        if _is_hidden(path, tree):
            value = value_of(node)
            if isinstance(value, _SCALARS):
                size = _SECTIONS[path[:2]]
                name = path[size:]
                _check_name(name[0][:_SHOWN], sum(map(len, name)) + len(name) - 1, len(name))
                hidden.setdefault(path[:size], {})[".".join(name)] = value
    return hidden


def _is_hidden(path: Path, tree: JsonMapping) -> bool:
    section = _SECTIONS[path[:2]]
    value: Json = tree
    for depth, key in enumerate(path):
        if not isinstance(value, dict):
            return isinstance(value, _SCALARS) and depth > section
        if key not in value:
            return False
        value = value[key]
    return isinstance(value, dict)


class HiddenSettings(JsonObject):
    """A parsed configuration in which a setting of Spark and settings below it meet.

    The dict is what HOCON makes of the text, in which one of the two hides the other. ``hidden`` has the
    settings that are lost in it: by the path of their section, and in that by their dotted path.
    """

    def __init__(self, tree: JsonMapping, hidden: Mapping[tuple[str, ...], JsonMapping]) -> None:
        super().__init__(tree)
        self.hidden = hidden


def all_settings(config: JsonMapping) -> JsonMapping:
    """Return a parsed configuration with its hidden settings in place, as :func:`nested` puts them."""
    if not isinstance(config, HiddenSettings):
        return config
    copies: dict[Path, JsonObject] = {(): dict(config)}
    for (*parents, name), settings in config.hidden.items():
        parent = copies[()]
        for depth, key in enumerate(parents, 1):
            path = tuple(parents[:depth])
            if path not in copies:
                copies[path] = parent[key] = dict(parent[key])
            parent = copies[path]
        parent[name] = merged(parent[name], settings)
    return copies[()]
