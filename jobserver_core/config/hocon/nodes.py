"""The tree that a HOCON text says: values and definitions, before and after substitutions are put in.

A node is *resolved* when no substitution is left in it. Nodes are immutable once the parser has
handed them over, so that resolved parts can be shared between all places that refer to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import attrs

from jobserver_core.errors import InvalidConfig

__all__ = [
    "ABSENT",
    "Absent",
    "Array",
    "Blank",
    "Concat",
    "Include",
    "Merge",
    "Node",
    "Number",
    "Object",
    "Path",
    "Reference",
    "Source",
    "is_resolved",
    "leaf_text",
]

Path = tuple[str, ...]


class Absent:
    """The type of :data:`ABSENT`."""


ABSENT: Final = Absent()
"""What an optional substitution without a value becomes: its key or list item is left out."""


@attrs.frozen
class Source:
    """A text and where it is from; ``name`` is None for what a user sent."""

    text: str
    name: str | None = None

    def error(self, position: int, message: str) -> InvalidConfig:
        """Return the error for a position of the text.

        Counting lines takes time in proportion to the text: call this only for an error that is
        raised to the user, never for one that is caught and dropped.
        """
        line = self.text.count("\n", 0, position) + 1
        column = position - self.text.rfind("\n", 0, position)
        where = f"{self.name}: " if self.name else ""
        return InvalidConfig(message=f"{where}{message}", line=line, column=column)


@attrs.frozen(eq=False)
class Number:
    """A number, and how it was written: that is what it is in a concatenation."""

    written: str
    value: int | float


class Blank(str):
    """The blanks between two values of a concatenation; beside a list or an object they mean nothing."""

    __slots__ = ()


class Array:
    """A list of nodes.

    Lists that grow by ``+=`` share what they have in common: each knows the list that it goes on with
    (``start``) until somebody asks for the items.
    """

    __slots__ = ("_length", "_own", "_start", "resolved")

    def __init__(self, items: list[Node], start: Array | None = None) -> None:
        self._own = items
        self._start = start
        self._length = len(items) + (0 if start is None else len(start))
        self.resolved: bool = (start is None or start.resolved) and all(map(is_resolved, items))

    def __len__(self) -> int:
        return self._length

    @property
    def items(self) -> list[Node]:
        """All items; not to be changed."""
        if self._start is not None:
            parts: list[list[Node]] = []
            array: Array | None = self
            while array is not None:
                parts.append(array._own)
                array = array._start
            self._own = [item for part in reversed(parts) for item in part]
            self._start = None
        return self._own

    def with_child(self, slot: int, child: Node | Absent) -> Array | Absent:
        """Return a copy with one item replaced, or left out."""
        items = _with_item(self.items, slot, child)
        return Array(items) if items else ABSENT

    def child(self, slot: int) -> Node | Absent:
        """Return an item."""
        return self.items[slot] if slot < len(self) else ABSENT


class Object:
    """Keys in the order of their first appearance.

    ``final`` objects hide whatever is defined below them. Copies with a changed child share
    ``fields`` and keep the difference in ``changes``, so that making one costs nothing in wide objects.

    ``own`` is for settings of Spark, which may have a value and settings below it: an object in which
    it is not None keeps a scalar that the same key has, as its one item, instead of hiding it.
    """

    __slots__ = ("changes", "fields", "final", "own", "unresolved")

    def __init__(
        self,
        fields: dict[str, Node] | None = None,
        *,
        final: bool = False,
        own: tuple[Node, ...] | None = None,
    ) -> None:
        self.fields: dict[str, Node] = {} if fields is None else fields
        self.changes: dict[str, Node | Absent] = {}
        self.final = final
        self.own = own
        self.unresolved = sum(not is_resolved(node) for node in self.fields.values())

    def child(self, key: str) -> Node | Absent:
        """Return what a key means, ABSENT if it is not there."""
        if key in self.changes:
            return self.changes[key]
        return self.fields.get(key, ABSENT)

    def with_child(self, key: str, child: Node | Absent) -> Object:
        """Return a copy in which a key means something else, or nothing."""
        copy = Object.__new__(Object)
        copy.fields, copy.final, copy.own = self.fields, self.final, self.own
        copy.changes = {**self.changes, key: child}
        copy.unresolved = self.unresolved + is_resolved(self.child(key)) - is_resolved(child)
        return copy

    def items(self) -> Iterator[tuple[str, Node]]:
        """Yield keys and what they mean."""
        if not self.changes:
            yield from self.fields.items()
            return
        for key in {**self.fields, **self.changes}:
            node = self.child(key)
            if node is not ABSENT:
                yield key, node

    def __len__(self) -> int:
        return len(self.fields) + len(self.changes)


@attrs.frozen(eq=False)
class Reference:
    """``${path}`` or ``${?path}``; an included file's are looked up below ``prefix`` first."""

    path: Path
    optional: bool
    prefix: Path
    source: Source
    position: int


class Concat:
    """Values side by side of which at least one is a substitution.

    ``appends`` is whether this is what ``key += value`` means: ``${?key} [value]``.
    """

    __slots__ = ("appends", "pieces", "position", "source")

    def __init__(self, pieces: list[Node], source: Source, position: int, *, appends: bool = False) -> None:
        self.pieces = pieces
        self.source = source
        self.position = position
        self.appends = appends

    def with_child(self, slot: int, child: Node | Absent) -> Concat | Absent:
        """Return a copy with one piece replaced, or left out."""
        pieces = _with_item(self.pieces, slot, child)
        return Concat(pieces, self.source, self.position) if pieces else ABSENT

    def child(self, slot: int) -> Node | Absent:
        """Return a piece."""
        return self.pieces[slot] if slot < len(self.pieces) else ABSENT


class Merge:
    """Definitions of one key that cannot be merged before substitutions are put in.

    ``layers`` has them from the lowest to the uppermost, of which the first ``size`` count: what is
    below a definition is the same list with a smaller size, and the same ``Merge`` each time. In a
    ``loose`` one neighbouring layers could be merged.
    """

    __slots__ = ("layers", "loose", "lower", "size")

    def __init__(self, layers: list[Node], *, loose: bool = False) -> None:
        self.layers = layers
        self.size = len(layers)
        self.loose = loose
        self.lower: dict[int, Merge] = {}

    def push(self, node: Node) -> None:
        """Put a definition on top in place, which only the parser may do."""
        self.layers.append(node)
        self.size += 1

    def layer(self, depth: int) -> Node:
        """Return a definition, counted from the uppermost, which is 0."""
        return self.layers[self.size - 1 - depth]

    def below(self, depth: int) -> Node | Absent:
        """Return what is defined below so many of the uppermost definitions."""
        size = self.size - depth
        if size < 2:
            return self.layers[0] if size else ABSENT
        if size not in self.lower:
            lower = Merge.__new__(Merge)
            lower.layers, lower.size, lower.loose, lower.lower = self.layers, size, self.loose, self.lower
            self.lower[size] = lower
        return self.lower[size]

    def with_child(self, slot: int, child: Node | Absent) -> Merge | Absent:
        """Return a copy with one definition replaced, or left out; slots count from the uppermost."""
        layers = _with_item(self.layers[: self.size], self.size - 1 - slot, child)
        return Merge(layers, loose=True) if layers else ABSENT

    def child(self, slot: int) -> Node | Absent:
        """Return a definition, counted from the uppermost."""
        return self.layer(slot) if slot < self.size else ABSENT


Node = Any
"""None, bool, str, Number, Array, Object, Reference, Concat or Merge."""


@attrs.frozen(kw_only=True)
class Include:
    """An ``include`` statement: ``kind`` is the function around the name, None for the bare name."""

    name: str
    kind: str | None
    required: bool
    prefix: Path
    source: Source
    position: int

    def error(self, message: str) -> InvalidConfig:
        """Return the error for this statement."""
        return self.source.error(self.position, message)


def is_resolved(node: Node | Absent) -> bool:
    """Return whether no substitution is left in a node."""
    if isinstance(node, Object):
        return not node.unresolved
    if isinstance(node, Array):
        return node.resolved
    kind = node.__class__
    return kind is not Reference and kind is not Concat and kind is not Merge


def leaf_text(leaf: Node) -> str | None:
    """Return what a scalar is as a part of a text, None for a list or an object."""
    if isinstance(leaf, str):
        return leaf
    if isinstance(leaf, Number):
        return leaf.written
    if leaf is None or isinstance(leaf, bool):
        return {True: "true", False: "false", None: "null"}[leaf]
    return None


def _with_item(items: list[Node], index: int, item: Node | Absent) -> list[Node]:
    return [*items[:index], *(() if item is ABSENT else (item,)), *items[index + 1 :]]
