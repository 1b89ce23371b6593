"""Parse HOCON text to a tree, before substitutions are resolved.

Follows the HOCON specification of the Typesafe ("Lightbend") config library. Every step is
linear in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from jobserver_core.config.hocon.merging import MixedValues, define, joined, merge_into
from jobserver_core.config.hocon.nodes import (
    Array,
    Blank,
    Concat,
    Include,
    Node,
    Number,
    Object,
    Path,
    Reference,
    Source,
)
from jobserver_core.config.trees import is_spark_setting
from jobserver_core.errors import InvalidConfig
from jobserver_core.models.json_values import number

MIXED = "strings, lists and objects cannot be joined into one value; is a comma missing?"

_BLANKS = r" \t\r\f\v\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_BLANK = re.compile(f"[{_BLANKS}]*")
_IGNORED = re.compile(rf"(?:[{_BLANKS}\n]+|#[^\n]*|//[^\n]*)*")
_RESERVED = r'$"{}\[\]:=,+#`^?!@*&\\'
_WORD = re.compile(rf"(?:[^{_BLANKS}\n{_RESERVED}/]|/(?!/)|(?<=[0-9][eE])\+(?=[0-9]))+")
_LONE_WORD = re.compile(rf"([^{_BLANKS}\n{_RESERVED}/]+)[{_BLANKS}]*(?=[,\n}}\]#]|\Z)")
_LONE_KEY = re.compile(rf"([^{_BLANKS}\n{_RESERVED}/.]+)[{_BLANKS}]*(?=[=:{{]|\+=)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_INCLUDE_WORD = re.compile("include")
_FUNCTION = re.compile(r"[a-z]+\(")
_QUOTED = re.compile(r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"')
_APPEND_IN_LIST = (
    "'+=' is not allowed inside a list or another '+='; use it elsewhere, and refer to the result with ${…}"
)
_JSON = json.JSONDecoder(strict=False)
_KEYWORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
MAX_NUMBER_LENGTH = 1000
"""The most characters of a number: Python needs quadratic time to parse an integer."""
_MAX_VALUES = 100_000
"""The most values in a text, each of which takes hundreds of bytes of memory."""
_DEEP = 25
"""Values count once more per this many nested blocks, because CPython allocates memory for deep calls."""


class _Word(str):
    """Text without quotes, which may be a number or a keyword."""

    __slots__ = ()


class Parser:
    """Parses one text.

    ``include`` is called with each include statement, and returns the object to merge, or raises.
    ``settings`` collects the settings of Spark, see :mod:`~jobserver_core.config.trees`, and ``origins`` the
    name of the source that has defined each key last, by the dotted path of the key.
    """

    def __init__(
        self,
        source: Source,
        *,
        max_depth: int,
        include: Callable[[Include], Object | None],
        prefix: Path = (),
        settings: dict[Path, Node] | None = None,
        origins: dict[str, str] | None = None,
    ) -> None:
        self._source = source
        self._text = source.text
        self._max_depth = max_depth
        self._include = include
        self._prefix = prefix
        self._settings = {} if settings is None else settings
        self._origins = origins
        self._at = 0
        self._values = 0

    def parse(self) -> Object:
        """Return the text's object.

        Raises:
            InvalidConfig: The text is not HOCON.
        """
        self._skip()
        char = self._char()
        if char == "[":
            raise self._error("the configuration must be an object, not a list")
        if char == "{":
            root = self._object(self._prefix, 1)
            self._skip()
            if self._char():
                raise self._error(f"expected nothing after the closing '}}', found {self._shown()}")
            return root
        root = Object()
        self._members(root, self._prefix, 1)
        if self._char():
            raise self._error("this '}' has no matching '{'")
        return root

    # -- where we are ------------------------------------------------------------------------------

    def _char(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, pattern: re.Pattern[str]) -> str:
        """Skip the text that a pattern matches here, which may be empty, and return it."""
        match = pattern.match(self._text, self._at)
        taken = match.group() if match else ""
        self._at += len(taken)
        return taken

    def _skip(self) -> None:
        self._take(_IGNORED)

    def _error(self, message: str, position: int | None = None) -> InvalidConfig:
        return self._source.error(self._at if position is None else position, message)

    def _shown(self) -> str:
        char = self._char()
        names = {"": "the end of the text", "\n": "the end of the line"}
        return names.get(char, repr(char))

    def _deeper(self, depth: int) -> int:
        if depth > self._max_depth:
            raise self._error(f"objects and lists nest deeper than the limit of {self._max_depth}")
        return depth

    # -- objects -----------------------------------------------------------------------------------

    def _object(self, path: Path | None, depth: int) -> Object:
        opened = self._at
        self._at += 1
        result = Object()
        self._members(result, path, self._deeper(depth))
        if not self._char():
            raise self._error("this '{' is never closed", opened)
        self._at += 1
        return result

    def _members(self, into: Object, path: Path | None, depth: int) -> None:
        self._skip()
        while self._char() not in ("", "}"):
            self._member(into, path, depth)
            self._skip()
            if self._char() == ",":
                self._at += 1
                self._skip()

    def _member(self, into: Object, path: Path | None, depth: int) -> None:
        started = self._at
        word = _WORD.match(self._text, started)
        if word is not None and word.group() == "include":
            self._parse_include(into, path)
            return
        key = self._key()
        append = self._operator(started)
        inner = self._deeper(depth + len(key) - 1)
        full = None if path is None else (*path, *key)
        if append and full is None:
            raise self._error(_APPEND_IN_LIST, started)
        node = self._value(None if append else full, inner)
        if append and full is not None:
            node = self._append(full, node, started)
        if full is not None and not isinstance(node, Object) and is_spark_setting(full):
            self._settings[full] = node
        if full is not None and self._origins is not None and not isinstance(node, Object):
            self._origins[".".join(full)] = self._source.name or ""
        for length in range(len(key) - 1, 0, -1):
            node = Object({key[length]: node})
        define(into, key[0], node)

    def _key(self) -> Path:
        lone = _LONE_KEY.match(self._text, self._at)
        if lone is not None:
            self._at = lone.end()
            return (lone[1],)
        key = self._path("a key")
        self._count(len(key) - 1)
        self._skip()
        return key

    def _operator(self, key: int) -> bool:
        """Read what follows the key that began at a position, and return whether that appends."""
        char = self._char()
        if char == "{":
            return False
        if char and char in "=:":
            self._at += 1
        elif self._text.startswith("+=", self._at):
            self._at += 2
        else:
            line_end = self._text.find("\n", key, self._at)
            self._at = self._at if line_end < 0 else line_end
            message = f"expected '=', ':', '+=' or '{{' after the key, found {self._shown()}"
            if self._text[key] != '"' and self._text[:key].rstrip(" \t").endswith(","):
                message += (
                    "; the comma before the key ended a value: put a value with commas in double quotes"
                )
            raise self._error(message)
        self._skip()
        return char == "+"

    def _append(self, path: Path, value: Node, position: int) -> Node:
        self._count()
        before = Reference(path[len(self._prefix) :], True, self._prefix, self._source, position)
        return Concat([before, Array([value])], self._source, position, appends=True)

    def _parse_include(self, into: Object, path: Path | None) -> None:
        statement = self._include_statement(() if path is None else path)
        self._take(_BLANK)
        if self._char() not in ("", "\n", ",", "}", "#") and not self._text.startswith("//", self._at):
            raise self._error(f"expected the end of the line after an include, found {self._shown()}")
        included = self._include(statement)
        if included is None:
            return
        if path is None and included.unresolved:
            raise statement.error("inside a list, only files without substitutions can be included")
        merge_into(into, included)

    def _include_statement(self, path: Path) -> Include:
        """Read ``include "name"``, ``include file("name")`` or ``include required(…)`` with either."""
        started = self._at
        self._take(_INCLUDE_WORD)
        self._skip()
        functions: list[str] = []
        while function := self._take(_FUNCTION):
            functions.append(function[:-1])
            self._skip()
        if self._char() != '"':
            raise self._error(
                "'include' is a statement of HOCON and needs a quoted name; a key of that name needs quotes",
                started,
            )
        name = self._string()
        for _ in functions:
            self._skip()
            if self._char() != ")":
                raise self._error("the parentheses of this include do not match", started)
            self._at += 1
        required = functions[:1] == ["required"]
        kinds = functions[required:]
        if len(kinds) > 1:
            raise self._error(f"'{kinds[0]}(' of this include takes a quoted name", started)
        return Include(
            name=name,
            kind=kinds[0] if kinds else None,
            required=required,
            prefix=path,
            source=self._source,
            position=started,
        )

    # -- paths -------------------------------------------------------------------------------------

    def _path(self, what: str) -> Path:
        """Read ``a."b.c".d``: names between dots, which may be quoted, and contain blanks."""
        path: list[str] = []
        name: list[str] = []
        for piece in self._path_pieces():
            if piece is not None:
                name.append(piece)
            elif name:
                path.append("".join(name))
                name = []
            else:
                raise self._error(f'{what} has an empty part; write "" if that is meant')
        if not name:
            problem = "ends with a dot" if path else "is missing"
            raise self._error(f"expected {what}, found {self._shown()}" if not path else f"{what} {problem}")
        return (*path, "".join(name))

    def _path_pieces(self) -> Iterator[str | None]:
        """Yield the pieces of names, and None for each dot between them; blanks around dots are dropped."""
        gap = ""
        while True:
            word = ""
            if self._char() == '"':
                yield gap + self._string()
            elif word := self._take(_WORD):
                first, *others = word.split(".")
                yield from [gap + first] if first else []
                for other in others:
                    yield None
                    yield from [other] if other else []
            else:
                return
            gap = self._take(_BLANK)
            if word.endswith("."):
                gap = ""

    # -- values ------------------------------------------------------------------------------------

    def _count(self, values: int = 1) -> None:
        self._values += values
        if self._values > _MAX_VALUES:
            raise self._error(
                f"too many values: more than {_MAX_VALUES}, or fewer deep in nested blocks; "
                "send them as JSON, which has no such limit"
            )

    def _value(self, path: Path | None, depth: int) -> Node:
        self._count(1 + depth // _DEEP)
        started = self._at
        lone = _LONE_WORD.match(self._text, started)
        if lone is not None:
            self._at = lone.end()
            return self._scalar(lone[1], started)
        pieces: list[Node] = []
        gap, simple = "", False
        while (node := self._piece(path, depth)) is not self:
            was_simple, simple = simple, not isinstance(node, (Array, Object))
            if gap and was_simple and simple:
                pieces.append(Blank(gap))
            pieces.append(node)
            if len(pieces) % 2 == 0:
                self._count()
            gap = self._take(_BLANK)
        self._at_value_end(bool(pieces))
        if len(pieces) == 1:
            node = pieces[0]
            return self._scalar(node, started) if isinstance(node, _Word) else node
        return self._side_by_side(pieces, started)

    def _side_by_side(self, pieces: list[Node], position: int) -> Node:
        try:
            values = joined(pieces)
        except MixedValues:
            raise self._error(MIXED, position) from None
        return values[0] if len(values) == 1 else Concat(values, self._source, position)

    def _piece(self, path: Path | None, depth: int) -> Node:
        """Read one value; return this parser when there is none."""
        char = self._char()
        if char == '"':
            return self._string()
        if char and char in "{[$":
            self._count()
        if char == "{":
            return self._object(path, depth + 1)
        if char == "[":
            return self._array(depth + 1)
        if char == "$":
            return self._reference()
        word = self._take(_WORD)
        return _Word(word) if word else self

    def _at_value_end(self, found: bool) -> None:
        char = self._char()
        if char in ("", "\n", ",", "}", "]", "#") or self._text.startswith("//", self._at):
            if not found:
                raise self._error(f'expected a value, found {self._shown()}; write "" for an empty text')
            return
        raise self._error(f"{char!r} is not allowed in an unquoted string; put the string in double quotes")

    def _scalar(self, word: str, position: int) -> Node:
        if word in _KEYWORDS:
            return _KEYWORDS[word]
        match = _NUMBER.fullmatch(word)
        if match is None:
            return str(word)
        if len(word) > MAX_NUMBER_LENGTH:
            raise self._error(
                f"a number can have at most {MAX_NUMBER_LENGTH} characters; put longer ones in quotes",
                position,
            )
        value = number(word)
        if value in (float("inf"), float("-inf")):
            raise self._error(f"the number {word} is too large; put it in quotes", position)
        return Number(str(word), value)

    def _array(self, depth: int) -> Array:
        opened = self._at
        self._deeper(depth)
        self._at += 1
        items: list[Node] = []
        self._skip()
        while (char := self._char()) != "]":
            if not char:
                raise self._error("this '[' is never closed", opened)
            items.append(self._value(None, depth))
            self._skip()
            if self._char() == ",":
                self._at += 1
                self._skip()
        self._at += 1
        return Array(items)

    def _reference(self) -> Reference:
        started = self._at
        if not self._text.startswith("${", started):
            raise self._error("'$' is allowed in an unquoted string only as ${path}")
        self._at += 2
        optional = self._char() == "?"
        self._at += optional
        self._take(_BLANK)
        path = self._path("a path in ${…}")
        if len(path) > self._max_depth:
            raise self._error(f"a path in ${{…}} can have at most {self._max_depth} parts")
        if self._char() != "}":
            raise self._error(f"expected '}}' after the path in ${{…}}, found {self._shown()}")
        self._at += 1
        return Reference(path, optional, self._prefix, self._source, started)

    def _string(self) -> str:
        started = self._at
        if self._text.startswith('"""', started):
            return self._multi_line_string()
        quoted = _QUOTED.match(self._text, started)
        if quoted is None:
            raise self._error('this quoted string does not end on its line; use """ for several lines')
        self._at = quoted.end()
        return self._unescaped(quoted.group(), started)

    def _unescaped(self, quoted: str, position: int) -> str:
        if "\\" not in quoted:
            return quoted[1:-1]
        try:
            return str(_JSON.decode(quoted))
        except json.JSONDecodeError as error:
            raise self._error(f"in a quoted string: {error.msg}", position + error.pos) from None

    def _multi_line_string(self) -> str:
        started = self._at
        end = self._text.find('"""', started + 3)
        if end < 0:
            raise self._error('this """ is never closed', started)
        end += 3
        while self._text.startswith('"', end):
            end += 1
        self._at = end
        return self._text[started + 3 : end - 3]
