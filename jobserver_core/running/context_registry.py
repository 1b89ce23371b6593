"""The contexts that live in this process: creating, finding and ending them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import attrs

from jobserver_core.binaries.class_paths import ClassPaths, uris_of
from jobserver_core.config.machine import usable_cores
from jobserver_core.data_directory import DataDirectory
from jobserver_core.errors import ContextNotFound, OnAnotherServer, ResultTimeout, ServerClosed
from jobserver_core.models.contexts import Context, Resources, ResourceUsage, StartQueueStatus
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_core.ports import Clock, ContextSpec, Fetched, Launcher
from jobserver_core.running.capacity import Capacity
from jobserver_core.running.context_settings import check_settings, effective_settings, settings_class_path
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.records import Records
from jobserver_core.running.starts import StartQueue
from jobserver_core.running.waiting import Waiter, all_done

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

_log = logging.getLogger(__name__)

_SERVER_STOPPED = "the server was stopped"

SUCCESSOR_TIMEOUT = 1.0
"""Seconds that a submit waits for the end of its context to be stored."""


@attrs.define(kw_only=True, eq=False)
class ContextRegistry:
    """Creates living contexts, and keeps track of them until they are final. Thread-safe.

    ``on_retired`` is called when a context is final, or left to another server. ``reattached`` is how many
    contexts of earlier servers this one has taken over.
    """

    _records: Records
    _launcher: Launcher
    _class_paths: ClassPaths
    _data_directory: DataDirectory
    _clock: Clock
    _settings: Settings
    _restart: Callable[[LiveContext, list[LiveJob]], None]
    _on_retired: Callable[[LiveContext], None]
    _starts: StartQueue = attrs.field(init=False)
    _capacity: Capacity = attrs.field(init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _live: dict[str, LiveContext] = attrs.field(factory=dict, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    reattached: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        limits = self._settings.contexts
        concurrent = limits.concurrent_starts or usable_cores()
        self._starts = StartQueue(self._clock, limit=concurrent, timeout=limits.start_queue_timeout)
        self._capacity = Capacity(limits, self._launcher.spare_pools())

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

        ``fetched`` contains the files of :meth:`uris`. Callers take turns in the start queue. If this raises,
        nothing was recorded.

        Raises:
            ContextExists: A context of this name is not final.
            ContextTooLarge: The context asks for more than all contexts together may use.
            CapacityReached: The living contexts leave too little room: contexts, cores or memory.
            ServerClosed: The server accepts no new work.
        """
        tree = self._effective(settings)
        record = self._records.new_context(name, tree, ad_hoc=ad_hoc)
        with ExitStack() as files:
            spec = self._spec(record, fetched, files)
            live = self._live_context(record, caller, self._launcher.resources(record.settings))
            self._register(live)
            live.keep(files.pop_all())
        return live, spec

    def _spec(self, record: Context, fetched: Mapping[str, Fetched], files: ExitStack) -> ContextSpec:
        entries = self._class_paths.resolve(settings_class_path(record.settings), fetched, files)
        self._class_paths.pin(entries, files)  # a binary may be deleted while the context lives
        return ContextSpec(
            id=record.id,
            name=record.name,
            settings=record.settings,
            class_path=self._class_paths.lease(entries, files),
            log_path=self._data_directory.context_log(record.id),
            work_dir=self._data_directory.work_dir(record.id),
            data_dir=self._data_directory.data_files,
        )

    def succeed(self, record: Context, resources: Resources) -> LiveContext:
        """Return a living context for the successor of a dead one. The caller stores its record.

        It can be found by its name once its predecessor is final. The dead context's lock may be held.
        """
        with self._lock:  # so it is either made after drain() and holds its jobs, or found by drain()
            live = self._live_context(record, "", resources, holding=self._closed)
            self._live[record.id] = live
        return live

    def begin_successor(self, context: LiveContext, fetched: Mapping[str, Fetched]) -> None:
        """Start a successor; ``fetched`` contains the files of :meth:`uris`.

        Raises:
            JobServerError: As :meth:`create` does.
        """
        with ExitStack() as files:
            spec = self._spec(context.record, fetched, files)
            context.keep(files.pop_all())
        context.begin(spec)

    def restore(self, record: Context, files: ExitStack) -> LiveContext:
        """Take over a context of an earlier server; ``files`` keeps its class path on this machine.

        Raises:
            StaleState: The context has ended.
            StorageError: The new owner could not be stored.
        """
        live = self._live_context(record, "", self._launcher.resources(record.settings))
        live.keep(files)
        with self._lock:
            self._live[record.id] = live
        with self._retiring_on_error(live):
            live.take_over()
        self.reattached += 1
        return live

    def _live_context(
        self, record: Context, caller: str, resources: Resources, *, holding: bool = False
    ) -> LiveContext:
        return LiveContext(
            record,
            records=self._records,
            launcher=self._launcher,
            starts=self._starts,
            caller=caller,
            clock=self._clock,
            settings=self._settings,
            resources=resources,
            holding=holding,
            retire=self.retire,
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
            self.retire(live)
            raise

    def retire(self, live: LiveContext) -> None:
        """Forget a context that is final, was left to another server, or could not be stored."""
        with self._lock:
            self._live.pop(live.record.id, None)
        self._on_retired(live)

    # -- finding -----------------------------------------------------------------------------------

    def get(self, name: str) -> LiveContext:
        """Return the living context of this name.

        Raises:
            ContextNotFound: No living context has this name.
            OnAnotherServer: It lives on another server.
        """
        context = self._living(name)
        if context is None:
            self._records.check_context_here(name)
            raise ContextNotFound(name=name)
        return context

    def find(self, name: str) -> LiveContext | Context:
        """Return the living context of this name, or its record if it is on another server.

        That server may be gone. Whichever server takes the context over then handles its jobs.

        Raises:
            ContextNotFound: No context has the name.
            Unavailable: It belongs to this server, which is still starting.
        """
        while True:
            remote = self.elsewhere(name)
            if remote is not None:
                return remote
            try:
                return self.get(name)
            except OnAnotherServer:  # another server has just created it or taken it over
                continue

    def has_successor(self, name: str) -> bool:
        """Whether a new context has the name of one that has just died, here or on another server.

        If one here has ended but this is not stored yet, wait briefly for that.
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
        return None if self._living(name) else self._records.context_elsewhere(name)

    def _living(self, name: str) -> LiveContext | None:
        named = (context for context in self.all() if context.record.name == name)
        return next((context for context in named if not context.record.state.final), None)

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
        """The number of contexts that are starting, and the names of those that are waiting to start."""
        return self._starts.status

    @property
    def usage(self) -> list[ResourceUsage]:
        """The maximum usage of living contexts and spares, and the limit, for each resource."""
        return self._capacity.usage([context.resources for context in self.all()])

    # -- ending ------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Stop creating and launching contexts and starting jobs; running jobs continue."""
        with self._lock:
            self._closed = True
        self._starts.close()
        for context in self.all():
            context.hold_jobs()

    def leave_all(self, reason: ErrorInfo) -> None:
        """Have another server restart the supervised contexts once they have stopped here."""
        for context in self.all():
            try:
                context.leave(reason)
            except Exception:  # noqa: BLE001 - the others must still be handed over
                _log.exception("cannot hand context %s over to another server", context.record.name)

    def stop_all(self, timeout: float) -> None:
        """Stop all living contexts at once, and wait up to ``timeout`` seconds until they have ended."""
        self._end_all(
            lambda context: context.stop_eventually(timeout, requested=False, reason=_SERVER_STOPPED), timeout
        )

    def kill_all(self, timeout: float) -> None:
        """Kill all living contexts, and wait up to ``timeout`` seconds until they have ended."""
        self._end_all(lambda context: context.kill(requested=False, reason=_SERVER_STOPPED), timeout)

    def detach_all(self) -> None:
        """Leave all living contexts to the next server. The launcher must have stopped reporting."""
        for context in self.all():
            context.detach()

    def _end_all(self, end: Callable[[LiveContext], Waiter[Context]], timeout: float) -> None:
        ended = all_done([end(context) for context in self.all()])
        with suppress(ResultTimeout):
            ended.result(timeout)
