"""The contexts that live in this process: creating, finding and ending them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from jobserver_core.binaries.class_paths import ClassPaths, uris_of
from jobserver_core.config.cores import usable_cores
from jobserver_core.data_directory import DataDirectory
from jobserver_core.errors import (
    ContextNotFound,
    OnAnotherServer,
    ResultTimeout,
    ServerClosed,
)
from jobserver_core.models.contexts import Context, ResourceUsage, StartQueueStatus
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_core.ports import Clock, ContextSpec, Fetched, JobCode, Launcher
from jobserver_core.running.capacity import Capacity
from jobserver_core.running.context_settings import check_settings, effective_settings, settings_class_path
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.records import Records
from jobserver_core.running.starts import StartQueue
from jobserver_core.running.waiting import Waiter, all_done

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["ContextRegistry"]

_log = logging.getLogger(__name__)

SUCCESSOR_TIMEOUT = 1.0
"""Seconds for which a submit waits until the end of its context is stored."""


class ContextRegistry:
    """Creates living contexts, and knows those that are not final. Thread-safe."""

    def __init__(
        self,
        *,
        records: Records,
        launcher: Launcher,
        class_paths: ClassPaths,
        data_directory: DataDirectory,
        clock: Clock,
        settings: Settings,
        restart: Callable[[LiveContext, list[LiveJob]], None],
    ) -> None:
        self._restart = restart
        self._records = records
        self._launcher = launcher
        self._class_paths = class_paths
        self._data_directory = data_directory
        self._clock = clock
        self._settings = settings
        limits = settings.contexts
        self._starts = StartQueue(
            clock,
            limit=limits.concurrent_starts or usable_cores(),
            timeout=limits.start_queue_timeout,
        )
        self._capacity = Capacity(limits, launcher.spare_pools())
        self._lock = threading.Lock()
        self._live: dict[str, LiveContext] = {}
        self._closed = False
        self.on_retired: Callable[[LiveContext], None] = lambda _context: None
        """Called when a context is final, or left to another server."""

    # -- creating ----------------------------------------------------------------------------------

    def uris(self, settings: JsonMapping) -> list[str]:
        """Check the settings of a context to be created, and return the URIs of the files that it needs.

        Raises:
            InvalidSetting: No context can start with these settings.
        """
        tree = self._effective(settings)
        check_settings(tree, self._launcher)
        return uris_of(settings_class_path(tree))

    def create(
        self,
        name: str,
        settings: JsonMapping,
        fetched: Mapping[str, Fetched],
        *,
        ad_hoc: bool,
        caller: str = "",
    ) -> tuple[LiveContext, ContextSpec]:
        """Record a context, and return it with what its launcher needs to start it.

        ``fetched`` has the files of :meth:`uris`; ``caller`` takes turns with others in the start queue.
        When this raises, nothing was recorded.

        Raises:
            ContextExists: A context of this name is not final.
            ContextTooLarge: The context asks for more than all contexts together may use.
            CapacityReached: Living contexts leave too few contexts, cores or memory.
            ServerClosed: The server accepts no new work.
        """
        tree = self._effective(settings)
        record = self._records.new_context(name, tree, ad_hoc=ad_hoc)
        with ExitStack() as files, self._class_paths.resolving():
            spec = self._spec(record, fetched, files)
            live = self._live_context(record, caller)
            self._register(live)
            live.keep(spec.class_path, files.pop_all())
        return live, spec

    def _spec(self, record: Context, fetched: Mapping[str, Fetched], files: ExitStack) -> ContextSpec:
        entries = self._class_paths.resolve(settings_class_path(record.settings), fetched)
        return ContextSpec(
            id=record.id,
            name=record.name,
            settings=record.settings,
            class_path=self._class_paths.lease(entries, files),
            log_path=self._data_directory.context_log(record.id),
            work_dir=self._data_directory.work_dir(record.id),
            data_dir=self._data_directory.data_files,
        )

    def succeed(self, record: Context) -> LiveContext:
        """Return a living context for the successor of one that died; storing its record is up to the caller.

        It is found by its name once the one before it is final.
        """
        live = self._live_context(record, caller="")
        with self._lock:
            if self._closed:
                live.hold_jobs()
            self._live[record.id] = live
        return live

    def forget(self, context: LiveContext) -> None:
        """Forget a successor that was not stored."""
        self._retire(context)

    def begin_successor(self, context: LiveContext, fetched: Mapping[str, Fetched]) -> None:
        """Start a successor; ``fetched`` has the files of :meth:`uris`. Raises as :meth:`create` does."""
        with ExitStack() as files, self._class_paths.resolving():
            spec = self._spec(context.record, fetched, files)
            context.keep(spec.class_path, files.pop_all())
        context.begin(spec)

    def restore(self, record: Context, codes: tuple[JobCode, ...], files: ExitStack) -> LiveContext:
        """Take over a context of an earlier server, whose class path is ``codes``.

        Raises:
            StaleState: The context has ended.
            StorageError: The new owner could not be stored.
        """
        live = self._live_context(record, caller="")
        live.keep(codes, files)
        with self._lock:
            self._live[record.id] = live
        with self._retiring_on_error(live):
            live.take_over(self._records.server_id)
        return live

    def _live_context(self, record: Context, caller: str) -> LiveContext:
        return LiveContext(
            record,
            records=self._records,
            launcher=self._launcher,
            starts=self._starts,
            caller=caller,
            clock=self._clock,
            settings=self._settings,
            resources=self._launcher.resources(record.settings),
            retire=self._retire,
            succeed=self.succeed,
            restart=self._restart,
        )

    def _effective(self, settings: JsonMapping) -> JsonObject:
        return effective_settings(self._settings.spark, settings)

    def _register(self, live: LiveContext) -> None:
        self._capacity.check_fits(live.resources)
        with self._lock:
            if self._closed:
                raise ServerClosed()
            self._capacity.check_room(live.resources, [other.resources for other in self._live.values()])
            self._live[live.record.id] = live
        with self._retiring_on_error(live):
            live.add()

    @contextmanager
    def _retiring_on_error(self, live: LiveContext) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._retire(live)
            raise

    def _retire(self, live: LiveContext) -> None:
        with self._lock:
            self._live.pop(live.record.id, None)
        self.on_retired(live)

    # -- finding -----------------------------------------------------------------------------------

    def get(self, name: str) -> LiveContext:
        """Return the living context of this name. Raises ContextNotFound, OnAnotherServer."""
        for context in self.all():
            if context.record.name == name and not context.record.state.final:
                return context
        self._records.check_context_here(name)
        raise ContextNotFound(name=name)

    def find(self, name: str) -> LiveContext | Context:
        """Return the living context of this name, or the record of one that another server has.

        That server may be gone: the one that takes the context over deals with its jobs.

        Raises:
            ContextNotFound: No context has the name.
            Unavailable: It is one of this server, which is only starting.
        """
        while True:
            remote = self.elsewhere(name)
            if remote is not None:
                return remote
            try:
                return self.get(name)
            except OnAnotherServer:  # which has created or taken it over in this moment
                continue

    def has_successor(self, name: str) -> bool:
        """Whether another context has the name of one that has just died, here or on another server.

        Waits briefly if one here is about to.
        """
        for context in self.all():
            if context.record.name == name and context.ending:
                with suppress(ResultTimeout):
                    context.ended.waiter.result(SUCCESSOR_TIMEOUT)
        here = any(
            context.record.name == name and not (context.ending or context.record.state.final)
            for context in self.all()
        )
        return here or self.elsewhere(name) is not None

    def elsewhere(self, name: str) -> Context | None:
        """Return the record of a context of this name that another server runs, or None."""
        if any(context.record.name == name and not context.record.state.final for context in self.all()):
            return None
        return self._records.context_elsewhere(name)

    def with_id(self, context_id: str) -> LiveContext | None:
        """Return the living context with an id, or None."""
        with self._lock:
            return self._live.get(context_id)

    def all(self) -> list[LiveContext]:
        """Return every living context."""
        with self._lock:
            return list(self._live.values())

    @property
    def start_queue(self) -> StartQueueStatus:
        """The number of contexts that are starting, and the names of those that wait to start."""
        return self._starts.status

    @property
    def usage(self) -> list[ResourceUsage]:
        """What living contexts and spares may use at most, and what is allowed, by resource."""
        return self._capacity.usage([context.resources for context in self.all()])

    def pinned_digests(self) -> frozenset[str]:
        """Return the blobs that must stay for living contexts, whether or not a record refers to them."""
        return frozenset().union(*(context.digests for context in self.all()))

    # -- ending ------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Stop creating and launching contexts and starting jobs; running jobs continue."""
        with self._lock:
            self._closed = True
        self._starts.close()
        for context in self.all():
            context.hold_jobs()

    def leave_all(self, reason: ErrorInfo) -> None:
        """Have another server start the supervised contexts again, once they have stopped here."""
        for context in self.all():
            try:
                context.leave(reason)
            except Exception:  # noqa: BLE001 - the others have to be handed over all the same
                _log.exception("cannot hand context %s over to another server", context.record.name)

    def stop_all(self, timeout: float) -> None:
        """Stop all living contexts at once, and wait up to ``timeout`` seconds until they have ended."""
        self._end_all(lambda context: context.stop_eventually(timeout, requested=False), timeout)

    def kill_all(self, timeout: float) -> None:
        """Kill all living contexts, and wait up to ``timeout`` seconds until they have ended."""
        self._end_all(lambda context: context.kill(requested=False), timeout)

    def detach_all(self) -> None:
        """Leave all living contexts to the next server, once the launcher reports nothing any more."""
        for context in self.all():
            context.detach()

    def _end_all(self, end: Callable[[LiveContext], Waiter[Context]], timeout: float) -> None:
        ended = all_done([end(context) for context in self.all()])
        with suppress(ResultTimeout):
            ended.result(timeout)
