"""Results of Python jobs as JSON text, in pieces, with bounded memory.

=============================================  ==========================================================
a job returns                                  JSON
=============================================  ==========================================================
``None``, ``bool``, numbers, text              the same; what is not finite is ``"NaN"``, ``"Infinity"``
                                               or ``"-Infinity"``, as in Spark's own JSON
mappings                                       an object; keys become strings, ``None`` and ``1.5`` as in JSON
``None``, ``bool``, numbers, text              the same; if not finite ``"NaN"``, ``"Infinity"`` or
                                               ``"-Infinity"``, as in Spark's own JSON
enums                                          their value
dates, times                                   ISO 8601
``Decimal``, ``Fraction``, ``UUID``, paths     their text
``bytes``                                      their text in UTF-8; Base64 where they are not UTF-8
numpy scalars and arrays                       numbers and (nested) arrays
pandas and Arrow tables, pandas series         an array of records, an array of values
a generator or iterator of ``bytes``           none: a streamed result of raw bytes
DataFrames and RDDs                            none: an error that says to collect them
anything else                                  its ``str()``
=============================================  ==========================================================

Big integers stay exact. Nothing is dropped: what cannot be done is an :class:`UnusableResult`.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import fractions
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any

from jobserver_pyspark.protocol.failures import UnusableResult
from jobserver_pyspark.runner.library_values import CONVERTERS

__all__ = ["MAX_DEPTH", "UnusableResult", "encode", "opened"]

MAX_DEPTH = 200
_BUDGET = 2000
"""How many values, and kilobytes of text, are converted in memory before a value is streamed."""
_PIECE = 256 * 1024
_TEXT_SLICE = 128 * 1024


class _TooBig(Exception):
    """A value that is better streamed."""


def opened(result: Any) -> tuple[bool, Iterator[bytes]]:
    """Return whether a result is a streamed one, and its bytes in pieces, made as they are asked for."""
    if isinstance(result, Iterator):
        first = next(result, _END)
        if isinstance(first, (bytes, bytearray, memoryview)):
            return True, _stream(itertools.chain((first,), result))
        items: Iterable[Any] = () if first is _END else itertools.chain((first,), result)
        return False, encode(iter(items))
    return False, encode(result)


_END = object()


def _stream(items: Iterable[Any]) -> Iterator[bytes]:
    for number, item in enumerate(items):
        if not isinstance(item, (bytes, bytearray, memoryview)):
            raise UnusableResult(
                f"a streamed result is bytes only, but piece {number} is of type {type(item).__name__}"
            )
        view = memoryview(item).cast("B")
        for start in range(0, len(view), _PIECE):
            yield bytes(view[start : start + _PIECE])


def encode(result: Any) -> Iterator[bytes]:
    """Return the result's JSON text in UTF-8, in pieces of about 256 KiB."""
    buffer: list[bytes] = []
    size = 0
    for text in _pieces(result, 0):
        data = _utf8(text)
        buffer.append(data)
        size += len(data)
        if size >= _PIECE:
            yield b"".join(buffer)
            buffer, size = [], 0
    if buffer:
        yield b"".join(buffer)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # lone surrogates have no UTF-8; they can only be inside JSON strings
        return "".join(f"\\u{ord(c):04x}" if 0xD800 <= ord(c) < 0xE000 else c for c in text).encode()


def _dump(plain: Any) -> str:
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _pieces(value: Any, depth: int) -> Iterator[str]:
    """The JSON text of any value: at once when it is small, else member by member."""
    try:
        yield _dump(_Conversion().plain(value, depth))
        return
    except _TooBig:
        pass
    value = _simplified(value)
    if isinstance(value, str):
        yield from _long_text(value)
    elif isinstance(value, Mapping):
        yield from _members(value, depth)
    else:
        yield from _elements(value, depth)


def _long_text(text: str) -> Iterator[str]:
    yield '"'
    for start in range(0, len(text), _TEXT_SLICE):
        yield _dump(text[start : start + _TEXT_SLICE])[1:-1]
    yield '"'


def _members(value: Mapping[Any, Any], depth: int) -> Iterator[str]:
    _check_keys(value)
    opening = "{"
    for key, member in value.items():
        yield opening + _dump(_key(key)) + ":"
        yield from _pieces(member, depth + 1)
        opening = ","
    yield "{}" if opening == "{" else "}"


def _elements(values: Iterable[Any], depth: int) -> Iterator[str]:
    """An array: runs of small elements are encoded together, by the C encoder."""
    opening = "["
    batch: list[Any] = []
    conversion = _Conversion()
    for element in values:
        try:
            batch.append(conversion.plain(element, depth + 1))
            continue
        except _TooBig:
            pass
        if batch:
            yield opening + _dump(batch)[1:-1]
            opening, batch = ",", []
        conversion = _Conversion()
        try:
            batch.append(conversion.plain(element, depth + 1))
        except _TooBig:
            yield opening
            yield from _pieces(element, depth + 1)
            opening = ","
            conversion = _Conversion()
    if batch:
        yield opening + _dump(batch)[1:-1]
        opening = ","
    yield "[]" if opening == "[" else "]"


class _Conversion:
    """Converts values to what :mod:`json` encodes, up to a budget; raises _TooBig over it."""

    def __init__(self) -> None:
        self._left = _BUDGET

    def plain(self, value: Any, depth: int) -> Any:
        self._spend(1)
        if value is None or value is True or value is False:
            return value
        kind = type(value)
        if kind is str:
            self._spend(len(value) >> 10)
            return value
        if kind is int:
            return value
        if kind is float:
            return value if math.isfinite(value) else _not_finite(value)
        return self._nested(_simplified(value), depth)

    def _nested(self, value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise UnusableResult(
                f"the result is nested more than {MAX_DEPTH} levels deep, or contains itself"
            )
        if isinstance(value, (str, int)) or value is None:
            self._spend(len(value) >> 10 if isinstance(value, str) else 0)
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else _not_finite(value)
        if isinstance(value, Mapping):
            self._spend(len(value))
            _check_keys(value)
            return {_key(key): self.plain(member, depth + 1) for key, member in value.items()}
        if not isinstance(value, (list, tuple)):
            raise _TooBig  # an iterator can be gone through once only
        self._spend(len(value))
        return [self.plain(element, depth + 1) for element in value]

    def _spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise _TooBig


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _key(key: Any) -> str:
    if isinstance(key, str):
        return str(key)
    simple = _simplified(key)
    if isinstance(simple, str):
        return simple
    if simple is None or isinstance(simple, (bool, int, float)):
        text = _Conversion().plain(simple, 0)
        return text if isinstance(text, str) else json.dumps(text)
    return str(key)


def _check_keys(value: Mapping[Any, Any]) -> None:
    """Refuse a mapping that would lose members, since two of its keys become one string."""
    if all(type(key) is str for key in value):
        return
    seen: dict[str, Any] = {}
    for key in value:
        text = _key(key)
        if text in seen:
            raise UnusableResult(
                f"the keys {seen[text]!r} and {key!r} of one mapping are both {text!r} in JSON"
            )
        seen[text] = key


def _simplified(value: Any) -> Any:
    """One step towards JSON: a scalar, a mapping, a list, a tuple or an iterator."""
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds):
            return convert(value)
    return value if value is None else _from_object(value)


def _from_time(value: Any) -> str | None:
    text = value.isoformat()
    return None if text == "NaT" else str(text)  # pandas has a date that is none


def _text_of_bytes(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()


def _from_tuple(value: tuple[Any, ...]) -> Any:
    names = getattr(value, "_fields", None) or getattr(value, "__fields__", None)
    if isinstance(names, (list, tuple)) and len(names) == len(value):
        return dict(zip(names, value, strict=True))
    return value


def _sorted(values: Set[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return list(values)


def _from_mapping(value: Mapping[Any, Any]) -> Mapping[Any, Any]:
    plain = getattr(value, "as_plain_ordered_dict", None)  # pyhocon quotes keys that have dots
    made: Mapping[Any, Any] = plain() if callable(plain) else value
    return made


def _from_object(value: Any) -> Any:
    kind = type(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not isinstance(value, type) and (names := getattr(kind, "__attrs_attrs__", None)) is not None:
        return {field.name: getattr(value, field.name) for field in names}
    module = kind.__module__.partition(".")[0]
    if module in CONVERTERS:
        return CONVERTERS[module](value, _simplified, _key)
    if isinstance(value, (Iterator, range)) or (
        isinstance(value, Iterable)
        and kind.__module__ in ("collections", "builtins")
        and hasattr(value, "__len__")
    ):
        return iter(value)
    return str(value)


_CONVERSIONS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (enum.Enum, lambda value: _simplified(value.value)),
    (bool, bool),
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    ((bytes, bytearray, memoryview), lambda value: _text_of_bytes(bytes(value))),
    ((datetime.date, datetime.time), _from_time),
    ((decimal.Decimal, fractions.Fraction, datetime.timedelta), str),
    (tuple, _from_tuple),
    (Mapping, _from_mapping),
    (list, lambda value: value),
    (Set, _sorted),
)
