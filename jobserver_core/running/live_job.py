"""A job that is not final, with its state in this process."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import attrs

from jobserver_core.errors import (
    JobInterrupted,
    JobPostponed,
    JobServerError,
    LaunchError,
    StorageError,
    TooLarge,
)
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobProgress, JobResult
from jobserver_core.models.lifecycle import JOBS, JobEvent, JobState
from jobserver_core.ports import Clock, JobOutcome, JobSpec
from jobserver_core.running.records import FinalOutcome, Records
from jobserver_core.running.result_storage import ResultStore, ResultWriter
from jobserver_core.running.waiting import Promise

_log = logging.getLogger(__name__)

RESULT_TIMEOUT = 300.0
"""Seconds for which storing a result is retried before the failure becomes the job's error."""


@attrs.define(eq=False)
class LiveJob:
    """The record of a job, the promises to its waiters, and the files that it leases.

    ``files`` keeps the job's class path on this machine. Only the job's
    :class:`~jobserver_core.running.live_context.LiveContext` changes it, under that context's lock.
    """

    job: Job
    spec: JobSpec
    _files: ExitStack
    _records: Records
    _results: ResultStore
    _clock: Clock
    _writer: ResultWriter | None = attrs.field(default=None, init=False)
    _result_failed_at: float | None = attrs.field(default=None, init=False)
    ended_at: datetime | None = attrs.field(default=None, init=False)
    """When the launcher reported the end of the job. This may not be stored yet."""
    deadline: float | None = attrs.field(default=None, init=False)
    """The monotonic time by which the job must be dispatched, or end if it has been dispatched."""
    waits_since: datetime = attrs.field(init=False)
    """When the job began to wait. If another server accepted it, this is by the clock of this server."""
    overdue: ErrorInfo | None = attrs.field(default=None, init=False)
    """The error of a running job that is being killed because it exceeded its time limit."""
    result: JobResult | None = attrs.field(default=None, init=False)
    """The result of a job that has finished."""
    _stored: JobState = attrs.field(init=False)
    started: Promise[Job] = attrs.field(init=False)
    finished: Promise[Job] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.waits_since, self._stored = self.job.submitted_at, self.job.state
        self.started = Promise(f"job {self.job.id}", self._records.call_back)
        self.finished = Promise(f"job {self.job.id}", self._records.call_back)

    def advance(self, event: JobEvent | None, **changes: Any) -> None:
        """Store the job as :meth:`Records.advance_job` does."""
        self.job = self._records.advance_job(self.job, event, expected=self._stored, **changes)
        self._stored = self.job.state

    def restart(self, context_id: str) -> None:
        """Store that the job waits in another context. If it had begun, it runs again from the beginning."""
        if self.job.waiting:
            self.advance(JobEvent.RESTART, context_id=context_id)
            return
        self._discard_result()
        self._writer = self._result_failed_at = self.ended_at = None
        self.advance(
            JobEvent.RESTART,
            context_id=context_id,
            dispatched_at=None,
            running_at=None,
            progress=JobProgress(),
            restarts=self.job.restarts + 1,
        )

    def run(self, running_at: datetime) -> None:
        """Mark the job as RUNNING. The next :meth:`advance` or :meth:`end` stores it."""
        state = JOBS.next(self.job.state, JobEvent.RUN)
        self.job = attrs.evolve(self.job, state=state, running_at=running_at)

    def limit_wait(self) -> None:
        """Set the deadline of a job that waits for its dispatch.

        Time that passed under an earlier server counts, as far as the clocks of both servers agree. If
        another server accepted the job, the time until this one picked it up does not count. A job that has
        begun before and waits again has no deadline.
        """
        self._limit(None if self.job.restarts else self.job.max_queue_time, self.waits_since)

    def limit_run(self) -> None:
        """Set the deadline of a job that is dispatched, from the time of its dispatch."""
        self._limit(self.job.max_run_time, self.job.dispatched_at)

    def _limit(self, limit: float | None, since: datetime | None) -> None:
        self.deadline = None
        if limit is not None and since is not None:
            passed = (self._clock.now() - since).total_seconds()
            self.deadline = self._clock.monotonic() + min(limit, max(0.0, limit - passed))

    @property
    def is_stored(self) -> bool:
        """Whether the job is stored in its present state."""
        return self._stored is self.job.state

    def end(self, outcome: FinalOutcome, *, cancelled: bool, ended_at: datetime | None) -> Delivery | None:
        """Store the end of the job as :meth:`Records.end_job` does; return the delivery that is stored."""
        self.job, delivery = self._records.end_job(
            self.job, outcome, expected=self._stored, cancelled=cancelled, ended_at=ended_at
        )
        self._stored = self.job.state
        if self.job.has_result:
            self.result = outcome.result
        return delivery

    def release(self) -> None:
        """Notify the waiters that the job is final, and release its files."""
        self._release_files()
        self.started.keep(self.job)
        self.finished.keep(self.job)

    def postpone(self) -> None:
        """Notify the waiters that the job has not begun and will run under the next server."""
        self._release_files()
        for promise in (self.started, self.finished):
            promise.fail(JobPostponed(job_id=self.job.id))

    def interrupt(self) -> None:
        """Notify the waiters that the job continues under the next server."""
        self._release_files()
        self.started.keep(self.job)
        self.finished.fail(JobInterrupted(job_id=self.job.id))

    def _release_files(self) -> None:
        self._discard_result()
        self._files.close()

    @property
    def result_opened(self) -> bool:
        """Whether the launcher has opened a result."""
        return self._writer is not None

    def open_result(self, *, stream: bool) -> ResultWriter:
        """Return the sink for the job's result. Call this once for each run of the job."""
        self._writer = self._results.writer(stream=stream)
        return self._writer

    def _discard_result(self) -> None:
        """Drop what was written of the result. A stored result is then kept only by its record."""
        if self._writer is not None:
            self._writer.discard()

    def final_outcome(self, reported: JobOutcome) -> FinalOutcome:
        """Turn the outcome that a launcher reported into the final one.

        For a success, this stores the result's bytes, and keeps them until :meth:`release`.

        Raises:
            StorageError: The result could not be stored, and calling it again may succeed.
        """
        if reported.killed:
            return FinalOutcome.killed(self.job)
        if reported.error is not None and reported.failure is not None:
            return FinalOutcome.failed(reported.failure, reported.error)
        try:
            result = self._writer.finish() if self._writer else None
        except TooLarge as error:
            return FinalOutcome.failed(FailureKind.RESULT, ErrorInfo.from_exception(error))
        except (JobServerError, UnicodeDecodeError) as error:
            if isinstance(error, StorageError) and self._may_finish_again():
                raise
            if isinstance(error, LaunchError):
                _log.error("job %s: %s", self.job.id, error)
            info = ErrorInfo.from_exception(error, message=f"the result could not be stored: {error}")
            return FinalOutcome.failed(FailureKind.RESULT, info)
        return FinalOutcome(event=JobEvent.FINISH, result=result)

    def _may_finish_again(self) -> bool:
        now = self._clock.monotonic()
        if self._result_failed_at is None:
            self._result_failed_at = now
        repeatable = self._writer is not None and self._writer.repeatable
        return repeatable and now - self._result_failed_at < RESULT_TIMEOUT
