"""A context that is not final, and what users and the server ask of it.

:mod:`~jobserver_core.running.context_record` has the record with its lock and its outbox, and the theory of
their order. :mod:`~jobserver_core.running.job_queue` has the jobs,
:mod:`~jobserver_core.running.context_launch` launches the context, and
:mod:`~jobserver_core.running.context_reports` stores what its launcher reports.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from jobserver_core.errors import (
    JobAlreadyFinal,
    ServerClosed,
    StaleState,
    StorageError,
    Unavailable,
)
from jobserver_core.models.contexts import Context, Resources
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import Job
from jobserver_core.models.lifecycle import CONTEXTS, ContextEvent, ContextState
from jobserver_core.ports import (
    Clock,
    ContextEnd,
    ContextSpec,
    JobCode,
    JobSpec,
    Launcher,
)
from jobserver_core.running.context_launch import ContextLaunch
from jobserver_core.running.context_record import ContextRecord
from jobserver_core.running.context_reports import ContextReports
from jobserver_core.running.context_settings import TimeLimits
from jobserver_core.running.deadlines import Deadlines
from jobserver_core.running.job_queue import JobQueue
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.records import FinalOutcome, Records
from jobserver_core.running.restarts import Death, death_of, reason_of_leaving
from jobserver_core.running.starts import StartQueue
from jobserver_core.running.waiting import Promise, Waiter

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["LiveContext"]

_log = logging.getLogger(__name__)


class LiveContext:
    """One context with its jobs, from its record to its final state.

    Requests of users are stored at once, or fail. ``caller`` takes turns with others in ``starts``.
    ``resources`` is what the context may use at most. ``retire`` is called once the context is final. If it
    is supervised and dies, ``succeed`` makes a living context of the record that takes its place, which is
    not stored yet, and ``restart`` gives that one the jobs that go on, and launches it.
    """

    def __init__(
        self,
        record: Context,
        *,
        records: Records,
        launcher: Launcher,
        starts: StartQueue,
        caller: str,
        clock: Clock,
        settings: Settings,
        resources: Resources,
        retire: Callable[[LiveContext], None],
        succeed: Callable[[Context], LiveContext],
        restart: Callable[[LiveContext, list[LiveJob]], None],
    ) -> None:
        self._records = records
        self._clock = clock
        self._settings = settings
        self.resources = resources
        self._retire = retire
        self._succeed = succeed
        self._restart = restart
        self._successor: LiveContext | None = None
        self._files = ExitStack()
        self._code_digests: frozenset[str] = frozenset()
        self._context = ContextRecord(record, records=records, clock=clock)
        # The parts call one another, in a circle, but none of them before this constructor returns.
        self._deadlines = Deadlines(
            self._context,
            clock=clock,
            jobs=lambda: self._jobs,
            stop=self._stop_by_itself,
        )
        self._jobs = JobQueue(
            self._context,
            records=records,
            clock=clock,
            limits=settings.jobs,
            submit=self._submit,
            acknowledge=self._acknowledge,
            kill=self._kill_overdue,
            stop_context=self._stop_by_itself,
            watch=self._deadlines.watch,
            idle=self._deadlines.context_idle,
        )
        self._reports = ContextReports(
            self._context,
            jobs=self._jobs,
            deadlines=self._deadlines,
            records=records,
            clock=clock,
            die=self._die,
            kill_stale=self._kill_stale,
            close=self._close,
            leave=self._leave,
        )
        self._launch = ContextLaunch(
            self._context,
            self._reports,
            launcher=launcher,
            starts=starts,
            caller=caller,
            clock=clock,
            limits=settings.contexts,
        )

    @property
    def record(self) -> Context:
        """The context as it is stored."""
        return self._context.current

    @property
    def ready(self) -> Promise[Context]:
        """Done once jobs can run; fails with ContextFailed when the context ends before."""
        return self._context.ready

    @property
    def ended(self) -> Promise[Context]:
        """Done once the context is final."""
        return self._context.ended

    @property
    def time_limits(self) -> TimeLimits:
        """The limits of time in its settings."""
        return self._deadlines.limits

    @property
    def leaves_jobs(self) -> bool:
        """Whether its waiting jobs run elsewhere, because the server closes or has lost the context."""
        return self._jobs.holding or self._reports.on_lost is not None

    @property
    def ending(self) -> bool:
        """Whether its launcher has reported its end, which is not stored yet."""
        return self._context.ended_at is not None and not self.record.state.final

    @property
    def successor(self) -> LiveContext | None:
        """The living context that has taken its place after it died, or None."""
        return self._successor

    @property
    def digests(self) -> frozenset[str]:
        """The blobs that must stay for this context, whether or not a record refers to them."""
        with self._context.lock:
            return self._code_digests | self._jobs.result_digests

    # -- requests of the services ------------------------------------------------------------------

    def add(self) -> None:
        """Store the new context and publish it, before any change. Raises ContextExists, StorageError."""
        context = self.record
        with self._context.changing():
            self._records.add_context(context)
            self._context.outbox.put(lambda: self._records.publish_context(context))

    def begin(self, spec: ContextSpec) -> None:
        """Start the context as soon as it is its turn; an immediate error ends it and is raised."""
        self._launch.begin(spec)

    def keep(self, codes: Iterable[JobCode], files: ExitStack) -> None:
        """Keep the files of the context's own class path until it has ended."""
        self._code_digests = frozenset(code.digest for code in codes)
        self._files = files

    # -- after a restart of the server -------------------------------------------------------------

    def take_over(self, server_id: str) -> None:
        """Store that a context of an earlier server belongs to this one. Raises StaleState, StorageError."""
        with self._context.changing():
            record = self.record
            self._context.advance(
                None,
                owner=server_id,
                owned_since=self._clock.now(),
                epoch=record.epoch + 1,
                error=None if reason_of_leaving(record) else record.error,
            )
            if not self.record.state.starting:
                self._context.notify_ready()

    def resume(self, live: LiveJob) -> None:
        """Continue with a job that an earlier server accepted, in the order of those jobs.

        Its epoch grows, so that no server that has claimed the context before can end it.
        """
        with self._context.changing():
            self._jobs.resume(live)
        self._context.changes.put(lambda: self._claim_job(live))

    def _claim_job(self, live: LiveJob) -> None:
        with self._context.changing():
            if live.job.state.final:
                return
            try:
                live.advance(None)
            except StaleState as error:  # whatever follows adopts what is stored
                _log.warning("job %s was changed by another writer: %s", live.job.id, error)

    def reattach(self, spec: ContextSpec, on_lost: Callable[[Context, list[LiveJob]], None]) -> None:
        """Have the launcher take over the context, and repeat the requests that may not have reached it.

        ``on_lost`` is called if the context ends before it was taken over, with its record and the jobs that
        still waited in it, unless its end was requested or the server is closing. Raises LaunchError.
        """
        self._reports.on_lost = on_lost
        jobs = self._jobs.running_jobs
        try:
            self._launch.reattach(spec, [live.spec for live in jobs])
        except Exception as error:
            self.fail(error)
            raise
        with self._context.changing():
            for live in jobs:
                if live.job.kill_requested or live.overdue is not None:
                    self._kill_running(live)
            self._end_again()

    def _end_again(self) -> None:
        """Repeat the stop or kill of the context."""
        timeout = self._settings.contexts.deletion_timeout
        if self.record.state is ContextState.STOPPING:
            self._launch.call(lambda handle: handle.stop(timeout))
        elif self.record.stop_requested:
            self._launch.call(lambda handle: handle.kill())
        elif self.record.ad_hoc and self._jobs.empty:
            self._context.outbox.put(self._stop_by_itself)

    def lose(self, reason: ErrorInfo) -> None:
        """End the context on this machine, because other servers take over what this one had.

        What they have taken over stays unchanged; the rest ends here, except for waiting jobs, which
        run again elsewhere.
        """
        self.hold_jobs()
        with self._context.changing():  # the kill first: the store may hang
            self._context.failure = reason
            self._launch.call(lambda handle: handle.kill(), unlaunched=ContextEnd.FAILED)
        self._reports.context_ended(ContextEnd.FAILED, reason)

    def leave(self, reason: ErrorInfo) -> None:
        """Have another server start the context again once it has stopped, if it is supervised.

        Its end is not stored: its record says why it is left, and the others take it over as soon as this
        server is not registered any more. This is stored before the stop, however long that takes.
        """

        def leave() -> None:
            with self._context.changing():
                record, now = self.record, self._clock.now()
                if death_of(record, settings=record.settings, reason=reason, died_at=now) is None:
                    return
                try:
                    self._context.advance(None, error=reason)
                except StaleState as error:
                    self._kill_stale(error)
                    return
                self._context.leaving = reason

        self._context.changes.put(leave)

    def detach(self) -> None:
        """Leave the context to the next server: its launcher reports nothing any more."""
        with self._context.changing():
            if not self.record.state.final:
                with suppress(StorageError):  # the launcher reports it to the next server again
                    self._jobs.store_running()
                self._jobs.detach()
                self._deadlines.close()
                self._context.outbox.put(self._release_detached)

    def _release_detached(self) -> None:
        self._files.close()
        self._retire(self)
        for promise in (self._context.ready, self._context.ended):
            promise.fail(ServerClosed())

    def fail(self, error: Exception) -> None:
        """End a context that could not be started, or taken over."""
        self._reports.context_ended(ContextEnd.FAILED, ErrorInfo.from_exception(error))

    def abandon(self) -> None:
        """End a context that was recorded and will not be started."""
        self._reports.context_ended(ContextEnd.KILLED)

    def accept(self, live: LiveJob, config: str) -> None:
        """Record a job and run it, or let it wait for a slot.

        Raises:
            ContextNotFound: The context has ended.
            ContextStopping: The context is stopping.
            NoSlots: The limits of running and waiting jobs are reached.
            DuplicateId: A job with the same idempotency key is recorded.
            StorageError: The job could not be recorded.
        """
        with self._context.changing():
            self._context.check_accepts_jobs()
            self._jobs.check_room(live.job.submitted_by)
            self._jobs.accept(live, config)

    def adopt(self, live: LiveJob) -> None:
        """Run a job that is recorded already, with this context as its own, unless it was killed before.

        If the context has ended meanwhile, the job ends like those that waited in it.
        """
        with self._context.changing():
            if live.job.kill_requested:
                self._jobs.end(live, FinalOutcome.killed(live.job.id))
            elif self.record.state.final:
                self._jobs.end(live, self._jobs.outcome_without_context(live, self.record.error))
            else:
                live.restart(self.record.id)
                self._jobs.add(live)

    def pick_up(self, live: LiveJob) -> None:
        """Run a job that another server accepted for this context, or let it wait for a slot.

        Raises:
            ContextNotFound: The context has ended.
            ContextStopping: The context is stopping, or about to.
            ServerClosed: The jobs of the context are left to another server.
            StorageError: The end of the job or of the context cannot be recorded yet.
        """
        with self._context.changing():
            if self._jobs.holding:
                raise ServerClosed()
            if live.job.kill_requested and not self.record.state.final:
                self._jobs.end(live, FinalOutcome.killed(live.job.id))
                return
            self._context.check_accepts_jobs()
            live.waits_since = self._clock.now()
            self._jobs.add(live)

    def store_running(self) -> None:
        """Store the RUNNING state of jobs for which it is not stored yet. Raises StorageError."""
        with self._context.changing():
            self._jobs.store_running()

    def hold_jobs(self) -> None:
        """Stop starting jobs, because the server is about to end. Waiting jobs outlive it.

        When the context ends they keep their state, and the next server runs them, unless the end of the
        context or of the job was requested.
        """
        with self._context.changing():
            self._jobs.hold()

    def kill_job(self, live: LiveJob, *, force: bool) -> Waiter[Job]:
        """Take a waiting job out of the queue, or have the launcher end a running one.

        Raises:
            JobAlreadyFinal: The job has ended.
            Unavailable: Another server has taken the job over.
            StorageError: The kill could not be recorded.
        """
        with self._changing_for_user(f"job {live.job.id}"):
            if live.job.state.final:
                raise JobAlreadyFinal(job_id=live.job.id, state=live.job.state.value)
            if not self._jobs.remove(live):
                live.advance(None, kill_requested=True)
                self._kill_running(live)
                if force:
                    self._kill_context_unless_ended(live)
        self._records.syncer.sync()
        return live.finished.waiter

    def stop(self, timeout: float, *, requested: bool) -> Waiter[Context]:
        """Stop the context; ``requested`` says that a user wants it, so its jobs send no callbacks.

        Raises:
            Unavailable: Another server has taken the context over.
            StorageError: The stop could not be recorded.
        """
        with self._changing_for_user(f"context {self.record.name}"):
            self._stop(timeout, requested=requested)
        return self.ended.waiter

    def _stop(self, timeout: float, *, requested: bool) -> None:
        if self._context.leaving is not None and not requested:
            self._launch.call(lambda handle: handle.stop(timeout), unlaunched=ContextEnd.STOPPED)
        elif CONTEXTS.allows(self.record.state, ContextEvent.STOP):
            self._context.leaving = None
            self._context.advance(ContextEvent.STOP, stop_requested=requested)
            self._launch.call(lambda handle: handle.stop(timeout), unlaunched=ContextEnd.STOPPED)

    @contextmanager
    def _changing_for_user(self, what: str) -> Iterator[None]:
        """Change the context inside the block; that ``what`` was taken over is an error that will pass."""
        try:
            with self._context.changing():
                yield
        except StaleState as stale:
            message = f"{what} is being taken over by another server; try again"
            raise Unavailable(message=message) from stale

    def stop_eventually(self, timeout: float, *, requested: bool) -> Waiter[Context]:
        """Stop the context as soon as that can be stored; arguments as in :meth:`stop`."""

        def stop() -> None:
            try:
                with self._context.changing():
                    self._stop(timeout, requested=requested)
            except StaleState as error:
                self._kill_stale(error)

        self._context.changes.put(stop)
        return self.ended.waiter

    def kill(self, *, requested: bool) -> Waiter[Context]:
        """End the context by force; ``requested`` and errors as in :meth:`stop`."""
        with self._changing_for_user(f"context {self.record.name}"):
            if not self.record.state.final:
                if requested:
                    self._context.advance(None, stop_requested=True)
                self._launch.call(lambda handle: handle.kill(), unlaunched=ContextEnd.KILLED)
        return self.ended.waiter

    # -- the end --------------------------------------------------------------------------------------

    def _die(self, death: Death, event: ContextEvent) -> None:
        """End the context, and let another one take its place, unless it has died too often."""
        if self._successor is None and (record := death.successor(self._records)) is not None:
            self._successor = self._succeed(record)  # once, even if storing this is repeated
        successor = self._successor
        again = successor is not None
        self._jobs.end_all(death.error, spare_waiting=again, spare_restartable=again)
        replaced = successor is not None and self._context.replace(event, death.error, successor.record)
        if not replaced:
            self._context.end(event, death.error)
        self._close()
        if successor is None:
            return
        jobs, outbox = self._jobs.take_left(), self._context.outbox
        if replaced:
            outbox.put(partial(self._restart, successor, jobs))
        else:  # another server has taken the context over, and its jobs
            self._successor = None
            outbox.put(partial(self._retire, successor))
            for live in jobs:
                outbox.put(live.postpone)

    def _leave(self, reason: ErrorInfo) -> None:
        """End the jobs that do not run again, and leave the others and the context to another server."""
        self._jobs.end_all(reason, spare_waiting=True, spare_restartable=True)
        for live in self._jobs.take_left():
            self._context.outbox.put(live.postpone)
        self._deadlines.close()
        self._context.outbox.put(self._release_detached)

    def _close(self) -> None:
        self._deadlines.close()
        self._context.outbox.put(self._release)

    # -- effects of a change -----------------------------------------------------------------------

    def _kill_stale(self, error: StaleState) -> None:
        """End a context here that another writer has ended or taken over."""
        _log.warning("context %s was ended by another writer: %s", self.record.name, error)
        with self._context.changing():
            self._launch.call(lambda handle: handle.kill(), unlaunched=ContextEnd.KILLED)

    def _submit(self, spec: JobSpec) -> None:
        self._launch.call(lambda handle: handle.submit(spec))

    def _acknowledge(self, job_id: str) -> None:
        self._launch.acknowledge(job_id)

    def _kill_running(self, live: LiveJob) -> None:
        self._launch.call(lambda handle: handle.kill_job(live.job.id))

    def _kill_overdue(self, live: LiveJob) -> None:
        """Kill a job that exceeded its limit of time, and if need be, the context that has no other job."""
        self._kill_running(live)
        if self.record.ad_hoc:
            self._kill_context_unless_ended(live)

    def _stop_by_itself(self) -> None:
        """Stop a context that ends with one of its jobs, or with its time."""
        self.stop_eventually(self._settings.contexts.deletion_timeout, requested=False)

    def _kill_context_unless_ended(self, live: LiveJob) -> None:
        """Kill the context when the job has not ended after the grace period."""
        grace_period = self._settings.jobs.kill_timeout

        def kill() -> None:
            _log.warning("job %s did not end in %g s: killing its context", live.job.id, grace_period)
            self.kill(requested=False)

        timer = self._clock.call_later(grace_period, kill)
        live.finished.waiter.add_done_callback(lambda _waiter: timer.cancel())

    def _release(self) -> None:
        """Release everything once the context is final."""
        self._files.close()
        self._retire(self)
        self._context.notify_ended()
