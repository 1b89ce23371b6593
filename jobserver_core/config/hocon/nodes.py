"""The tree of a HOCON text: values and definitions, before and after substitutions are resolved.

A node is *resolved* when it contains no substitution. Nodes are immutable once the parser has
finished, so that all references to a resolved part can share it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import attrs

from jobserver_core.errors import InvalidConfig

Path = tuple[str, ...]


class Absent:
    """The type of :data:`ABSENT`."""


ABSENT: Final = Absent()
"""The result of an optional substitution without a value: its key or list item is left out."""

Step = Callable[[int], None]
"""Takes a number of steps, as in :mod:`~jobserver_core.config.hocon.resolution`; raises for too many."""
ITEMS_PER_STEP = 8
"""How many items of a wide container are copied or searched in one step."""
_COPY = 3
"""Steps to copy a small container, in several calls; CPython allocates memory for each if they are deep."""
_LONGEST_MESSAGE = 300
"""The most characters of a message, which may repeat a key or a path of the text."""


@attrs.frozen
class Source:
    """A text and its origin; ``name`` is None for a user's text."""

    text: str
    name: str | None = None

    def error(self, position: int, message: str) -> InvalidConfig:
        """Return the error for a position of the text; a message that repeats much of the text is shortened.

        Counting lines takes time in proportion to the text: call this only for an error that is
        raised to the user, never for one that is caught and dropped.
        """
        line = self.text.count("\n", 0, position) + 1
        column = position - self.text.rfind("\n", 0, position)
        where = f"{self.name}: " if self.name else ""
        if len(message) > _LONGEST_MESSAGE:
            half = _LONGEST_MESSAGE // 2
            message = f"{message[:half]} … {message[-half:]}"
        message = message.encode(errors="backslashreplace").decode()  # an escaped surrogate cannot be sent
        return InvalidConfig(message=f"{where}{message}", line=line, column=column)


@attrs.frozen(eq=False)
class Number:
    """A number and its original text, which is used in a concatenation."""

    written: str
    value: int | float


class Blank(str):
    """The blanks between two values of a concatenation; next to a list or an object they are ignored."""

    __slots__ = ()


class Array:
    """A list of nodes.

    Lists that grow by ``+=`` share their common items: each refers to the list that it extends
    (``start``) until its items are read.
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
        """All items; do not change the list."""
        if self._start is not None:
            parts: list[list[Node]] = []
            array: Array | None = self
            while array is not None:
                parts.append(array._own)
                array = array._start
            self._own = [item for part in reversed(parts) for item in part]
            self._start = None
        return self._own

    def replaced(self, item: Node, slot: int, new: Node | Absent, step: Step) -> tuple[int, Array | Absent]:
        """Return a copy with another item in a slot, or without it.

        Raises:
            LookupError: The slot no longer has this node.
        """
        step(_COPY + len(self) // ITEMS_PER_STEP)
        items = _with_item(self.items, item, slot, new)
        return slot, Array(items) if items else ABSENT


class Object:
    """Keys in the order of their first appearance.

    ``final`` objects hide all definitions below them. Copies with a changed child share
    ``fields`` and keep the difference in ``changes``, so that copying a wide object is cheap.
    """

    __slots__ = ("_copies", "_earlier", "_keys_of", "_order", "changes", "fields", "final", "unresolved")

    def __init__(
        self,
        fields: dict[str, Node] | None = None,
        *,
        final: bool = False,
        twice: bool = False,
    ) -> None:
        self.fields: dict[str, Node] = {} if fields is None else fields
        self.changes: dict[str, Node | Absent] = {}
        self.final = final
        self.unresolved = sum(not is_resolved(node) for node in self.fields.values())
        self._copies: tuple[int, ...] = ()
        self._earlier: list[str] | None = None
        self._keys_of: dict[int, list[str]] | None = {} if twice else None
        self._order: Order | None = None

    def child(self, key: str) -> Node | Absent:
        """Return the value of a key, or ABSENT."""
        if key in self.changes:
            return self.changes[key]
        return self.fields.get(key, ABSENT)

    def with_child(self, key: str, child: Node | Absent) -> Object:
        """Return a copy in which a key has another value, or none."""
        if self._keys_of is None:
            self._keys_of = {}
        copy = Object.__new__(Object)
        copy.fields, copy.final = self.fields, self.final
        copy.changes = {**self.changes, key: child}
        copy.unresolved = self.unresolved + is_resolved(self.child(key)) - is_resolved(child)
        copy._copies, copy._earlier, copy._keys_of = (), self._earlier, self._keys_of
        copy._order = self.order()
        return copy

    def replaced(self, child: Node, slot: str, new: Node | Absent, step: Step) -> tuple[str, Object]:
        """Return a copy with another node instead of a child, and its key: see :meth:`_key`."""
        step(_COPY + len(self.changes) // 2)
        key = self._key(child, slot, step)
        copy = self.with_child(key, new)
        copy._copies = self._copied()
        return key, copy

    def items(self) -> Iterator[tuple[str, Node]]:
        """Yield keys and their values."""
        if not self.changes:
            yield from self.fields.items()
            return
        for key in self.fields:
            node = self.child(key)
            if node is not ABSENT:
                yield key, node

    def __len__(self) -> int:
        return len(self.fields) + len(self.changes)

    def _copied(self) -> tuple[int, ...]:
        """Return the buckets of a copy; one with as many as this object's last copy has the same order."""
        buckets = _copied_buckets(self._size())
        return self._copies if self._copies[-1:] == (buckets,) else (*self._copies, buckets)

    def _size(self) -> int:
        return len(self.fields) - sum(child is ABSENT for child in self.changes.values())

    # -- the order of the reference implementation -------------------------------------------------

    def laid_on(self, upper: Object) -> None:
        """Record that the parser merges all keys of an object over this one, which puts them first."""
        if self.unresolved or upper.unresolved:
            if self._earlier is None:
                self._earlier = [*reversed(self.fields)] if self.unresolved else []
            self._earlier += reversed(upper.inserted())

    def inserted(self) -> list[str]:
        """Return the keys in the insertion order of the reference; that of resolved keys is arbitrary."""
        return list(dict.fromkeys([*reversed(self._earlier or ()), *self.fields]))

    def walked(self, step: Step) -> list[str]:
        """Return the unresolved keys in the order in which the reference resolves them."""
        order = self.order()
        keys = [key for key in order.keys if not is_resolved(self.child(key))]
        step(len(order.keys) // ITEMS_PER_STEP + _cost_to_order(keys, self._copies))
        return _in_buckets(keys, order, self._size(), self._copies) if len(keys) > 1 else keys

    def order(self) -> Order:
        """Return the keys in the order of insertion; call this only once the parser has finished."""
        if self._order is None:
            self._order = Order(self.inserted())
        return self._order

    def _key(self, child: Node, slot: str, step: Step) -> str:
        """Return the key of a child, or the first of several keys in the order above.

        A partly resolved substitution is under its own key and under the one that it refers to, and the
        reference replaces the first one that it finds.
        """
        if self._keys_of is None:
            keys = [slot] if self.child(slot) is child else []
        else:
            if not self._keys_of:
                self._learn_keys(self._keys_of)
            keys = [key for key, changed in self.changes.items() if changed is child]
            keys += [key for key in self._keys_of.get(id(child), ()) if key not in self.changes]
        if len(keys) > 1:
            order, copies = self.order(), self._copied()
            step(_cost_to_order(keys, copies))
            keys = _in_buckets(sorted(keys, key=order.position), order, self._size(), copies)
        if not keys:
            raise LookupError(slot)
        return keys[0]

    def _learn_keys(self, keys_of: dict[int, list[str]]) -> None:
        keys_of[id(None)] = []
        for key, node in self.fields.items():
            if not is_resolved(node):
                keys_of.setdefault(id(node), []).append(key)


@attrs.frozen(eq=False)
class Reference:
    """``${path}`` or ``${?path}``; an included file's are looked up below ``prefix`` first."""

    path: Path
    optional: bool
    prefix: Path
    source: Source
    position: int


class Concat:
    """Adjacent values of which at least one is a substitution.

    ``appends`` is whether this is the meaning of ``key += value``: ``${?key} [value]``.
    """

    __slots__ = ("appends", "pieces", "position", "source")

    def __init__(self, pieces: list[Node], source: Source, position: int, *, appends: bool = False) -> None:
        self.pieces = pieces
        self.source = source
        self.position = position
        self.appends = appends

    def replaced(self, piece: Node, slot: int, new: Node | Absent, step: Step) -> tuple[int, Concat | Absent]:
        """Return a copy with another piece in a slot, or without it.

        Raises:
            LookupError: The slot no longer has this node.
        """
        step(_COPY + len(self.pieces) // ITEMS_PER_STEP)
        pieces = _with_item(self.pieces, piece, slot, new)
        return slot, Concat(pieces, self.source, self.position) if pieces else ABSENT


class Merge:
    """Definitions of one key that cannot be merged before substitutions are resolved.

    ``layers`` has them from the lowest to the uppermost; only the first ``size`` belong to this merge. The
    merge below a definition shares the list; ``lower`` caches such merges by their size.
    """

    __slots__ = ("_twice", "layers", "lower", "size")

    def __init__(self, layers: list[Node], *, twice: bool = False) -> None:
        self.layers = layers
        self.size = len(layers)
        self.lower: dict[int, Node] = {}
        self._twice = twice

    def push(self, node: Node) -> None:
        """Add a definition on top in place; only the parser may call this."""
        self.layers.append(node)
        self.size += 1

    def layer(self, depth: int) -> Node:
        """Return a definition by its number, counted from 0, the uppermost."""
        return self.layers[self.size - 1 - depth]

    def part(self, size: int) -> Merge:
        """Return the merge of this number of the lowest definitions."""
        part = Merge.__new__(Merge)
        part.layers, part.size, part.lower, part._twice = self.layers, size, self.lower, self._twice
        return part

    def replaced(self, layer: Node, slot: int, new: Node | Absent, step: Step) -> tuple[int, Merge | Absent]:
        """Return a copy with another definition in a slot, or without it.

        Slots count from the uppermost. If a definition occurs ``twice``, its first occurrence is replaced, as
        in the reference implementation.

        Raises:
            LookupError: The slot no longer has this node.
        """
        step(_COPY + self.size // ITEMS_PER_STEP)
        if self._twice:
            slot = next((depth for depth in range(slot) if self.layer(depth) is layer), slot)
        layers = _with_item(self.layers[: self.size], layer, self.size - 1 - slot, new)
        return slot, Merge(layers, twice=self._twice) if layers else ABSENT


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
    """Return whether a node contains no substitution."""
    if isinstance(node, Object):
        return not node.unresolved
    if isinstance(node, Array):
        return node.resolved
    kind = node.__class__
    return kind is not Reference and kind is not Concat and kind is not Merge


def leaf_text(leaf: Node) -> str | None:
    """Return a scalar as a part of a text, or None for a list or an object."""
    if isinstance(leaf, str):
        return leaf
    if isinstance(leaf, Number):
        return leaf.written
    if leaf is None or isinstance(leaf, bool):
        return {True: "true", False: "false", None: "null"}[leaf]
    return None


def _with_item(items: list[Node], old: Node, index: int, new: Node | Absent) -> list[Node]:
    if items[index] is not old:
        raise LookupError(index)
    return [*items[:index], *(() if new is ABSENT else (new,)), *items[index + 1 :]]


# -- the iteration order of Java's hash maps, which is visible in cycles of substitutions ---------------
#
# In a cycle of optional substitutions, the one that is resolved first gets a value. The reference
# implementation resolves the keys of an object in the order of a java.util.HashMap: by bucket, and within a
# bucket in the order of insertion. The number of buckets is a power of two that depends on how the map was
# created: grown key by key, or copied from another map.

_SMALLEST = 16
"""The number of buckets of a new java.util.HashMap."""


class Order:
    """The keys of an object in the order of insertion, with their hash codes, once they are needed."""

    __slots__ = ("_hashes", "_positions", "keys")

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys
        self._positions: dict[str, int] = {}
        self._hashes: dict[str, int] = {}

    def position(self, key: str) -> int:
        """Return the number of a key."""
        if not self._positions:
            self._positions = {key: number for number, key in enumerate(self.keys)}
        return self._positions[key]

    def bucket(self, buckets: int, key: str) -> int:
        """Return the bucket of a key in a java.util.HashMap with a number of buckets."""
        code = self._hashes.get(key)
        if code is None:
            code = self._hashes[key] = _hash(key)
        return code % buckets


def _cost_to_order(keys: list[str], copies: tuple[int, ...]) -> int:
    return len(keys) * (1 + len(copies)) + sum(map(len, keys)) // 32


def _in_buckets(keys: list[str], order: Order, size: int, copies: Iterable[int] = ()) -> list[str]:
    """Return keys, given in the order of insertion, as a map of ``size`` entries yields them.

    ``copies`` has the numbers of buckets of its successive copies.
    """
    buckets = _SMALLEST
    while size > buckets * 3 // 4:
        buckets *= 2
    ordered = keys
    for count in (buckets, *copies):
        ordered = sorted(ordered, key=functools.partial(order.bucket, count))
    return ordered


def _copied_buckets(size: int) -> int:
    """Return how many buckets the copy of a map with a number of entries has, as of Java 8 to 18."""
    return 1 << (size * 4 // 3).bit_length() if size else 1


def _hash(key: str) -> int:
    code = 0
    for unit in memoryview(key.encode("utf-16-le", "surrogatepass")).cast("H"):
        code = (31 * code + unit) & 0xFFFFFFFF
    return code ^ code >> 16
