"""JSON-like values, which settings, configurations and results consist of.

A job can read a number in a configuration as a number, or as the text that the user wrote. A version
``1.10``, an image tag ``3.20`` and an amount with 19 digits survive only as text. So a :class:`WrittenFloat`
keeps the text along with its value, and :func:`dumps` and :func:`loads` preserve it in JSON.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

Json: TypeAlias = Any
"""What JSON can represent: None, bool, int, float, str, a list of such values, or a :data:`JsonObject`.

It is ``Any`` to type checkers: what is in such a value is checked where it is read.
"""
JsonObject: TypeAlias = dict[str, Json]
"""A tree of settings, a configuration, or another JSON object."""
JsonMapping: TypeAlias = Mapping[str, Json]
"""A :data:`JsonObject` that is only read."""


class WrittenFloat(float):
    """A float that keeps its original text, which is a JSON number. ``str()`` returns it."""

    written: str

    def __new__(cls, written: str) -> WrittenFloat:
        """Parse a JSON number.

        Raises:
            ValueError: The text is not a number of JSON.
        """
        parsed = super().__new__(cls, written)
        parsed.written = written
        return parsed

    def __str__(self) -> str:
        return self.written

    def __reduce__(self) -> tuple[type[WrittenFloat], tuple[str]]:
        return type(self), (self.written,)


class WrittenObject(Mapping[str, Json]):
    """A read-only JSON object that keeps its original text, so that nothing has to encode it again."""

    def __init__(self, values: JsonObject, written: str) -> None:
        self._values = values
        self.written = written
        """The text, which is JSON."""

    def __getitem__(self, key: str) -> Json:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def number(written: str) -> int | float:
    """Parse a JSON number, and keep its text if the value alone would not reproduce it.

    ``-0`` becomes a float, because no integer is written like this.
    """
    if written != "-0" and written.lstrip("-").isdecimal():
        return int(written)
    value = float(written)
    return value if repr(value) == written else WrittenFloat(written)


def loads(text: str) -> Json:
    """Parse JSON, with numbers parsed by :func:`number`.

    Raises:
        ValueError: The text is not JSON.
    """
    return json.loads(text, parse_float=number, parse_int=number)


def dumps(value: Json, *, allow_nan: bool = False) -> str:
    """Encode a JSON-like value as compact ASCII JSON, with numbers as they were written.

    ``allow_nan`` allows ``NaN``, ``Infinity`` and ``-Infinity``, which :func:`loads` can parse.

    Raises:
        TypeError: A value or a key cannot be represented in JSON.
        ValueError: A number is NaN or infinite, or the value is nested too deeply or contains itself.
    """
    encoder = json.JSONEncoder(allow_nan=allow_nan, separators=(",", ":"))
    try:
        if _has_only_simple_values(value):
            return encoder.encode(value)
        return "".join(_chunks(value, encoder.encode))
    except RecursionError:
        raise ValueError("the value is nested too deeply, or contains itself") from None


_SIMPLE = frozenset({str, int, bool, float, type(None)})
"""The types for which the C encoder and :func:`dumps` produce the same output."""
_CONTAINERS = frozenset({dict, list})
_Encode = Callable[[Json], str]


def _has_only_simple_values(value: Json) -> bool:
    """Whether the C encoder, which is many times faster, can encode the whole value."""
    waiting, seen = [value], set[int]()
    while waiting:
        container = waiting.pop()
        if type(container) not in _CONTAINERS or id(container) in seen:
            return type(container) in _SIMPLE
        seen.add(id(container))
        if type(container) is dict and set(map(type, container)) - {str}:
            return False
        values = container.values() if type(container) is dict else container
        kinds = set(map(type, values)) - _SIMPLE
        if kinds - _CONTAINERS:
            return False
        if kinds:
            waiting.extend(inner for inner in values if type(inner) in _CONTAINERS)
    return True


def _chunks(value: Json, encode: _Encode) -> Iterator[str]:
    if isinstance(value, WrittenFloat):
        yield value.written
    elif isinstance(value, Mapping):
        keys = [_key(key) for key in value]
        if isinstance(value, dict) and _SIMPLE.issuperset(map(type, value.values())):
            yield encode(value)
        else:
            yield from _nested("{}", (f"{encode(key)}:" for key in keys), value.values(), encode)
    elif isinstance(value, list | tuple):
        if _SIMPLE.issuperset(map(type, value)):
            yield encode(value)
        else:
            yield from _nested("[]", itertools.repeat(""), value, encode)
    else:
        yield encode(value)


def _nested(brackets: str, labels: Iterable[str], values: Iterable[Json], encode: _Encode) -> Iterator[str]:
    separator = brackets[0]
    for label, value in zip(labels, values, strict=False):
        yield separator + label
        yield from _chunks(value, encode)
        separator = ","
    yield brackets[1] if separator == "," else brackets


def plain(value: Json) -> Json:
    """Return a deep copy of a JSON-like value. Mappings become dicts, and tuples become lists.

    Raises:
        TypeError: A value or a key cannot be represented in JSON.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_key(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    raise TypeError(f"a value of type {type(value).__name__} cannot be represented in JSON: {value!r:.80}")


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"keys must be strings, got {key!r:.80}")
    return key
