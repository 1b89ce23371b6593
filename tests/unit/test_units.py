from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.config.units import duration_text, parse_duration, parse_size, size_text

DURATIONS = [
    ("10 s", 10.0),
    ("10s", 10.0),
    (" 10  s ", 10.0),
    ("10", 10.0),
    (10, 10.0),
    (0.25, 0.25),
    (timedelta(minutes=1), 60.0),
    ("500ms", 0.5),
    ("500 millis", 0.5),
    ("2 minutes", 120.0),
    ("1 minute", 60.0),
    ("2m", 120.0),
    ("1 hour", 3600.0),
    ("1.5h", 5400.0),
    ("3 days", 259200.0),
    ("250 us", 0.00025),
    ("1000000 ns", 0.001),
    ("1e2 s", 100.0),
    ("-5 s", -5.0),
    (".5 s", 0.5),
]


@pytest.mark.parametrize(("value", "seconds"), DURATIONS)
def test_a_duration_is_read_as_seconds(value: Any, seconds: float) -> None:
    assert parse_duration(value) == pytest.approx(seconds)


SIZES = [
    (512, 512),
    ("512", 512),
    ("1 B", 1),
    ("2 bytes", 2),
    ("64 MiB", 64 * 1024**2),
    ("64 Mi", 64 * 1024**2),
    ("1g", 1024**3),
    ("1G", 1024**3),
    ("512k", 512 * 1024),
    ("512 K", 512 * 1024),
    ("512m", 512 * 1024**2),
    ("10 MB", 10_000_000),
    ("10 kB", 10_000),
    ("10 KB", 10_000),
    ("2 megabytes", 2_000_000),
    ("2 mebibytes", 2 * 1024**2),
    ("1 TB", 10**12),
    ("1.5 GiB", 3 * 1024**3 // 2),
    ("1e3", 1000),
    (1000.0, 1000),
    ("12345678901234567890", 12345678901234567890),
]


@pytest.mark.parametrize(("value", "count"), SIZES)
def test_a_size_is_read_as_bytes(value: Any, count: int) -> None:
    found = parse_size(value)
    assert found == count
    assert isinstance(found, int)


BAD_DURATIONS = [
    "",
    "s",
    "10 parsecs",
    "ten seconds",
    "10 s s",
    "1..5 s",
    "1e999 s",
    "10 S",
    "1" * 60,
    "10s\n5s",
]


@pytest.mark.parametrize(
    "value",
    [*BAD_DURATIONS, None, True, [], {}, math.inf, math.nan, 10**400, b"10 s"],
    ids=lambda v: repr(v)[:20],
)
def test_an_invalid_duration_is_refused_with_an_example(value: Any) -> None:
    with pytest.raises(ValueError, match=r"10 s|must be finite"):
        parse_duration(value)


BAD_SIZES = ["", "MiB", "10 mb", "10 mib", "10 XB", "ten MB", "10 M B", "1e999", "0x10", "1" * 60]


@pytest.mark.parametrize(
    "value", [*BAD_SIZES, None, False, [], {}, math.inf, math.nan, b"1"], ids=lambda v: repr(v)[:20]
)
def test_an_invalid_size_is_refused_with_an_example(value: Any) -> None:
    with pytest.raises(ValueError, match=r"64 MiB|must be finite"):
        parse_size(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.5, "500 ms"),
        (1.0, "1 s"),
        (60.0, "1 minute"),
        (90.0, "90 s"),
        (300.0, "5 minutes"),
        (3600.0, "1 hour"),
        (86400.0, "1 day"),
        (172800.0, "2 days"),
        (1.5, "1.5 s"),
    ],
)
def test_a_duration_is_shown_in_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (100, "100 B"), (1024, "1 KiB"), (3 * 1024**3, "3 GiB")]
)
def test_a_size_is_shown_in_its_largest_whole_unit(count: int, text: str) -> None:
    assert size_text(count) == text


@given(st.integers(0, 2**70))
def test_every_size_is_read_as_it_is_shown(count: int) -> None:
    assert parse_size(size_text(count)) == count


@given(st.integers(0, 10**12).map(lambda millis: millis / 1000))
def test_every_duration_is_read_as_it_is_shown(seconds: float) -> None:
    assert parse_duration(duration_text(seconds)) == pytest.approx(seconds, rel=1e-5)
