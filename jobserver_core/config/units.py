"""Durations and sizes in HOCON's notation: ``10 s``, ``64 MiB``."""

from __future__ import annotations

import math
import re
from datetime import timedelta

_QUANTITY = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)\s*([A-Za-zµ]*)")

_DURATIONS = {
    "ns nano nanos nanosecond nanoseconds": 1e-9,
    "us µs micro micros microsecond microseconds": 1e-6,
    "ms milli millis millisecond milliseconds": 1e-3,
    "s second seconds": 1.0,
    "m minute minutes": 60.0,
    "h hour hours": 3600.0,
    "d day days": 86400.0,
}
_SECONDS = {unit: factor for units, factor in _DURATIONS.items() for unit in units.split()}

_DECIMAL = ("k", "M", "G", "T", "P", "E")
_DECIMAL_WORDS = ("kilo", "mega", "giga", "tera", "peta", "exa")
_BINARY_WORDS = ("kibi", "mebi", "gibi", "tebi", "pebi", "exbi")


def _size_units() -> dict[str, int]:
    units = dict.fromkeys(("", "B", "b", "byte", "bytes"), 1) | {"KB": 1000}
    for power, (letter, decimal, binary) in enumerate(
        zip(_DECIMAL, _DECIMAL_WORDS, _BINARY_WORDS, strict=True), start=1
    ):
        ten, two = 1000**power, 1024**power
        units |= dict.fromkeys((f"{letter}B", f"{decimal}byte", f"{decimal}bytes"), ten)
        upper = letter.upper()
        units |= dict.fromkeys((upper, upper.lower(), f"{upper}i", f"{upper}iB"), two)
        units |= dict.fromkeys((f"{binary}byte", f"{binary}bytes"), two)
    return units


_BYTES = _size_units()


def _split(text: str, meaning: str) -> tuple[str, str]:
    match = _QUANTITY.fullmatch(text.strip()) if len(text) < 60 else None
    if match is None:
        raise ValueError(f"expected a {meaning}, got {text[:60]!r}")
    return match[1], match[2]


def lacks_unit(value: object) -> bool:
    """Return whether a duration is a bare number."""
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value.strip()) if len(value) < 60 else None
        return match is not None and not match[2]
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def parse_duration(value: object) -> float:
    """Convert a duration to seconds.

    Accepts a :class:`~datetime.timedelta`, a number, or a string with a number and a unit of HOCON
    (``500ms``, ``10 s``, ``2 minutes``, ``1h``, ``3 days``). A number without a unit is in seconds.

    Raises:
        ValueError: It is not a duration.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"expected a duration such as 10 s, 500ms or 2 minutes, got {_kind(value)}")
    if isinstance(value, str):
        number, unit = _split(value, "duration such as 10 s, 500ms or 2 minutes")
        if unit and unit not in _SECONDS:
            raise ValueError(f"unknown unit of time {unit!r}; expected ns, us, ms, s, m, h or d, as in 10 s")
        seconds = float(number) * _SECONDS[unit or "s"]
    else:
        seconds = _finite(value)
    if not math.isfinite(seconds):
        raise ValueError(f"a duration must be finite, got {value!r}")
    return seconds


def parse_size(value: object) -> int:
    """Convert a size to bytes.

    Accepts a number of bytes, or a string with a number and a unit of HOCON. ``kB``, ``MB``, ``GB`` … are
    powers of 1000; ``KiB``, ``MiB``, ``GiB`` …, and ``k``, ``m``, ``g`` … alone, are powers of 1024.

    Raises:
        ValueError: It is not a size.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"expected a size such as 64 MiB, 10 MB or 512k, got {_kind(value)}")
    if isinstance(value, int):
        return value
    size = value if isinstance(value, float) else _sized(value)
    if not math.isfinite(size):
        raise ValueError(f"a size must be finite, got {value!r}")
    return round(size)


def _sized(text: str) -> int | float:
    number, unit = _split(text, "size such as 64 MiB, 10 MB or 512k")
    if unit not in _BYTES:
        raise ValueError(
            f"unknown unit of size {unit!r}; expected B, KiB, MiB, GiB, TiB (powers of 1024) or "
            "kB, MB, GB, TB (powers of 1000), as in 64 MiB"
        )
    whole = number.lstrip("+-").isdigit()
    return int(number) * _BYTES[unit] if whole else float(number) * _BYTES[unit]


def duration_text(seconds: float) -> str:
    """Format a duration in HOCON, in the largest unit that divides it: ``1 minute``, ``90 s``."""
    for unit, factor in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= factor and seconds % factor == 0:
            count = int(seconds // factor)
            return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
    if 0 < seconds < 1 and round(seconds * 1000, 9).is_integer():
        return f"{round(seconds * 1000)} ms"
    return f"{seconds:g} s"


def size_text(size: int) -> str:
    """Format a size in HOCON, in the largest power of 1024 that divides it: ``64 MiB``, ``100 B``."""
    for power, letter in reversed(list(enumerate("KMGTPE", start=1))):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power} {letter}iB"
    return f"{size} B"


def _finite(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _kind(value: object) -> str:
    names = {bool: "a boolean", dict: "an object", list: "a list", type(None): "null", str: "a string"}
    return names.get(type(value), type(value).__name__)
