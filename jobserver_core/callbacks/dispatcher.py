"""The courier: finds the deliveries that are due, and has a bounded number of threads see to them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

import attrs

from jobserver_core.callbacks.lanes import Lanes, Standing
from jobserver_core.errors import StorageError
from jobserver_core.models.callbacks import Delivery
from jobserver_core.ports.clock import Clock, Timer
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.repeats import Repeats

__all__ = ["Courier"]

_repeats = Repeats(logging.getLogger(__name__))

STORAGE_PAUSE = 5.0
"""How long, in seconds, to leave a metadata store alone that has just failed."""

_HORIZON = timedelta(days=400)
_PAGE = 16
_MAX_PASSED = 1000


@attrs.frozen
class _Flight:
    delivery: Delivery
    entered: Standing


class Courier:
    """Gives due deliveries to ``handle``, each on a worker thread, as the lanes allow.

    The queue is the metadata store: nothing but what is under way is held in memory. Workers are
    started when there is work, up to ``concurrency``; without work nothing runs and nothing polls, one timer
    of the clock waits for the next delivery to be due. ``handle`` returns how the receiver did.
    """

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        clock: Clock,
        concurrency: int,
        per_receiver: int,
        handle: Callable[[Delivery], Standing | None],
    ) -> None:
        self._metadata = metadata
        self._clock = clock
        self._concurrency = concurrency
        self._handle = handle
        self._lanes = Lanes(concurrency=concurrency, per_receiver=per_receiver)
        self._lock = threading.Lock()
        self._work_there = threading.Condition(self._lock)
        self._quiet = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._ready: deque[_Flight] = deque()
        self._flights: dict[str, _Flight] = {}
        self._scan_wanted = False
        self._scanning = False
        self._timer: Timer | None = None
        self._running = False
        self._pauses: set[threading.Event] = set()

    @property
    def running(self) -> bool:
        """Whether attempts may begin: after start and before close."""
        return self._running

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver what is due."""
        with self._lock:
            self._running = True
        self.wake()

    def wake(self) -> None:
        """Look for due deliveries soon; returns at once. Nothing happens before start or after close."""
        with self._lock:
            if not self._running:
                return
            self._scan_wanted = True
            self._rouse()

    def drain(self, timeout: float) -> bool:
        """Wait until nothing is under way and nothing is due; False when that takes too long."""
        with self._lock:
            return self._quiet.wait_for(self._is_quiet, timeout)

    def _is_quiet(self) -> bool:
        return not (self._flights or self._scan_wanted or self._scanning)

    def pause(self, seconds: float) -> bool:
        """Wait on a worker, by the clock; False when the courier is closed meanwhile."""
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
        """Begin nothing more, and wait up to ``timeout`` seconds for what is under way.

        Returns what is still under way then; its threads are left to end by themselves.
        """
        with self._lock:
            self._running = False
            self._scan_wanted = False
            while self._ready:
                self._leave(self._ready.popleft(), None)
            for over in self._pauses:
                over.set()
            self._arm(None)
            self._work_there.notify_all()
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            return [flight.delivery for flight in self._flights.values()]

    # -- workers -----------------------------------------------------------------------------------

    def _rouse(self) -> None:
        if self._idle:
            self._work_there.notify()
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
        while (flight := self._next()) is not None:
            became = None
            try:
                became = self._handle(flight.delivery)
            except Exception as error:  # noqa: BLE001 - a worker outlives whatever goes wrong with one delivery
                told = "delivery %s was not handled"
                _repeats.warning(f"handle {error!r}", told, flight.delivery.id, exc_info=True)
                self.pause(STORAGE_PAUSE)
            with self._lock:
                self._leave(flight, became)
                self._scan_wanted = self._running

    def _leave(self, flight: _Flight, became: Standing | None) -> None:
        del self._flights[flight.delivery.id]
        self._lanes.leave(flight.delivery.receiver, flight.entered, became)
        self._quiet.notify_all()

    def _next(self) -> _Flight | None:
        """Wait for a flight, looking for more of them on the way; None ends the worker."""
        while True:
            with self._lock:
                while self._running and not self._ready and not self._may_scan():
                    self._idle += 1
                    self._work_there.wait()
                    self._idle -= 1
                if not self._running:
                    return None
                if self._ready:
                    flight = self._ready.popleft()
                    if self._may_scan():
                        # Whoever was woken to scan may be this worker, which will be busy from here on.
                        self._rouse()
                    return flight
                self._scanning, self._scan_wanted = True, False
            self._scan()

    def _may_scan(self) -> bool:
        return self._scan_wanted and not self._scanning and self._lanes.free > 0

    # -- looking for work --------------------------------------------------------------------------

    def _scan(self) -> None:
        next_due: datetime | None = None
        try:
            next_due = self._assign_due()
        except StorageError as error:
            _repeats.warning("scan", "cannot look for due callbacks, trying again soon: %s", error)
            next_due = self._clock.now() + timedelta(seconds=STORAGE_PAUSE)
        finally:
            with self._lock:
                self._scanning = False
                self._arm(next_due)
                if self._scan_wanted:
                    self._work_there.notify()
                self._quiet.notify_all()

    def _assign_due(self) -> datetime | None:
        """Take what is due and admitted; return when to look again, None when a flight's end says so."""
        now = self._clock.now()
        passed: set[str] = set()
        while len(passed) <= _MAX_PASSED:
            with self._lock:
                if not self._lanes.free or not self._running:
                    return None
                shut = self._lanes.shut() | passed
                under_way = set(self._flights)
                limit = _PAGE + 2 * self._lanes.free + len(under_way)
            # Beyond now, so that the same question tells when those that are not shut out have work again.
            found = self._metadata.due_deliveries(now=now + _HORIZON, limit=limit, excluding=sorted(shut))
            for delivery in found:
                if delivery.due_at > now:
                    return delivery.due_at
                if delivery.id in under_way or delivery.receiver in passed:
                    continue  # whoever was passed once stays so, or a later one would overtake it
                if not self._assign(delivery):
                    passed.add(delivery.receiver)
            if len(found) < limit:
                return None
        return None

    def _assign(self, delivery: Delivery) -> bool:
        with self._lock:
            if not self._running or not self._lanes.admits(delivery.receiver):
                return False
            flight = _Flight(delivery, self._lanes.enter(delivery.receiver))
            self._flights[delivery.id] = flight
            self._ready.append(flight)
            if self._idle:
                self._work_there.notify()
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
