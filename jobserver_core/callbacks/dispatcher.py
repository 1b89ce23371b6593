"""The dispatcher: finds the deliveries that are due, and lets a bounded number of threads attempt them.

Theory
======

The problem: deliveries become due at any time and in any number, and some receivers are slow or dead.
Each must be attempted soon, in order for its receiver, with few threads and without keeping a backlog in
memory.

The idea: the metadata store is the queue. A *scan* reads the oldest due deliveries in small pages, leaves out
receivers that have no free place (:mod:`~jobserver_core.callbacks.lanes`), and gives each of the others to a
worker. One worker scans at a time, before it takes a delivery itself. A scan is wanted after every new
delivery and after every attempt, since that frees a place. When nothing is due, one timer waits for the next
due time.

The invariants: one lock guards every field here, and the lanes. Under it, timers are set and worker threads
started, but the store, a transport or ``handle`` is never called. A delivery that is in progress is not
assigned again. If a scan skips a receiver once, it skips it to the end of the scan, or a later delivery would
overtake an earlier one.

Deliberately not handled: other servers on the same store. The compare-and-set of ``handle`` lets one win.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

import attrs

from jobserver_core.callbacks.lanes import Lanes, ReceiverStatus
from jobserver_core.errors import StorageError
from jobserver_core.models.callbacks import Delivery
from jobserver_core.ports.clock import Clock, Timer
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.repeats import Repeats

_repeats = Repeats(logging.getLogger(__name__))

STORAGE_PAUSE = 5.0
"""Seconds until a failed metadata store is tried again."""

_HORIZON = timedelta(days=400)
"""How far ahead a scan looks for the delivery that is due next."""
_PAGE = 16
"""The smallest number of deliveries that a scan reads at once."""
_MAX_SKIPPED = 1000
"""The number of receivers that a scan may skip; each of its queries excludes all of them."""


@attrs.frozen
class _Assignment:
    delivery: Delivery
    entered: ReceiverStatus


class Dispatcher:
    """Gives due deliveries to ``handle``, each on a worker thread, as the lanes allow.

    Workers are started when there is work, ``concurrency`` at most. ``handle`` returns the receiver's new
    status, or None if the receiver was not contacted.
    """

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        clock: Clock,
        concurrency: int,
        per_receiver: int,
        handle: Callable[[Delivery], ReceiverStatus | None],
    ) -> None:
        self._metadata = metadata
        self._clock = clock
        self._concurrency = concurrency
        self._handle = handle
        self._lanes = Lanes(concurrency=concurrency, per_receiver=per_receiver)
        self._lock = threading.Lock()
        self._work_available = threading.Condition(self._lock)
        self._quiet = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._ready: deque[_Assignment] = deque()
        self._assigned: dict[str, _Assignment] = {}
        self._scan_wanted = False
        self._scanning = False
        self._timer: Timer | None = None
        self._running = False
        self._pauses: set[threading.Event] = set()

    @property
    def running(self) -> bool:
        """Whether attempts may begin, which is true between start and close."""
        return self._running

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to deliver due callbacks."""
        with self._lock:
            self._running = True
        self.wake()

    def wake(self) -> None:
        """Search for due deliveries soon; return at once. Does nothing before start or after close."""
        with self._lock:
            if not self._running:
                return
            self._scan_wanted = True
            self._wake_worker()

    def drain(self, timeout: float) -> bool:
        """Wait until nothing is in progress or due; return False after ``timeout`` seconds."""
        with self._lock:
            return self._quiet.wait_for(
                lambda: not (self._assigned or self._scan_wanted or self._scanning), timeout
            )

    def pause(self, seconds: float) -> bool:
        """Let a worker wait, by the clock; return False if the dispatcher is closed in the meantime."""
        over = threading.Event()
        with self._lock:
            if not self._running:
                return False
            self._pauses.add(over)
        timer = self._clock.call_later(seconds, over.set)
        over.wait()
        timer.cancel()
        with self._lock:
            self._pauses.discard(over)
            return self._running

    def close(self, timeout: float) -> list[Delivery]:
        """Start no further attempt, and wait up to ``timeout`` seconds for those in progress.

        Returns the deliveries whose attempts are still in progress then. Their threads end by themselves.
        """
        with self._lock:
            self._running = False
            self._scan_wanted = False
            while self._ready:
                self._leave(self._ready.popleft(), None)
            for over in self._pauses:
                over.set()
            self._arm(None)
            self._work_available.notify_all()
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            return [assignment.delivery for assignment in self._assigned.values()]

    # -- workers -----------------------------------------------------------------------------------

    def _wake_worker(self) -> None:
        if self._idle:
            self._work_available.notify()
        elif self._lanes.free:
            self._start_worker()

    def _start_worker(self) -> None:
        if len(self._threads) >= self._concurrency:
            return
        name = f"jobserver-callbacks-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (assignment := self._next()) is not None:
            became = None
            try:
                became = self._handle(assignment.delivery)
            except BaseException as error:  # noqa: BLE001 - no error of one delivery may end the worker
                text = "delivery %s was not handled"
                _repeats.warning(f"handle {error!r}", text, assignment.delivery.id, exc_info=True)
                self.pause(STORAGE_PAUSE)
            with self._lock:
                self._leave(assignment, became)
                self._scan_wanted = self._running

    def _leave(self, assignment: _Assignment, became: ReceiverStatus | None) -> None:
        del self._assigned[assignment.delivery.id]
        self._lanes.leave(assignment.delivery.receiver, assignment.entered, became)
        self._quiet.notify_all()

    def _next(self) -> _Assignment | None:
        """Wait for a delivery to attempt, scanning if that is wanted; None ends the worker."""
        while True:
            with self._lock:
                while self._running and not self._ready and not self._may_scan():
                    self._idle += 1
                    self._work_available.wait()
                    self._idle -= 1
                if not self._running:
                    return None
                if self._ready:
                    assignment = self._ready.popleft()
                    if self._may_scan():
                        # This may be the worker that was woken to scan, and it is busy from here on.
                        self._wake_worker()
                    return assignment
                self._scanning, self._scan_wanted = True, False
            self._scan()

    def _may_scan(self) -> bool:
        return self._scan_wanted and not self._scanning and self._lanes.free > 0

    # -- searching for work ------------------------------------------------------------------------

    def _scan(self) -> None:
        next_due: datetime | None = None
        try:
            next_due = self._assign_due()
        except BaseException as error:  # noqa: BLE001 - a defect of a store must not end the worker either
            unexpected = not isinstance(error, StorageError)
            text = "cannot look for due callbacks, trying again soon: %s"
            _repeats.warning(f"scan {type(error).__name__}", text, error, exc_info=unexpected)
            next_due = self._clock.now() + timedelta(seconds=STORAGE_PAUSE)
        finally:
            with self._lock:
                self._scanning = False
                self._arm(next_due)
                if self._scan_wanted:
                    self._work_available.notify()
                self._quiet.notify_all()

    def _assign_due(self) -> datetime | None:
        """Assign due, admitted deliveries; return when to scan again, or None for after the next attempt."""
        now = self._clock.now()
        skipped: set[str] = set()
        while len(skipped) <= _MAX_SKIPPED:
            with self._lock:
                if not self._lanes.free or not self._running:
                    return None
                full = self._lanes.full() | skipped
                in_progress = set(self._assigned)
                limit = _PAGE + 2 * self._lanes.free + len(in_progress)
            # Beyond now, so that the same query also finds when the next delivery is due.
            found = self._metadata.due_deliveries(now=now + _HORIZON, limit=limit, excluding=sorted(full))
            for delivery in found:
                if delivery.due_at > now:
                    return delivery.due_at
                if delivery.id in in_progress or delivery.receiver in skipped:
                    continue  # or it would overtake an earlier one of its receiver
                if not self._assign(delivery):
                    skipped.add(delivery.receiver)
            if len(found) < limit:
                return None
        return None

    def _assign(self, delivery: Delivery) -> bool:
        with self._lock:
            if not self._running or not self._lanes.admits(delivery.receiver):
                return False
            assignment = _Assignment(delivery, self._lanes.enter(delivery.receiver))
            self._assigned[delivery.id] = assignment
            self._ready.append(assignment)
            if self._idle:
                self._work_available.notify()
            if len(self._ready) > self._idle + 1:  # the thread that scans takes one itself
                self._start_worker()
            return True

    def _arm(self, due: datetime | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if due is not None and self._running:
            delay = (due - self._clock.now()).total_seconds()
            self._timer = self._clock.call_later(delay, self.wake)
