"""Store what the launcher of a context reports.

A report cannot be refused, because it describes something that has already happened. So each report goes
through the retry queue of the record, in order; :mod:`~jobserver_core.running.context_record` explains how.

Launchers are plug-ins, and a malformed end, if it were refused, would leave a job or context running for
ever. So it is stored as a failure, which names the launcher and its fault. Only types are checked. A report
about a job that does not run in the context changes nothing; the first one of each kind is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import attrs

from jobserver_core.errors import InvalidRequest, LaunchError, StaleState, StorageError
from jobserver_core.models.arguments import check_kind
from jobserver_core.models.contexts import Context
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import JobProgress
from jobserver_core.models.lifecycle import CONTEXTS, ContextEvent, ContextState, JobState
from jobserver_core.ports import Clock, ContextEnd, ContextListener, JobOutcome, ResultSink
from jobserver_core.running.context_end import ContextEnding
from jobserver_core.running.context_record import ContextRecord
from jobserver_core.running.deadlines import Deadlines
from jobserver_core.running.job_queue import JobQueue
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.records import Records
from jobserver_core.running.restarts import Death, death_of

_log = logging.getLogger(__name__)

_END_EVENTS = {
    ContextEnd.STOPPED: ContextEvent.STOPPED,
    ContextEnd.KILLED: ContextEvent.KILL,
    ContextEnd.KILLED_OUTSIDE: ContextEvent.KILL,
    ContextEnd.FAILED: ContextEvent.FAIL,
}

_LOST = (FailureKind.CONTEXT_LOST, FailureKind.CRASHED)
"""Failures of jobs whose context or process was ended, perhaps together with the server."""


@attrs.define(eq=False)
class ContextReports(ContextListener):
    """Stores what the launcher of one context reports.

    Other code that ends the context calls :meth:`context_ended`, too. ``launcher`` is the name of its class,
    for messages. ``die`` stores the death of a supervised context. ``close`` is called once the end is
    stored, or ``leave`` instead if another server will restart the context. All three are called with the
    context's lock held.
    """

    _context: ContextRecord
    _launcher: str
    _jobs: JobQueue
    _deadlines: Deadlines
    _records: Records
    _clock: Clock
    _ending: ContextEnding
    _die: Callable[[Death, ContextEvent], None]
    _close: Callable[[], None]
    _leave: Callable[[ErrorInfo], None]
    on_lost: Callable[[Context, list[LiveJob]], None] | None = None
    """Called if the context ends before it was taken over; see :meth:`LiveContext.reattach`."""
    _out_of_turn: set[str] = attrs.field(factory=set, init=False)
    """The reports of which one out of turn has been logged."""

    def context_ready(self, *, application_id: str | None, url: str | None) -> None:
        fault = _fault_of_ready(application_id=application_id, url=url)
        if fault is not None:
            failure = self._malformed(fault)
            self._context.changes.put(lambda: self._kill_failed(failure))
            return
        self._context.ready_reported = True
        self._context.changes.put(lambda: self._store_ready(application_id, url))

    def context_ended(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        if self._context.ended_at is None:
            self._context.ended_at = self._clock.now()
        fault = None if error is None else _fault_of_error(error)
        if not isinstance(end, ContextEnd):
            fault = f"an end of type {type(end).__name__} instead of ContextEnd"
        if fault is not None:
            end, error = ContextEnd.FAILED, self._malformed(fault)
        self._context.changes.put(lambda: self._store_end(end, error))

    def job_running(self, job_id: str) -> None:
        running_at = self._clock.now()
        if self._reported("job_running", job_id) is not None:
            self._context.changes.put(lambda: self._mark_running(job_id, running_at))

    def job_progress(self, job_id: str, progress: JobProgress) -> None:
        """Record the job's progress, unless the store fails: the next report supersedes this one."""
        check_kind("progress", progress, JobProgress, "a JobProgress")
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
        check_kind("stream", stream, bool, "True or False")
        live = self._reported("open_result", job_id)
        if live is None:
            raise InvalidRequest(message=f"the job {job_id!r} does not run in {self._name}: it has no result")
        if live.result_opened:
            self._log_out_of_turn("open_result", f"open_result of the job {job_id} a second time")
            raise InvalidRequest(message=f"the result of the job {job_id} is open already; write to its sink")
        return live.open_result(stream=stream)

    def job_ended(self, job_id: str, outcome: JobOutcome) -> None:
        live = self._reported("job_ended", job_id)
        if live is not None and live.ended_at is None:
            live.ended_at = self._clock.now()
            checked = self._checked(live, outcome)
            self._context.changes.put(lambda: self._store_outcome(live, checked))
        elif live is not None:
            self._log_out_of_turn("job_ended", f"job_ended of the job {job_id} a second time")

    @property
    def _name(self) -> str:
        return f"context {self._context.current.name}"

    def _reported(self, report: str, job_id: str) -> LiveJob | None:
        """Return the job that a report is about; None if it does not run in this context."""
        live = self._jobs.running(job_id) if isinstance(job_id, str) else None
        if live is None and self._context.ended_at is None:  # otherwise the job has ended with its context
            self._log_out_of_turn(report, f"{report} of the job {job_id!r}, which does not run there")
        return live

    def _log_out_of_turn(self, report: str, fault: str) -> None:
        if report not in self._out_of_turn:
            self._out_of_turn.add(report)
            text = "%s: the launcher %s reported %s; this is ignored, now and later"
            _log.warning(text, self._name, self._launcher, fault)

    def _checked(self, live: LiveJob, outcome: JobOutcome) -> JobOutcome:
        """Return a reported outcome; if it is malformed, or its result is missing, that is the outcome."""
        fault, failure = _fault_of_outcome(outcome), FailureKind.CRASHED
        if fault is None and outcome.error is None and not outcome.killed and not live.result_opened:
            fault = "success without a result; it has to call open_result, even for null"
            failure = FailureKind.RESULT
        return outcome if fault is None else JobOutcome(error=self._malformed(fault), failure=failure)

    def _malformed(self, fault: str) -> ErrorInfo:
        message = f"the launcher {self._launcher} reported {fault}"
        _log.error("%s: %s", self._name, message)
        return ErrorInfo.from_exception(LaunchError(message=message))

    # -- storing the reports -----------------------------------------------------------------------

    def _store_ready(self, application_id: str | None, url: str | None) -> None:
        with self._context.changing():
            if self._context.current.state.starting:
                try:
                    self._context.advance(
                        ContextEvent.READY, application_id=application_id, url=url, error=None
                    )
                except StaleState as error:
                    self._ending.kill_stale(error)
                    return
                self._context.notify_ready()
            self._jobs.dispatch()
            self._deadlines.context_ready()

    def _kill_failed(self, failure: ErrorInfo) -> None:
        with self._context.changing():
            self._context.failure = failure
            self._ending.kill(requested=False, reason=failure.message)

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
            return  # its context is being stopped, so it runs again elsewhere
        # A launcher may kill jobs because their context is ending; no user requested that.
        context_ends = reported.killed and not live.job.kill_requested
        outcome = (
            self._jobs.outcome_without_context(live, None)
            if context_ends
            else live.final_outcome(reported)  # before the lock: it may wait for the blob store
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
            # A context that was killed for not being ready in time has failed, whatever its launcher reports.
            failure = context.failure
            event, error = ContextEvent.FAIL if failure else _END_EVENTS[end], failure or error
            death = self._death(event, error)
            if death is not None:
                self._die(death, ContextEvent.FAIL if death.final else event)
                self.on_lost = None
                return
            if context.ready_reported or context.current.stop_requested or self._jobs.holding:
                self.on_lost = None
            self._jobs.end_all(error, spare_waiting=self.on_lost is not None)
            context.end(event, error)
            self._close()
            if self.on_lost is not None:
                context.outbox.put(partial(self.on_lost, context.current, self._jobs.take_left()))

    def _death(self, event: ContextEvent, error: ErrorInfo | None) -> Death | None:
        """Return the death of the context; None if it is not supervised, or ends normally."""
        record, died_at = self._context.current, self._context.ended_at
        began = record.state is not ContextState.STARTED  # otherwise its creator gets the error
        if not began or CONTEXTS.next(record.state, event) is ContextState.FINISHED:
            return None
        if self._jobs.holding or self._context.draining is not None or died_at is None:
            return None
        return death_of(record, settings=record.settings, reason=error, died_at=died_at)


def _fault_of_ready(**values: Any) -> str | None:
    for name, value in values.items():
        if not isinstance(value, (str, type(None))):
            return f"a ready context with {name} of type {type(value).__name__} instead of str or None"
    return None


def _fault_of_outcome(outcome: Any) -> str | None:
    if not isinstance(outcome, JobOutcome):
        return f"the end of the job with {type(outcome).__name__} instead of JobOutcome"
    if outcome.killed or outcome.error is None:
        return None
    fault = _fault_of_error(outcome.error)
    if fault is None and not isinstance(outcome.failure, FailureKind):
        kind = type(outcome.failure).__name__
        return f"a failure of type {kind} instead of FailureKind: {outcome.error.message}"
    return fault


def _fault_of_error(error: Any) -> str | None:
    if not isinstance(error, ErrorInfo):
        return f"an error of type {type(error).__name__} instead of ErrorInfo: {error}"
    for name in ("message", "error_class", "stack"):
        if not isinstance(value := getattr(error, name), str):
            kind = type(value).__name__
            return f"an ErrorInfo with a {name} of type {kind} instead of str: {error.message}"
    return None
