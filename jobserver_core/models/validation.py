"""attrs validators that the models share."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, TypeAlias

import attrs

Attribute: TypeAlias = "attrs.Attribute[Any]"

__all__ = ["aware", "non_negative", "sha256"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


def aware(_instance: object, attribute: Attribute, value: datetime | None) -> None:
    """Reject a datetime without an offset. None is accepted."""
    if value is not None and value.tzinfo is None:
        raise ValueError(f"{attribute.name} must have a time zone, got {value!r}")


def non_negative(_instance: object, attribute: Attribute, value: int) -> None:
    """Reject a negative number."""
    if value < 0:
        raise ValueError(f"{attribute.name} must not be negative, got {value!r}")


def sha256(_instance: object, attribute: Attribute, value: str) -> None:
    """Reject a string that is not 64 lower-case hexadecimal digits."""
    if not _SHA256.fullmatch(value):
        raise ValueError(f"{attribute.name} must be a SHA-256 in lower-case hexadecimal, got {value!r}")
