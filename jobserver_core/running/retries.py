"""Changes that must reach the metadata store, no matter how long it is unavailable.

The problem: a launcher reports what has already happened (a job runs, a job ended, a context is gone). If the
store cannot take such a change, because the database is locked, its disk is full or its server is restarting,
the change can be neither refused nor forgotten, and the launcher must not get an error.

The idea: each context has one queue of changes. A change is a call that writes to the store, and raises
StorageError if the store does not accept the write. Normally it runs at once, on the caller's thread. After a
StorageError it stays at the head of the queue and is called again, after a pause that doubles up to
:data:`LONGEST_PAUSE`; later changes queue behind it without touching the store.

The invariants: changes of one context reach the store in the order in which they happened. A change is called
again as a whole, so it must read the current state first and must not repeat what an earlier call stored.
The change itself decides on its effects (waiters, events, callbacks, calls to the launcher), after its
write, so they never precede the record. Memory is bounded because a job keeps its slot until
its end is stored: a queue holds at most a few changes for each slot, and progress is dropped, never queued.

Deliberately not handled: a server that ends while changes wait. They are lost, and the next start reconciles
the records with reality, as after a crash. Requests of users are not queued either: they fail with the
store's error, change nothing, and can be repeated.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from jobserver_core.errors import StorageError
from jobserver_core.ports import Clock

_log = logging.getLogger(__name__)

FIRST_PAUSE = 0.1
"""Seconds between a change that failed and its first retry."""
LONGEST_PAUSE = 5.0
"""The maximum number of seconds between two attempts."""


class RetryQueue:
    """Calls changes one at a time and in order, each until the store has accepted it. Thread-safe.

    ``name`` says in logs and thread names whose changes these are.
    """

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name
        self._lock = threading.Lock()
        self._changes: deque[Callable[[], None]] = deque()
        self._busy = False
        self._failing = False
        self._pause = FIRST_PAUSE

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed, so that a change waits for another attempt."""
        return self._failing

    def put(self, change: Callable[[], None]) -> None:
        """Call a change now, or after those that are waiting. Errors other than StorageError propagate."""
        with self._lock:
            self._changes.append(change)
            if self._busy:
                return
            self._busy = True
        self._run()

    def put_later(self, change: Callable[[], None]) -> None:
        """Call a change after a pause, on another thread, behind those that are waiting by then."""
        self._clock.call_later(FIRST_PAUSE, lambda: self.put_on_thread(change))

    def put_on_thread(self, change: Callable[[], None]) -> None:
        """Call a change on another thread, as timers must: a store that hangs would block the others."""
        self.on_thread(lambda: self.put(change))

    def on_thread(self, call: Callable[[], None]) -> None:
        """Make a call on another thread at once, ahead of waiting changes. For timers that store nothing.

        A store or a lock that hangs must not block the clock's other timers.
        """
        name = f"jobserver-retry {self._name}"
        threading.Thread(target=self._call_and_log, args=(call,), name=name, daemon=True).start()

    def _run(self) -> None:
        unexpected: BaseException | None = None
        while (change := self._head()) is not None:
            try:
                change()
            except StorageError as error:
                self._postpone(error)
                break
            except BaseException as error:  # noqa: BLE001 - raised below, after the other changes
                unexpected = error
            self._remove_first()
        if unexpected is not None:
            raise unexpected

    def _head(self) -> Callable[[], None] | None:
        with self._lock:
            self._busy = bool(self._changes)
            return self._changes[0] if self._changes else None

    def _remove_first(self) -> None:
        with self._lock:
            self._changes.popleft()
            self._pause = FIRST_PAUSE
            recovered, self._failing = self._failing, False
        if recovered:
            _log.warning("%s: storage works again", self._name)

    def _postpone(self, error: StorageError) -> None:
        if not self._failing:
            _log.warning("%s: cannot store a change, retrying until it is stored: %s", self._name, error)
        self._failing = True
        pause, self._pause = self._pause, min(LONGEST_PAUSE, 2 * self._pause)
        self._clock.call_later(pause, lambda: self.on_thread(self._run))

    def _call_and_log(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - no caller can handle it
            _log.exception("%s: a change failed", self._name)


MAX_DOUBTFUL = 1000
"""The maximum number of records in doubt. Beyond that, requests are refused without trying the store."""


class Withdrawals:
    """Withdraws records that a failed request may have left behind. Thread-safe.

    A store that raises StorageError has normally changed nothing. The exception is a connection that breaks
    during a commit: it is then unknown whether the record was stored. The request has failed with an error,
    so a stored record must not stay: a context would occupy its name, and a job would wait forever. Once the
    store works again, such records are looked up and end as ERROR. The job also loses its idempotency key, so
    that repeating the request is a new attempt. Another server may run a job that was stored for it: such a
    job stays if it has begun, or has a key (:meth:`.Records.enqueue_job`).
    """

    def __init__(self, clock: Clock) -> None:
        self._queue = RetryQueue(clock, "withdrawals")
        self._lock = threading.Lock()
        self._doubtful: dict[str, Callable[[], None]] = {}
        self._scheduled = False

    def check_room(self) -> None:
        """Check that not too many records are in doubt.

        Raises:
            StorageError: Too many are.
        """
        if len(self._doubtful) >= MAX_DOUBTFUL:
            raise StorageError(message="storage has been failing for a while; try again later")

    def put(self, record_id: str, withdraw: Callable[[], None]) -> None:
        """Call ``withdraw`` soon, on another thread, until it no longer raises StorageError."""
        with self._lock:
            self._doubtful[record_id] = withdraw
            if self._scheduled:
                return
            self._scheduled = True
        # Later, because the store has just failed and the caller is waiting for the error.
        self._queue.put_later(self._withdraw_all)

    def _withdraw_all(self) -> None:
        while (found := self._next()) is not None:
            record_id, withdraw = found
            withdraw()
            with self._lock:
                del self._doubtful[record_id]

    def _next(self) -> tuple[str, Callable[[], None]] | None:
        with self._lock:
            self._scheduled = bool(self._doubtful)
            return next(iter(self._doubtful.items()), None)
