from __future__ import annotations

import logging

import pytest

from jobserver_core.repeats import Repeats
from jobserver_core.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def repeats(clock: ManualClock) -> Repeats:
    return Repeats(logging.getLogger("test.repeats"), monotonic=clock.monotonic)


def test_a_cause_is_logged_at_once_and_then_once_a_minute_with_a_count(
    repeats: Repeats, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    for second in range(121):
        repeats.warning("accept", "cannot accept %d", second)
        clock.advance(1)
    assert caplog.messages == [
        "cannot accept 0",
        "cannot accept 60 (59 more like this since the last line)",
        "cannot accept 120 (59 more like this since the last line)",
    ]


def test_causes_do_not_hide_each_other(repeats: Repeats, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        repeats.warning("a", "first")
        repeats.warning("b", "second")
    assert caplog.messages == ["first", "second"]


def test_the_memory_for_causes_is_bounded(repeats: Repeats, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(2000):
        repeats.warning(str(number), "one of many")
    assert len(repeats._written) <= 1000
    assert len(caplog.messages) == 2000


def test_a_stack_is_written_where_it_is_asked_for(repeats: Repeats, caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        repeats.warning("a", "failed", exc_info=True)
    assert "ValueError: why" in caplog.text
