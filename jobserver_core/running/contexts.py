"""Creating, listing, stopping and resetting contexts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from jobserver_core.binaries.class_paths import ClassPaths, uris_of
from jobserver_core.config.cores import usable_cores
from jobserver_core.environment import Environment
from jobserver_core.errors import (
    ContextNotFound,
    JobServerError,
    LogNotFound,
    ResultTimeout,
    StorageError,
    Unavailable,
)
from jobserver_core.models.contexts import Context, ContextQuery, StartQueueStatus
from jobserver_core.models.lifecycle import CONTEXTS
from jobserver_core.models.names import check_context_name
from jobserver_core.ports import ContextSpec, Fetched
from jobserver_core.running.context_settings import check_settings, effective_settings, settings_class_path
from jobserver_core.running.fetching import FetchService, Preparation
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.starts import StartQueue
from jobserver_core.running.waiting import Promise, Waiter, all_done
from jobserver_core.running.withdrawals import Withdrawals

__all__ = ["ContextService"]

_log = logging.getLogger(__name__)


class ContextService:
    """The use cases of contexts, and the registry of those that live in this process."""

    def __init__(self, environment: Environment, class_paths: ClassPaths, fetching: FetchService) -> None:
        self._environment = environment
        self._class_paths = class_paths
        self._fetching = fetching
        limits = environment.settings.contexts
        self._starts = StartQueue(
            environment.clock,
            limit=limits.concurrent_starts or usable_cores(),
            timeout=limits.start_queue_timeout,
        )
        self._withdrawals = Withdrawals(environment.metadata, environment.clock)
        self._lock = threading.Lock()
        self._live: dict[str, LiveContext] = {}

    # -- making ------------------------------------------------------------------------------------

    def begin(self, name: str, settings: Mapping[str, Any], caller: str = "") -> Preparation[Waiter[Context]]:
        """Fetch what a context needs; then it can be started, and its waiter has it once jobs can run."""
        check_context_name(name)
        self._environment.admission.check()
        return Preparation(
            files := self._fetching.begin(self.uris(settings), caller),
            lambda: self._start(name, settings, files).ready.waiter,
        )

    def uris(self, settings: Mapping[str, Any]) -> list[str]:
        """Check the settings of a context to be made, and return the URIs of the files that it needs.

        Raises:
            InvalidSetting: No context can start with these settings.
        """
        tree = self._effective(settings)
        check_settings(tree, self._environment.launcher)
        return uris_of(settings_class_path(tree))

    def prepare(
        self, name: str, settings: Mapping[str, Any], fetched: Mapping[str, Fetched], *, ad_hoc: bool
    ) -> tuple[LiveContext, ContextSpec]:
        """Record a context, and return it with what its launcher needs to start it.

        ``fetched`` has the files of :meth:`uris`. When this raises, nothing was recorded.
        Raises ServerClosed.
        """
        env = self._environment
        env.admission.check()
        tree = self._effective(settings)
        now = env.clock.now()
        record = Context(
            id=env.ids.new(),
            name=name,
            settings=tree,
            ad_hoc=ad_hoc,
            owner=env.server_id,
            owned_since=now,
            started_at=now,
        )
        with ExitStack() as files, env.deposits.making():
            entries = self._class_paths.resolve(settings_class_path(tree), fetched)
            codes = self._class_paths.lend(entries, files)
            spec = ContextSpec(
                id=record.id,
                name=name,
                settings=tree,
                class_path=codes,
                log_path=env.folders.context_log(record.id),
                work_dir=env.folders.work(record.id),
                data_dir=env.folders.data,
            )
            live = LiveContext(
                env, record, starts=self._starts, withdrawals=self._withdrawals, retire=self._retire
            )
            self._register(live)
            live.keep(codes, files.pop_all())
        return live, spec

    def uris_of_successor(self, context_id: str, name: str) -> list[str]:
        """Return the URIs that :meth:`successor` needs the files of."""
        before = self._environment.metadata.context(context_id)
        if before is not None and not before.ad_hoc:
            with suppress(ContextNotFound):
                self.live(name)
                return []
        return self.uris(before.settings if before else {})

    def successor(
        self, context_id: str, name: str, fetched: Mapping[str, Fetched]
    ) -> tuple[LiveContext, ContextSpec | None]:
        """Return what takes the place of a context of an earlier server, for the jobs that waited for it.

        That is the context of the same name, if one lives by now (then without a specification, since it
        needs no start), or else a new one with the settings of the earlier one.
        """
        before = self._environment.metadata.context(context_id)
        ad_hoc = before is None or before.ad_hoc
        if not ad_hoc:
            with suppress(ContextNotFound):
                return self.live(name), None
        return self.prepare(name, before.settings if before else {}, fetched, ad_hoc=ad_hoc)

    def start_configured(self) -> list[Waiter[Context]]:
        """Begin to start the contexts of the configuration file; one that cannot is logged.

        What they need is fetched for all of them at once, so that slow hosts add up to one delay only.
        """
        begun: list[tuple[str, Preparation[Waiter[Context]]]] = []
        started = []
        for name, settings in self._environment.settings.spark.contexts.items():
            with self._logging_failure(name):
                begun.append((name, self.begin(name, settings)))
        for name, preparation in begun:
            with preparation, self._logging_failure(name):
                started.append(preparation.finish())
        return started

    # -- looking -----------------------------------------------------------------------------------

    def select(self, query: ContextQuery | None) -> list[Context]:
        """Return contexts, newest first; without a query those that are not final."""
        return self._environment.metadata.contexts(query or ContextQuery(states=CONTEXTS.live_states))

    def get(self, name: str) -> Context:
        """Return the newest context of a name. Raises ContextNotFound."""
        context = self._environment.metadata.context_named(name)
        if context is None:
            raise ContextNotFound(name=name)
        return context

    def live(self, name: str) -> LiveContext:
        """Return the context of a name that lives here. Raises ContextNotFound."""
        with self._lock:
            for context in self._live.values():
                if context.record.name == name and not context.record.state.final:
                    return context
        raise ContextNotFound(name=name)

    def log(self, name: str) -> Path:
        """Return the file of a context's driver output. Raises ContextNotFound, LogNotFound."""
        context = self.get(name)
        path = self._environment.folders.context_log(context.id)
        if not path.exists():
            raise LogNotFound(kind="context", id=name)
        return path

    @property
    def start_queue(self) -> StartQueueStatus:
        """How many contexts are starting, and how many wait for that."""
        return self._starts.status

    def lent_digests(self) -> frozenset[str]:
        """Return the blobs that living contexts have on their class paths."""
        with self._lock:
            return frozenset().union(*(context.digests for context in self._live.values()))

    # -- ending ------------------------------------------------------------------------------------

    def stop(self, name: str, timeout: float | None) -> Waiter[Context]:
        """Begin to stop a context on request."""
        grace = self._environment.settings.contexts.deletion_timeout if timeout is None else timeout
        return self.live(name).stop(grace, requested=True)

    def kill(self, name: str) -> Waiter[Context]:
        """End a context by force on request."""
        return self.live(name).kill(requested=True)

    def reset(self) -> Waiter[None]:
        """Stop every context, then start those of the configuration again. Raises ServerClosed."""
        self._environment.admission.check()
        grace = self._environment.settings.contexts.deletion_timeout
        stopped: Waiter[None] = all_done([c.stop_eventually(grace, requested=True) for c in self._all()])
        done: Promise[None] = Promise("reset of the contexts")

        def start_again() -> None:
            started = all_done(self.start_configured() if self._environment.admission.open else [])
            started.add_done_callback(lambda _started: done.keep(None))

        # Not on the thread that ended the last context: fetching what the next ones need may take long.
        stopped.add_done_callback(
            lambda _stopped: threading.Thread(target=start_again, name="jobserver-reset", daemon=True).start()
        )
        return done.waiter

    def drain(self) -> None:
        """Launch no context and begin no job any more; jobs that have begun go on."""
        self._starts.close()
        for context in self._all():
            context.hold_jobs()

    def stop_all(self, timeout: float) -> None:
        """Stop every context that lives, all at once, and wait for that up to ``timeout`` seconds."""
        self._end_all(lambda context: context.stop_eventually(timeout, requested=False), timeout)

    def kill_all(self, timeout: float) -> None:
        """End every context that lives by force, and wait for that up to ``timeout`` seconds."""
        self._end_all(lambda context: context.kill(requested=False), timeout)

    def _end_all(self, end: Callable[[LiveContext], Waiter[Context]], timeout: float) -> None:
        ended = all_done([end(context) for context in self._all()])
        with suppress(ResultTimeout):
            ended.result(timeout)

    # -- inside ------------------------------------------------------------------------------------

    def _start(self, name: str, settings: Mapping[str, Any], fetched: Mapping[str, Fetched]) -> LiveContext:
        context, spec = self.prepare(name, settings, fetched, ad_hoc=False)
        context.begin(spec)
        return context

    def _effective(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return effective_settings(self._environment.settings.spark, settings)

    @staticmethod
    @contextmanager
    def _logging_failure(name: str) -> Iterator[None]:
        try:
            yield
        except JobServerError as error:
            _log.error("context %s of the configuration could not be started: %s", name, error)

    def _all(self) -> list[LiveContext]:
        with self._lock:
            return list(self._live.values())

    def _register(self, live: LiveContext) -> None:
        limit = self._environment.settings.contexts.max_contexts
        self._withdrawals.check_room()
        with self._lock:
            self._environment.admission.check()
            if limit and len(self._live) >= limit:
                raise Unavailable(message=f"there are {len(self._live)} contexts, the most allowed")
            self._live[live.record.id] = live
        try:
            self._environment.metadata.add_context(live.record)
        except BaseException as error:
            self._retire(live)
            if isinstance(error, StorageError):
                self._withdrawals.context(live.record.id)
            raise
        self._environment.context_changed(live.record)

    def _retire(self, live: LiveContext) -> None:
        with self._lock:
            self._live.pop(live.record.id, None)
