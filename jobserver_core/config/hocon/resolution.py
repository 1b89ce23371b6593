"""Resolve the substitutions in parsed HOCON, and convert it to plain values.

Theory
------
A substitution has the value of its path *as seen from its place*. Usually that is the value in the
finished document, so that resolution walks over the tree once and follows each substitution.
Three cases need more than that:

- ``a = ${a} [2]`` refers to the definition below it. While a definition in a :class:`Merge` is
  resolved, the tree for its look-ups has only the lower definitions at that place
  (:class:`Place`).
- ``bar { foo = 42, baz = ${bar.foo} }`` refers to a part of the object that is being resolved. So a
  look-up resolves only the containers on its path, not their other children (``only`` in the code).
- A substitution that leads back to itself has no value: if it is optional it is left out, otherwise
  it is an error. The innermost substitution that detects the cycle decides.

Documents with unusual references to themselves show the order in which containers are resolved, which
results are kept, and which are forgotten after a cycle. All three are as in the reference implementation;
``benchmarks/hocon_reference.py`` compares the two, and says where the reference contradicts itself.

Limits protect against hostile texts: the size of the result, the number of steps, and the depth of
nesting and of references. A step stands for about two microseconds. Every operation takes its steps before
it begins, and as many as its work needs: one for each visit of a node with substitutions, and one for every
few items that it copies or searches, or letters that it joins or hashes. Without that, a text could combine
two harmless things, such as a wide list and many substitutions in it, to something that takes minutes.
``benchmarks/hocon_hostile.py`` measures such texts.
"""

from __future__ import annotations

from collections.abc import Mapping

from jobserver_core.config.hocon.merging import MixedValues, hides, joined, laid_over
from jobserver_core.config.hocon.nodes import (
    ABSENT,
    ITEMS_PER_STEP,
    Absent,
    Array,
    Concat,
    Merge,
    Node,
    Number,
    Object,
    Path,
    Reference,
    is_resolved,
)
from jobserver_core.config.hocon.places import LostPlace, Place
from jobserver_core.config.hocon.syntax import MIXED
from jobserver_core.errors import InvalidConfig
from jobserver_core.models.json_values import Json, JsonObject

_NOT_A_LIST = "'+=' can only append to a list, but this key has another value"
_MEANINGLESS = "substitutions refer to each other in a cycle that cannot be resolved"
_DEEP_STACK = (
    "substitutions refer to each other, or to earlier definitions of their key, too deeply; "
    "shorten the chain, or append to a list with +="
)
_MAX_CHAIN = 100
"""How deep substitutions may refer to each other; Python's stack allows this much."""
_SHORT_RUN = 20
"""Definitions of one key that are resolved by recursion, as in the reference."""
_Found = Node | Absent


class _Circle(Exception):
    """A substitution leads back to itself. It has no message, because it is usually caught."""


class _TooDeep(InvalidConfig):
    """References between substitutions are too deep, perhaps only in this order of resolution."""


class Resolver:
    """Resolves one parsed text. ``env`` has fallback values; None means no environment."""

    def __init__(
        self,
        root: Object,
        *,
        max_size: int,
        max_depth: int,
        max_steps: int = 1_000_000,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._root = root
        self._env = env
        self._max_size = max_size
        self._max_depth = max_depth
        self._max_steps = max_steps
        self._size = 0
        self._steps = 0
        self._active: set[int] = set()
        self._circles = 0
        self._as_written = False
        self._known: dict[tuple[int, Path], tuple[Node, Node]] = {}
        self._learnt: list[tuple[int, Path]] = []
        self._missing: dict[
            tuple[int, Path], Object
        ] = {}  # by the ids of references, which live with the text

    def resolve(self) -> JsonObject:
        """Return the plain object.

        Raises:
            InvalidConfig: A substitution cannot be resolved, or a limit is exceeded.
        """
        try:
            root = self._resolve(self._root)
        except _TooDeep:
            self._forget(0)
            self._as_written = True
            root = self._resolve(self._root)
        assert isinstance(root, Object)
        return self._plain_object(root, 1)

    def value(self, node: Node) -> Json:
        """Return the resolved value of a node outside the tree, or None.

        Raises:
            InvalidConfig: A substitution cannot be resolved, or a limit is exceeded.
        """
        found = self._resolve(node)
        return None if found is ABSENT else self._plain(found, 1)

    def _resolve(self, node: Node) -> _Found:
        try:
            return self._resolve_node(node, Place(self._root), ())
        except RecursionError:
            raise InvalidConfig(message=_DEEP_STACK) from None

    # -- limits ------------------------------------------------------------------------------------

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._max_size:
            raise InvalidConfig(
                message="with its substitutions resolved, the configuration is larger than the limit of "
                f"{self._max_size} bytes"
            )

    def _step(self, count: int = 1) -> None:
        self._steps += count
        if self._steps > self._max_steps:
            raise InvalidConfig(
                message="the substitutions of the configuration take too many steps to resolve"
            )

    # -- plain values ------------------------------------------------------------------------------

    def _plain(self, node: Node, depth: int) -> Json:
        if isinstance(node, Object):
            return self._plain_object(node, depth + 1)
        if isinstance(node, Array):
            self._check_depth(depth + 1)
            self._grow(1 + len(node))
            return [self._plain(item, depth + 1) for item in node.items]
        if isinstance(node, str):
            self._grow(len(node))
            return str(node)
        self._grow(1)
        return node.value if isinstance(node, Number) else node

    def _plain_object(self, obj: Object, depth: int) -> JsonObject:
        self._check_depth(depth)
        result: JsonObject = {}
        for key, node in obj.items():
            self._grow(len(key) + 1)
            result[key] = self._plain(node, depth)
        return result

    def _check_depth(self, depth: int) -> None:
        if depth > self._max_depth:
            raise InvalidConfig(
                message=f"objects and lists nest deeper than the limit of {self._max_depth}, "
                "once substitutions are resolved"
            )

    # -- nodes -------------------------------------------------------------------------------------

    def _resolve_node(self, node: Node, place: Place, only: Path) -> _Found:
        """Resolve a node; ``only`` restricts that to the containers on a path below it."""
        if is_resolved(node):
            return node
        self._step()
        known = self._known.get((id(node), ())) or (self._known.get((id(node), only)) if only else None)
        if known is not None:
            return known[1]
        if id(node) in self._active:
            raise _Circle
        if isinstance(node, Reference) and self._missing.get((id(node), only)) is place.root:
            return ABSENT  # nothing has been resolved since it was not found in this tree
        circles = self._circles
        found = self._work_out(node, place, only)
        if found is not ABSENT:
            self._learn(node, () if is_resolved(found) else only, found)
        elif isinstance(node, Reference) and circles == self._circles:
            self._missing[id(node), only] = place.root
        return found

    def _learn(self, node: Node, only: Path, found: Node) -> None:
        key = (id(node), only)
        self._known[key] = (node, found)
        self._learnt.append(key)
        if found is not node:
            self._missing.clear()

    def _forget(self, learnt: int) -> None:
        """Forget the results on the way to a cycle: from another place they may differ."""
        for key in self._learnt[learnt:]:
            self._known.pop(key, None)
        del self._learnt[learnt:]
        self._missing.clear()

    def _work_out(self, node: Node, place: Place, only: Path) -> _Found:
        if isinstance(node, Reference):
            return self._reference(node, place, only)
        if isinstance(node, Object):
            return self._object_on_path(node, place, only) if only else self._object(node, place)
        if isinstance(node, Merge):
            return self._merge(node, place, only)
        if isinstance(node, Concat):
            return self._concat(node, place)
        return node if only else self._array(node, place)

    def _object(self, obj: Object, place: Place) -> Object:
        fields = dict(obj.items())
        self._step(len(fields) // ITEMS_PER_STEP)
        keys = [key for key, node in fields.items() if not is_resolved(node)]
        for key in keys if self._as_written else obj.walked(self._step):
            found = self._resolve_node(fields[key], place.into(obj, key), ())
            if found is ABSENT:
                del fields[key]
            else:
                fields[key] = found
        return Object(fields, final=obj.final)

    def _object_on_path(self, obj: Object, place: Place, only: Path) -> Object:
        key, below = only[0], only[1:]
        node = obj.child(key)
        if not below or node is ABSENT:
            return obj
        found = self._resolve_node(node, place.into(obj, key), below)
        return obj if found is node else obj.with_child(key, found)

    def _array(self, array: Array, place: Place) -> Array:
        self._step(len(array) // ITEMS_PER_STEP)
        found = [
            item if is_resolved(item) else self._resolve_node(item, place.into(array, index), ())
            for index, item in enumerate(array.items)
        ]
        return Array([item for item in found if item is not ABSENT])

    def _merge(self, merge: Merge, place: Place, only: Path) -> _Found:
        self._appends(merge, place)
        values = []
        for depth in range(merge.size):
            node = merge.layer(depth)
            if isinstance(node, (Reference, Concat)):
                inner = self._moved(place, merge, self._below(merge, depth + 1))
            else:
                inner = place.into(merge, depth)
            self._step()
            found = self._resolve_node(node, inner, only)
            if found is not ABSENT:
                values.append(found)
            if not depth and isinstance(found, Array) and found.resolved and self._knows_below(merge, 1):
                return found  # it hides the others, which were resolved without an error
        return laid_over(values, self._step) if values else ABSENT

    def _appends(self, merge: Merge, place: Place) -> None:
        """Resolve a long run of ``+=`` from below, which avoids deep recursion.

        Each step of the run finds the result of the step before it, so that the cost is linear.
        """
        count = 0
        while count < merge.size and getattr(merge.layer(count), "appends", False):
            if self._knows_below(merge, count):
                break
            count += 1
        self._step(count // ITEMS_PER_STEP)
        for depth in range(count - 1, _SHORT_RUN, -1):
            lower = self._below(merge, depth)
            if isinstance(lower, Merge):
                self._resolve_node(lower, self._moved(place, merge, lower), ())

    def _knows_below(self, merge: Merge, depth: int) -> bool:
        """Return whether a long merge keeps the result of all definitions below its uppermost ones."""
        lower = merge.lower.get(merge.size - depth)
        return lower is not None and (id(lower), ()) in self._known

    def _below(self, merge: Merge, depth: int) -> _Found:
        """Return the value of a key below a number of its uppermost definitions.

        The reference creates a new one each time, so that no result is cached for it, and a cycle may end at
        another substitution. In long merges it is kept, or the cost would be quadratic.
        """
        size = merge.size - depth
        if size < 2:
            return merge.layers[0] if size else ABSENT
        if size in merge.lower:
            return merge.lower[size]
        lower: Node = merge.part(size)
        if isinstance(merge.layer(depth), Object):
            self._step(size)
            lower = laid_over([lower.layer(further) for further in range(size)], self._step)
        if len(merge.layers) > _SHORT_RUN:
            merge.lower[size] = lower
        return lower

    def _moved(self, place: Place, node: Node, replacement: _Found) -> Place:
        try:
            return place.replaced(node, replacement, self._step)
        except LostPlace:
            raise InvalidConfig(message=_MEANINGLESS) from None

    def _concat(self, concat: Concat, place: Place) -> _Found:
        self._step(len(concat.pieces) // ITEMS_PER_STEP)
        found = [
            self._resolve_node(piece, place.into(concat, i), ()) for i, piece in enumerate(concat.pieces)
        ]
        try:
            values = joined([piece for piece in found if piece is not ABSENT], self._step)
        except MixedValues:
            message = _NOT_A_LIST if concat.appends else MIXED
            raise concat.source.error(concat.position, message) from None
        if not values:
            return ABSENT
        if isinstance(values[0], str) and len(values[0]) > self._max_size:
            self._grow(len(values[0]))
        return values[0]

    # -- references --------------------------------------------------------------------------------

    def _reference(self, node: Reference, place: Place, only: Path) -> _Found:
        if len(self._active) >= _MAX_CHAIN:
            message = f"substitutions refer to each other more than {_MAX_CHAIN} deep"
            raise _TooDeep(**node.source.error(node.position, message).fields)
        self._active.add(id(node))
        learnt = len(self._learnt)
        try:
            found, where = self._look_up(node, place)
            learnt = len(self._learnt)
            if where is not None:
                found = self._resolve_node(found, where, only)
        except _Circle:
            self._circles += 1
            self._forget(learnt)
            if not node.optional:
                message = f"{_shown(node)} refers to itself, and has no earlier definition"
                raise node.source.error(node.position, message) from None
            return ABSENT
        finally:
            self._active.discard(id(node))
        if found is ABSENT and not node.optional:
            environment = "" if self._env is None else " or in the environment"
            message = f"{_shown(node)} is not defined in this configuration{environment}"
            raise node.source.error(node.position, message)
        return found

    def _look_up(self, node: Reference, place: Place) -> tuple[_Found, Place | None]:
        """Return the target of a reference and its place, which is None for an environment variable."""
        for path in dict.fromkeys(((*node.prefix, *node.path), node.path)):
            found, there = self._find_node(place.root, path)
            if found is not ABSENT:
                return found, there
        name = ".".join(node.path)
        if self._env is not None and name in self._env:
            return str(self._env[name]), None
        return ABSENT, None

    def _find_node(self, root: Object, path: Path) -> tuple[_Found, Place]:
        """Return the unresolved node at a path, and its place."""
        self._step(len(path))
        partly = self._resolve_node(root, Place(root), path)
        assert isinstance(partly, Object)
        node: _Found = partly
        place = Place(partly)
        for key in path:
            if isinstance(node, Merge):
                node, place = self._settled_layer(node, place, key)
            if not isinstance(node, Object):
                return ABSENT, place
            place = place.into(node, key)
            node = node.child(key)
        return node, place

    def _settled_layer(self, merge: Merge, place: Place, key: str) -> tuple[_Found, Place]:
        """Return the object, of those merged above a scalar, that determines the value of a key."""
        for depth in range(merge.size):
            self._step()
            node = merge.layer(depth)
            if isinstance(node, (Reference, Concat)):
                raise InvalidConfig(message=_MEANINGLESS)
            if not isinstance(node, Object):
                break
            if hides(node.child(key)) and node.child(key) is not ABSENT:
                return node, place.into(merge, depth)
        return ABSENT, place


def _shown(node: Reference) -> str:
    return "${" + ".".join(node.path) + "}"
