"""The place of a node in the tree while it is resolved.

A substitution is looked up in the tree *as seen from its place*: while a definition of a key is resolved,
the key refers to the definitions below it. So resolution passes a :class:`Place` along: the root for
look-ups, and the containers from there to the node. Replacing a node creates new containers up to a new
root, and leaves all other places unchanged.
"""

from __future__ import annotations

from typing import NamedTuple

from jobserver_core.config.hocon.nodes import Absent, Array, Concat, Merge, Node, Object

__all__ = ["LostPlace", "Place"]

_CONTAINERS = (Object, Array, Concat, Merge)


class LostPlace(Exception):
    """A node to replace is not in its place: one of its containers was replaced while it was resolved."""


class _Step(NamedTuple):
    """A container, the slot in it of the node or the next container, and the previous step."""

    container: Node
    slot: str | int
    before: _Step | None


class Place(NamedTuple):
    """The root for look-ups, and the way to the current node, None when that is not below the root."""

    root: Object
    way: _Step | None = None

    def into(self, container: Node, slot: str | int) -> Place:
        """Return the place of a child of the node at this place."""
        if self.way is None and container is not self.root:
            return self
        return Place(self.root, _Step(container, slot, self.way))

    def replaced(self, node: Node, replacement: Node | Absent) -> Place:
        """Return this place with the node replaced or removed. Raises LostPlace."""
        if self.way is None:
            raise LostPlace
        return _replaced(self.way, node, replacement)


def _replaced(way: _Step, old: Node, new: Node | Absent) -> Place:
    changed: list[tuple[Node, str | int]] = []
    step: _Step | None = way
    while step is not None:
        if not isinstance(new, _CONTAINERS):
            changed.clear()
        try:
            slot, new = step.container.replaced(old, step.slot, new)
        except LookupError:
            raise LostPlace from None
        old = step.container
        changed.append((new, slot))
        step = step.before
    fresh: _Step | None = None
    for container, slot in reversed(changed):
        fresh = _Step(container, slot, fresh)
    root = changed[-1][0]
    return Place(root if isinstance(root, Object) else Object(), fresh)
