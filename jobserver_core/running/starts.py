"""The queue of context starts: a few contexts start at a time, the others wait, and callers take turns.

Starting a context is a server's most expensive operation: a JVM, several seconds of every core, hundreds of
megabytes. Twenty starts at once on two cores do not just take ten times as long as two: all of them exceed
their time limit. So a context is launched only while fewer than ``limit`` others are starting. It holds its
*slot* from the launch until it is ready or has ended; the others wait.

Slots go to callers in turn, so that fifty contexts of one caller do not delay the first one of another. Each
caller has a *lane*: its waiting starts in the order in which they came. A free slot goes to the caller with
the fewest contexts starting at that moment; of several such callers, to the one whose last turn was longest
ago. So a caller with nothing starting waits for at most one turn of every other caller. Starts without a
caller, such as those from the configuration file, share one lane.

The time limit of a start counts from its launch, so it does not include waiting. Waiting has a separate
limit.

Launches are effects in an :class:`~jobserver_core.running.outbox.Outbox`: they run outside the queue's lock,
one at a time, on the thread whose context has freed a slot.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial

import attrs

from jobserver_core.models.contexts import StartQueueStatus
from jobserver_core.ports import Clock
from jobserver_core.ports.clock import Timer
from jobserver_core.running.outbox import Outbox

_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class QueuedStart:
    """One context's place in the queue. Callers take turns; ``caller`` is the one who wants this start.

    ``launch`` is called when its turn comes, ``expire`` if that takes too long. At most one of them is
    called, and neither if :meth:`StartQueue.enter` returned True. Both must return quickly.
    """

    name: str
    caller: str
    launch: Callable[[], None]
    expire: Callable[[], None]
    entered_at: float = 0.0
    timer: Timer | None = None


@attrs.define(eq=False)
class StartQueue:
    """Lets at most ``limit`` contexts start at once; a start waits up to ``timeout`` seconds for its turn."""

    _clock: Clock
    _limit: int = attrs.field(kw_only=True)
    _timeout: float = attrs.field(kw_only=True)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _lanes: dict[str, dict[QueuedStart, None]] = attrs.field(factory=dict, init=False)
    """The waiting starts by caller. The caller whose last turn was longest ago comes first."""
    _starting: set[QueuedStart] = attrs.field(factory=set, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _launches: Outbox = attrs.field(factory=Outbox, init=False)

    @property
    def status(self) -> StartQueueStatus:
        """The number of contexts that are starting, and the names of those that are waiting to start."""
        with self._lock:
            waiting = frozenset(start.name for lane in self._lanes.values() for start in lane)
            return StartQueueStatus(limit=self._limit, starting=len(self._starting), waiting=waiting)

    def enter(self, start: QueuedStart) -> bool:
        """Take a slot, or else a place in the queue; return whether it was a slot."""
        with self._lock:
            if len(self._starting) < self._limit and not self._lanes and not self._closed:
                self._starting.add(start)
                return True
            others = sum(map(len, self._lanes.values()))
            self._lanes.setdefault(start.caller, {})[start] = None
            start.entered_at = self._clock.monotonic()
            start.timer = self._clock.call_later(self._timeout, lambda: self._expire(start))
        _log.info(
            "context %s waits to start, with %d others; %d are starting now", start.name, others, self._limit
        )
        return False

    def leave(self, start: QueuedStart) -> None:
        """Give up the slot or the place, so that the next start gets its turn. Idempotent."""
        with self._lock:
            self._drop(start)
            self._starting.discard(start)
        self._advance()

    def close(self) -> None:
        """Stop launching. Waiting starts stay in the queue until they leave it."""
        with self._lock:
            self._closed = True

    def _expire(self, start: QueuedStart) -> None:
        with self._lock:
            if not self._drop(start):
                return
        start.expire()

    def _advance(self) -> None:
        """Give free slots to the starts whose turn it is."""
        with self._lock:
            while self._lanes and len(self._starting) < self._limit and not self._closed:
                start = self._next()
                self._starting.add(start)
                self._launches.put(partial(self._launch, start))
        self._launches.drain()

    def _next(self) -> QueuedStart:
        """Remove the start whose turn it is from its lane, and move the lane behind the others."""
        starting = Counter(start.caller for start in self._starting)
        caller = min(self._lanes, key=lambda caller: starting[caller])  # the first one of equals
        start = next(iter(self._lanes[caller]))
        self._drop(start)
        if caller in self._lanes:
            self._lanes[caller] = self._lanes.pop(caller)
        return start

    def _launch(self, start: QueuedStart) -> None:
        waited = self._clock.monotonic() - start.entered_at
        _log.info("starting context %s after %.1f s in the queue", start.name, waited)
        start.launch()

    def _drop(self, start: QueuedStart) -> bool:
        """Remove a start from the queue, with the lock held; return whether it was there."""
        if start.timer is not None:
            start.timer.cancel()
        lane = self._lanes.get(start.caller, {})
        if start not in lane:
            return False
        del lane[start]
        if not lane:
            del self._lanes[start.caller]
        return True
