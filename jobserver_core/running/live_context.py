"""A context that is not final: its queue, its slots, and what its launcher tells about it."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs

from jobserver_core.environment import Environment
from jobserver_core.errors import (
    ContextFailed,
    ContextNotFound,
    ContextStopping,
    JobAlreadyFinal,
    NoSlots,
    StaleState,
    StorageError,
)
from jobserver_core.models.contexts import Context
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobProgress
from jobserver_core.models.lifecycle import CONTEXTS, ContextEvent, ContextState, JobEvent, JobState
from jobserver_core.ports import (
    ContextEnd,
    ContextHandle,
    ContextListener,
    ContextSpec,
    JobCode,
    JobOutcome,
    ResultSink,
)
from jobserver_core.repeats import Repeats
from jobserver_core.running.live_job import Ending, LiveJob
from jobserver_core.running.outbox import Outbox
from jobserver_core.running.retries import RetryQueue
from jobserver_core.running.starts import QueuedStart, StartQueue
from jobserver_core.running.waiting import Promise, Waiter
from jobserver_core.running.withdrawals import Withdrawals

__all__ = ["LiveContext"]

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

_END_EVENTS = {
    ContextEnd.STOPPED: ContextEvent.STOPPED,
    ContextEnd.KILLED: ContextEvent.KILL,
    ContextEnd.KILLED_OUTSIDE: ContextEvent.KILL,
    ContextEnd.FAILED: ContextEvent.FAIL,
}


class LiveContext(ContextListener):
    """Runs the jobs of one context: as many at once as there are slots, the others in order.

    One lock guards the context and its jobs. What follows from a change (events, waiters, calls to
    the launcher) happens after the lock is released, in the order of the changes, so neither a
    subscriber nor a launcher can deadlock with it.

    What the launcher reports, and what core decides by itself, is stored through a
    :class:`~jobserver_core.running.retries.RetryQueue`. What users ask for is stored at once, or fails.
    """

    def __init__(
        self,
        environment: Environment,
        record: Context,
        *,
        starts: StartQueue,
        withdrawals: Withdrawals,
        retire: Callable[[LiveContext], None],
    ) -> None:
        self._environment = environment
        self._files = ExitStack()
        self._starts = starts
        self._withdrawals = withdrawals
        self._retire = retire
        self._withdrawn = False
        self._holding = False
        self._lock = threading.RLock()
        self._outbox = Outbox()
        self._changes = RetryQueue(environment.clock, f"context {record.name}")
        self._pump_waits = False
        self._ready_reported = False
        self._end_reported = False
        self._code_digests: frozenset[str] = frozenset()
        self._handle: ContextHandle | None = None
        self._doom: ErrorInfo | None = None
        self._queue: deque[LiveJob] = deque()
        self._running: dict[str, LiveJob] = {}
        self.record = record
        self.ready: Promise[Context] = Promise(f"context {record.name}")
        self.ended: Promise[Context] = Promise(f"context {record.name}")

    # -- what the services ask for -----------------------------------------------------------------

    def begin(self, spec: ContextSpec) -> None:
        """Start the context as soon as it is its turn; what goes wrong at once ends it, and is raised."""
        start = QueuedStart(self.record.name, launch=lambda: self._take_turn(spec), expire=self._expire)
        try:
            self._environment.launcher.validate(spec)
            now = self._starts.enter(start)
            self.ready.waiter.add_done_callback(lambda _waiter: self._starts.leave(start))
            if now:
                # The launcher may tell that it is ready before it has handed back the handle.
                with self._outbox.held():
                    self._launch(spec)
        except Exception as error:
            self._fail_start(error)
            raise

    def _take_turn(self, spec: ContextSpec) -> None:
        """Launch a context that had to wait; what goes wrong now is known by its final state alone."""

        def effect() -> None:
            try:
                self._launch(spec)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is why the context failed
                self._fail_start(error)

        self._outbox.put(effect)
        self._outbox.drain()

    def _launch(self, spec: ContextSpec) -> None:
        """Have the launcher start the context, unless it was ended meanwhile. Runs as an effect."""
        if self._withdrawn:
            return
        env, limit = self._environment, self._environment.settings.contexts.creation_timeout
        self._handle = env.launcher.start_context(spec, self)
        timer = env.clock.call_later(limit, lambda: self._give_up(limit, spec.log_path))
        self.ready.waiter.add_done_callback(lambda _waiter: timer.cancel())

    def _fail_start(self, error: Exception) -> None:
        self.context_ended(ContextEnd.FAILED, ErrorInfo(message=str(error), error_class=type(error).__name__))

    def _expire(self) -> None:
        """End a context that was not launched in time."""
        limits, status = self._environment.settings.contexts, self._starts.status
        info = ErrorInfo(
            message=f"context {self.record.name} waited {limits.start_queue_timeout:g} s to be launched: "
            f"{status.limit} contexts start at once and {status.queued} others wait; start fewer, or raise "
            "jobserver.contexts.start-queue-timeout or jobserver.contexts.concurrent-starts",
            error_class="TimeoutError",
        )
        self._outbox.put(lambda: self._withdraw(ContextEnd.FAILED, info))
        self._outbox.drain()

    def _withdraw(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        """End a context that was never launched, and now never will be. Runs as an effect."""
        if self._handle is None:
            self._withdrawn = True
            self.context_ended(end, error)

    def keep(self, codes: Iterable[JobCode], files: ExitStack) -> None:
        """Hold the files of the context's own class path until it has ended."""
        self._code_digests = frozenset(code.digest for code in codes)
        self._files = files

    @property
    def digests(self) -> frozenset[str]:
        """The blobs that must stay for this context, whether or not a record refers to them."""
        with self._lock:
            results = [live.result_digest for live in self._running.values()]
        return self._code_digests.union(digest for digest in results if digest is not None)

    def accept(self, live: LiveJob, config: str) -> None:
        """Record a job and run it, or let it wait. Raises ContextStopping, NoSlots, DuplicateId, …"""
        self._withdrawals.check_room()
        with self._changing():
            self._check_room()
            try:
                self._environment.metadata.add_job(live.job, config=config)
            except StorageError:
                self._withdrawals.job(live.job.id)
                raise
            self._enqueue(live)

    def abandon(self) -> None:
        """End a context that was recorded and will not be begun."""
        self.context_ended(ContextEnd.KILLED)

    def adopt(self, live: LiveJob) -> None:
        """Run a job that is recorded already, with this context as its own."""
        with self._changing():
            live.advance(JobEvent.RESTART, context_id=self.record.id)
            self._enqueue(live)

    def hold_jobs(self) -> None:
        """Begin no job any more, since the server is going to end. Jobs that wait outlive it.

        When the context ends they stay as they are, for the next server to run; but not when somebody asked
        for the end of the context, or of the job.
        """
        with self._changing():
            self._holding = True

    def kill_job(self, live: LiveJob, *, force: bool) -> Waiter[Job]:
        """Take a waiting job out of the queue, or have the launcher end a running one."""
        with self._changing():
            if live.job.state.final:
                raise JobAlreadyFinal(job_id=live.job.id, state=live.job.state.value)
            if live in self._queue:
                self._end_job(live, Ending.killed(live.job.id))
                self._queue.remove(live)
            else:
                live.advance(None, kill_requested=True)
                self._tell_handle(lambda handle: handle.kill_job(live.job.id))
                if force:
                    self._escalate(live)
        return live.finished.waiter

    def stop(self, timeout: float, *, requested: bool) -> Waiter[Context]:
        """Stop the context; ``requested`` tells that a user wants it, whose jobs call nobody back."""
        with self._changing():
            if CONTEXTS.allows(self.record.state, ContextEvent.STOP):
                self._advance(ContextEvent.STOP, stop_requested=requested)
                self._tell_handle(lambda handle: handle.stop(timeout), unlaunched=ContextEnd.STOPPED)
        return self.ended.waiter

    def stop_eventually(self, timeout: float, *, requested: bool) -> Waiter[Context]:
        """Stop the context as soon as that can be stored; arguments as in :meth:`stop`."""

        def stop() -> None:
            self.stop(timeout, requested=requested)

        self._changes.put(stop)
        return self.ended.waiter

    def kill(self, *, requested: bool) -> Waiter[Context]:
        """End the context by force; ``requested`` as in :meth:`stop`."""
        with self._changing():
            if not self.record.state.final:
                if requested:
                    self._advance(None, stop_requested=True)
                self._tell_handle(lambda handle: handle.kill(), unlaunched=ContextEnd.KILLED)
        return self.ended.waiter

    # -- what the launcher tells -------------------------------------------------------------------

    def context_ready(self, *, application_id: str | None, url: str | None) -> None:
        """Record that the context runs, and give it the jobs that wait."""
        self._ready_reported = True
        self._changes.put(lambda: self._store_ready(application_id, url))

    def context_ended(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        """End the jobs that are left, then the context."""
        self._end_reported = True
        self._changes.put(lambda: self._store_end(end, error))

    def job_running(self, job_id: str) -> None:
        """Record that the job's code runs."""
        self._changes.put(lambda: self._store_running(job_id))

    def job_progress(self, job_id: str, progress: JobProgress) -> None:
        """Record how far the job is, unless the store fails: the next report says more than this one."""
        live = self._running.get(job_id)
        if live is None or self._changes.failing:
            return
        try:
            self._environment.metadata.record_progress(job_id, progress)
        except StorageError as error:
            _log.debug("progress of job %s is dropped: %s", job_id, error)
            return
        with self._changing():
            if not live.job.state.final:
                job = live.job = attrs.evolve(live.job, progress=progress)
                self._outbox.put(lambda: self._environment.job_progressed(job))

    def open_result(self, job_id: str, *, stream: bool) -> ResultSink:
        """Return the sink for the result of a running job."""
        return self._running[job_id].open_result(stream=stream)

    def job_ended(self, job_id: str, outcome: JobOutcome) -> None:
        """Record the end of the job with its result, and give its slot to the next one."""
        live = self._running.get(job_id)
        if live is not None and not live.outcome_reported:
            live.outcome_reported = True
            self._changes.put(lambda: self._store_outcome(live, outcome))

    # -- inside ------------------------------------------------------------------------------------

    def _store_ready(self, application_id: str | None, url: str | None) -> None:
        with self._changing():
            if self.record.state is not ContextState.STARTED:
                return
            try:
                self._advance(ContextEvent.READY, application_id=application_id, url=url)
            except StaleState as error:
                _log.warning("context %s was ended by another writer: %s", self.record.name, error)
                self._tell_handle(lambda handle: handle.kill())
                return
            record = self.record
            self._outbox.put(lambda: self.ready.keep(record))
            self._pump()

    def _store_running(self, job_id: str) -> None:
        with self._changing():
            live = self._running.get(job_id)
            if live is None or live.job.state is JobState.RUNNING:
                return
            try:
                live.advance(JobEvent.RUN, running_at=self._environment.clock.now())
            except StaleState as error:
                _log.warning("job %s was ended by another writer: %s", job_id, error)
                return  # its end, which the launcher has yet to report, adopts what is stored
            self._publish(live)
            self._tell_started(live)

    def _store_outcome(self, live: LiveJob, outcome: JobOutcome) -> None:
        # The deposit comes before the lock, here and at a submit: the order that cannot deadlock.
        with self._environment.deposits.making():
            # A launcher may end jobs because their context ends; nobody asked for that kill.
            unasked = outcome.killed and not live.job.kill_requested
            ending = self._lost(live, None) if unasked else live.ending_of(outcome)
            with self._changing():
                if live.job.id in self._running:
                    self._end_job(live, ending)
                    self._pump()

    def _store_end(self, end: ContextEnd, error: ErrorInfo | None) -> None:
        with self._changing():
            if self.record.state.final:
                return
            error = self._doom or error
            kept = list(self._queue) if self._holding and not self.record.stop_requested else []
            for live in [*self._running.values(), *self._queue]:
                if not live.job.state.final and live not in kept:
                    self._end_job(live, self._lost(live, error))
            self._queue.clear()
            for live in kept:
                self._outbox.put(live.postpone)
            event = ContextEvent.FAIL if self._doom else _END_EVENTS[end]
            if CONTEXTS.next(self.record.state, event) is ContextState.ERROR and error is None:
                error = ErrorInfo(message="the context ended by itself")
            self._record_end(event, error)
            self._outbox.put(self._settle)

    def _record_end(self, event: ContextEvent, error: ErrorInfo | None) -> None:
        try:
            self._advance(event, error=error, ended_at=self._environment.clock.now())
        except StaleState as stale:
            _log.warning("context %s was ended by another writer: %s", self.record.name, stale)
            self.record = self._environment.metadata.context(self.record.id) or self.record

    def _check_room(self) -> None:
        if self.record.state.final:
            raise ContextNotFound(name=self.record.name)
        if self.record.state is ContextState.STOPPING:
            raise ContextStopping(name=self.record.name)
        if self._end_reported:
            raise StorageError(
                message=f"context {self.record.name} has ended, which cannot be stored yet; try again later"
            )
        limits = self._environment.settings.jobs
        taken = len(self._running) + len(self._queue)
        if taken >= limits.max_jobs_per_context + limits.max_queued_jobs:
            raise NoSlots(context=self.record.name, running=len(self._running))

    def _enqueue(self, live: LiveJob) -> None:
        self._publish(live)
        self._queue.append(live)
        self._pump()

    def _pump(self) -> None:
        """Dispatch as many waiting jobs as there are free slots; those that cannot be stored stay waiting."""
        if self.record.state is not ContextState.RUNNING or self._end_reported or self._holding:
            return
        slots = self._environment.settings.jobs.max_jobs_per_context
        try:
            while self._queue and len(self._running) < slots:
                self._dispatch(self._queue[0])
                self._queue.popleft()
        except StorageError as error:
            _repeats.warning(self.record.id, "job %s waits for storage: %s", self._queue[0].job.id, error)
            self._pump_later()
        for live in self._queue:
            self._tell_started(live)

    def _pump_later(self) -> None:
        if not self._pump_waits:
            self._pump_waits = True
            self._changes.put_later(self._pump_again)

    def _pump_again(self) -> None:
        with self._changing():
            self._pump_waits = False
            self._pump()

    def _dispatch(self, live: LiveJob) -> None:
        live.advance(None, dispatched_at=self._environment.clock.now())
        self._running[live.job.id] = live
        self._publish(live)
        self._tell_handle(lambda handle: handle.submit(live.spec))

    def _end_job(self, live: LiveJob, ending: Ending) -> None:
        killed = ending.event is JobEvent.KILL
        cancelled = killed or live.job.kill_requested or self.record.stop_requested
        delivery = live.end(ending, cancelled=cancelled)
        self._running.pop(live.job.id, None)
        job = live.job
        self._outbox.put(lambda: self._environment.job_changed(job, delivery))
        self._outbox.put(live.settle)
        if self._ends_with(live):
            grace = self._environment.settings.contexts.deletion_timeout
            self._outbox.put(lambda: self.stop_eventually(grace, requested=False))

    def _ends_with(self, live: LiveJob) -> bool:
        if self.record.ad_hoc:
            return True
        wanted = str(self.record.settings.get("stop-context-on-job-error", "")).lower() == "true"
        return wanted and live.job.state is JobState.ERROR

    def _lost(self, live: LiveJob, error: ErrorInfo | None) -> Ending:
        """Return how a job ends because its context did."""
        if live.job.kill_requested:
            return Ending.killed(live.job.id)
        if self.record.ad_hoc and not self.ready.waiter.done():
            reason = error or ErrorInfo(message=self.record.terminated_message)
            return Ending.failed(FailureKind.CONTEXT_INIT, reason)
        stack = error.message if error else ""
        lost = ErrorInfo(message=self.record.terminated_message, error_class="ContextTerminated", stack=stack)
        return Ending.failed(FailureKind.CONTEXT_LOST, lost)

    def _give_up(self, limit: float, log: Path) -> None:
        """End a context that did not become ready in time; why it did not is in its log, if anywhere."""
        with self._changing():
            if self.record.state is ContextState.STARTED and not self._ready_reported:
                lines = _last_lines(log)
                telling = [line for line in lines if line[:1].strip()]  # neither blank nor a frame of a stack
                last = f"; its log ends with: {telling[-1]}" if telling else ""
                self._doom = ErrorInfo(
                    message=f"context {self.record.name} was not ready after {limit:g} s{last}",
                    error_class="TimeoutError",
                    stack="\n".join(["last lines of the context's log:", *lines] if lines else []),
                )
                self._tell_handle(lambda handle: handle.kill())

    def _escalate(self, live: LiveJob) -> None:
        """Kill the context when the job has not ended after the grace period."""
        grace = self._environment.settings.jobs.kill_timeout

        def kill() -> None:
            _log.warning("job %s did not end in %g s: killing its context", live.job.id, grace)
            self.kill(requested=False)

        timer = self._environment.clock.call_later(grace, kill)
        live.finished.waiter.add_done_callback(lambda _waiter: timer.cancel())

    def _settle(self) -> None:
        """Let go of everything once the context is final."""
        self._files.close()
        self._retire(self)
        record = self.record
        error = record.error or ErrorInfo(message=f"context {record.name} ended before it was ready")
        self.ready.fail(ContextFailed(name=record.name, error=error))
        self.ended.keep(record)

    def _advance(self, event: ContextEvent | None, **changes: Any) -> None:
        before = self.record.state
        state = CONTEXTS.next(before, event) if event else before
        record = attrs.evolve(self.record, state=state, **changes)
        try:
            self._environment.metadata.advance_context(record, expected=before)
        except StaleState:
            # An earlier attempt that seemed to fail may have been stored after all.
            stored = self._environment.metadata.context(record.id)
            if stored is None or stored.state is not state:
                raise
            record = stored
        self.record = record
        self._outbox.put(lambda: self._environment.context_changed(record))

    def _publish(self, live: LiveJob) -> None:
        job = live.job
        self._outbox.put(lambda: self._environment.job_changed(job))

    def _tell_started(self, live: LiveJob) -> None:
        job = live.job
        self._outbox.put(lambda: live.started.keep(job))

    def _tell_handle(
        self, call: Callable[[ContextHandle], None], unlaunched: ContextEnd | None = None
    ) -> None:
        """Call the launcher; a context that has not been launched ends as ``unlaunched`` says, if it does."""

        def effect() -> None:
            if self._handle is not None:
                call(self._handle)
            elif unlaunched is not None:
                self._withdraw(unlaunched)

        self._outbox.put(effect)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock inside the block, and let what follows happen after it."""
        try:
            with self._lock:
                yield
        finally:
            self._outbox.drain()


def _last_lines(log: Path, size: int = 4096) -> list[str]:
    """Return the lines in the last ``size`` bytes of a file; none when there is no file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return []
