"""Records that a failed request may have left behind.

A store that raises StorageError has normally changed nothing. The exception is a connection that breaks
during a commit: then nobody knows whether the record is there. The request was answered with an error, so a
record that is there after all must not stay: a context would keep its name, a job would wait for ever. Such
records are looked for once the store answers again, and end in the state ERROR. The job also gives up its
idempotency key, so that repeating the request is a new attempt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import attrs

from jobserver_core.errors import StaleState, StorageError
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.lifecycle import CONTEXTS, JOBS, ContextEvent, JobEvent
from jobserver_core.ports import Clock, MetadataStore
from jobserver_core.running.retries import RetryQueue

__all__ = ["LIMIT", "Withdrawals"]

LIMIT = 1000
"""How many doubtful records may wait for the store; further requests are refused without trying it."""

_REASON = ErrorInfo(message="the request was refused: storage failed while it was being recorded")


class Withdrawals:
    """Remembers what may have been recorded by mistake, and takes it back. Thread-safe."""

    def __init__(self, metadata: MetadataStore, clock: Clock) -> None:
        self._metadata = metadata
        self._clock = clock
        self._queue = RetryQueue(clock, "withdrawals")
        self._lock = threading.Lock()
        self._doubtful: dict[str, Callable[[], None]] = {}
        self._scheduled = False

    def check_room(self) -> None:
        """Raise StorageError while too many records are in doubt."""
        if len(self._doubtful) >= LIMIT:
            raise StorageError(message="storage has been failing for a while; try again later")

    def job(self, job_id: str) -> None:
        """Take back a job whose request failed, if it was recorded."""
        self._add(job_id, partial(self._withdraw_job, job_id))

    def context(self, context_id: str) -> None:
        """Take back a context whose request failed, if it was recorded."""
        self._add(context_id, partial(self._withdraw_context, context_id))

    def _add(self, record_id: str, withdraw: Callable[[], None]) -> None:
        with self._lock:
            self._doubtful[record_id] = withdraw
            if self._scheduled:
                return
            self._scheduled = True
        # Later, since the store has just failed and the caller waits for the error.
        self._queue.put_later(self._withdraw_all)

    def _withdraw_all(self) -> None:
        while (found := self._next()) is not None:
            record_id, withdraw = found
            with suppress(StaleState):  # it was ended meanwhile, which is all that is wanted
                withdraw()
            with self._lock:
                del self._doubtful[record_id]

    def _next(self) -> tuple[str, Callable[[], None]] | None:
        with self._lock:
            self._scheduled = bool(self._doubtful)
            return next(iter(self._doubtful.items()), None)

    def _withdraw_job(self, job_id: str) -> None:
        job = self._metadata.job(job_id)
        if job is None or job.state.final:
            return
        ended = attrs.evolve(
            job,
            state=JOBS.next(job.state, JobEvent.FAIL),
            ended_at=self._clock.now(),
            failure=FailureKind.CONTEXT_LOST,
            error=_REASON,
            idempotency_key=None,
        )
        self._metadata.advance_job(ended, expected=job.state)

    def _withdraw_context(self, context_id: str) -> None:
        context = self._metadata.context(context_id)
        if context is None or context.state.final:
            return
        ended = attrs.evolve(
            context,
            state=CONTEXTS.next(context.state, ContextEvent.FAIL),
            ended_at=self._clock.now(),
            error=_REASON,
        )
        self._metadata.advance_context(ended, expected=context.state)
