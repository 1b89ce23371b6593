"""Trees of settings: nested mappings whose keys can also be dotted, as in HOCON and query strings."""

from __future__ import annotations

from collections.abc import Mapping

from jobserver_core.models.json_values import JsonMapping, JsonObject

__all__ = ["HiddenSettings", "all_settings", "as_objects", "flatten", "merged", "nested", "overlaid"]


def flatten(tree: JsonMapping, prefix: str = "") -> JsonObject:
    """Return the leaves by dotted path. Lists and empty mappings are leaves."""
    leaves: JsonObject = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            leaves.update(flatten(value, f"{path}."))
        else:
            leaves.pop(path, None)
            leaves[path] = value
    return leaves


def nested(leaves: JsonMapping) -> JsonObject:
    """Build a tree from dotted paths.

    Spark has settings below settings (``spark.speculation`` and ``spark.speculation.interval``). If a path
    leads through a leaf, its remainder stays one dotted key, so that nothing is lost.
    """
    tree: JsonObject = {}
    for path in sorted(leaves):
        node, rest = tree, path
        while "." in rest:
            head, tail = rest.split(".", 1)
            child = node.setdefault(head, {})
            if not isinstance(child, dict):
                break
            node, rest = child, tail
        node[rest] = leaves[path]
    return tree


def as_objects(tree: JsonMapping) -> JsonObject:
    """Return a tree without dotted keys: a value that has settings below it gives way to them.

    This is what Typesafe Config makes of settings without an order, such as system properties.
    """
    leaves = flatten(tree)
    parents = {path[:index] for path in leaves for index, char in enumerate(path) if char == "."}
    return nested({path: value for path, value in leaves.items() if path not in parents})


def merged(*trees: JsonMapping) -> JsonObject:
    """Merge trees leaf by leaf. Later trees take precedence."""
    leaves: JsonObject = {}
    for tree in trees:
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
    tree = dict(config)
    for (*parents, name), settings in config.hidden.items():
        parent = tree
        for key in parents:
            parent[key] = dict(parent[key])
            parent = parent[key]
        parent[name] = merged(parent[name], settings)
    return tree
