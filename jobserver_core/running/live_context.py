"""A context that is not final, and everything that users and the server can do with it.

:mod:`~jobserver_core.running.context_record` has the record with its lock and its outboxes, and explains
their order. :mod:`~jobserver_core.running.job_queue` has the jobs,
:mod:`~jobserver_core.running.context_launch` launches the context, :mod:`~jobserver_core.running.context_end`
stops and kills it, and :mod:`~jobserver_core.running.context_reports` stores what its launcher reports.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from jobserver_core.errors import JobAlreadyFinal, ServerClosed, StaleState, StorageError
from jobserver_core.models.contexts import Context, Resources
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import Job
from jobserver_core.models.lifecycle import ContextEvent, ContextState
from jobserver_core.ports import Clock, ContextEnd, ContextSpec, Launcher
from jobserver_core.running.context_end import ContextEnding
from jobserver_core.running.context_launch import ContextLaunch
from jobserver_core.running.context_record import ContextRecord
from jobserver_core.running.context_reports import ContextReports
from jobserver_core.running.context_settings import TimeLimits
from jobserver_core.running.deadlines import Deadlines
from jobserver_core.running.job_queue import JobQueue
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.records import FinalOutcome, Records, taken_over
from jobserver_core.running.restarts import Death, death_of
from jobserver_core.running.starts import StartQueue
from jobserver_core.running.waiting import Promise, Waiter

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

_log = logging.getLogger(__name__)


class LiveContext:
    """One context with its jobs, from its record to its final state.

    Requests of users are stored at once, or fail. ``caller`` takes turns with others in ``starts``.
    ``resources`` is the most that the context may use. With ``holding``, it starts no jobs, as after
    :meth:`hold_jobs`. ``retire`` is called once the context is final. If a supervised context dies,
    ``succeed`` makes a living context, with the same resources, from the record of its successor, which is
    not stored yet. It is called with the context's lock held. ``restart`` then gives the successor the jobs
    that continue, and launches it.
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
        holding: bool,
        retire: Callable[[LiveContext], None],
        succeed: Callable[[Context, Resources], LiveContext],
        restart: Callable[[LiveContext, list[LiveJob]], None],
    ) -> None:
        self._records = records
        self._clock = clock
        self._settings = settings
        self.resources = resources
        self._retire = retire
        self._succeed = succeed
        self._restart = restart
        self.successor: LiveContext | None = None
        """The living context that has taken its place after it died, or None."""
        self._files = ExitStack()
        self._context = ContextRecord(record, records=records, clock=clock)
        self._launch = ContextLaunch(
            self._context,
            launcher=launcher,
            starts=starts,
            caller=caller,
            clock=clock,
            limits=settings.contexts,
        )
        self._ending = ContextEnding(self._context, self._launch, clock=clock, settings=settings)
        self._deadlines = Deadlines(self._context, clock=clock, ending=self._ending)
        self._jobs = JobQueue(
            self._context,
            records=records,
            clock=clock,
            limits=settings.jobs,
            launch=self._launch,
            ending=self._ending,
            deadlines=self._deadlines,
            holding=holding,
        )
        self._deadlines.jobs = self._jobs  # each needs the other
        self._reports = ContextReports(
            self._context,
            launcher=type(launcher).__name__,
            jobs=self._jobs,
            deadlines=self._deadlines,
            records=records,
            clock=clock,
            ending=self._ending,
            die=self._die,
            close=self._close,
            leave=self._leave,
        )
        self._launch.listener = self._reports

    @property
    def record(self) -> Context:
        """The context as it is stored."""
        return self._context.current

    @property
    def ready(self) -> Promise[Context]:
        """Done once jobs can run; fails with ContextFailed if the context ends before that."""
        return self._context.ready

    @property
    def ended(self) -> Promise[Context]:
        """Done once the context is final."""
        return self._context.ended

    @property
    def preparing(self) -> str:
        """What the launcher still does before the context can start, or ""."""
        return self._launch.preparing

    @property
    def time_limits(self) -> TimeLimits:
        """The time limits in its settings."""
        return self._deadlines.limits

    @property
    def reason_of_end(self) -> str:
        """Why the context is ending or has ended, as text; empty if it ended by itself."""
        error = self.record.error
        return error.message if error is not None else self._context.reason_of_end

    @property
    def leaves_jobs(self) -> bool:
        """Whether its waiting jobs run elsewhere, because the server is closing or has lost the context."""
        return self._jobs.holding or self._reports.on_lost is not None

    @property
    def ending(self) -> bool:
        """Whether its launcher has reported its end, but the end is not stored yet."""
        return self._context.ended_at is not None and not self.record.state.final

    # -- requests of the services ------------------------------------------------------------------

    def when_ready(self) -> Waiter[Context]:
        """Return a waiter for ``ready``, unless the context accepts no more jobs.

        Raises:
            ContextNotFound: It has ended.
            ContextStopping: It is stopping.
            StorageError: It has ended, but this cannot be stored yet.
        """
        with self._context.changing():
            self._context.check_accepts_jobs()
        return self.ready.waiter

    def add(self) -> None:
        """Store and publish the new context, before any change to it.

        Raises:
            ContextExists: A living context has this name.
            StorageError: The context could not be recorded.
        """
        context = self.record
        with self._context.changing():
            self._records.add_context(context)
            self._context.outbox.put(lambda: self._records.publish_context(context))

    def begin(self, spec: ContextSpec) -> None:
        """Start the context when its turn comes. An immediate error ends the context and is raised."""
        self._launch.begin(spec)

    def keep(self, files: ExitStack) -> None:
        """Keep the files of the context's own class path until it has ended."""
        self._files = files

    # -- after a restart of the server -------------------------------------------------------------

    def take_over(self) -> None:
        """Store that an earlier server's context now belongs to this one.

        Raises:
            StaleState: Another server was faster, or the context has ended.
            StorageError: The new owner could not be stored.
        """
        with self._context.changing():
            record = self.record
            self._context.advance(
                None,
                owner=self._records.server_id,
                owned_since=self._clock.now(),
                epoch=record.epoch + 1,
                error=None if record.left_to_others else record.error,
                server_id=self._records.server_id,
                server=self._records.address,
                left_to_others=False,
            )
            if not self.record.state.starting:
                self._context.notify_ready()

    def resume(self, live: LiveJob) -> None:
        """Continue with a job that an earlier server accepted. Call this in the order of those jobs.

        Increases the job's epoch, so that no server that claimed the context before can end the job.
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
            except StaleState as error:  # the next change adopts what is stored
                _log.warning("job %s was changed by another writer: %s", live.job.id, error)

    def reattach(self, spec: ContextSpec, on_lost: Callable[[Context, list[LiveJob]], None]) -> None:
        """Have the launcher take over the context, and repeat the requests that may not have reached it.

        If the context ends before it was taken over, ``on_lost`` is called with its record and the jobs that
        were still waiting in it, unless its end was requested or the server is closing.

        Raises:
            LaunchError: The launcher cannot take it over.
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
                    self._ending.kill_job(live)
            self._end_again()

    def _end_again(self) -> None:
        timeout = self._settings.contexts.deletion_timeout
        if self.record.state is ContextState.STOPPING:
            self._launch.put_call(lambda handle: handle.stop(timeout))
        elif self.record.stop_requested:
            self._launch.put_call(lambda handle: handle.kill())
        elif self.record.ad_hoc and self._jobs.empty:
            self._context.outbox.put(self._ending.stop_by_itself)

    def lose(self, reason: ErrorInfo) -> None:
        """End the context on this machine, because other servers are taking over from this one.

        Records that they have taken over stay unchanged. The rest ends here, except for waiting jobs, which
        run again elsewhere.
        """
        self.hold_jobs()
        with self._context.changing():  # kill first: the store may hang
            self._context.failure = reason
            self._launch.put_call(lambda handle: handle.kill(), unlaunched=ContextEnd.FAILED)
        self._reports.context_ended(ContextEnd.FAILED, reason)

    def leave(self, reason: ErrorInfo) -> None:
        """Have another server restart the context once it has stopped, if it is supervised.

        Its end is not stored. Instead, its record says why it was left, and the other servers take it over as
        soon as this server is no longer registered. This is stored before the context stops, however long
        stopping takes.
        """

        def leave() -> None:
            with self._context.changing():
                record, now = self.record, self._clock.now()
                if death_of(record, settings=record.settings, reason=reason, died_at=now) is None:
                    return
                try:
                    self._context.advance(None, error=reason, left_to_others=True)
                except StaleState as error:
                    self._ending.kill_stale(error)
                    return
                self._context.leaving = reason

        self._context.changes.put(leave)

    def detach(self) -> None:
        """Leave the context to the next server. Its launcher must have stopped reporting."""
        with self._context.changing():
            if not self.record.state.final:
                with suppress(StorageError):  # the launcher reports this again to the next server
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
        """End a context that was recorded but will not be started."""
        self._reports.context_ended(ContextEnd.KILLED)

    def accept(self, live: LiveJob, config: str) -> None:
        """Record a job, and run it or queue it until a slot is free.

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
        """Run a job that is already recorded in this context instead of its own, unless it was killed first.

        If this context has ended in the meantime, the job ends like those that waited in it.

        Raises:
            ServerClosed: The context has ended, and its jobs are left to another server.
            StaleState: Another server has taken the job over.
            StorageError: The job cannot be stored.
        """
        with self._context.changing():
            if live.job.kill_requested:
                self._jobs.end(live, FinalOutcome.killed(live.job))
            elif self._jobs.postpones and self._context.ended_at is not None:
                raise ServerClosed()
            elif self.record.state.final:
                self._jobs.end(live, self._jobs.outcome_without_context(live, self.record.error))
            else:
                live.restart(self.record.id)
                self._jobs.add(live)

    def pick_up(self, live: LiveJob) -> None:
        """Run a job that another server accepted for this context, or queue it until a slot is free.

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
                self._jobs.end(live, FinalOutcome.killed(live.job))
                return
            self._context.check_accepts_jobs()
            live.waits_since = self._clock.now()
            self._jobs.add(live)

    def store_running(self) -> None:
        """Store the RUNNING state of jobs for which it is not stored yet."""
        with self._context.changing():
            self._jobs.store_running()

    def hold_jobs(self) -> None:
        """Stop starting jobs, because the server is about to end. Waiting jobs outlive it.

        When the context ends, they keep their state and the next server runs them, unless a user requested
        the end of the context or the job.
        """
        with self._context.changing():
            self._jobs.holding = True

    def kill_job(self, live: LiveJob, *, force: bool, user: str) -> Waiter[Job]:
        """Remove a waiting job from the queue, or have the launcher end a running one.

        Records the outcome with the kill: it names the first ``user`` who requested it, even if another
        server has taken the job over before it ends.

        Raises:
            JobAlreadyFinal: The job has ended.
            Unavailable: Another server has taken the job over.
            StorageError: The kill could not be recorded.
        """
        with self._changing_for_user(f"job {live.job.id}"):
            if live.job.state.final:
                raise JobAlreadyFinal(job_id=live.job.id, state=live.job.state)
            killed = FinalOutcome.killed(live.job, user)
            if not self._jobs.end_if_waiting(live, killed):
                live.advance(None, kill_requested=True, error=killed.error)
                self._ending.kill_job(live, force=force)
        self._records.syncer.sync()
        return live.finished.waiter

    def stop(self, timeout: float, *, requested: bool, reason: str) -> Waiter[Context]:
        """Stop the context. For the arguments see :class:`.ContextEnding`.

        Raises:
            Unavailable: Another server has taken the context over.
            StorageError: The stop could not be recorded.
        """
        with self._changing_for_user(f"context {self.record.name}"):
            self._ending.stop(timeout, requested=requested, reason=reason)
        return self.ended.waiter

    @contextmanager
    def _changing_for_user(self, what: str) -> Iterator[None]:
        """Change the context inside the block; if ``what`` was taken over, raise an error that will pass."""
        try:
            with self._context.changing():
                yield
        except StaleState as stale:
            raise taken_over(what) from stale

    def stop_eventually(self, timeout: float, *, requested: bool, reason: str) -> Waiter[Context]:
        """Stop the context as soon as the stop can be stored."""
        self._ending.stop_eventually(timeout, requested=requested, reason=reason)
        return self.ended.waiter

    def kill(self, *, requested: bool, reason: str) -> Waiter[Context]:
        """End the context by force, with the errors of :meth:`stop`."""
        with self._changing_for_user(f"context {self.record.name}"):
            self._ending.kill(requested=requested, reason=reason)
        return self.ended.waiter

    # -- the end --------------------------------------------------------------------------------------

    def _die(self, death: Death, event: ContextEvent) -> None:
        """End the context and replace it with a successor, unless it has died too often."""
        if self.successor is None and (record := death.successor(self._records)) is not None:
            self.successor = self._succeed(record, self.resources)  # only once, even if storing is retried
        successor = self.successor
        again = successor is not None
        self._jobs.end_all(death.error, spare_waiting=again, spare_restartable=again)
        replaced = successor is not None and self._context.replace(event, death.error, successor.record)
        if not replaced:
            self._context.end(event, death.error)
        self._close()
        if successor is None:
            return
        if replaced:
            self._context.outbox.put(partial(self._restart, successor, self._jobs.take_left()))
        else:  # another server has taken the context over, and its jobs
            self.successor = None
            self._context.outbox.put(partial(self._retire, successor))
            self._postpone_left()

    def _postpone_left(self) -> None:
        for live in self._jobs.take_left():
            self._context.outbox.put(live.postpone)

    def _leave(self, reason: ErrorInfo) -> None:
        """End the jobs that do not run again, and leave the context and the other jobs to another server."""
        self._jobs.end_all(reason, spare_waiting=True, spare_restartable=True)
        self._postpone_left()
        self._deadlines.close()
        self._context.outbox.put(self._release_detached)

    def _close(self) -> None:
        self._deadlines.close()
        self._context.outbox.put(self._release)

    def _release(self) -> None:
        self._files.close()
        self._retire(self)
        self._context.notify_ended()
