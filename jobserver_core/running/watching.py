"""Waiting for jobs and contexts of other servers, which say in a notice when one has ended."""

from __future__ import annotations

import threading
from contextlib import suppress

import attrs

from jobserver_core.errors import ContextNotFound, JobNotFound, JobServerError, ServerClosed, StorageError
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job
from jobserver_core.models.lifecycle import JobState
from jobserver_core.ports import MetadataStore
from jobserver_core.running.waiting import Promise, Waiter

_BATCH = 500
"""The most jobs that are read in one look at everything; if more are waited for, they take turns."""


@attrs.frozen(eq=False)
class WatchedJob:
    """The promises to those who wait for a job of another server."""

    started: Promise[Job]
    finished: Promise[Job]

    def fail(self, error: JobServerError) -> None:
        """Fail both promises."""
        self.started.fail(error)
        self.finished.fail(error)


class JobWatch:
    """Notifies waiters of jobs that other servers run. Thread-safe."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata
        self._lock = threading.Lock()
        self._watched: dict[str, WatchedJob] = {}
        self._closed = False

    def watch(self, job: Job) -> WatchedJob:
        """Return promises that are kept once the store has the job's start and end; closed, they fail."""
        what = f"job {job.id}"
        with self._lock:
            closed = self._closed
            found = self._watched.get(job.id) or WatchedJob(Promise(what), Promise(what))
            if not closed:
                self._watched[job.id] = found
        if closed:
            found.fail(ServerClosed())
        else:
            if job.waiting:
                found.started.keep(job)
            # It may have ended before it was watched, and then no notice follows.
            with suppress(StorageError):
                self._notify(job.id, found, self._metadata.job(job.id))
        return found

    def close(self) -> None:
        """Notify all waiters that the server is closing. Idempotent."""
        with self._lock:
            self._closed = True
            watched, self._watched = self._watched, {}
        for waiting in watched.values():
            waiting.fail(ServerClosed())

    def look(self, job_ids: frozenset[str] | None) -> None:
        """Notify those who wait for one of these jobs, or for any, if it has ended. Raises StorageError."""
        with self._lock:
            found = [entry for entry in self._watched.items() if job_ids is None or entry[0] in job_ids]
        for job_id, waiting in found[:_BATCH] if job_ids is None else found:
            self._notify(job_id, waiting, self._metadata.job(job_id))

    def _notify(self, job_id: str, waiting: WatchedJob, job: Job | None) -> None:
        over = job is None or job.state.final
        with self._lock:
            if self._watched.pop(job_id, None) is not None and not over and not self._closed:
                self._watched[job_id] = waiting  # behind the others, which are next
        if job is None:
            waiting.fail(JobNotFound(job_id=job_id))
        elif job.state.final:
            waiting.started.keep(job)
            waiting.finished.keep(job)
        elif job.state is JobState.RUNNING or job.waiting:
            waiting.started.keep(job)


class ContextWatch:
    """Notifies waiters of the ends of contexts of other servers. Thread-safe."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata
        self._lock = threading.Lock()
        self._watched: dict[str, Promise[Context]] = {}
        self._closed = False

    def watch(self, context: Context) -> Waiter[Context]:
        """Return a waiter that is done once the store has the context's end; closed, it fails."""
        with self._lock:
            closed = self._closed
            promise = self._watched.setdefault(context.id, Promise(f"context {context.name}"))
        if closed:
            promise.fail(ServerClosed())
        else:
            self.look(frozenset([context.id]))
        return promise.waiter

    def look(self, context_ids: frozenset[str] | None) -> None:
        """Notify those who wait for one of these contexts, or for any, if it has ended."""
        with self._lock:
            chosen = [key for key in self._watched if context_ids is None or key in context_ids]
        for context_id in chosen:
            context = self._metadata.context(context_id)
            if context is None or context.state.final:
                with self._lock:
                    promise = self._watched.pop(context_id, None)
                if promise is not None and context is not None:
                    promise.keep(context)
                elif promise is not None:
                    promise.fail(ContextNotFound(name=context_id))

    def close(self) -> None:
        """Notify all waiters that the server is closing. Idempotent."""
        with self._lock:
            self._closed = True
            watched, self._watched = self._watched, {}
        for promise in watched.values():
            promise.fail(ServerClosed())
