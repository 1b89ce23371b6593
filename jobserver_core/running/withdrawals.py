"""Records that a failed request may have left behind.

A store that raises StorageError has normally changed nothing. The exception is a connection that breaks
during a commit: then it is unknown whether the record was stored. The request was answered with an error, so
a stored record must not stay: a context would keep its name, a job would wait forever. Once the store works
again, such records are looked up and end in the state ERROR. The job also loses its idempotency key, so that
repeating the request is a new attempt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from jobserver_core.errors import StorageError
from jobserver_core.ports import Clock
from jobserver_core.running.retries import RetryQueue

__all__ = ["LIMIT", "Withdrawals"]

LIMIT = 1000
"""The maximum number of records in doubt; further requests are refused without trying the store."""


class Withdrawals:
    """Remembers which records are in doubt, and withdraws each once the store works again. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._queue = RetryQueue(clock, "withdrawals")
        self._lock = threading.Lock()
        self._doubtful: dict[str, Callable[[], None]] = {}
        self._scheduled = False

    def check_room(self) -> None:
        """Raise StorageError while too many records are in doubt."""
        if len(self._doubtful) >= LIMIT:
            raise StorageError(message="storage has been failing for a while; try again later")

    def put(self, record_id: str, withdraw: Callable[[], None]) -> None:
        """Call ``withdraw`` soon, on another thread, until it no longer raises StorageError."""
        with self._lock:
            self._doubtful[record_id] = withdraw
            if self._scheduled:
                return
            self._scheduled = True
        # Later, because the store has just failed and the caller waits for the error.
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
