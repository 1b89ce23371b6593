"""Convert the values that Python jobs return.

A value is converted one level at a time. :func:`simplified` converts the outermost value only and returns
a JSON type, whose parts may be of any type; the encoder in
:mod:`jobserver_core.results.encoding` converts the parts and bounds the depth. So each rule here is
short, and none of them recurses. ``docs/reference/results.md`` shows every rule with an example that the
tests run.

Rules are tried in this order: types of the standard library, classes with declared fields, libraries (known
by the module of the class or of an ancestor of it), protocols that many libraries share. What remains is its
``str()``.
"""

from __future__ import annotations

import array
import base64
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import inspect
import json
import math
import os
import sys
import types
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from typing import Any

from jobserver_core.results.library_values import CONVERTERS, UnusableResult, from_protocol

MARK = os.urandom(16).hex()
"""Marks a string as the digits of a number; no data of a job contains it by chance."""


class WrittenNumber(str):
    """A number with more digits than a float has, as :data:`MARK` and its digits.

    :mod:`json` writes only integers and floats. A decimal passes through it as this string, and the encoder
    then removes the mark and the quotes.
    """

    __slots__ = ()

    @property
    def digits(self) -> str:
        """The digits, without the mark."""
        return self[len(MARK) :]


def simplified(value: object) -> object:
    """Return None, a scalar, a mapping, a list, a tuple or an iterator that stands for the value.

    Raises:
        UnusableResult: The value cannot be a result.
    """
    if value is None:
        return None
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds):
            return convert(value)
    return _from_object(value)


def key(value: object) -> str:
    """Return the key of a mapping as a string: as its value would be in JSON, or its ``str()``."""
    if isinstance(value, str):
        return str.__str__(value)
    simple = simplified(value)
    if isinstance(simple, WrittenNumber):
        return simple.digits
    if isinstance(simple, str):
        return simple
    if isinstance(simple, float) and not math.isfinite(simple):
        return not_finite(simple)
    if simple is None or isinstance(simple, (bool, int, float)):
        return json.dumps(simple)
    return str(value)


def check_keys(value: Mapping[Any, object]) -> None:
    """Refuse a mapping that would lose members because two of its keys become one string."""
    if all(type(name) is str for name in value):
        return
    seen: dict[str, object] = {}
    for name in value:
        text = key(name)
        if text in seen:
            raise UnusableResult(
                f"the keys {seen[text]!r} and {name!r} of one mapping are both {text!r} in JSON"
            )
        seen[text] = name


def not_finite(value: float) -> str:
    """Return the name of a float that JSON has no number for, as Spark's own JSON writes it."""
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


# -- the standard library --------------------------------------------------------------------------------


def _from_decimal(value: decimal.Decimal) -> str:
    if value.is_finite():
        return WrittenNumber(f"{MARK}{value}")
    return "NaN" if value.is_nan() else not_finite(float(value))


def _from_time(value: Any) -> str | None:
    text = value.isoformat()
    return None if text == "NaT" else str(text)  # pandas has a date that is none


def _from_bytes(value: Any) -> str:
    data = bytes(value)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()


def _from_tuple(value: tuple[Any, ...]) -> Any:
    """An object where each value has a name of its own; else a list, so that nothing is lost."""
    names = getattr(value, "_fields", None) or getattr(value, "__fields__", None)
    if isinstance(names, (list, tuple)) and len(names) == len(value) == len(set(names)):
        return dict(zip(names, value, strict=True))
    return value


def _sorted(values: Set[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return list(values)


def _from_mapping(value: Mapping[Any, Any]) -> Mapping[Any, Any]:
    plain = getattr(type(value), "as_plain_ordered_dict", None)  # pyhocon quotes keys that have dots
    made: Mapping[Any, Any] = plain(value) if callable(plain) else value
    return made


def _from_exception(value: BaseException) -> str:
    text = str(value)
    name = type(value).__name__
    return f"{name}: {text}" if text else name


_CONVERSIONS: tuple[tuple[type[object] | tuple[type[object], ...], Callable[[Any], Any]], ...] = (
    (enum.Enum, lambda value: simplified(value.value)),
    (bool, bool),
    (str, str.__str__),
    (collections.UserString, lambda value: str(value.data)),
    (int, int.__int__),
    (float, float.__float__),
    (decimal.Decimal, _from_decimal),
    ((bytes, bytearray, memoryview), _from_bytes),
    ((datetime.date, datetime.time), _from_time),
    ((fractions.Fraction, datetime.timedelta), str),
    (tuple, _from_tuple),
    (Mapping, _from_mapping),
    (list, lambda value: value),
    (Set, _sorted),
    (BaseException, _from_exception),
    (types.SimpleNamespace, vars),
)


# -- everything else -------------------------------------------------------------------------------------


def _from_object(value: Any) -> Any:
    kind = type(value)
    if isinstance(value, type):
        return str(value)
    if (names := _field_names(kind)) is not None:
        return {name: getattr(value, name) for name in names}
    for base in kind.__mro__:
        if (convert := CONVERTERS.get(base.__module__.partition(".")[0])) is not None:
            return convert(value, simplified, key)
    futures = sys.modules.get("concurrent.futures")
    if futures is not None and isinstance(value, futures.Future):
        return simplified(value.result())
    if inspect.isawaitable(value) or isinstance(value, AsyncIterator):
        raise UnusableResult(
            f"a value of type {kind.__name__} in the result was never awaited: await it, and return its value"
        )
    if isinstance(value, (Iterator, Sequence, ValuesView, array.array)):
        return iter(value)
    return from_protocol(value, simplified, key, otherwise=_elements_or_text)


def _field_names(kind: type) -> Iterable[str] | None:
    """The declared fields of a class: a dataclass, or one of attrs, pydantic or msgspec."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    if (fields := getattr(kind, "__attrs_attrs__", None)) is not None:
        return [field.name for field in fields]
    for attribute in ("__pydantic_fields__", "__struct_fields__"):
        if isinstance(names := getattr(kind, attribute, None), (Mapping, tuple)):
            return tuple(names)
    return None


def _elements_or_text(value: Any) -> Any:
    """The elements of an iterable, unless it has a ``str()`` of its own."""
    kind = type(value)
    own = {name for base in kind.__mro__[:-1] for name in vars(base)}
    unnamed = own.isdisjoint({"__str__", "__repr__"})
    return iter(value) if unnamed and isinstance(value, Iterable) else str(value)
