"""Reconcile the records with reality after a server ended.

Theory
======

The problem: the records say that contexts and jobs are alive. Their server has ended, and only the launcher
knows what became of them. Every job must go on or end, with one outcome, and none may run twice. Other
servers may share the store, and reconcile the same records at the same time.

The idea: of the contexts that are not final, those that the launcher found alive are *taken over*: a living
context is made from the record, with its jobs in their old slots and their old order, and from then on it is
as if this server had started it. Everything else is *lost*: contexts and the jobs that had begun in them end,
and jobs that had not begun run again in a context like the one that they waited for.

Records of other servers that are registered are left alone (:mod:`~jobserver_core.running.servers`). They are
looked up after the records were read: an owner registers before it creates a record, so every living owner is
found. A context that is lost is first *claimed* with a higher epoch, so one server deals with it and with its
jobs. A final context whose jobs have not ended, because its server closed, is claimed in the same way. Ending
a job and running it again are compare-and-set, also against the last writes of an owner that is paused rather
than dead.

The server that has claimed a context may itself be paused, and declared dead, and the context taken over
while its jobs go on. So a job is read first, then the claim is looked at, and then the job ends only if its
epoch is still the one that was read: a server that takes a context over raises the epochs of its jobs
afterwards. Whichever comes first, either the claim no longer holds, or the epoch has changed.

A server looks for lost records while it runs, so what it reads about its own contexts and jobs may be out of
date. It leaves alone every context that lived here before or after the records were read, and reads a job
again before it changes it. If storage fails in the middle of a look, contexts may have ended whose names and
leftovers nobody would find in the records: they are remembered until a look succeeds. Once the server is
closing, it claims nothing: its own contexts may be detached. On a shared store, a job that cannot run for a
reason that will pass is left for the next look. On any other, nobody looks again: jobs for which there is no
room are tried again after a while.

A context that is taken over may still turn out to be dead. Until the launcher has reported that it is ready,
none of its waiting jobs is given to it. So if it ends before, these jobs can run elsewhere, like those of a
lost context. They are moved on a thread of their own, once everything is reconciled: before, the launcher's
sweep would end the contexts that are started for them. Whatever happens there, each of these jobs runs, ends
or is postponed, because users may be waiting for it already. While storage fails or there is no room, the
move is tried again.
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
    JobServerError,
    OnAnotherServer,
    ServerClosed,
    StaleState,
    StorageError,
    Unavailable,
)
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import MAX_LIMIT, Job, JobQuery
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.models.lifecycle import CONTEXTS, JOBS, ContextEvent
from jobserver_core.ports import Clock, ContextSpec, Fetched, Launcher, MetadataStore
from jobserver_core.repeats import Repeats
from jobserver_core.running.context_registry import ContextRegistry
from jobserver_core.running.context_settings import check_settings, effective_settings
from jobserver_core.running.contexts import ContextService
from jobserver_core.running.fetching import FetchService, Preparation
from jobserver_core.running.jobs import JobService
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.records import FinalOutcome, Records
from jobserver_core.running.restarts import Death, death_of, reason_of_leaving, runs_again

if TYPE_CHECKING:
    from jobserver_core.config.settings import SparkSettings

__all__ = ["Lost", "Recovery"]

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

PAUSE = 1.0
"""Seconds between two attempts to move a job while storage fails or there is no room."""
RETRY_INTERVAL = 5.0
"""Seconds between two attempts to run jobs again for which there is no room."""
PAGE = 200
"""The number of jobs to read at a time."""
_PASSING = (ContextExists, OnAnotherServer, StorageError, Unavailable)
"""Reasons that will pass for which a job cannot be run again."""
_SERVER_ENDED = ErrorInfo(message="the job server ended, and its contexts with it")


@attrs.frozen
class Lost:
    """What was lost with servers: the ``names`` of named contexts, and the jobs to run again."""

    names: frozenset[str]
    jobs: list[Job]


class Recovery:
    """Takes over the contexts of an earlier server that are alive, and ends the others.

    Those end in ERROR, and so do the jobs that had begun in one; their callbacks are sent. A job that was
    accepted but had not begun is kept: it runs in a new context like the one that it waited for. ``others``
    returns the ids of the servers whose records must not be touched.
    """

    def __init__(
        self,
        *,
        others: Callable[[], frozenset[str]],
        metadata: MetadataStore,
        launcher: Launcher,
        clock: Clock,
        records: Records,
        jobs: JobService,
        registry: ContextRegistry,
        contexts: ContextService,
        fetching: FetchService,
        class_paths: ClassPaths,
        settings: SparkSettings,
        restart: Callable[[LiveContext], None],
    ) -> None:
        self._settings = settings
        self._restart_context = restart
        self._others = others
        self._metadata = metadata
        self._launcher = launcher
        self._clock = clock
        self._records = records
        self._jobs = jobs
        self._registry = registry
        self._contexts = contexts
        self._fetching = fetching
        self._class_paths = class_paths
        self._taken: set[str] = set()
        self._failed: dict[str, ErrorInfo] = {}
        self._lost_names: set[str] = set()
        self._to_sweep: set[str] = set()
        self._postponed: list[Job] = []
        self._reconciled = threading.Event()
        self._closed = threading.Event()

    def take_over(self) -> None:
        """Continue with the contexts and jobs that outlived their server, without waiting for them."""
        survivors = self._launcher.survivors()
        if not survivors:
            return
        records = self._live_contexts()
        jobs = self._live_jobs()
        others = self._others()
        for spec in survivors:
            record = records.get(spec.id)
            if record is None or record.owner in others:
                continue  # it was about to end, or another server has claimed it: the launcher sweeps it
            try:
                self._take_over(record, spec, [job for job in jobs if job.context_id == spec.id])
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it must not stop the others
                _log.error("context %s cannot be taken over: %s", record.name, error)
                self._failed[record.id] = _failed(error, "the next job server cannot take the context over")

    def _take_over(self, record: Context, spec: ContextSpec, jobs: list[Job]) -> None:
        with ExitStack() as undo:
            files = undo.enter_context(ExitStack())
            codes = self._class_paths.lease(spec.class_path, files)
            resumed = [self._resumed(job, undo.enter_context(ExitStack())) for job in jobs]
            context = self._registry.restore(record, codes, files)
            undo.pop_all()  # from here on, the files belong to the context and the jobs
        self._taken.add(record.id)
        for live in resumed:
            self._jobs.give(live, context, None, partial(context.resume, live))
        context.reattach(attrs.evolve(spec, class_path=codes), self._run_elsewhere)

    def _resumed(self, job: Job, files: ExitStack) -> LiveJob:
        code = self._class_paths.lease(job.class_path, files)
        spec = self._jobs.spec(job.id, job.class_name, code, self._jobs.config(job.id))
        return self._jobs.live(job, spec, files)

    def close(self) -> None:
        """Postpone jobs that cannot be moved because storage fails. Idempotent."""
        self._closed.set()
        self._reconciled.set()

    def _run_elsewhere(self, record: Context, jobs: list[LiveJob]) -> None:
        """Run jobs that waited in a context that ended before it was taken over."""

        def run() -> None:
            self._reconciled.wait()
            if not record.ad_hoc:
                self._start_configured(record.name)
            for live in jobs:
                self._move_when_possible(live)

        # Not on the thread that reported the end: fetching files may take long.
        threading.Thread(target=run, name="jobserver-recovery", daemon=True).start()

    def _start_configured(self, name: str) -> None:
        try:
            self._contexts.start_configured([name])
        except Exception:  # noqa: BLE001 - its jobs are moved all the same
            _log.exception("context %s of the configuration could not be started", name)

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

        If this raises StorageError or Unavailable, the job is unchanged, and this can be called again.
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
        except Exception as error:  # noqa: BLE001 - any error is the reason why the job ends
            _log.warning("job %s could not be run again: %s", live.job.id, error)
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

        Raises StorageError; then call it again. What it has ended by then is part of what that call returns.
        """
        before = self._contexts_here()
        jobs, contexts = self._live_jobs(), self._live_contexts()
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
            if job.context_id in kept or not self._claimed(job.context_id, claimed, others):
                continue
            current = self._left(job)
            if current is None:
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
        self._taken.clear()  # the registry has those that still live
        self._failed.clear()
        self._reconciled.set()
        names, self._lost_names = frozenset(self._lost_names), set()
        return Lost(names, again)

    def _remember(self, context: Context) -> None:
        """Remember a lost context until a look succeeds: the next one may find it ended, or owned here."""
        if not context.ad_hoc:
            self._lost_names.add(context.name)
        if context.owner != self._records.server_id:
            self._to_sweep.add(context.id)

    def _sweep_lost(self) -> None:
        """Remove what contexts of other servers left in clusters, without waiting for it.

        What this server's own contexts left, the launcher knows by itself.
        """
        found = [self._metadata.context(context_id) for context_id in self._to_sweep]
        contexts = [c for c in found if c is not None and c.owner == self._records.server_id]
        self._to_sweep.clear()
        if contexts:
            threading.Thread(
                target=self._launcher.sweep_lost, args=(contexts,), name="jobserver-sweep-lost", daemon=True
            ).start()

    def _enqueued_late(self, contexts: list[Context], seen: set[str]) -> list[Job]:
        """Return the jobs that other servers stored for lost contexts before the end of these was stored."""
        if not self._metadata.shared:
            return []
        found: list[Job] = []
        for context in contexts:
            query = JobQuery(context_id=context.id, states=JOBS.live_states, limit=MAX_LIMIT)
            found += [
                job for job in self._metadata.jobs(query).jobs[::-1] if job.id not in seen and job.waiting
            ]
        return found

    def _death(self, context: Context) -> Death | None:
        """Return the death of a lost context, if it has to be started again or has died too often."""
        settings, died_at = self._settings_for(context), self._records.now()
        return death_of(context, settings=settings, reason=self._reason(context), died_at=died_at)

    def _reason(self, context: Context) -> ErrorInfo:
        return self._failed.get(context.id) or reason_of_leaving(context) or _SERVER_ENDED

    def _settings_for(self, context: Context) -> JsonMapping:
        """Return the settings of a context's successor: those of the configuration, if they are valid."""
        configured = self._settings.contexts.get(context.name)
        if configured is None:
            return context.settings
        settings = effective_settings(self._settings, configured)
        try:
            check_settings(settings, self._launcher)
            self._launcher.resources(settings)
        except InvalidSetting as error:
            _log.error(
                "context %s of the configuration cannot start; it keeps its old settings: %s",
                context.name,
                error,
            )
            return context.settings
        return settings

    def _end_context(self, context: Context, death: Death | None) -> None:
        """End a lost context; if it is supervised, another one takes its place."""
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
                self._registry.forget(successor)
                raise
            if ended is not None:
                self._records.publish_context(ended)
                self._records.publish_context(record)
                self._restart_context(successor)
                return
            self._registry.forget(successor)
        self._records.publish_context(self._records.end_context(context, ContextEvent.FAIL, error))

    def _successor_of(self, death: Death) -> LiveContext | None:
        """Return the context that takes the place of one that died; None if no context can.

        It lives here before it is stored: or it would be taken for lost.
        """
        record = death.successor(self._records)
        try:
            return None if record is None else self._registry.succeed(record)
        except Exception as error:  # noqa: BLE001 - such as a setting that only an earlier release accepted
            _log.error("context %s cannot be started again: %s", death.context.name, error)
            why = f"{_SERVER_ENDED.message}, and it cannot be started again"
            self._failed[death.context.id] = _failed(error, why)
            return None

    def _contexts_here(self) -> set[str]:
        return {context.record.id for context in self._registry.all()}

    def _claim(self, context: Context, claimed: dict[str, Context]) -> bool:
        mine = self._records.claim_context(context)
        if mine is not None:
            claimed[context.id] = mine
        return mine is not None

    def _claimed(self, context_id: str, claimed: dict[str, Context], others: frozenset[str]) -> bool:
        """Whether this server deals with the jobs of a context; a final context is claimed for that."""
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
        """Run the jobs again that :meth:`end_lost` returned, in their old order."""
        begun: list[tuple[Job, Preparation[None]]] = []
        for job in jobs:
            with self._ending_if_impossible(job):
                begun.append((job, self._prepare(job, partial(self._restart, job))))
        for job, preparation in begun:
            with preparation, self._ending_if_impossible(job):
                preparation.finish()
        postponed, self._postponed = self._postponed, []
        if postponed:
            self._clock.call_later(RETRY_INTERVAL, lambda: self._restart_later(postponed))

    def _restart_later(self, jobs: list[Job]) -> None:
        # Not on the thread of the clock: fetching files may take long.
        if not self._closed.is_set():
            threading.Thread(
                target=self.restart, args=(jobs,), name="jobserver-recovery", daemon=True
            ).start()

    def _prepare(self, job: Job, run: Callable[[Mapping[str, Fetched]], None]) -> Preparation[None]:
        """Run a job that had not begun, in a context like the one it waited for."""
        uris = self._contexts.uris_of_replacement(job.context_id, job.context_name)
        return self._fetching.prepare(uris, run)

    def _restart(self, job: Job, fetched: Mapping[str, Fetched]) -> None:
        with ExitStack() as undo:
            live = self._resumed(job, undo.enter_context(ExitStack()))
            context, spec = self._contexts.replacement(job.context_id, job.context_name, fetched)
            undo.pop_all()  # from here on, the files belong to the job
        self._jobs.give(live, context, spec, lambda: context.adopt(live))

    def _move(self, live: LiveJob, fetched: Mapping[str, Fetched]) -> None:
        context, spec = self._contexts.replacement(live.job.context_id, live.job.context_name, fetched)
        self._jobs.move(live, context, spec, lambda: context.adopt(live))

    @contextmanager
    def _ending_if_impossible(self, job: Job) -> Iterator[None]:
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
                self._end_lost_job(current)  # its server dispatched it just before it ended
        except JobServerError as error:
            if self._metadata.shared and isinstance(error, _PASSING):
                _log.warning("job %s cannot be run again yet: %s", job.id, error)
                self._hand_over(job)
                return
            if isinstance(error, Unavailable):
                _repeats.warning("room", "job %s cannot be run again yet: %s", job.id, error)
                self._postponed.append(job)
                return
            self._end_impossible(job, error)
        except Exception as error:  # noqa: BLE001 - one job must not keep the others from running again
            self._end_impossible(job, error)

    def _end_impossible(self, job: Job, error: Exception) -> None:
        _log.warning("job %s could not be run again: %s", job.id, error)
        self._end_lost_job(self._metadata.job(job.id) or job, reason=str(error))

    def _hand_over(self, job: Job) -> None:
        """Leave the jobs of a lost context to another server that runs a context of its name."""
        lost = self._metadata.context(job.context_id)
        same_name = self._metadata.context_named(job.context_name)
        if lost is None or same_name is None or same_name.state.final or not lost.state.final:
            return
        others = self._others()
        if same_name.owner in others and lost.owner not in others:
            self._records.claim_context(lost, owner=same_name.owner)

    def _live_contexts(self) -> dict[str, Context]:
        return {c.id: c for c in self._metadata.contexts(ContextQuery(states=CONTEXTS.live_states))}

    def _live_jobs(self) -> list[Job]:
        """Return the jobs that are not final, oldest first."""
        found: list[Job] = []
        cursor = None
        while True:
            page = self._metadata.jobs(JobQuery(states=JOBS.live_states, after=cursor, limit=PAGE))
            found += page.jobs
            cursor = page.next
            if cursor is None:
                return found[::-1]

    def _end_lost_job(self, job: Job, reason: str = "the job server ended") -> None:
        """End a job of a context that this server has claimed, unless the claim no longer holds."""
        current = self._left(job)
        while current is not None:
            context = self._metadata.context(current.context_id)
            if context is not None and context.owner != self._records.server_id:
                _log.info("job %s is left to server %s", job.id, context.owner)
                return
            self._end_job(current, context, reason, exact=True)
            current = self._left(current)

    def _end_job(self, job: Job, context: Context | None, reason: str, *, exact: bool = False) -> Job:
        cancelled = job.kill_requested or (context is not None and context.stop_requested)
        outcome = FinalOutcome.without_context(job, reason)
        ended, delivery = self._records.end_job(job, outcome, cancelled=cancelled, exact=exact)
        self._records.syncer.sync()
        if ended.state.final:
            self._records.publish_job(ended, delivery)
        return ended


def _failed(error: Exception, what: str) -> ErrorInfo:
    """Return the reason why a context ends: what could not be done with it, and why."""
    info = ErrorInfo.from_exception(error)
    return attrs.evolve(info, message=f"{what}: {info.message}")
