"""The places of nodes in a tree that is being resolved."""

from __future__ import annotations

from typing import NamedTuple

from jobserver_core.config.hocon.nodes import Absent, Array, Concat, Merge, Node, Object, Step

_CONTAINERS = (Object, Array, Concat, Merge)


class LostPlace(Exception):
    """A node to replace is not in its place: one of its containers was replaced while it was resolved."""


class _Stage(NamedTuple):
    """A container, the slot in it of the node or the next container, and the stage of the way before it."""

    container: Node
    slot: str | int
    before: _Stage | None


class Place(NamedTuple):
    """The place of a node in the tree while it is resolved.

    A substitution is looked up in the tree *as seen from its place*: while a definition of a key is resolved,
    the key refers to the definitions below it. So resolution passes a place along: the root for look-ups, and
    the way to the current node, None when that is not below the root. Replacing a node creates new containers
    up to a new root, and leaves all other places unchanged.
    """

    root: Object
    way: _Stage | None = None

    def into(self, container: Node, slot: str | int) -> Place:
        """Return the place of a child of the node at this place."""
        if self.way is None and container is not self.root:
            return self
        return Place(self.root, _Stage(container, slot, self.way))

    def replaced(self, node: Node, replacement: Node | Absent, step: Step) -> Place:
        """Return this place with the node replaced or removed.

        Raises:
            LostPlace: The node is no longer in this place.
        """
        if self.way is None:
            raise LostPlace
        return _replaced(self.way, node, replacement, step)


def _replaced(way: _Stage, old: Node, new: Node | Absent, step: Step) -> Place:
    changed: list[tuple[Node, str | int]] = []
    stage: _Stage | None = way
    while stage is not None:
        if not isinstance(new, _CONTAINERS):
            changed.clear()
        try:
            slot, new = stage.container.replaced(old, stage.slot, new, step)
        except LookupError:
            raise LostPlace from None
        old = stage.container
        changed.append((new, slot))
        stage = stage.before
    fresh: _Stage | None = None
    for container, slot in reversed(changed):
        fresh = _Stage(container, slot, fresh)
    root = changed[-1][0]
    return Place(root if isinstance(root, Object) else Object(), fresh)
