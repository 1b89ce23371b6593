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


def byte_count(instance: object, attribute: Attribute, value: object) -> None:
    """Reject what is not a number of bytes. For values of plug-ins, which type checkers may not have seen."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{attribute.name} must be a number of bytes, not {type(value).__name__}")
    non_negative(instance, attribute, value)


def positive_seconds(_instance: object, attribute: Attribute, value: float | None) -> None:
    """Reject a duration that is not a positive, finite number of seconds. None is accepted."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{attribute.name} must be a positive number of seconds, got {value!r}")


def sha256(_instance: object, attribute: Attribute, value: str) -> None:
    """Reject what is not a string of 64 lower-case hexadecimal digits."""
    if not (isinstance(value, str) and _SHA256.fullmatch(value)):
        raise ValueError(f"{attribute.name} must be a SHA-256 in lower-case hexadecimal, got {value!r}")


_MAX_NAME = 255
"""The most characters of a name, which may become that of a file: Linux allows 255 bytes."""
_PLAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-~ +@]*[A-Za-z0-9_.\-~+@])?")
_CONTEXT = re.compile(r"[A-Za-z][A-Za-z0-9_.\-~+@$]*")
_PREFIX = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-~+@]*")
_EXTENSIONS = r"(?:\.[A-Za-z][A-Za-z0-9]{0,15}){1,2}"
_CLASS = re.compile(r"[^\W\d]\w*\$?(?:[.$][^\W\d]\w*\$?)*")

_MAX_DATA_FILE = _MAX_NAME - len("-2026-11-29T04_16_29.140+00_00-999")
"""The most characters of a data file's prefix and ending together: a time and perhaps a number are added."""

DEFAULT_ENDING = ".dat"
"""The end of the name of a data file if there is no other."""


def _check(kind: str, name: str, pattern: re.Pattern[str], rule: str) -> str:
    if not isinstance(name, str):
        raise InvalidName(
            kind=kind, name=repr(name)[:32], rule=f"it must be a string, not {type(name).__name__}"
        )
    if len(name) > _MAX_NAME:
        raise InvalidName(
            kind=kind, name=name[:32] + "…", rule=f"it must have at most {_MAX_NAME} characters"
        )
    if not pattern.fullmatch(name):
        raise InvalidName(kind=kind, name=name, rule=rule)
    return name


def check_binary_name(name: str) -> str:
    """Return the name if it is valid.

    Commas and colons are not allowed, because class paths are comma-separated lists of names and URIs.
    Neither are trailing spaces, which are not part of a name in such a list.

    Raises:
        InvalidName: It is not valid.
    """
    rule = (
        "it may contain letters, digits, spaces and _ . - ~ + @, must start with a letter, digit or _, "
        "and must not end with a space"
    )
    return _check("binary", name, _PLAIN, rule)


def check_context_name(name: str) -> str:
    """Return the name if it is valid.

    Raises:
        InvalidName: It has characters that are not allowed, or the wrong length.
        InvalidFirstLetter: Its first character is not allowed.
    """
    if isinstance(name, str) and (not name[:1].isascii() or not name[:1].isalpha()):
        raise InvalidFirstLetter(kind="context", name=name[:32], rule="it must start with a letter")
    return _check("context", name, _CONTEXT, "it may contain letters, digits and _ . - ~ + @ $")


def data_file_name(prefix: str, ending: str | None = None) -> tuple[str, str]:
    """Return the parts of a data file's name before and after its time.

    Without ``ending``, the extensions of ``prefix`` move to the end.

    Raises:
        InvalidName: One of them is not valid.
    """
    rule = "it may contain letters, digits and _ . - ~ + @, and must start with a letter, digit or _"
    _check("data file", prefix, _PREFIX, rule)
    if ending is None:
        prefix, found = split_ending(prefix)
        ending = found or DEFAULT_ENDING
    rule = (
        "it must be one or two extensions such as .csv.gz, "
        "each a letter followed by up to 15 letters or digits"
    )
    _check("ending of a data file", ending, re.compile(_EXTENSIONS), rule)
    if len(prefix) + len(ending) > _MAX_DATA_FILE:
        rule = f"it must have at most {_MAX_DATA_FILE} characters, including its ending"
        raise InvalidName(kind="data file", name=prefix[:32] + "…", rule=rule)
    return prefix, ending


def split_ending(file_name: str) -> tuple[str, str]:
    """Split a file name into the part before its last one or two extensions, and these.

    Spark recognizes formats and compression by them. Without an extension, the second part is empty.
    """
    found = re.fullmatch(f"(.+?)({_EXTENSIONS})", file_name)
    return (found[1], found[2]) if found else (file_name, "")


def check_class_name(name: str) -> str:
    """Return the name of a Python, Scala or Java class if it is valid.

    Raises:
        InvalidName: It is not valid.
    """
    return _check("class", name, _CLASS, "it must consist of identifiers separated by '.' or '$'")
