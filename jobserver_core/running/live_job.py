"""A job that is not final, with all that belongs to it in this process."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import attrs

from jobserver_core.environment import Environment
from jobserver_core.errors import JobPostponed, StaleState, StorageError
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobResult
from jobserver_core.models.lifecycle import JOBS, JobEvent, JobState
from jobserver_core.ports import JobOutcome, JobSpec
from jobserver_core.running.results import ResultWriter
from jobserver_core.running.waiting import Promise

__all__ = ["FinalOutcome", "LiveJob"]

_log = logging.getLogger(__name__)

RESULT_TIMEOUT = 300.0
"""Seconds for which storing a result is retried, until the failure becomes the job's error."""


@attrs.frozen(kw_only=True)
class FinalOutcome:
    """How a job ends, ready to be stored: the event of its lifecycle, and what is recorded with it."""

    event: JobEvent
    error: ErrorInfo | None = None
    failure: FailureKind | None = None
    result: JobResult | None = None

    @classmethod
    def killed(cls, job_id: str) -> FinalOutcome:
        """Return the outcome of a job that was killed, in the words of the HTTP contract."""
        return cls(event=JobEvent.KILL, error=ErrorInfo(message=f"Job {job_id} killed"))

    @classmethod
    def failed(cls, failure: FailureKind, error: ErrorInfo) -> FinalOutcome:
        """Return the outcome of a job that failed."""
        return cls(event=JobEvent.FAIL, error=error, failure=failure)


class LiveJob:
    """The record of a job, the promises to those who wait for it, and the files that it leases.

    Only its context's :class:`~jobserver_core.running.live_context.LiveContext` changes it, under that
    context's lock.
    """

    def __init__(self, environment: Environment, job: Job, spec: JobSpec, files: ExitStack) -> None:
        self._environment = environment
        self._files = files
        self._writer: ResultWriter | None = None
        self._result_failed_at: float | None = None
        self.outcome_reported = False
        self.job = job
        self.spec = spec
        self.started: Promise[Job] = Promise(f"job {job.id}")
        self.finished: Promise[Job] = Promise(f"job {job.id}")

    def advance(self, event: JobEvent | None, **changes: Any) -> None:
        """Store the job with an event's next state (None: the same state) and other changes.

        A write that was stored although the store reported a failure is recognised when it is repeated.
        Raises StaleState when another writer changed the state, StorageError.
        """
        state = JOBS.next(self.job.state, event) if event else self.job.state
        job = attrs.evolve(self.job, state=state, **changes)
        try:
            self._environment.metadata.advance_job(job, expected=self.job.state)
        except StaleState:
            stored = self._environment.metadata.job(job.id)
            if stored is None or stored.state is not job.state:
                raise
            job = stored
        self.job = job

    def end(self, outcome: FinalOutcome, *, cancelled: bool) -> Delivery | None:
        """Store the end of the job and the first delivery of its callback, in one transaction.

        ``cancelled`` says that somebody asked for this end, so no callback is sent. Where an end is stored
        already, by another writer or by an earlier attempt that seemed to fail, it is adopted. Returns the
        delivery that is stored.
        """
        env, now = self._environment, self._environment.clock.now()
        job = self._ended(outcome, now)
        silent = cancelled and job.state is not JobState.FINISHED
        delivery = None if silent else env.callbacks.new_delivery(job)
        try:
            env.metadata.advance_job(job, expected=self.job.state, result=outcome.result, delivery=delivery)
        except StaleState as error:
            _log.warning("an end of job %s is stored already: %s", job.id, error)
            job = env.metadata.job(job.id) or job
            if not job.state.final:
                self.job = job
                return self.end(outcome, cancelled=cancelled)
            delivery = next(iter(env.metadata.deliveries_of(job.id)), None)
        self.job = job
        return delivery

    def release(self) -> None:
        """Inform those who wait that the job is final, and release its files."""
        if self._writer is not None:
            self._writer.discard()
        self._files.close()
        self.started.keep(self.job)
        self.finished.keep(self.job)

    def postpone(self) -> None:
        """Inform those who wait that the job has not begun and will run under the next server."""
        self._files.close()
        for promise in (self.started, self.finished):
            promise.fail(JobPostponed(job_id=self.job.id))

    def open_result(self, *, stream: bool) -> ResultWriter:
        """Return the sink for the job's result."""
        limits = self._environment.settings.jobs
        self._writer = ResultWriter(
            self._environment.blobs,
            stream=stream,
            inline_limit=limits.inline_result_limit,
            max_size=limits.max_result_size,
        )
        return self._writer

    @property
    def result_digest(self) -> str | None:
        """The blob of a result that is stored already, though the job's record may not refer to it yet."""
        return self._writer.digest if self._writer is not None else None

    def final_outcome(self, reported: JobOutcome) -> FinalOutcome:
        """Turn the outcome that a launcher reported into the final one; a success stores the result's bytes.

        To be called inside a deposit. Raises StorageError when storing the result is worth another
        attempt, which is to call this again.
        """
        if reported.killed:
            return FinalOutcome.killed(self.job.id)
        if reported.error is not None and reported.failure is not None:
            return FinalOutcome.failed(reported.failure, reported.error)
        try:
            result = self._writer.finish() if self._writer else None
        except (StorageError, UnicodeDecodeError) as error:
            if isinstance(error, StorageError) and self._may_finish_again():
                raise
            info = ErrorInfo(
                message=f"the result could not be stored: {error}", error_class=type(error).__name__
            )
            return FinalOutcome.failed(FailureKind.RESULT, info)
        return FinalOutcome(event=JobEvent.FINISH, result=result)

    def _may_finish_again(self) -> bool:
        now = self._environment.clock.monotonic()
        if self._result_failed_at is None:
            self._result_failed_at = now
        repeatable = self._writer is not None and self._writer.repeatable
        return repeatable and now - self._result_failed_at < RESULT_TIMEOUT

    def _ended(self, outcome: FinalOutcome, now: datetime) -> Job:
        ran_at = now if outcome.event is JobEvent.FINISH else None  # where the launcher reported only the end
        return attrs.evolve(
            self.job,
            state=JOBS.next(self.job.state, outcome.event),
            running_at=self.job.running_at or ran_at,
            ended_at=now,
            error=outcome.error,
            failure=outcome.failure,
            has_result=outcome.result is not None,
            kill_requested=self.job.kill_requested or outcome.event is JobEvent.KILL,
        )
