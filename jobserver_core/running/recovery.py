"""Reconcile the records with reality after a server has ended.

Theory
======

The problem: the records say that contexts and jobs are alive, but their server has ended, and only the
launcher knows what became of them. Every job must continue or end, with one outcome, and none may run twice.
Other servers may share the store, and reconcile the same records at the same time.

The idea: contexts that are not final and that the launcher finds alive are *taken over*. A living context is
made from the record, with its jobs in their old slots and order. From then on, it is as if this server had
started it. Everything else is *lost*: contexts end, together with the jobs that had begun in them. Jobs that
had not begun run again, in a context like the one they were waiting for.

Records of other servers that are registered are left alone (:mod:`~jobserver_core.running.servers`). The list
of servers is read after the records. Since an owner registers before it creates a record, this finds every
living owner. A lost context is first *claimed* with a higher epoch, so only one server handles it and its
jobs. A final context whose jobs have not ended, because its server closed, is claimed in the same way. Both
ending a job and running it again use compare-and-set, which also guards against the last writes of an owner
that is paused rather than dead.

The server that has claimed a context may itself be paused and declared dead, and the context may be taken
over while its jobs continue. So a job is read first, then the claim is checked, and then the job ends only if
its epoch is still the one that was read: a server that takes a context over raises the epochs of its jobs
afterwards. Whichever comes first, either the claim no longer holds, or the epoch has changed.

A server scans for lost records while it runs, so what it reads about its own contexts and jobs may be out of
date. It leaves alone every context that was living here before or after the records were read, and reads a
job again before it changes it. If storage fails in the middle of a scan, some contexts may already have
ended, and the next scan would no longer find their names and leftovers. So these are remembered until a scan
succeeds. A closing server claims nothing, because its own contexts may be detached. A job that cannot run for
a temporary reason is tried again after a while, here or on another server
(:mod:`~jobserver_core.running.jobs_without_room`).

A context that is taken over may still turn out to be dead. None of its waiting jobs is given to it until the
launcher has reported that it is ready. So if it ends before that, these jobs can run elsewhere, like those of
a lost context. A separate thread moves them once everything is reconciled; any earlier, the launcher's sweep
would end the contexts that are started for them. Whatever happens there, each of these jobs runs, ends or is
postponed, because users may already be waiting for it. While storage is failing or there is no room, the move
is retried.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs

from jobserver_core.binaries.class_paths import ClassPaths
from jobserver_core.errors import (
    ContextExists,
    InvalidSetting,
    OnAnotherServer,
    ServerClosed,
    StaleState,
    StorageError,
    Unavailable,
)
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import Job
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.models.lifecycle import CONTEXTS, ContextEvent
from jobserver_core.ports import ContextSpec, Fetched, Launcher, MetadataStore
from jobserver_core.repeats import Repeats
from jobserver_core.running.context_registry import ContextRegistry
from jobserver_core.running.context_settings import check_settings, effective_settings
from jobserver_core.running.contexts import ContextService
from jobserver_core.running.fetching import FetchService, Preparation
from jobserver_core.running.jobs import JobService
from jobserver_core.running.jobs_without_room import JobsWithoutRoom
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.records import FinalOutcome, Records
from jobserver_core.running.restarts import Death, death_of, runs_again

if TYPE_CHECKING:
    from jobserver_core.config.settings import SparkSettings

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

PAUSE = 1.0
"""Seconds between two attempts to move a job while storage is failing or there is no room."""
_TEMPORARY = (ContextExists, OnAnotherServer, StorageError, Unavailable)
"""Temporary reasons why a job cannot run again."""
_SERVER_ENDED = ErrorInfo(message="the job server ended, and its contexts with it")


@attrs.frozen
class Lost:
    """What was lost with servers: the ``names`` of contexts (except ad-hoc ones), and the jobs to rerun."""

    names: frozenset[str]
    jobs: list[Job]


@attrs.define(kw_only=True, eq=False)
class Recovery:
    """Takes over an earlier server's contexts that are alive, and ends the others.

    The others end as ERROR, and so do the jobs that had begun in them; their callbacks are sent. A job that
    was accepted but had not begun is kept: it runs in a new context like the one it was waiting for.
    ``others`` returns the ids of the servers whose records must not be touched.
    """

    _others: Callable[[], frozenset[str]]
    _metadata: MetadataStore
    _launcher: Launcher
    _records: Records
    _jobs: JobService
    _registry: ContextRegistry
    _contexts: ContextService
    _fetching: FetchService
    _class_paths: ClassPaths
    _settings: SparkSettings
    _restart_context: Callable[[LiveContext], None]
    _without_room: JobsWithoutRoom
    _taken: set[str] = attrs.field(factory=set, init=False)
    _failed: dict[str, ErrorInfo] = attrs.field(factory=dict, init=False)
    _lost_names: set[str] = attrs.field(factory=set, init=False)
    _to_sweep: set[str] = attrs.field(factory=set, init=False)
    _restarting: set[str] = attrs.field(factory=set, init=False)
    _restarting_lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _reconciled: threading.Event = attrs.field(factory=threading.Event, init=False)
    _closed: threading.Event = attrs.field(factory=threading.Event, init=False)

    def take_over(self) -> None:
        """Continue with the contexts and jobs that outlived their server, without waiting for them."""
        survivors = self._launcher.survivors()
        if not survivors:
            return
        records = self._live_contexts()
        jobs = self._records.live_jobs()
        others = self._others()
        for spec in survivors:
            record = records.get(spec.id)
            if record is None or record.owner in others:
                continue  # it was about to end, or another server has claimed it; the launcher sweeps it
            try:
                self._take_over(record, spec, [job for job in jobs if job.context_id == spec.id])
            except Exception as error:  # noqa: BLE001 - its problem must not affect the others
                _log.error("context %s cannot be taken over: %s", record.name, error)
                why = "the next job server cannot take the context over"
                self._failed[record.id] = _failure_of(error, why)

    def _take_over(self, record: Context, spec: ContextSpec, jobs: list[Job]) -> None:
        with ExitStack() as undo:
            files = undo.enter_context(ExitStack())
            self._class_paths.pin(spec.class_path, files)
            codes = self._class_paths.lease(spec.class_path, files)
            resumed = [self._make_live(job, undo.enter_context(ExitStack())) for job in jobs]
            context = self._registry.restore(record, files)
            undo.pop_all()  # from here on, the files belong to the context and the jobs
        self._taken.add(record.id)
        for live in resumed:
            self._jobs.hand_over_new(live, context, None, partial(context.resume, live))
        context.reattach(attrs.evolve(spec, class_path=codes), self._run_elsewhere)

    def _make_live(self, job: Job, files: ExitStack) -> LiveJob:
        code = self._class_paths.lease(job.class_path, files)
        spec = self._jobs.spec(job.id, job.class_name, code, self._jobs.config(job.id))
        return self._jobs.make_live(job, spec, files)

    def close(self) -> None:
        """Postpone jobs that cannot be moved because storage is failing. Idempotent."""
        self._closed.set()
        self._reconciled.set()
        self._without_room.close()

    def _run_elsewhere(self, record: Context, jobs: list[LiveJob]) -> None:
        """Run the jobs that were waiting in a context that ended before it was taken over."""

        def run() -> None:
            self._reconciled.wait()
            if not record.ad_hoc:
                try:
                    self._contexts.start_configured([record.name])
                except Exception:  # noqa: BLE001 - its jobs are moved anyway
                    _log.exception("the configured context %s could not be started", record.name)
            for live in jobs:
                self._move_when_possible(live)

        # Not on the thread that reported the end: fetching files may be slow.
        threading.Thread(target=run, name="jobserver-recovery", daemon=True).start()

    def _move_when_possible(self, live: LiveJob) -> None:
        """Move a job, or end it if that is impossible, as soon as storage works and there is room."""
        while True:
            try:
                self._move_or_end(live)
                return
            except (StorageError, Unavailable) as error:
                _repeats.warning("move", "job %s cannot be run again yet: %s", live.job.id, error)
            if self._closed.wait(PAUSE):
                live.postpone()
                return

    def _move_or_end(self, live: LiveJob) -> None:
        """Run a waiting job in another context, or end it.

        Raises:
            StorageError: The metadata store failed. The job is unchanged, and this can be called again.
            Unavailable: The same, for a temporary reason.
        """
        if live.job.kill_requested:
            self._end_live(live, "")
            return
        try:
            with self._prepare(live.job, partial(self._move, live)) as preparation:
                preparation.finish()
        except ServerClosed:
            live.postpone()
        except (StorageError, Unavailable):
            raise
        except Exception as error:  # noqa: BLE001 - any error is why the job ends
            self._end_live(live, str(error))

    def _end_live(self, live: LiveJob, reason: str) -> None:
        current = self._metadata.job(live.job.id) or live.job
        live.job = current if current.state.final else self._end_job(current, None, reason)
        if live.job.state.final:
            live.release()
        else:
            live.postpone()

    def end_lost(self) -> Lost:
        """End everything that has lost its server and was not taken over; return what to start again.

        Raises:
            StorageError: The metadata store failed. This can be called again; the result then includes what
                the failed call has ended.
        """
        before = self._contexts_here()
        jobs, contexts = self._records.live_jobs(), self._live_contexts()
        others = self._others()
        ours = self._taken | before | self._contexts_here()
        kept = ours | {context.id for context in contexts.values() if context.owner in others}
        if self._closed.is_set():
            return Lost(frozenset(), [])
        claimed: dict[str, Context] = {}
        for key, context in contexts.items():
            if key not in kept and self._claim(context, claimed):
                self._remember(context)
        live = list(claimed.values())
        deaths = {context.id: self._death(context) for context in live}
        again = []
        for job in jobs:
            if job.context_id in kept or not self._claim_if_final(job.context_id, claimed, others):
                continue
            if (current := self._left(job)) is None:
                continue
            lost = claimed.get(job.context_id)
            if lost is not None and runs_again(current, lost, deaths.get(lost.id)):
                again.append(current)
            else:
                self._end_lost_job(current)
        for context in live:
            self._end_context(context, deaths[context.id])
        for job in self._enqueued_late(live, {job.id for job in jobs}):
            if runs_again(job, claimed[job.context_id], deaths[job.context_id]):
                again.append(job)
            else:
                self._end_lost_job(job)
        self._sweep_lost()
        self._taken.clear()  # the registry has those that are still alive
        self._failed.clear()
        self._reconciled.set()
        names, self._lost_names = frozenset(self._lost_names), set()
        return Lost(names, again)

    def _remember(self, context: Context) -> None:
        """Remember a lost context until a scan succeeds: the next scan may find it ended, or owned here."""
        if not context.ad_hoc:
            self._lost_names.add(context.name)
        if context.owner != self._records.server_id:
            self._to_sweep.add(context.id)

    def _sweep_lost(self) -> None:
        """Remove what contexts of other servers left in clusters, without waiting for that.

        The launcher itself knows what this server's own contexts left.
        """
        found = [self._metadata.context(context_id) for context_id in self._to_sweep]
        contexts = [c for c in found if c is not None and c.owner == self._records.server_id]
        self._to_sweep.clear()
        if contexts:
            sweep = partial(self._launcher.sweep_lost, contexts)
            threading.Thread(target=sweep, name="jobserver-sweep-lost", daemon=True).start()

    def _enqueued_late(self, contexts: list[Context], seen: set[str]) -> list[Job]:
        """Return the jobs that other servers stored for lost contexts before the contexts' end was stored."""
        if not self._metadata.shared:
            return []
        found = (job for context in contexts for job in self._records.live_jobs(context.id))
        return [job for job in found if job.id not in seen and job.waiting]

    def _death(self, context: Context) -> Death | None:
        """Return the death of a lost context if it is supervised, whether or not it is started again."""
        return death_of(
            context,
            settings=self._settings_for(context),
            reason=self._reason(context),
            died_at=self._records.now(),
            orderly=context.left_to_others and context.id not in self._failed,
        )

    def _reason(self, context: Context) -> ErrorInfo:
        left = context.error if context.left_to_others else None
        return self._failed.get(context.id) or left or _SERVER_ENDED

    def _settings_for(self, context: Context) -> JsonMapping:
        """Return the settings of a context's successor: those of the configuration, if they are valid."""
        configured = self._settings.contexts.get(context.name)
        if configured is None:
            return context.settings
        try:
            settings = effective_settings(self._settings, configured)
            check_settings(settings, self._launcher)
            self._launcher.resources(settings)
        except InvalidSetting as error:
            text = "the configured context %s cannot start; it keeps its old settings: %s"
            _log.error(text, context.name, error)
            return context.settings
        return settings

    def _end_context(self, context: Context, death: Death | None) -> None:
        """End a lost context. If it is supervised, a successor takes its place."""
        successor = self._successor_of(death) if death is not None else None
        failed = death is not None and not death.final and successor is None
        error = death.error if death is not None and not failed else self._reason(context)
        if death is not None and successor is not None:
            record = successor.record
            try:
                event = ContextEvent.STOPPED if death.orderly else ContextEvent.FAIL
                ended = self._records.replace_context(
                    context, event, error, ended_at=death.died_at, successor=record
                )
            except BaseException:
                self._registry.retire(successor)
                raise
            if ended is not None:
                self._records.publish_context(ended)
                self._records.publish_context(record)
                self._restart_context(successor)
                return
            self._registry.retire(successor)
        ended = self._records.end_context(context, ContextEvent.FAIL, error)
        _log.warning("context %s ended as %s: %s", ended.name, ended.state.value, _reason_of(ended.error))
        self._records.publish_context(ended)

    def _successor_of(self, death: Death) -> LiveContext | None:
        """Return the successor of a context that died; None if it cannot have one.

        The successor lives here before it is stored; otherwise a scan would take it for lost.
        """
        record = death.successor(self._records)
        try:
            if record is None:
                return None
            return self._registry.succeed(record, self._launcher.resources(record.settings))
        except Exception as error:  # noqa: BLE001 - e.g. a setting that only an earlier release accepted
            _log.error("context %s cannot be started again: %s", death.context.name, error)
            why = f"{_SERVER_ENDED.message}, and it cannot be started again"
            self._failed[death.context.id] = _failure_of(error, why)
            return None

    def _contexts_here(self) -> set[str]:
        return {context.record.id for context in self._registry.all()}

    def _claim(self, context: Context, claimed: dict[str, Context]) -> bool:
        mine = self._records.claim_context(context)
        if mine is not None:
            claimed[context.id] = mine
        return mine is not None

    def _claim_if_final(self, context_id: str, claimed: dict[str, Context], others: frozenset[str]) -> bool:
        """Whether this server handles the jobs of a context. Claims a final context to do so."""
        if context_id in claimed:
            return True
        context = self._metadata.context(context_id)
        if context is None:
            return True  # no server has it
        return context.state.final and context.owner not in others and self._claim(context, claimed)

    def _left(self, job: Job) -> Job | None:
        """Return a job of a lost context as it is now; None if it has ended or moved, or lives here."""
        if self._jobs.lives(job.id):
            return None
        current = self._metadata.job(job.id)
        if current is None or current.state.final or current.context_id != job.context_id:
            return None
        return current

    def restart(self, jobs: list[Job]) -> None:
        """Rerun the jobs that :meth:`end_lost` returned, in their old order."""
        refused: list[Job] = []
        with self._claim_restarts(jobs) as claimed:
            begun: list[tuple[Job, Preparation[None]]] = []
            for job in claimed:
                with self._ending_if_impossible(job, refused):
                    begun.append((job, self._prepare(job, partial(self._restart, job))))
            for job, preparation in begun:
                with preparation, self._ending_if_impossible(job, refused):
                    preparation.finish()
        self._without_room.keep(refused)

    @contextmanager
    def _claim_restarts(self, jobs: list[Job]) -> Iterator[list[Job]]:
        """Keep other threads from rerunning jobs inside the block.

        Yields the jobs that no other thread is rerunning or has rerun here.
        """
        with self._restarting_lock:
            claimed = [job for job in jobs if job.id not in self._restarting]
            self._restarting.update(job.id for job in claimed)
        try:
            yield [job for job in claimed if not self._jobs.lives(job.id)]
        finally:
            with self._restarting_lock:
                self._restarting.difference_update(job.id for job in claimed)

    def _prepare(self, job: Job, run: Callable[[Mapping[str, Fetched]], None]) -> Preparation[None]:
        """Prepare to run a job that had not begun, in a context like the one it was waiting for."""
        uris = self._contexts.uris_of_replacement(job.context_id, job.context_name)
        return self._fetching.prepare(uris, run)

    def _restart(self, job: Job, fetched: Mapping[str, Fetched]) -> None:
        with ExitStack() as undo:
            live = self._make_live(job, undo.enter_context(ExitStack()))
            context, spec = self._contexts.replacement(job.context_id, job.context_name, fetched)
            undo.pop_all()  # from here on, the files belong to the job
        self._jobs.hand_over_new(live, context, spec, lambda: context.adopt(live))

    def _move(self, live: LiveJob, fetched: Mapping[str, Fetched]) -> None:
        context, spec = self._contexts.replacement(live.job.context_id, live.job.context_name, fetched)
        self._jobs.hand_over(live, context, spec, lambda: context.adopt(live))

    @contextmanager
    def _ending_if_impossible(self, job: Job, refused: list[Job]) -> Iterator[None]:
        """End a job for which the block fails, or add it to ``refused`` if the reason is temporary."""
        try:
            yield
        except ServerClosed:
            _log.info("job %s waits for the next start: the server is closing", job.id)
        except StaleState as error:
            _log.info("job %s is not run again here: %s", job.id, error)
            current = self._metadata.job(job.id)
            if current and not (
                current.state.final or current.waiting or current.context_id != job.context_id
            ):
                self._end_lost_job(current)  # its server dispatched it just before the server ended
        except Exception as error:  # noqa: BLE001 - one job must not prevent the others from running again
            if isinstance(error, Unavailable) or (self._metadata.shared and isinstance(error, _TEMPORARY)):
                _repeats.warning("room", "job %s cannot be run again yet: %s", job.id, error)
                refused.append(job)
                if isinstance(error, (ContextExists, OnAnotherServer)):
                    self._without_room.pass_to_namesake(job)
            else:
                self._end_lost_job(self._metadata.job(job.id) or job, reason=str(error))

    def _live_contexts(self) -> dict[str, Context]:
        return {c.id: c for c in self._metadata.contexts(ContextQuery(states=CONTEXTS.live_states))}

    def _end_lost_job(self, job: Job, reason: str = "the job server ended") -> None:
        """End a job of a context that this server has claimed, unless the claim no longer holds."""
        while (current := self._left(job)) is not None:
            context = self._metadata.context(current.context_id)
            if context is not None and context.owner != self._records.server_id:
                _log.info("job %s is left to server %s", job.id, context.owner)
                return
            self._end_job(current, context, reason, exact=True)

    def _end_job(self, job: Job, context: Context | None, reason: str, *, exact: bool = False) -> Job:
        cancelled = job.kill_requested or (context is not None and context.stop_requested)
        if context is not None and context.stop_requested:
            reason = f"stopped on request; {reason}"
        outcome = FinalOutcome.without_context(job, reason)
        ended, delivery = self._records.end_job(job, outcome, cancelled=cancelled, exact=exact)
        self._records.syncer.sync()
        if ended.state.final:
            why = reason if reason and ended.error == outcome.error else _reason_of(ended.error)
            _log.warning("job %s ended as %s: %s", job.id, ended.state.value, why)
            self._records.publish_job(ended, delivery)
        return ended


def _reason_of(error: ErrorInfo | None) -> str:
    return error.message if error is not None else "without an error"


def _failure_of(error: Exception, what: str) -> ErrorInfo:
    """Return why a context ends: what could not be done with it, and the error."""
    info = ErrorInfo.from_exception(error)
    return attrs.evolve(info, message=f"{what}: {info.message}")
