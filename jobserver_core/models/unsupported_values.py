"""Finds the value that JSON cannot represent in a configuration, and says what to write instead.

:func:`~jobserver_core.models.json_values.dumps` raises an error without the key. Only then is the
configuration searched, so that all others pay nothing for a good message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from datetime import date, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from uuid import UUID

from jobserver_core.models.json_values import JsonMapping, WrittenFloat

_REPLACEMENTS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (PurePath, "str(path)"),
    ((date, time), "value.isoformat()"),
    (Set, "a list, such as sorted(value)"),
    (Enum, "value.value"),
    (bytes, "value.decode()"),
    ((Decimal, UUID), "str(value)"),
)
_METHODS = ("tolist", "item")
"""Methods of arrays and scalars of NumPy and similar libraries that return plain values."""
_EXPECTED = "a string, a number, a boolean, None, a list or a mapping"


def first_unsupported(tree: JsonMapping) -> tuple[str, str] | None:
    """Return the dotted key of the first value that JSON cannot represent, and what is wrong; or None.

    The message names the type of the value but not the value, which may be secret.
    """
    seen: dict[int, object] = {}  # with the values, so that no other one gets the id of one of them
    waiting: list[tuple[str, object]] = [("", tree)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, (Mapping, list, tuple)):
            if id(value) in seen:
                continue
            seen[id(value)] = value
            if isinstance(value, Mapping):
                unsuitable = next((key for key in value if not isinstance(key, str)), None)
                if unsuitable is not None:
                    return path, f"its keys must be strings, not {type(unsuitable).__name__}"
            waiting += reversed(list(_members(path, value)))
        elif problem := _problem(value):
            return path, problem
    return None


def _members(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((f"{path}.{key}" if path else key, inner) for key, inner in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"{path}[{index}]", inner) for index, inner in enumerate(value))


def _problem(value: object) -> str | None:
    if isinstance(value, float) and not isinstance(value, WrittenFloat) and not math.isfinite(value):
        return f"JSON has no {value}; use None or a string"
    if value is None or isinstance(value, (str, bool, int, float)):
        return None
    instead = next((shown for kind, shown in _REPLACEMENTS if isinstance(value, kind)), None)
    kind = type(value)  # some objects, such as columns of Spark, have an attribute of any name
    instead = instead or next((f"value.{name}()" for name in _METHODS if hasattr(kind, name)), _EXPECTED)
    return f"a value of type {kind.__name__} cannot be represented in JSON; use {instead}"
