"""Rules for values: the names that users choose, and attrs validators that the models share."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Any, TypeAlias

import attrs

from jobserver_core.errors import InvalidFirstLetter, InvalidName

Attribute: TypeAlias = "attrs.Attribute[Any]"

_SHA256 = re.compile(r"[0-9a-f]{64}")


def aware(_instance: object, attribute: Attribute, value: datetime | None) -> None:
    """Reject a datetime without an offset. None is accepted."""
    if value is not None and value.tzinfo is None:
        raise ValueError(f"{attribute.name} must have a time zone, got {value!r}")


def non_negative(_instance: object, attribute: Attribute, value: int) -> None:
    """Reject a negative number."""
    if value < 0:
        raise ValueError(f"{attribute.name} must not be negative, got {value!r}")


def positive_seconds(_instance: object, attribute: Attribute, value: float | None) -> None:
    """Reject a duration that is not a positive, finite number of seconds. None is accepted."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{attribute.name} must be a positive number of seconds, got {value!r}")


def sha256(_instance: object, attribute: Attribute, value: str) -> None:
    """Reject a string that is not 64 lower-case hexadecimal digits."""
    if not _SHA256.fullmatch(value):
        raise ValueError(f"{attribute.name} must be a SHA-256 in lower-case hexadecimal, got {value!r}")


_MAX_NAME = 255
_PLAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-~ +@]*[A-Za-z0-9_.\-~+@])?")
_CONTEXT = re.compile(r"[A-Za-z][A-Za-z0-9_.\-~+@$]*")
_PREFIX = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-~+@]*")
_CLASS = re.compile(r"[^\W\d]\w*\$?(?:[.$][^\W\d]\w*\$?)*")


def _check(kind: str, name: str, pattern: re.Pattern[str], rule: str) -> str:
    if len(name) > _MAX_NAME:
        raise InvalidName(
            kind=kind, name=name[:32] + "…", rule=f"it must have at most {_MAX_NAME} characters"
        )
    if not pattern.fullmatch(name):
        raise InvalidName(kind=kind, name=name, rule=rule)
    return name


def check_binary_name(name: str) -> str:
    """Return the name if it is valid, otherwise raise InvalidName.

    Commas and colons are not allowed, because class paths are comma-separated lists of names and URIs.
    Neither are trailing spaces, which are not part of a name in such a list.
    """
    rule = (
        "it may contain letters, digits, spaces and _ . - ~ + @, must start with a letter, digit or _, "
        "and must not end with a space"
    )
    return _check("binary", name, _PLAIN, rule)


def check_context_name(name: str) -> str:
    """Return the name if it is valid, otherwise raise InvalidName or InvalidFirstLetter."""
    if not name[:1].isascii() or not name[:1].isalpha():
        raise InvalidFirstLetter(kind="context", name=name[:32], rule="it must start with a letter")
    return _check("context", name, _CONTEXT, "it may contain letters, digits and _ . - ~ + @ $")


def check_data_prefix(prefix: str) -> str:
    """Return the prefix of a data file's name if it is valid, otherwise raise InvalidName."""
    rule = "it may contain letters, digits and _ . - ~ + @, and must start with a letter, digit or _"
    return _check("data file", prefix, _PREFIX, rule)


def check_class_name(name: str) -> str:
    """Return the name of a Python, Scala or Java class if it is valid, otherwise raise InvalidName."""
    return _check("class", name, _CLASS, "it must consist of identifiers separated by '.' or '$'")
