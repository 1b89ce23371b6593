"""The jobs of a living context: one runs in each slot, the others wait in order."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

import attrs

from jobserver_core.config.units import duration_text
from jobserver_core.errors import StaleState, StorageError
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, QueueLimits
from jobserver_core.models.lifecycle import ContextState, JobEvent, JobState
from jobserver_core.ports import Clock, ContextHandle
from jobserver_core.repeats import Repeats
from jobserver_core.running.context_end import ContextEnding
from jobserver_core.running.context_launch import ContextLaunch
from jobserver_core.running.context_record import ContextRecord
from jobserver_core.running.context_settings import stops_on_job_error
from jobserver_core.running.deadlines import Deadlines
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.log_files import mark_run
from jobserver_core.running.records import FinalOutcome, Records
from jobserver_core.running.waiting_jobs import WaitingJobs

if TYPE_CHECKING:
    from jobserver_core.config.settings import JobLimits

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)


@attrs.define(eq=False)
class JobQueue:
    """The slots of one context, and the jobs that wait for one.

    A job takes its slot when its dispatch is stored, and frees it when its end is stored. Call every method
    that changes something inside :meth:`ContextRecord.changing`. A method that raises StorageError, because a
    change could not be recorded, can be called again. With ``holding``, the queue dispatches no jobs.
    """

    _context: ContextRecord
    _records: Records
    _clock: Clock
    _limits: JobLimits
    _launch: ContextLaunch
    _ending: ContextEnding
    _deadlines: Deadlines
    holding: bool
    """Whether no more jobs are dispatched."""
    _idle_since: float = attrs.field(init=False)
    _retry_scheduled: bool = attrs.field(default=False, init=False)
    _store_scheduled: bool = attrs.field(default=False, init=False)
    _waiting: WaitingJobs = attrs.field(factory=WaitingJobs, init=False)
    _not_notified: list[LiveJob] = attrs.field(factory=list, init=False)
    _running: dict[str, LiveJob] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._idle_since = self._clock.monotonic()

    def running(self, job_id: str) -> LiveJob | None:
        """Return a job that has a slot, or None."""
        return self._running.get(job_id)

    @property
    def idle_since(self) -> float | None:
        """The monotonic time since which no job has been running or waiting, or None if one is."""
        return self._idle_since if self.empty else None

    def check_room(self, user: str) -> None:
        """Check that another job of this user may run or wait.

        Raises:
            NoSlots: No more jobs may, or no more jobs of this user.
        """
        QueueLimits(slots=self._limits.max_jobs_per_context, places=self._limits.max_queued_jobs).check(
            self._context.current.name,
            user,
            running=len(self._running),
            waiting=len(self._waiting),
            waiting_of_user=self._waiting.count_of(user),
        )

    def accept(self, live: LiveJob, config: str) -> None:
        """Record a job and run it, in one write if a slot is free.

        Raises:
            JobServerError: As :meth:`Records.add_job` does.
        """
        if self._may_dispatch and not self._waiting and self._slot_free:
            accepted = live.job
            live.job = attrs.evolve(accepted, dispatched_at=accepted.submitted_at)
            self._records.add_job(live.job, config)
            self._context.outbox.put(lambda: self._records.publish_job(accepted))
            self._run(live)
        else:
            self._records.add_job(live.job, config)
            self.add(live)

    def add(self, live: LiveJob) -> None:
        """Run a recorded job as soon as a slot is free."""
        self._publish(live)
        live.limit_wait()
        self._waiting.add(live)
        self._not_notified.append(live)
        self.dispatch()
        if live.deadline is not None:
            self._deadlines.watch(live.deadline)

    def resume(self, live: LiveJob) -> None:
        """Continue with a job of an earlier server: it has its slot, or waits behind earlier ones."""
        if live.job.waiting:
            live.limit_wait()
            self._waiting.add(live)
        else:
            live.limit_run()
            self._running[live.job.id] = live
        if live.deadline is not None:
            self._deadlines.watch(live.deadline)
        if live.job.waiting or live.job.state is JobState.RUNNING:
            self.notify_started(live)

    @property
    def running_jobs(self) -> tuple[LiveJob, ...]:
        """The jobs that have a slot."""
        return tuple(self._running.values())

    @property
    def empty(self) -> bool:
        """Whether no job runs or waits."""
        return not self._running and not self._waiting

    def take_left(self) -> list[LiveJob]:
        """Remove and return the jobs that :meth:`end_all` spared, which run in another context."""
        left = [*self._running.values(), *self._waiting]
        self._running.clear()
        self._waiting.clear()
        return left

    def detach(self) -> None:
        """Notify the waiters of all jobs that the next server continues the jobs."""
        for live in self._running.values():
            self._context.outbox.put(live.interrupt)
        for live in self._waiting:
            self._context.outbox.put(live.postpone)
        self._running.clear()  # a report that is still waiting for storage must change nothing
        self._waiting.clear()

    @property
    def postpones(self) -> bool:
        """Whether waiting jobs are left to the next server: none is dispatched, and no end was requested."""
        return self.holding and not self._context.current.stop_requested

    def end_if_waiting(self, live: LiveJob, outcome: FinalOutcome) -> bool:
        """End a job if it still waits for a slot; return whether it did."""
        if live not in self._waiting:
            return False
        self._end_waiting(live, outcome)
        return True

    def expire(self, now: float) -> float | None:
        """End waiting jobs whose deadline has passed, and kill running ones; return the next deadline."""
        for live in [job for job in self._waiting if _passed(job, now)]:
            self._end_waiting(live, queue_time_exceeded(live.job))
        for live in self._running.values():
            if live.overdue is None and _passed(live, now):
                limit = duration_text(live.job.max_run_time or 0.0)
                message = f"it was stopped because it ran longer than its limit of {limit}"
                live.overdue = ErrorInfo(message=message, error_class="TimeoutError")
                _log.warning("job %s: %s", live.job.id, live.overdue.message)
                self._ending.kill_job(live, force=self._context.current.ad_hoc)
        ahead = [live for live in (*self._running.values(), *self._waiting) if live.overdue is None]
        return min((live.deadline for live in ahead if live.deadline is not None), default=None)

    def _end_waiting(self, live: LiveJob, outcome: FinalOutcome) -> None:
        self.end(live, outcome)
        self._waiting.remove(live)
        self._check_idle()

    def _check_idle(self) -> None:
        if self.empty:
            self._idle_since = self._clock.monotonic()
            self._deadlines.context_idle()

    def dispatch(self) -> None:
        """Give free slots to waiting jobs; a job whose dispatch cannot be stored keeps waiting."""
        context = self._context
        if not self._may_dispatch:
            return
        try:
            while self._waiting and self._slot_free:
                live = self._waiting.next()
                if _passed(live, self._clock.monotonic()):
                    self._end_waiting(live, queue_time_exceeded(live.job))
                elif self._dispatch(live):
                    self._waiting.take(live)
                else:
                    self._waiting.remove(live)
                    self._check_idle()
        except StorageError as error:
            job_id = self._waiting.next().job.id
            _repeats.warning(context.current.id, "job %s waits for storage: %s", job_id, error)
            self._dispatch_later()
        for live in self._not_notified:  # only once per job: the queue may be long
            if live in self._waiting:
                self.notify_started(live)
        self._not_notified.clear()

    def mark_running(self, live: LiveJob, running_at: datetime) -> None:
        """Mark a job as RUNNING. This is stored soon, unless the job's end is stored first."""
        live.run(running_at)
        self._publish(live)
        self.notify_started(live)
        if not self._store_scheduled:
            self._store_later(frozenset([live]))

    def store_running(self) -> None:
        """Store which jobs are RUNNING."""
        _store(self._not_stored())

    def end(self, live: LiveJob, outcome: FinalOutcome) -> None:
        """Store the end of a job and free its slot."""
        context = self._context.current
        killed = outcome.event is JobEvent.KILL
        cancelled = killed or live.job.kill_requested or context.stop_requested
        # Not set in live: if this write fails, the job may continue in the successor of its context.
        ended_at = live.ended_at or self._context.ended_at
        delivery = live.end(outcome, cancelled=cancelled, ended_at=ended_at)
        if self._running.pop(live.job.id, None) is not None:
            self._check_idle()
        job, outbox = live.job, self._context.outbox
        if not job.state.final:  # another server has taken it over
            outbox.put(live.postpone)
            return
        outbox.put(lambda: self._records.publish_job(job, delivery), after_sync=True)
        outbox.put(live.release)
        outbox.put(lambda: self._launch.acknowledge(job.id))
        failed = job.state is JobState.ERROR and stops_on_job_error(context.settings)
        if context.ad_hoc or failed:
            reason = f"job {job.id} failed, and stop-context-on-job-error is set" if failed else ""
            outbox.put(lambda: self._ending.stop_by_itself(reason))

    def end_all(
        self, error: ErrorInfo | None, *, spare_waiting: bool, spare_restartable: bool = False
    ) -> None:
        """End all remaining jobs because the context ended.

        ``spare_waiting`` keeps the jobs that wait for a slot, and ``spare_restartable`` those that may run
        again, for :meth:`take_left`. Waiting jobs of a held queue are postponed: they keep their state, and
        the next server runs them, unless the end of the context was requested.
        """
        waiting = [] if spare_waiting or self.postpones else list(self._waiting)
        for live in [*self._running.values(), *waiting]:
            job = live.job
            runs_again = job.restartable and not job.kill_requested and live.overdue is None
            if not (job.state.final or (spare_restartable and runs_again)):
                self.end(live, self.outcome_without_context(live, error))
        if spare_waiting:
            return
        if self.postpones:
            for live in self._waiting:
                self._context.outbox.put(live.postpone)
        self._waiting.clear()

    def outcome_without_context(self, live: LiveJob, error: ErrorInfo | None) -> FinalOutcome:
        """Return the outcome of a job whose context ended."""
        context = self._context.current
        if live.overdue is not None and not live.job.kill_requested:
            return FinalOutcome.failed(FailureKind.RUN_TIME, live.overdue)
        lost = FinalOutcome.without_context(live.job, error.message if error else self._context.reason_of_end)
        never_ready = context.ad_hoc and not self._context.ready.waiter.done()
        if lost.error and never_ready and not live.job.kill_requested:
            why = error or self._context.draining or ErrorInfo(message=lost.error.message)
            return FinalOutcome.failed(FailureKind.CONTEXT_INIT, why)
        return lost

    def notify_started(self, live: LiveJob) -> None:
        """Notify those who wait for the job's start that it is running or queued."""
        job = live.job
        self._context.outbox.put(lambda: live.started.keep(job))

    def _publish(self, live: LiveJob) -> None:
        job = live.job
        self._context.outbox.put(lambda: self._records.publish_job(job))

    @property
    def _may_dispatch(self) -> bool:
        """Whether a job may be given a slot now, if one is free."""
        context = self._context
        running = context.current.state is ContextState.RUNNING and context.ready_reported
        return running and context.ended_at is None and not self.holding

    @property
    def _slot_free(self) -> bool:
        return len(self._running) < self._limits.max_jobs_per_context

    def _dispatch(self, live: LiveJob) -> bool:
        """Store the dispatch of a job and give it a slot; return False if another server has taken it."""
        try:
            live.advance(None, dispatched_at=self._clock.now())
        except StaleState as error:
            _log.warning("job %s is not started here: %s", live.job.id, error)
            self._context.outbox.put(live.postpone)
            return False
        self._run(live)
        return True

    def _run(self, live: LiveJob) -> None:
        job, spec = live.job, live.spec
        self._running[job.id] = live
        live.limit_run()
        if live.deadline is not None:
            self._deadlines.watch(live.deadline)
        self._publish(live)

        def submit(handle: ContextHandle) -> None:
            if job.restarts:
                mark_run(spec.log_path, job)
            self._launch.submit(handle, spec)

        self._launch.put_call(submit)

    def _not_stored(self) -> frozenset[LiveJob]:
        return frozenset(live for live in self._running.values() if not live.is_stored)

    def _store_later(self, jobs: frozenset[LiveJob]) -> None:
        """Soon store which of these jobs are still RUNNING, and after that any later ones.

        Most jobs end before that, which saves a write.
        """

        def store() -> None:
            with self._context.changing():
                newer = self._not_stored() - jobs
                _store(jobs & self._not_stored())
                self._store_later(newer)

        self._store_scheduled = bool(jobs)
        if jobs:
            self._context.changes.put_later(store)

    def _dispatch_later(self) -> None:
        def dispatch() -> None:
            with self._context.changing():
                self._retry_scheduled = False
                self.dispatch()

        if not self._retry_scheduled:
            self._retry_scheduled = True
            self._context.changes.put_later(dispatch)


def _store(jobs: Iterable[LiveJob]) -> None:
    for live in jobs:
        try:
            live.advance(None)
        except StaleState as error:
            # When the launcher reports its end, that adopts what is stored.
            _log.warning("job %s was ended by another writer: %s", live.job.id, error)


def queue_time_exceeded(job: Job) -> FinalOutcome:
    """Return the outcome of a job that waited longer than its limit."""
    limit = duration_text(job.max_queue_time or 0.0)
    error = ErrorInfo(
        message=f"job {job.id} was not started: it waited for context {job.context_name} "
        f"longer than its limit of {limit}",
        error_class="TimeoutError",
    )
    return FinalOutcome.failed(FailureKind.QUEUE_TIME, error)


def _passed(live: LiveJob, now: float) -> bool:
    return live.deadline is not None and live.deadline <= now
