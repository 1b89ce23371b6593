"""A clock that tests control, and the contract of every clock."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from jobserver_core.models.arguments import check_seconds
from jobserver_core.ports.clock import Clock, Timer
from jobserver_core.testing.contract import Contract

_log = logging.getLogger(__name__)

EPOCH = datetime(2024, 1, 1, tzinfo=timezone.utc)
"""The default start of a manual clock."""


class _ManualTimer(Timer):
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class ManualClock(Clock):
    """A clock that moves only with :meth:`advance`.

    Due calls run inside :meth:`advance`, on its thread, in the order in which they are due, and each of
    them sees the time at which it was due. A delay of zero waits for ``advance(0)``. Safe to use
    from several threads.
    """

    def __init__(self, start: datetime = EPOCH) -> None:
        self._now = start
        self._elapsed = 0.0
        self._lock = threading.Lock()
        self._advancing = threading.RLock()
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _ManualTimer]] = []
        self._closed = False

    def now(self) -> datetime:
        """Return the time to which the clock was moved."""
        with self._lock:
            return self._now + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Return by how many seconds the clock was moved in total."""
        with self._lock:
            return self._elapsed

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call once the clock has advanced by another ``delay`` seconds."""
        timer = _ManualTimer(call)
        with self._lock:
            if not self._closed:
                due = self._elapsed + max(0.0, delay)
                heapq.heappush(self._timers, (due, next(self._order), timer))
        return timer

    def advance(self, seconds: float = 0.0) -> int:
        """Move the clock forward, make the calls that become due, and return their number.

        This includes calls that are scheduled in the meantime, if they become due.
        """
        check_seconds("seconds", seconds, optional=False)
        if seconds < 0:
            raise ValueError(f"a clock moves forward only, got {seconds!r}")
        with self._advancing:
            until = self.monotonic() + seconds
            ran = 0
            while (call := self._next_due(until)) is not None:
                self._run(call)
                ran += 1
            with self._lock:
                self._elapsed = max(self._elapsed, until)
            return ran

    def set_wall(self, seconds: float) -> None:
        """Move only the wall clock, back or forward, as if the machine's clock were set."""
        with self._lock:
            self._now += timedelta(seconds=seconds)

    @property
    def timers(self) -> list[float]:
        """The seconds until each of the waiting calls is due, soonest first."""
        with self._lock:
            return sorted(due - self._elapsed for due, _, timer in self._timers if timer.call is not None)

    def close(self) -> None:
        """Drop all waiting calls, and all that are scheduled later."""
        with self._lock:
            self._closed = True
            self._timers.clear()

    def _next_due(self, until: float) -> Callable[[], None] | None:
        with self._lock:
            while self._timers and self._timers[0][0] <= until:
                due, _, timer = heapq.heappop(self._timers)
                if timer.call is not None:
                    self._elapsed = max(self._elapsed, due)
                    return timer.call
            return None

    @staticmethod
    def _run(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - as the port says: what a call raises is logged
            _log.exception("a timer's call failed")


class ClockContract(Contract):
    """The behavior of every clock. Fixtures: ``clock``, a new one."""

    @abstractmethod
    def pass_time(self, clock: Clock, seconds: float) -> None:
        """Let time pass: sleep, or move a manual clock."""

    def await_calls(self, clock: Clock, calls: list[str], count: int) -> None:
        """Let time pass until ``count`` calls were made; fail after 30 real seconds."""
        deadline = time.monotonic() + 30
        while len(calls) < count and time.monotonic() < deadline:
            self.pass_time(clock, 0.01)
        assert len(calls) >= count, f"only {calls} were called"

    def call_first(self, clock: Clock, plan: Callable[[], None]) -> None:
        """Run ``plan`` on the clock's thread, so that no call that it schedules can overtake it.

        On a busy machine the test's own thread may pause for longer than any delay in these tests.
        """
        clock.call_later(0, plan)

    def test_now_is_in_utc(self, clock: Clock) -> None:
        assert clock.now().utcoffset() == timedelta(0)

    def test_monotonic_advances_by_the_time_that_passed(self, clock: Clock) -> None:
        before = clock.monotonic()
        self.pass_time(clock, 0.05)
        assert clock.monotonic() - before >= 0.049, "0.05 seconds passed, but monotonic() advanced by less"

    def test_now_advances(self, clock: Clock) -> None:
        before = clock.now()
        self.pass_time(clock, 0.05)
        assert clock.now() > before, "time passed, but now() did not advance"

    def test_a_call_is_made_once_and_not_before_its_time(self, clock: Clock) -> None:
        calls: list[str] = []
        start = clock.monotonic()
        at: list[float] = []

        def call() -> None:
            at.append(clock.monotonic())
            calls.append("a")

        clock.call_later(0.05, call)
        self.await_calls(clock, calls, 1)
        self.pass_time(clock, 0.1)
        assert calls == ["a"]
        assert at[0] - start >= 0.049, "the call was made before its time"

    def test_calls_are_made_in_the_order_in_which_they_are_due(self, clock: Clock) -> None:
        calls: list[str] = []

        def plan() -> None:
            clock.call_later(0.1, lambda: calls.append("later"))
            clock.call_later(0.03, lambda: calls.append("sooner"))

        self.call_first(clock, plan)
        self.await_calls(clock, calls, 2)
        assert calls == ["sooner", "later"]

    def test_a_negative_delay_is_due_at_once(self, clock: Clock) -> None:
        calls: list[str] = []
        clock.call_later(-5, lambda: calls.append("a"))
        self.await_calls(clock, calls, 1)

    def test_a_cancelled_call_is_never_made(self, clock: Clock) -> None:
        calls: list[str] = []

        def plan() -> None:
            clock.call_later(0.02, lambda: calls.append("cancelled")).cancel()
            clock.call_later(0.04, lambda: calls.append("kept"))

        self.call_first(clock, plan)
        self.await_calls(clock, calls, 1)
        assert calls == ["kept"]

    def test_an_error_in_a_call_does_not_stop_the_next(self, clock: Clock) -> None:
        calls: list[str] = []

        def fail() -> None:
            raise RuntimeError("on purpose")

        clock.call_later(0.01, fail)
        clock.call_later(0.02, lambda: calls.append("next"))
        self.await_calls(clock, calls, 1)

    def test_a_call_can_schedule_another(self, clock: Clock) -> None:
        calls: list[str] = []

        def first() -> None:
            clock.call_later(0.01, lambda: calls.append("second"))

        clock.call_later(0.01, first)
        self.await_calls(clock, calls, 1)

    def test_nothing_is_called_after_close(self, clock: Clock) -> None:
        calls: list[str] = []
        start = clock.monotonic()
        clock.call_later(0.1, lambda: calls.append("before"))
        clock.close()
        made_before_close = clock.monotonic() - start >= 0.1  # only on a very busy machine
        clock.call_later(0.0, lambda: calls.append("after"))
        clock.close()
        self.pass_time(clock, 0.2)
        assert calls == [] or (made_before_close and calls == ["before"]), (
            f"calls were made after close: {calls}"
        )
