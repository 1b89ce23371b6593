"""The queue of context starts: a few at a time, the others in the order in which they came.

A start is the most expensive thing that a server does: a JVM, some seconds of every core, hundreds of
megabytes. Twenty at once on two cores do not take ten times as long as two, they all run into their time
limit. So a context is launched only while fewer than ``limit`` others are starting. It holds its *slot*
from the launch until it is ready or has ended; the ones after it wait, first come, first served.

The time that a start may take counts from its launch, so waiting costs a context nothing of it. Waiting has
a limit of its own.

Launching is an effect, like those of an :class:`~jobserver_core.running.outbox.Outbox`: it happens outside
of the queue's lock, one at a time, on the thread whose context gave its slot back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

import attrs

from jobserver_core.models.contexts import StartQueueStatus
from jobserver_core.ports import Clock
from jobserver_core.ports.clock import Timer
from jobserver_core.running.outbox import Outbox

__all__ = ["QueuedStart", "StartQueue"]

_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class QueuedStart:
    """One context's place in the queue.

    ``launch`` is called when its turn has come, ``expire`` when that took too long; at most one of them, and
    neither when :meth:`StartQueue.enter` gave it a slot at once. Both must return quickly.
    """

    name: str
    launch: Callable[[], None]
    expire: Callable[[], None]
    entered_at: float = 0.0
    timer: Timer | None = None


class StartQueue:
    """Lets at most ``limit`` contexts start at once; a start waits up to ``timeout`` seconds for its turn."""

    def __init__(self, clock: Clock, *, limit: int, timeout: float) -> None:
        self._clock = clock
        self._limit = limit
        self._timeout = timeout
        self._lock = threading.Lock()
        self._queued: dict[QueuedStart, None] = {}
        self._starting: set[QueuedStart] = set()
        self._closed = False
        self._launches = Outbox()

    @property
    def status(self) -> StartQueueStatus:
        """How many contexts are starting, and how many wait for that."""
        with self._lock:
            return StartQueueStatus(limit=self._limit, starting=len(self._starting), queued=len(self._queued))

    def enter(self, start: QueuedStart) -> bool:
        """Take a slot, or a place in the queue; return whether it is a slot, which the caller now uses."""
        with self._lock:
            if len(self._starting) < self._limit and not self._queued and not self._closed:
                self._starting.add(start)
                return True
            self._queued[start] = None
            start.entered_at = self._clock.monotonic()
            start.timer = self._clock.call_later(self._timeout, lambda: self._expire(start))
            ahead = len(self._queued) - 1
        _log.info("context %s waits to be started: %d start already, %d wait", start.name, self._limit, ahead)
        return False

    def leave(self, start: QueuedStart) -> None:
        """Give back the slot or the place; repeating this does nothing. The next one gets its turn."""
        with self._lock:
            self._drop(start)
            self._starting.discard(start)
        self._advance()

    def close(self) -> None:
        """Launch nothing any more. What waits stays where it is until it leaves."""
        with self._lock:
            self._closed = True

    def _expire(self, start: QueuedStart) -> None:
        with self._lock:
            if not self._drop(start):
                return
        start.expire()

    def _advance(self) -> None:
        """Give free slots to those who wait longest."""
        with self._lock:
            while self._queued and len(self._starting) < self._limit and not self._closed:
                start = next(iter(self._queued))
                self._drop(start)
                self._starting.add(start)
                self._launches.put(partial(self._launch, start))
        self._launches.drain()

    def _launch(self, start: QueuedStart) -> None:
        waited = self._clock.monotonic() - start.entered_at
        _log.info("context %s is started now, after %.1f s in the queue", start.name, waited)
        start.launch()

    def _drop(self, start: QueuedStart) -> bool:
        """Take a start out of the queue, with the lock held; return whether it was there."""
        if start.timer is not None:
            start.timer.cancel()
        if start not in self._queued:
            return False
        del self._queued[start]
        return True
