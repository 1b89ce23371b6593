"""Wait for jobs and contexts of other servers, which send a notice when one ends.

That a job has begun, or a context is ready, is seen by the scan of all records every few seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import attrs

from jobserver_core.errors import JobServerError, ServerClosed, StorageError
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job
from jobserver_core.models.lifecycle import ContextState, JobState
from jobserver_core.running.user_thread import CallBack, call_here
from jobserver_core.running.waiting import Promise, never_ready

_BATCH = 500
"""The maximum number of records that one full scan reads. If there are more, they take turns."""

R = TypeVar("R", Job, Context)


@attrs.frozen(eq=False)
class Watched(Generic[R]):
    """The promises for a job or a context of another server."""

    started: Promise[R]
    finished: Promise[R]

    def fail(self, error: JobServerError) -> None:
        """Fail both promises."""
        self.started.fail(error)
        self.finished.fail(error)


class Watch(Generic[R]):
    """Notifies waiters for jobs or contexts of other servers. Thread-safe.

    ``read`` returns the stored record with an ID, and ``not_found`` returns the error if there is none.
    """

    def __init__(
        self,
        read: Callable[[str], R | None],
        not_found: Callable[[str], JobServerError],
        call_back: CallBack = call_here,
    ) -> None:
        self._call_back = call_back
        self._read: Callable[[str], R | None] = read
        self._not_found = not_found
        self._lock = threading.Lock()
        self._watched: dict[str, Watched[R]] = {}
        self._closed = False

    def watch(self, record: R) -> Watched[R]:
        """Return promises that are kept once the start and the end are stored. Once closed, they fail."""
        what = f"job {record.id}" if isinstance(record, Job) else f"context {record.name}"
        with self._lock:
            closed = self._closed
            found = self._watched.get(record.id) or Watched(self._promise(what), self._promise(what))
            if not closed:
                self._watched[record.id] = found
        if closed:
            found.fail(ServerClosed())
        else:
            if _has_started(record):
                found.started.keep(record)
            # If it ended before it was watched, no notice follows.
            with suppress(StorageError):
                self._check(record.id, found)
        return found

    def _promise(self, what: str) -> Promise[R]:
        return Promise(what, self._call_back)

    def scan(self, ids: frozenset[str] | None) -> None:
        """Notify the waiters for those of these records (None: all) that have ended."""
        with self._lock:
            found = [entry for entry in self._watched.items() if ids is None or entry[0] in ids]
        for record_id, waiting in found[:_BATCH] if ids is None else found:
            self._check(record_id, waiting)

    def _check(self, record_id: str, waiting: Watched[R]) -> None:
        record = self._read(record_id)
        over = record is None or record.state.final
        with self._lock:
            if self._watched.pop(record_id, None) is not None and not over and not self._closed:
                self._watched[record_id] = waiting  # behind the others, whose turn comes first
        if record is None:
            waiting.fail(self._not_found(record_id))
        elif record.state.final:
            if isinstance(record, Context):  # it was ready between two scans at most
                waiting.started.fail(never_ready(record))
            waiting.started.keep(record)
            waiting.finished.keep(record)
        elif _has_started(record):
            waiting.started.keep(record)

    def close(self) -> None:
        """Notify all waiters that the server is closing. Idempotent."""
        with self._lock:
            self._closed = True
            watched, self._watched = self._watched, {}
        for waiting in watched.values():
            waiting.fail(ServerClosed())


def _has_started(record: Job | Context) -> bool:
    """Whether a job is known to have started, or a context to have become ready."""
    if isinstance(record, Context):
        return record.state is ContextState.RUNNING
    return record.state is JobState.RUNNING or record.waiting
