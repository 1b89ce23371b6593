"""Puts substitutions into parsed HOCON, and makes plain values of it.

A key's value is made of its definitions from the last to the first: the last one, and, while they are
objects, the earlier ones merged below it. A reference to what is being worked out means what
was defined below (``a = ${a} [2]``), as the HOCON specification says.

Hostile texts are bounded: by the size of the result, by the number of steps, and by the
depth of nesting and of references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jobserver_core.config.hocon.nodes import Append, Array, Concat, Number, Object, Path, Reference, Source
from jobserver_core.errors import InvalidConfig

__all__ = ["Resolver"]

_MAX_STEPS = 1_000_000
_MAX_CHAIN = 100
_NEVER = 2**31


class _Missing:
    """What an optional reference to nothing is."""


class _Circle(InvalidConfig):
    """A reference to what is being worked out; a definition that has one gives way to those below it."""


_MISSING = _Missing()
_UNSETTLED = (Object, Reference, Concat, Append)
_Reduced = tuple[Any, list[Object]]
"""A definition taken apart: a value that is no object, or else the objects to merge, uppermost first."""


class Resolver:
    """Resolves one parsed text. ``env`` answers what the text does not define; None is no environment."""

    def __init__(
        self, root: Object, *, max_size: int, max_depth: int, env: Mapping[str, str] | None = None
    ) -> None:
        self._root = root
        self._env = env
        self._max_size = max_size
        self._max_depth = max_depth
        self._size = 0
        self._steps = 0
        self._active: dict[int, int] = {}
        self._open: set[tuple[int, ...]] = set()
        self._lowest = _NEVER
        self._known: dict[int, _Reduced] = {}

    def resolve(self) -> dict[str, Any]:
        """Return the plain object. Raises InvalidConfig."""
        try:
            return self._object([self._root], 1)
        except _Circle as circle:
            raise InvalidConfig(**circle.fields) from None

    # -- limits ------------------------------------------------------------------------------------

    def _spend(self, size: int) -> None:
        self._size += size
        if self._size > self._max_size:
            raise InvalidConfig(
                message="with its substitutions put in, the configuration is larger than the limit of "
                f"{self._max_size} bytes"
            )

    def _step(self, count: int = 1) -> None:
        self._steps += count
        if self._steps > _MAX_STEPS:
            raise InvalidConfig(
                message="the substitutions of the configuration take too many steps to put in"
            )

    # -- plain values ------------------------------------------------------------------------------

    def _object(self, objects: list[Object], depth: int) -> dict[str, Any]:
        if depth > self._max_depth:
            raise InvalidConfig(
                message=f"objects and lists nest deeper than the limit of {self._max_depth}, "
                "once substitutions are put in"
            )
        result = {}
        for key, stack in self._fields(objects).items():
            self._spend(len(key) + 1)
            value = self._value(stack, depth)
            if value is not _MISSING:
                result[key] = value
        return result

    def _fields(self, objects: list[Object]) -> dict[str, list[Any]]:
        if len(objects) == 1:
            return objects[0].fields
        merged: dict[str, list[Any]] = {}
        for obj in reversed(objects):
            self._step(len(obj.fields) + 1)
            for key, stack in obj.fields.items():
                merged.setdefault(key, []).extend(stack)
        return merged

    def _value(self, stack: list[Any], depth: int) -> Any:
        leaf = stack[0]
        if len(stack) > 1 or isinstance(leaf, _UNSETTLED):
            leaf, objects = self._reduce(stack)
            if objects:
                return self._opened([dict, *objects], stack, depth, lambda: self._object(objects, depth + 1))
        if isinstance(leaf, Array):
            array = leaf
            return self._opened([list, *array.items], stack, depth, lambda: self._list(array, depth + 1))
        self._spend(len(leaf) + 1 if isinstance(leaf, str) else 1)
        return leaf.value if isinstance(leaf, Number) else leaf

    def _opened(self, parts: list[Any], stack: list[Any], depth: int, make: Callable[[], Any]) -> Any:
        """Make a value of its type and its parts, unless that is what is being made already."""
        opened = tuple(map(id, parts))
        if opened in self._open:
            return self._circular(stack, depth)
        self._open.add(opened)
        try:
            return make()
        finally:
            self._open.discard(opened)

    def _circular(self, stack: list[Any], depth: int) -> Any:
        """Give what an optional reference to its own surroundings leaves; else raise InvalidConfig."""
        node = stack[-1]
        if isinstance(node, Reference) and node.optional:
            return self._value(stack[:-1], depth) if len(stack) > 1 else _MISSING
        message = "this value contains itself"
        if isinstance(node, (Reference, Concat, Append)):
            raise node.source.error(node.position, message)
        raise InvalidConfig(message=message)

    def _list(self, array: Array, depth: int) -> list[Any]:
        if depth > self._max_depth:
            raise InvalidConfig(
                message=f"objects and lists nest deeper than the limit of {self._max_depth}, "
                "once substitutions are put in"
            )
        self._spend(1)
        values = []
        for item in array.items:
            value = self._value([item], depth)
            if value is not _MISSING:
                values.append(value)
        return values

    # -- definitions -------------------------------------------------------------------------------

    def _reduce(self, stack: list[Any]) -> _Reduced:
        """Take a key's definitions apart, without looking into objects and lists."""
        objects: list[Object] = []
        for index in range(len(stack) - 1, -1, -1):
            self._step()
            try:
                leaf, more = self._expand(stack[index], stack, index)
            except _Circle:
                if index == 0:
                    raise
                continue
            objects.extend(more)
            if leaf is not _MISSING:
                return (_MISSING, objects) if objects else (leaf, [])
        return _MISSING, self._unique(objects)

    def _unique(self, objects: Iterable[Object]) -> list[Object]:
        """Drop objects that are merged already: doing so again, below, changes nothing."""
        result = list({id(obj): obj for obj in objects}.values())
        self._step(len(result))
        return result

    def _expand(self, node: Any, stack: list[Any], index: int) -> _Reduced:
        if isinstance(node, Object):
            return _MISSING, [node]
        if isinstance(node, Reference):
            return self._referred(node)
        if isinstance(node, Concat):
            with self._working_on(node, node.source, node.position):
                return self._concatenated(node)
        if isinstance(node, Append):
            with self._working_on(node, node.source, node.position):
                return self._appended(node, stack[:index])
        return node, []

    @contextmanager
    def _working_on(self, node: Any, source: Source, position: int) -> Iterator[int]:
        if len(self._active) >= _MAX_CHAIN:
            raise source.error(position, f"substitutions refer to each other more than {_MAX_CHAIN} deep")
        order = len(self._active)
        self._active[id(node)] = order
        try:
            yield order
        finally:
            self._active.pop(id(node), None)

    def _appended(self, node: Append, below: list[Any]) -> _Reduced:
        leaf, objects = self._reduce(below)
        if objects or not isinstance(leaf, (Array, _Missing)):
            raise node.source.error(
                node.position, "'+=' appends to lists only, and this key has another value"
            )
        before = leaf.items if isinstance(leaf, Array) else []
        return Array(before + node.items), []

    def _concatenated(self, node: Concat) -> _Reduced:
        parts: list[tuple[str, Any, list[Object]]] = []
        for gap, piece in node.pieces:
            leaf, objects = self._expand(piece, [], 0)
            parts.append((gap, leaf, objects))
        present = [(leaf, objects) for _, leaf, objects in parts if objects or leaf is not _MISSING]
        if not present:
            return _MISSING, []
        if all(objects for _, objects in present):
            return _MISSING, self._unique(obj for _, objects in reversed(present) for obj in objects)
        if all(isinstance(leaf, Array) for leaf, _ in present):
            return Array(self._joined_items([leaf for leaf, _ in present])), []
        if any(objects or isinstance(leaf, Array) for leaf, objects in present):
            raise node.source.error(
                node.position,
                "text, lists and objects cannot stand side by side in one value; is a comma missing?",
            )
        return self._joined_text(parts), []

    def _joined_items(self, arrays: list[Array]) -> list[Any]:
        total = sum(len(array.items) for array in arrays)
        self._step(total)
        return [item for array in arrays for item in array.items]

    def _joined_text(self, parts: list[tuple[str, Any, list[Object]]]) -> str:
        texts = [gap + ("" if leaf is _MISSING else _text(leaf)) for gap, leaf, _ in parts]
        total = sum(map(len, texts))
        self._step(total // 64)
        if total > self._max_size:
            self._spend(total)
        return "".join(texts)

    # -- references --------------------------------------------------------------------------------

    def _referred(self, node: Reference) -> _Reduced:
        known = self._known.get(id(node))
        if known is not None:
            return known
        outside, self._lowest = self._lowest, _NEVER
        try:
            with self._working_on(node, node.source, node.position) as order:
                result = self._lookup(node)
            if self._lowest >= order:
                self._known[id(node)] = result
        finally:
            self._lowest = min(outside, self._lowest)
        return result

    def _lookup(self, node: Reference) -> _Reduced:
        for path in dict.fromkeys(((*node.prefix, *node.path), node.path)):
            stack = self._find(path)
            if stack:
                leaf, objects = self._reduce(stack)
                if objects or leaf is not _MISSING:
                    return leaf, objects
        name = ".".join(node.path)
        if self._env is not None and name in self._env:
            return self._env[name], []
        if node.optional:
            return _MISSING, []
        if self._lowest < _NEVER:
            message = f"${{{name}}} refers to itself, and nothing before defines it"
            raise _Circle(**node.source.error(node.position, message).fields)
        where = "in this text" if self._env is None else "in this configuration or in the environment"
        raise node.source.error(node.position, f"${{{name}}} is not defined {where}")

    def _find(self, path: Path) -> list[Any] | None:
        """Return the definitions of a path, below the lowest that is being worked out."""
        objects = [self._root]
        for key in path[:-1]:
            _, objects = self._reduce(self._settled(objects, key))
            if not objects:
                return None
        return self._settled(objects, path[-1])

    def _settled(self, objects: list[Object], key: str) -> list[Any]:
        self._step(len(objects))
        if len(objects) == 1:
            stack = objects[0].fields.get(key, [])
        else:
            stack = [node for obj in reversed(objects) for node in obj.fields.get(key, ())]
        self._step(len(stack))
        for index, node in enumerate(stack):
            if id(node) in self._active:
                self._lowest = min(
                    self._lowest, *(self._active.get(id(above), _NEVER) for above in stack[index:])
                )
                return stack[:index]
        return stack


def _text(leaf: Any) -> str:
    if isinstance(leaf, Number):
        return leaf.written
    if isinstance(leaf, str):
        return leaf
    return {True: "true", False: "false", None: "null"}[leaf]
