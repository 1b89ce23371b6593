"""What a HOCON text says: definitions of keys, with references that are not looked up yet."""

from __future__ import annotations

from typing import Any

import attrs

from jobserver_core.errors import InvalidConfig

__all__ = [
    "Append",
    "Array",
    "Concat",
    "Include",
    "Node",
    "Number",
    "Object",
    "Path",
    "Reference",
    "Source",
    "define",
    "merge",
]

Path = tuple[str, ...]


@attrs.frozen
class Source:
    """A text and where it is from; ``name`` is None for what a user sent."""

    text: str
    name: str | None = None

    def error(self, position: int, message: str) -> InvalidConfig:
        """Return the error for a position of the text."""
        line = self.text.count("\n", 0, position) + 1
        column = position - self.text.rfind("\n", 0, position)
        where = f"{self.name}: " if self.name else ""
        return InvalidConfig(message=f"{where}{message}", line=line, column=column)


@attrs.frozen(eq=False)
class Number:
    """A number, and how it was written: that is what it is in a concatenation."""

    written: str
    value: int | float


@attrs.frozen(eq=False)
class Array:
    """A list of nodes."""

    items: list[Any]


@attrs.frozen(eq=False)
class Object:
    """Keys in the order of their first appearance, each with its definitions, the last one on top."""

    fields: dict[str, list[Any]] = attrs.field(factory=dict)


@attrs.frozen(eq=False)
class Reference:
    """``${path}`` or ``${?path}``; an included file's are looked up below ``prefix`` first."""

    path: Path
    optional: bool
    prefix: Path
    source: Source
    position: int


@attrs.frozen(eq=False)
class Concat:
    """Values side by side, each with the blanks before it; at least one is not text."""

    pieces: list[tuple[str, Any]]
    source: Source
    position: int


@attrs.frozen(eq=False)
class Append:
    """``+=``: a list whose beginning is what the key meant before."""

    items: list[Any]
    source: Source
    position: int


Node = Any
"""None, bool, str, Number, Array, Object, Reference, Concat or Append."""


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


def define(stack: list[Node], node: Node) -> None:
    """Put a definition on top of a key's earlier ones; what can never be seen again goes."""
    top = stack[-1] if stack else None
    if isinstance(node, Object):
        if isinstance(top, Object):
            merge(top, node)
            return
    elif isinstance(node, (Reference, Concat, Append)):
        stack.append(node)
        return
    if not isinstance(top, (Object, Reference, Concat, Append)) or not isinstance(node, Object):
        stack.clear()
    stack.append(node)


def merge(into: Object, other: Object) -> None:
    """Put the definitions of another object on top of those of ``into``."""
    for key, definitions in other.fields.items():
        stack = into.fields.setdefault(key, [])
        for definition in definitions:
            define(stack, definition)
