"""Time and identity, injected so that tests can control them.

There are three kinds of time. *Monotonic* time has an arbitrary start and never goes back; waits, timeouts
and deadlines use it. *Wall-clock* time is what other programs see, and may be set back at any moment; the
timestamps of files and signed messages use it. *Record* time is written into records. It should match the
wall clock, but later records must be newer, and durations must not be negative. :class:`SteadyClock` derives
it from the other two.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

_log = logging.getLogger(__name__)


class Timer(ABC):
    """A call that is due at some time."""

    @abstractmethod
    def cancel(self) -> None:
        """Prevent the call, unless it has already begun."""


class Clock(ABC):
    """The time, and calls at a later time."""

    @abstractmethod
    def now(self) -> datetime:
        """Return the time for records, in UTC."""

    def wall(self) -> datetime:
        """Return the wall-clock time, in UTC, as other programs see it. It may differ from :meth:`now`."""
        return self.now()

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds that never go back, from an arbitrary start."""

    @abstractmethod
    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call once after ``delay`` seconds, on a thread of the clock. A negative delay is zero.

        Calls run one after another, in the order in which they are due, so they must be short. A call may
        schedule others. Exceptions in a call are logged.
        """

    def close(self) -> None:
        """Drop every call that has not begun, and end the clock's thread. Idempotent."""
        return


_RATE = 0.99
"""How fast record time passes while it is ahead of a wall clock that was set back."""
_MOST_AHEAD = timedelta(days=1)
"""Beyond this, the earlier wall-clock time was wrong, and record time is set back to the wall clock's."""


class SteadyClock(Clock):
    """Wraps another clock with a :meth:`now` that does not go back when that clock's does.

    It follows the wall clock while that goes forward, even if it jumps. When the wall clock is set back, time
    continues from where it was, one percent slower than real time, until the wall clock has caught up. So the
    order of records and their durations stay correct, and an error of one minute is gone after a hundred
    minutes. If the wall clock is set back by more than a day, it was wrong before, so time is set back, too.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._latest = clock.now()
        self._latest_at = clock.monotonic()

    def now(self) -> datetime:
        """Return the time for records, in UTC. It never goes back, except by more than a day."""
        with self._lock:
            wall, at = self._clock.now(), self._clock.monotonic()
            steady = self._latest + timedelta(seconds=(at - self._latest_at) * _RATE)
            self._latest = max(wall, steady) if steady - wall <= _MOST_AHEAD else wall
            self._latest_at = at
            return self._latest

    def continue_after(self, moment: datetime) -> None:
        """Continue from the time of an existing record, unless that is more than a day ahead."""
        with self._lock:
            if moment - self._clock.now() <= _MOST_AHEAD:
                self._latest = max(self._latest, moment)

    def wall(self) -> datetime:
        return self._clock.wall()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        return self._clock.call_later(delay, call)

    def close(self) -> None:
        self._clock.close()


class Ids(ABC):
    """Creates identifiers."""

    @abstractmethod
    def new(self) -> str:
        """Return an id that no server has ever returned before."""


class UuidIds(Ids):
    """Random UUIDs, the format of job ids that clients of spark-jobserver expect."""

    def new(self) -> str:
        return str(uuid.uuid4())


class _Entry(Timer):
    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class SystemClock(Clock):
    """The machine's clock. One thread, started when it is first needed, makes all calls."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, _Entry]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def now(self) -> datetime:
        return datetime.now(timezone.utc)

    def monotonic(self) -> float:
        return time.monotonic()

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        entry = _Entry(self.monotonic() + max(0.0, delay), call)
        with self._changed:
            if self._closed:
                return entry
            heapq.heappush(self._entries, (entry.due, next(self._order), entry))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="jobserver-clock", daemon=True)
                self._thread.start()
            self._changed.notify()
        return entry

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._entries.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while (entry := self._next_due()) is not None:
            call = entry.call
            if call is not None:
                try:
                    call()
                except Exception:  # noqa: BLE001 - one failing call must not end all timers
                    _log.exception("a timer's call failed")

    def _next_due(self) -> _Entry | None:
        with self._changed:
            while not self._closed:
                wait = self._entries[0][0] - self.monotonic() if self._entries else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._entries)[2]
                self._changed.wait(wait)
            return None
