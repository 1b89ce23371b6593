"""Waiting for jobs that another server runs: a look at the store every second, while somebody waits."""

from __future__ import annotations

import logging
import threading
from itertools import islice

import attrs

from jobserver_core.errors import JobNotFound, JobServerError, ServerClosed, StorageError
from jobserver_core.models.jobs import Job
from jobserver_core.models.lifecycle import JobState
from jobserver_core.ports import Clock, MetadataStore
from jobserver_core.repeats import Repeats
from jobserver_core.running.waiting import Promise

INTERVAL = 1.0
"""Seconds between two looks."""
_BATCH = 100
"""How many jobs are read in one look; if more are waited for, they take turns."""

_repeats = Repeats(logging.getLogger(__name__))


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
    """Notifies waiters of jobs that other servers run. Thread-safe. Idle while nobody waits."""

    def __init__(self, metadata: MetadataStore, clock: Clock) -> None:
        self._metadata = metadata
        self._clock = clock
        self._lock = threading.Lock()
        self._watched: dict[str, WatchedJob] = {}
        self._scheduled = False
        self._closed = False

    def watch(self, job: Job) -> WatchedJob:
        """Return promises that are kept once the store has the job's start and end; closed, they fail."""
        what = f"job {job.id}"
        with self._lock:
            closed = self._closed
            found = self._watched.get(job.id) or WatchedJob(Promise(what), Promise(what))
            if not closed:
                self._watched[job.id] = found
                self._schedule()
        if closed:
            found.fail(ServerClosed())
        else:
            self._notify(job.id, found, job)
        return found

    def close(self) -> None:
        """Notify all waiters that the server is closing. Idempotent."""
        with self._lock:
            self._closed = True
            watched, self._watched = self._watched, {}
        for waiting in watched.values():
            waiting.fail(ServerClosed())

    def _schedule(self) -> None:
        if self._watched and not self._scheduled and not self._closed:
            self._scheduled = True
            self._clock.call_later(INTERVAL, self._look_on_thread)

    def _look_on_thread(self) -> None:
        # Not on the clock's thread: a store that hangs must not block other timers.
        threading.Thread(target=self._look, name="jobserver-watch", daemon=True).start()

    def _look(self) -> None:
        try:
            with self._lock:
                batch = list(islice(self._watched.items(), _BATCH))
            for job_id, waiting in batch:
                self._notify(job_id, waiting, self._metadata.job(job_id))
        except StorageError as error:
            _repeats.warning("watch", "cannot look for the jobs of other servers, trying again: %s", error)
        finally:
            with self._lock:
                self._scheduled = False
                self._schedule()

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
