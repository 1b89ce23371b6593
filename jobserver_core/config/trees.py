"""Trees of settings: nested mappings whose keys may also be dotted, as HOCON and queries write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["flatten", "merged", "nested", "overlaid"]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves by their dotted path; lists and empty mappings are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            leaves.update(flatten(value, f"{path}."))
        else:
            leaves.pop(path, None)
            leaves[path] = value
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of dotted paths.

    Spark has settings below settings (``spark.speculation`` and ``spark.speculation.interval``): where
    a path leads through a leaf, the rest of it stays one dotted key, so that nothing is lost.
    """
    tree: dict[str, Any] = {}
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


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Lay trees over each other, later ones on top, leaf by leaf."""
    leaves: dict[str, Any] = {}
    for tree in trees:
        leaves.update(flatten(tree))
    return nested(leaves)


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one tree over another as HOCON does: objects are merged, and keys are taken as they are."""
    tree = dict(below)
    for key, value in above.items():
        under = tree.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = overlaid(under, value)  # noqa: PLW2901 - what was laid on the other
        tree[key] = value
    return tree
