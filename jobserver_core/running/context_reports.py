"""What the launcher of a context reports, and how the server stores it.

A report cannot be refused: what it says has happened. So each one is stored through the retry queue of the
record, in the order of the reports. :mod:`~jobserver_core.running.context_record` has the theory of that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial

import attrs

from jobserver_core.errors import StaleState, StorageError
from jobserver_core.models.contexts import Context
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import JobProgress
from jobserver_core.models.lifecycle import CONTEXTS, ContextEvent, ContextState, JobState
from jobserver_core.ports import Clock, ContextEnd, ContextListener, JobOutcome, ResultSink
from jobserver_core.running.context_record import ContextRecord
from jobserver_core.running.deadlines import Deadlines
from jobserver_core.running.job_queue import JobQueue
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.records import Records
from jobserver_core.running.restarts import Death, death_of

__all__ = ["ContextReports"]

_log = logging.getLogger(__name__)

_END_EVENTS = {
    ContextEnd.STOPPED: ContextEvent.STOPPED,
    ContextEnd.KILLED: ContextEvent.KILL,
    ContextEnd.KILLED_OUTSIDE: ContextEvent.KILL,
    ContextEnd.FAILED: ContextEvent.FAIL,
}

_LOST = (FailureKind.CONTEXT_LOST, FailureKind.CRASHED)
"""Failures of jobs whose context or process was ended, perhaps together with the server."""


class ContextReports(ContextListener):
    """Stores what the launcher of one context reports.

    Other callers that end the context call :meth:`context_ended`, too. ``die`` stores the death of a
    supervised context, ``kill_stale`` kills a context that another writer has ended or taken over,
    ``close`` is called once the end is stored, and ``leave`` instead if another server starts the context
    again; all with the lock of the context held.
    """

    def __init__(
        self,
        context: ContextRecord,
        *,
        jobs: JobQueue,
        deadlines: Deadlines,
        records: Records,
        clock: Clock,
        die: Callable[[Death, ContextEvent], None],
        kill_stale: Callable[[StaleState], None],
        close: Callable[[], None],
        leave: Callable[[ErrorInfo], None],
    ) -> None:
        self._context = context
        self._jobs = jobs
        self._deadlines = deadlines
        self._records = records
        self._clock = clock
        self._die = die
        self._kill_stale = kill_stale
        self._close = close
        self._leave = leave
        self.on_lost: Callable[[Context, list[LiveJob]], None] | None = None
        """Called if the context ends before it was taken over, as :meth:`LiveContext.reattach` says."""

    def context_ready(self, *, application_id: str | None, url: str | None) -> None:
        """Record that the context runs, and dispatch the waiting jobs."""
        self._context.ready_reported = True
        self._context.changes.put(lambda: self._store_ready(application_id, url))

    def context_ended(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        """End the remaining jobs, then the context."""
        if self._context.ended_at is None:
            self._context.ended_at = self._clock.now()
        self._context.changes.put(lambda: self._store_end(end, error))

    def job_running(self, job_id: str) -> None:
        """Record that the job's code runs."""
        running_at = self._clock.now()
        self._context.changes.put(lambda: self._mark_running(job_id, running_at))

    def job_progress(self, job_id: str, progress: JobProgress) -> None:
        """Record the job's progress, unless the store fails: the next report supersedes this one."""
        live = self._jobs.running(job_id)
        if live is None or self._context.changes.failing:
            return
        try:
            self._records.record_progress(job_id, progress)
        except StorageError as error:
            _log.debug("progress of job %s is dropped: %s", job_id, error)
            return
        with self._context.changing():
            if not live.job.state.final:
                job = live.job = attrs.evolve(live.job, progress=progress)
                self._context.outbox.put(lambda: self._records.publish_progress(job))

    def open_result(self, job_id: str, *, stream: bool) -> ResultSink:
        """Return the sink for a running job's result."""
        live = self._jobs.running(job_id)
        if live is None:
            raise KeyError(job_id)
        return live.open_result(stream=stream)

    def job_ended(self, job_id: str, outcome: JobOutcome) -> None:
        """Record the end of the job with its result, and give its slot to the next one."""
        live = self._jobs.running(job_id)
        if live is not None and live.ended_at is None:
            live.ended_at = self._clock.now()
            self._context.changes.put(lambda: self._store_outcome(live, outcome))

    # -- storing the reports -----------------------------------------------------------------------

    def _store_ready(self, application_id: str | None, url: str | None) -> None:
        with self._context.changing():
            if self._context.current.state.starting:
                try:
                    self._context.advance(
                        ContextEvent.READY, application_id=application_id, url=url, error=None
                    )
                except StaleState as error:
                    self._kill_stale(error)
                    return
                self._context.notify_ready()
            self._jobs.dispatch()
            self._deadlines.context_ready()

    def _mark_running(self, job_id: str, running_at: datetime) -> None:
        with self._context.changing():
            live = self._jobs.running(job_id)
            if live is not None and live.job.state is not JobState.RUNNING:
                self._jobs.mark_running(live, running_at)

    def _store_outcome(self, live: LiveJob, reported: JobOutcome) -> None:
        if self._jobs.running(live.job.id) is None:
            return  # it ended with its context, or continues under the next server
        stopped = self._context.leaving is not None and not live.job.kill_requested
        lost = reported.killed or reported.failure in _LOST
        if stopped and live.job.restartable and lost:
            return  # because its context is being stopped: it runs again elsewhere
        with live.storing_result():  # before the lock: see the theory of the record
            # A launcher may end jobs because their context ends; no user requested that kill.
            context_ends = reported.killed and not live.job.kill_requested
            outcome = (
                self._jobs.outcome_without_context(live, None)
                if context_ends
                else live.final_outcome(reported)
            )
            with self._context.changing():
                if self._jobs.running(live.job.id) is not None:
                    self._jobs.end(live, outcome)
                    self._jobs.dispatch()

    def _store_end(self, end: ContextEnd, error: ErrorInfo | None) -> None:
        with self._context.changing():
            context = self._context
            if context.current.state.final:
                return
            if context.leaving is not None and not context.current.stop_requested:
                self._leave(context.leaving)
                return
            # A context that was not ready in time was killed: it failed, whatever its launcher reports.
            failure = context.failure
            event, error = ContextEvent.FAIL if failure else _END_EVENTS[end], failure or error
            death = self._death(event, error)
            if death is not None:
                self._die(death, ContextEvent.FAIL if death.final else event)
                return
            lost = self.on_lost
            if context.ready_reported or context.current.stop_requested or self._jobs.holding:
                lost = self.on_lost = None
            self._jobs.end_all(error, spare_waiting=lost is not None)
            context.end(event, error)
            self._close()
            if lost is not None:
                context.outbox.put(partial(lost, context.current, self._jobs.take_left()))

    def _death(self, event: ContextEvent, error: ErrorInfo | None) -> Death | None:
        """Return the death of the context; None if it is not supervised, or ends as it should."""
        record, died_at = self._context.current, self._context.ended_at
        began = record.state is not ContextState.STARTED  # else the creator gets the reason
        if not began or CONTEXTS.next(record.state, event) is ContextState.FINISHED:
            return None
        if self._jobs.holding or self._context.draining is not None or died_at is None:
            return None
        return death_of(record, settings=record.settings, reason=error, died_at=died_at)
