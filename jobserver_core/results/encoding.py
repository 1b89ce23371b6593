"""Results of Python jobs as JSON text, in chunks, with bounded memory.

:mod:`jobserver_core.results.plain_values` converts each type of value, and ``docs/reference/results.md``
shows the rules. Here the parts are joined: small values at once, by the C encoder of :mod:`json`; large ones
member by member, so that only a chunk of the text is in memory. Nothing is dropped: a value that cannot be
written raises :class:`UnusableResult`.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jobserver_core.results.library_values import UnusableResult
from jobserver_core.results.plain_values import MARK, WrittenNumber, check_keys, key, not_finite, simplified

MAX_DEPTH = 200
"""How deep lists and objects of a result may be nested: conversion recurses, and so do many JSON parsers."""
_BUDGET = 2000
"""The number of values, and of kilobytes of text, to convert in memory before a value is streamed."""
_CHUNK = 256 * 1024
"""Bytes of a result to pass on at once: few calls, and little memory for a streamed one."""
_TEXT_SLICE = 128 * 1024
"""Characters of a long string to convert at a time."""


class _TooBig(Exception):
    """A value is too big to convert at once."""


def opened(result: object) -> tuple[bool, Iterator[bytes]]:
    """Return whether a result is a streamed one, and its bytes in chunks, which are made on demand."""
    file = _binary_file(result)
    if file is not None:
        return True, _stream(iter(lambda: file.read(_CHUNK), b""))
    if isinstance(result, Iterator) and not hasattr(type(result), "__arrow_c_stream__"):
        first = next(result, _END)
        if isinstance(first, (bytes, bytearray, memoryview)):
            return True, _stream(itertools.chain((first,), result))
        items: Iterable[Any] = () if first is _END else itertools.chain((first,), result)
        return False, encode(iter(items))
    return False, encode(result)


_END = object()


def _binary_file(result: object) -> io.RawIOBase | io.BufferedIOBase | None:
    """Return the open binary file that a result is, or that a temporary file of :mod:`tempfile` wraps."""
    if type(result).__module__ == "tempfile":
        result = getattr(result, "_file", None) or getattr(result, "file", None)  # spooled, or with a name
    return result if isinstance(result, (io.RawIOBase, io.BufferedIOBase)) else None


def _stream(items: Iterable[Any]) -> Iterator[bytes]:
    for number, item in enumerate(items):
        if not isinstance(item, (bytes, bytearray, memoryview)):
            raise UnusableResult(
                f"a streamed result is bytes only, but chunk {number} is of type {type(item).__name__}"
            )
        view = memoryview(item).cast("B")
        for start in range(0, len(view), _CHUNK):
            yield bytes(view[start : start + _CHUNK])


def encode(result: object) -> Iterator[bytes]:
    """Return the result's JSON text in UTF-8, in chunks of about 256 KiB."""
    buffer: list[bytes] = []
    size = 0
    for text in _chunks(result, 0):
        data = _utf8(text)
        buffer.append(data)
        size += len(data)
        if size >= _CHUNK:
            yield b"".join(buffer)
            buffer, size = [], 0
    if buffer:
        yield b"".join(buffer)


def _utf8(text: str) -> bytes:
    # Lone surrogates have no UTF-8. They can only be inside JSON strings, where \udc00 stands for one.
    return text.encode("utf-8", "backslashreplace")


_MARKED = re.compile(f'"{MARK}([^"]*)"')


def _dump(plain: Any) -> str:
    try:
        text = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:  # Python's own limit, which readers of the result have as well
        message = f"an integer is too long for most readers of JSON: return its str() ({error})"
        raise UnusableResult(message) from None
    return _MARKED.sub(r"\1", text) if MARK in text else text


def _chunks(value: Any, depth: int) -> Iterator[str]:
    """The JSON text of any value: at once when it is small, else member by member."""
    try:
        yield _dump(_Conversion().plain(value, depth))
        return
    except _TooBig:
        pass
    yield from _parts(value, depth)


def _parts(value: Any, depth: int) -> Iterator[str]:
    value = simplified(value)
    if isinstance(value, WrittenNumber):
        yield value.digits
    elif isinstance(value, str):
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
    check_keys(value)
    opening = "{"
    for name, member in value.items():
        yield opening + _dump(key(name)) + ":"
        yield from _chunks(member, depth + 1)
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
            continue
        except _TooBig:
            pass
        # Not in the handler: an error deep inside would come with the tracebacks of all levels above it.
        yield opening
        yield from _parts(element, depth + 1)
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
            return value if math.isfinite(value) else not_finite(value)
        return self._nested(simplified(value), depth)

    def _nested(self, value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise UnusableResult(
                f"the result is nested more than {MAX_DEPTH} levels deep, or contains itself"
            )
        if isinstance(value, (str, int)) or value is None:
            self._spend(len(value) >> 10 if isinstance(value, str) else 0)
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else not_finite(value)
        if isinstance(value, Mapping):
            self._spend(len(value))
            check_keys(value)
            return {key(name): self.plain(member, depth + 1) for name, member in value.items()}
        if not isinstance(value, (list, tuple)):
            raise _TooBig  # an iterator can be gone through once only
        self._spend(len(value))
        return [self.plain(element, depth + 1) for element in value]

    def _spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise _TooBig
