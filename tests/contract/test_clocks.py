"""Both clocks pass the contract of the clock port."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from jobserver_core.ports.clock import Clock, SystemClock
from jobserver_core.testing.clock import EPOCH, ClockContract, ManualClock


class TestSystemClock(ClockContract):
    @pytest.fixture
    def clock(self) -> Iterator[SystemClock]:
        clock = SystemClock()
        yield clock
        clock.close()

    def pass_time(self, clock: Clock, seconds: float) -> None:
        time.sleep(seconds)


class TestManualClock(ClockContract):
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    def pass_time(self, clock: Clock, seconds: float) -> None:
        assert isinstance(clock, ManualClock)
        clock.advance(seconds)

    def test_a_manual_clock_does_not_move_by_itself(self, clock: ManualClock) -> None:
        calls: list[int] = []
        clock.call_later(0, lambda: calls.append(1))
        time.sleep(0.01)
        assert (clock.now(), clock.monotonic(), calls) == (EPOCH, 0.0, [])

    def test_advance_returns_how_many_calls_ran(self, clock: ManualClock) -> None:
        for delay in (1, 2, 3):
            clock.call_later(delay, lambda: None)
        assert (clock.advance(2), clock.advance(0.5), clock.advance(0.5)) == (2, 0, 1)

    def test_a_call_sees_the_time_at_which_it_was_due(self, clock: ManualClock) -> None:
        seen: list[float] = []
        clock.call_later(2, lambda: seen.append(clock.monotonic()))
        clock.advance(10)
        assert (seen, clock.monotonic()) == ([2.0], 10.0)

    def test_the_timers_that_wait_can_be_seen(self, clock: ManualClock) -> None:
        clock.call_later(3, lambda: None)
        clock.call_later(1, lambda: None)
        clock.call_later(2, lambda: None).cancel()
        clock.advance(0.5)
        assert clock.timers == [0.5, 2.5]

    def test_moving_backwards_is_refused(self, clock: ManualClock) -> None:
        with pytest.raises(ValueError, match="forward only"):
            clock.advance(-1)
