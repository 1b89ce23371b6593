"""The job server, the main entry point for programs that embed it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar

import attrs

from jobserver_core.assembly import STORAGE, Services
from jobserver_core.binaries.data_files import DataUpload
from jobserver_core.binaries.uploads import Upload
from jobserver_core.callbacks.options import check_options
from jobserver_core.data_directory import lock_data_dir
from jobserver_core.errors import Conflict, InvalidRequest
from jobserver_core.events import Event, Subscription
from jobserver_core.models.arguments import (
    check_callable,
    check_data_file_name,
    check_job_id,
    check_kind,
    check_last,
    check_limit,
    check_name,
    check_seconds,
    check_several,
)
from jobserver_core.models.binaries import Binary, BinaryType, DataFile
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import (
    Context,
    ContextLoad,
    ContextQuery,
    LoadStatus,
    ResourceUsage,
    SparePool,
    StartQueueStatus,
)
from jobserver_core.models.jobs import Job, JobPage, JobQuery, JobRequest
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.models.lifecycle import CONTEXTS
from jobserver_core.models.servers import ServerStatus, Takeovers
from jobserver_core.models.storage import StorageUsage
from jobserver_core.ports import (
    BlobStore,
    Clock,
    Fetcher,
    Ids,
    Launcher,
    MetadataStore,
    SystemClock,
    Transport,
    UuidIds,
)
from jobserver_core.ports.checked import checked
from jobserver_core.running.context_settings import check_common_settings
from jobserver_core.running.fetching import Preparation
from jobserver_core.running.logs import LogReader
from jobserver_core.running.results import ResultReader
from jobserver_core.running.waiting import JobHandle, Waiter
from jobserver_core.shutdown import warn_of_forgotten

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["JobServer"]

_Server = TypeVar("_Server", bound="JobServer")
Part = TypeVar("Part", MetadataStore, BlobStore, Fetcher, Launcher, Transport)
_PORTS: dict[str, type] = {
    "metadata": MetadataStore,
    "blobs": BlobStore,
    "fetcher": Fetcher,
    "launcher": Launcher,
    "clock": Clock,
    "ids": Ids,
}
_SETTINGS = "Settings (use Settings.from_mapping or load_settings)"


def _check_parts(transports: object, *, optional: bool = False, **parts: object) -> None:
    """Check the backends, the clock and the ids of a server, by the names of its arguments."""
    for name, part in parts.items():
        if part is not None or not optional:
            port = _PORTS[name]
            check_kind(name, part, port, f"an object of a subclass of {port.__name__}")
    check_several("transports", transports, Transport, "objects of subclasses of Transport")


class JobServer:
    """Stores binaries, runs contexts and jobs, and keeps their records and results.

    Pass it a backend for every port, or use :meth:`in_memory` or :meth:`from_settings`. Use it as a context
    manager, or call :meth:`start` and :meth:`close`: before that, whatever runs or waits raises Conflict, and
    afterwards everything raises ServerClosed, except ``close``, ``drain``, ``begun_jobs``, ``detaches`` and
    ``id``. A method raises StorageError if a store that it needs fails. All methods can be called from any
    thread, but only in the process that created the server: a forked process needs a server of its own.
    Long-running methods return a :class:`~jobserver_core.running.waiting.Waiter`: block on it, add a
    callback, or await it.

    Logs and data files are in ``data_dir``, or by default in a temporary directory that is removed when the
    server closes. Closing the server also closes its backends, and then ``resources``.
    """

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        blobs: BlobStore,
        fetcher: Fetcher,
        launcher: Launcher,
        transports: Sequence[Transport] = (),
        settings: Settings | None = None,
        clock: Clock | None = None,
        ids: Ids | None = None,
        data_dir: str | PathLike[str] | None = None,
        resources: ExitStack | None = None,
    ) -> None:
        from jobserver_core.config.settings import Settings  # noqa: PLC0415 - keeps the import of core light

        if settings is not None:
            check_kind("settings", settings, Settings, _SETTINGS)
        _check_parts(
            transports,
            metadata=metadata,
            blobs=blobs,
            fetcher=fetcher,
            launcher=launcher,
            clock=SystemClock() if clock is None else clock,
            ids=UuidIds() if ids is None else ids,
        )
        check_kind("data_dir", data_dir, (str, PathLike, type(None)), "the path of a directory")
        check_kind("resources", resources, (ExitStack, type(None)), "an ExitStack")
        self.settings = settings or Settings()
        self._starting = threading.Lock()
        self._started = False
        self._start_is_complete = False
        self._start_failure = ""
        self._detached = False
        self._close_was_called = False
        resources = resources or ExitStack()
        with ExitStack() as refused:
            refused.callback(resources.close)
            self._services = Services(
                metadata=metadata,
                blobs=blobs,
                fetcher=fetcher,
                launcher=launcher,
                transports=transports,
                settings=self.settings,
                clock=clock or SystemClock(),
                ids=ids or UuidIds(),
                data_dir=None if data_dir is None else Path(data_dir),
                resources=resources,
            )
            refused.pop_all()

    @classmethod
    def in_memory(
        cls: type[_Server],
        *,
        settings: Settings | None = None,
        metadata: MetadataStore | None = None,
        blobs: BlobStore | None = None,
        fetcher: Fetcher | None = None,
        launcher: Launcher | None = None,
        transports: Sequence[Transport] = (),
        clock: Clock | None = None,
        ids: Ids | None = None,
        data_dir: str | PathLike[str] | None = None,
    ) -> _Server:
        """Return a server that keeps everything in memory and runs Python callables in this process.

        Any part that you pass replaces the in-memory one.
        """
        from jobserver_core import memory  # noqa: PLC0415 - keeps the import of core light

        return cls(
            metadata=metadata if metadata is not None else memory.MemoryMetadataStore(),
            blobs=blobs if blobs is not None else memory.MemoryBlobStore(),
            fetcher=fetcher if fetcher is not None else memory.MemoryFetcher(),
            launcher=launcher if launcher is not None else memory.InlineLauncher(),
            transports=transports,
            settings=settings,
            clock=clock,
            ids=ids,
            data_dir=data_dir,
        )

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        metadata: MetadataStore | None = None,
        blobs: BlobStore | None = None,
        fetcher: Fetcher | None = None,
        launcher: Launcher | None = None,
        transports: Sequence[Transport] = (),
        clock: Clock | None = None,
        ids: Ids | None = None,
    ) -> JobServer:
        """Return a server with the backends that the settings select. It locks the data directory.

        Any part that you pass replaces the selected one; ``transports`` are added to the selected ones. The
        server closes the parts that you pass, too, but not if this raises.

        Raises:
            PluginNotFound: A selected backend is not installed.
            PluginFailed: A selected backend of another package cannot be imported or created.
            InvalidSetting: ``data-dir`` is not a directory, a backend refuses its settings, no transport has
                an option of ``jobserver.callbacks.options``, or ``spark.context-settings`` has a mistake.
            DataDirLocked: Another server uses the data directory.
            StorageError: The data directory or a store cannot be opened.
            TransportError: Two transports serve the same URL scheme.
        """
        from jobserver_core import plugins  # noqa: PLC0415 - keeps the import of core light
        from jobserver_core.config.settings import Settings  # noqa: PLC0415 - as above

        check_kind("settings", settings, Settings, _SETTINGS)
        _check_parts(
            transports,
            optional=True,
            metadata=metadata,
            blobs=blobs,
            fetcher=fetcher,
            launcher=launcher,
            clock=clock,
            ids=ids,
        )
        owned = ExitStack()
        with ExitStack() as lock, ExitStack() as parts:
            data_dir = lock_data_dir(settings.data_dir, lock)

            def selected(port: type[Part], name: str, given: Part | None = None) -> Part:
                if given is not None:
                    return given
                part = plugins.load(port, name, settings, data_dir)
                parts.callback(part.close)
                return part

            chosen = checked(Launcher, selected(Launcher, settings.launcher.backend, launcher))
            check_common_settings(settings.spark, chosen)
            chosen_transports = [
                *transports,
                *(selected(Transport, name) for name in settings.callbacks.transports),
            ]
            check_options(settings.callbacks, chosen_transports)
            server = cls(
                metadata=selected(MetadataStore, settings.metadata.backend, metadata),
                blobs=selected(BlobStore, settings.blobs.backend, blobs),
                fetcher=selected(Fetcher, settings.fetcher.backend, fetcher),
                launcher=chosen,
                transports=chosen_transports,
                settings=settings,
                clock=clock,
                ids=ids,
                data_dir=data_dir,
                resources=owned,
            )
            # Only now: if something above raises, everything is closed here.
            owned.push(lock.pop_all())
            parts.pop_all()  # the server closes them, each within its time
            return server

    @property
    def _ours(self) -> Services:
        """The services, for what remains after the end of the server."""
        self._services.admission.origin.check("job server")
        return self._services

    @property
    def _open(self) -> Services:
        """The services, unless the server has closed."""
        self._services.admission.check_not_ended()
        return self._services

    @property
    def _running(self) -> Services:
        """The services, for what only a started server does."""
        services = self._open
        self._check_start()
        if not self._started:
            message = "the job server is not started; use it in a with block, or call start() first"
            raise Conflict(message=message)
        return services

    def _check_start(self) -> None:
        if self._start_failure:
            reason = f"the start of this job server failed ({self._start_failure})"
            raise Conflict(message=f"{reason}; close it and create a new one")

    @property
    def _new_work(self) -> Services:
        """Like :attr:`_running`, for requests that a closing server refuses as well."""
        services = self._running
        services.admission.check()
        return services

    @property
    def _new_files(self) -> Services:
        """The services, for files, which can also be stored before the start."""
        self._services.admission.check()
        return self._services

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> JobServer:
        """Reconcile what an earlier run left behind, start the configured contexts, then accept work.

        Contexts that outlived the last server are taken over if the launcher can do that. All others end as
        ERROR, as do the jobs that had begun in them; their remaining jobs run in other contexts. Due
        callbacks are sent. Idempotent. Returns the server itself. Before that, the server
        reads records and stores files; running contexts and jobs, and waiting for them, raises Conflict.

        If it raises, part of the server may run already. Close it, and create a new one for another attempt.
        A ``with`` block closes it by itself.

        Raises:
            ServerClosed: The server has closed. It cannot be started again: create a new one.
            Conflict: An earlier start has failed; the message says why.
            JobServerError: What an earlier run left behind cannot be reconciled, for example because a store
                cannot be read.
        """
        # Before the lock, which another thread may have held during a fork.
        self._services.admission.origin.check("job server")
        with self._starting:
            self._services.admission.check_not_ended()
            self._check_start()
            if not self._started:
                self._started = True
                try:
                    self._services.start()
                    self._start_is_complete = True
                except BaseException as error:
                    self._start_failure = f"{type(error).__name__}: {error}".removesuffix(": ")
                    raise
        return self

    def drain(self) -> None:
        """Stop accepting new work: jobs, contexts, uploads and resets.

        Jobs that have begun continue; :attr:`begun_jobs` counts them. Jobs that have not begun stay accepted:
        they run when a server starts again on the same metadata.
        """
        self._ours.drain()

    @property
    def begun_jobs(self) -> int:
        """The number of jobs that have begun but not ended. After :meth:`drain`, wait until it is 0."""
        return self._ours.jobs.begun

    @property
    def detaches(self) -> bool:
        """Whether :meth:`close` leaves contexts to the next server by default."""
        return self._ours.launcher.reattaches and self.settings.contexts.on_shutdown == "detach"

    def close(
        self, timeout: float | None = None, *, contexts: Literal["stop", "detach"] | None = None
    ) -> None:
        """Stop contexts or leave them to the next server, and close all stores, within ``timeout`` seconds.

        ``contexts`` defaults to the configured ``contexts.on-shutdown``. With ``"detach"``, contexts and
        their jobs continue, and the next server that starts within ``contexts.reattach-timeout`` on the same
        data directory and metadata takes them over. A launcher that cannot do that stops them. Idempotent.

        ``timeout`` defaults to the configured ``stop-timeout``. Its last 7 seconds are reserved for killing
        contexts that have not stopped by then, and for closing the stores; anything that still hangs is left
        behind. Running jobs end as ERROR, and jobs that have not begun run under the next server. In a forked
        process, this does nothing.

        Raises:
            InvalidRequest: The timeout is not a number of seconds, or ``contexts`` is something else.
        """
        check_seconds("timeout", timeout)
        if contexts not in (None, "stop", "detach"):
            raise InvalidRequest(message=f"contexts must be 'stop' or 'detach', got {contexts!r}")
        if not self._services.admission.origin.here:
            return
        self._close_was_called = True
        if (contexts or self.settings.contexts.on_shutdown) == "detach":
            self._detached = True  # permanently: a second call must not end the contexts
        timeout = self.settings.stop_timeout if timeout is None else timeout
        self._services.close(min(timeout, threading.TIMEOUT_MAX), detach=self._detached)
        self._services.admission.end()

    def __del__(self) -> None:
        services = getattr(self, "_services", None)  # the constructor may have raised
        if services is not None and not self._close_was_called and services.admission.origin.here:
            warn_of_forgotten(self, "use it in a with block, or call close()")

    def __enter__(self: _Server) -> _Server:
        try:
            self.start()
        except BaseException:  # __exit__ is not called then
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def check_accepting(self) -> None:
        """Check that the server accepts jobs: that it has started, and is not shutting down.

        Raises:
            Conflict: It has not started, is still starting, or its start has failed.
            ServerClosed: It is shutting down, or has closed.
        """
        services = self._new_work
        if not self._start_is_complete:
            raise Conflict(message="the job server is starting")
        services.admission.check()

    def check(self) -> dict[str, str | None]:
        """Return the problem of each part (metadata, blobs, data-files, launcher), or None if it works.

        Writes to storage. For the sake of probes, outcomes are shared for a moment, and a part that does not
        answer in time counts as not working; see :mod:`jobserver_core.running.health`.
        """
        return self._open.health.check()

    def check_storage(self) -> dict[str, str | None]:
        """Like :meth:`check`, for the parts that store something: metadata, blobs, data-files."""
        return self._open.health.check(STORAGE)

    def subscribe(self, subscriber: Callable[[Event], object]) -> Subscription:
        """Call ``subscriber`` with every event from now on, until the subscription is closed.

        A server that has not been started can be subscribed to, for the events of its start.

        Raises:
            InvalidRequest: It cannot be called.
            ServerClosed: The server has closed.
        """
        check_callable("the subscriber", subscriber, arguments=1)
        return self._open.bus.subscribe(subscriber)

    def parse_config(self, text: str | bytes) -> JsonMapping:
        """Parse HOCON or JSON from a user: no includes, no environment variables, within the limits.

        JSON keeps its text: a job whose ``config`` is the returned object gets exactly that text.

        Raises:
            InvalidConfig: The text is invalid or exceeds a limit.
        """
        check_kind("the text of a configuration", text, (str, bytes), "a string or bytes")
        return self._open.configs.parse(text)

    @property
    def id(self) -> str:
        """The id of this server among those that share the metadata store. A restart does not change it."""
        return self._ours.server_id

    def servers(self) -> list[ServerStatus]:
        """Return the servers that share the metadata store, this one included, oldest first."""
        return self._open.membership.statuses()

    def storage(self) -> list[StorageUsage]:
        """Return the storage that each kind of data uses, and its limits. May be slow."""
        return self._open.storage.usage()

    def prune(self) -> dict[str, int]:
        """Run the hourly sweep now, and return how many of each kind it removed.

        May take a long time: it works in small steps, so that it does not block other work.

        Raises:
            ServerClosed: The server has closed.
        """
        return self._new_work.sweeper.sweep()

    # -- binaries ----------------------------------------------------------------------------------

    def upload(
        self,
        name: str,
        type: BinaryType | str,
        data: bytes | BinaryIO | Iterable[bytes],
    ) -> Binary:
        """Store a new version of a binary, even if its content equals that of the newest one.

        ``type`` may be a name: ``"jar"``, ``"egg"`` or ``"wheel"``. If it raises, nothing was stored.

        Raises:
            InvalidName: The name is not allowed.
            InvalidRequest: The type is unknown.
            NotAnArchive: The content is not that of a binary.
            TooLarge: It has more bytes than ``upload-size`` allows.
            StorageError: It could not be stored.
        """
        return self._new_files.binaries.upload(name, BinaryType.of(type), data)

    def begin_upload(self, name: str, type: BinaryType | str) -> Upload:
        """Return an upload to write to in chunks; see :class:`Upload`.

        Raises:
            InvalidName: The name is not allowed.
            InvalidRequest: The type is unknown.
        """
        return self._new_files.binaries.begin_upload(name, BinaryType.of(type))

    def binaries(self) -> list[Binary]:
        """Return the newest version of every binary, sorted by name."""
        return self._open.binaries.newest()

    def binary(self, name: str) -> Binary:
        """Return the newest version of a binary.

        Raises:
            BinaryNotFound: No binary has this name.
        """
        check_name("binary", name)
        return self._open.binaries.get(name)

    def binary_versions(self, name: str) -> list[Binary]:
        """Return all versions of a binary, newest first.

        Raises:
            BinaryNotFound: No binary has this name.
        """
        check_name("binary", name)
        return self._open.binaries.versions(name)

    def delete_binary(self, name: str) -> list[Binary]:
        """Remove every version of a binary.

        Raises:
            BinaryNotFound: No binary has this name.
            BinaryInUse: Jobs that have not ended use it.
        """
        check_name("binary", name)
        return self._open.binaries.delete(name)

    # -- contexts ----------------------------------------------------------------------------------

    def create_context(self, name: str, settings: JsonMapping | None = None) -> Waiter[Context]:
        """Begin to start a context. The waiter returns it once jobs can run, or raises ContextFailed.

        ``settings`` override the server's ``spark.context-settings``.

        Raises:
            ContextExists: A living context has this name.
            InvalidName: The name is not allowed.
            InvalidSetting: No context can start with these settings.
            InvalidRequest: The settings are not a mapping.
            ContextTooLarge: The context would exceed a limit even if it were the only one.
            CapacityReached: The context, in addition to the living ones, would exceed a limit.
            MalformedUrl: A URI of the settings is invalid or not allowed.
            FetchError: A URI of the settings could not be fetched.
            ServerClosed: The server accepts no new work.
        """
        with self.begin_context(name, settings) as preparation:
            return preparation.finish()

    def begin_context(
        self, name: str, settings: JsonMapping | None = None, *, caller: str = ""
    ) -> Preparation[Waiter[Context]]:
        """Begin to fetch what a context needs. Finishing the returned preparation starts the context.

        For callers that must not block, such as event loops. The limit ``jobserver.fetcher.per-caller``
        applies to each ``caller``, and callers take turns when contexts wait to be started.

        Raises:
            JobServerError: As :meth:`create_context` does.
        """
        check_kind("caller", caller, str, "a string")
        return self._new_work.contexts.begin(name, {} if settings is None else settings, caller)

    def contexts(self, query: ContextQuery | None = None) -> list[Context]:
        """Return contexts, newest first. Without a query, return those that are not final.

        Raises:
            InvalidRequest: The query is something else.
        """
        check_kind("the query", query, (ContextQuery, type(None)), "a ContextQuery")
        return self._open.contexts.select(query)

    def context(self, name: str) -> Context:
        """Return the living context of this name, or the newest ended one, or the one with this id.

        Raises:
            ContextNotFound: No context has this name or ID.
        """
        check_name("context", name)
        return self._open.contexts.get(name)

    def context_waiter(self, name: str) -> Waiter[Context]:
        """Return a waiter for a context that somebody has begun to start, such as one of ``spark.contexts``.

        Like the waiter of :meth:`create_context`, it returns the context once jobs can run, at once if they
        already can, or raises ContextFailed. That a context of another server is ready may be seen a few
        seconds late.

        Raises:
            ContextNotFound: No context has the name, or it has ended already; says why, if that is known.
            ContextStopping: It is stopping.
        """
        check_name("context", name)
        return self._running.contexts.waiter(name)

    def ended_contexts(self, limit: int = 50) -> list[Context]:
        """Return the newest contexts that have ended, newest first.

        At most ``limit`` (1 to 10,000) are returned.

        Raises:
            InvalidRequest: The query or the limit is invalid.
        """
        check_limit(limit, least=1)
        return self._open.contexts.select(ContextQuery(states=CONTEXTS.final_states, limit=limit))

    def context_before(self, context: Context) -> Context | None:
        """Return the supervised context whose death led to this one. Its ``error`` is the restart's reason.

        Returns None if this context is not the result of a restart, or if the record has been removed.
        """
        check_kind("the context", context, Context, "a Context")
        return self._open.contexts.before(context)

    def stop_context(self, name: str, *, timeout: float | None = None, user: str = "") -> Waiter[Context]:
        """Begin to stop a context. The waiter returns it once it has ended.

        After ``timeout`` seconds (default: the configured ``deletion-timeout``), the context is killed. Its
        jobs end as ERROR, without callbacks, and their errors name the ``user`` who stopped it.

        If the context is on another server, this blocks for up to 10 seconds until that server has accepted.

        Raises:
            ContextNotFound: No context has the name, or it has ended already.
            Unavailable: Its server is gone or does not respond. Try again.
            ServerClosed: This server closed in the meantime.
        """
        check_name("context", name)
        check_seconds("timeout", timeout)
        check_kind("user", user, str, "a string")
        return self._running.contexts.stop(name, timeout, user)

    def kill_context(self, name: str, *, user: str = "") -> Waiter[Context]:
        """Kill a context. The waiter returns it once it has ended.

        Blocks and raises like :meth:`stop_context`; ``user`` has the same meaning.
        """
        check_name("context", name)
        check_kind("user", user, str, "a string")
        return self._running.contexts.kill(name, user)

    def reset_contexts(self, *, user: str = "") -> Waiter[None]:
        """Have every server stop its contexts and restart the configured ones.

        The waiter is done once all contexts have stopped and this server has restarted its own. Blocks for up
        to 10 seconds until the other servers have accepted the request. Servers that do not accept it are
        skipped and logged. ``user`` is as in :meth:`stop_context`.

        Raises:
            ServerClosed: The server accepts no new work.
        """
        check_kind("user", user, str, "a string")
        return self._new_work.contexts.reset(user)

    @property
    def load(self) -> LoadStatus:
        """How many jobs are running and waiting, and whether submits are being refused for lack of room."""
        return self._open.jobs.load

    def context_loads(self) -> dict[str, ContextLoad]:
        """Return how many jobs are running and waiting in each context of this server, by context ID."""
        services = self._open
        loads, living = services.jobs.context_loads, services.registry.all()
        return {
            live.record.id: attrs.evolve(loads.get(live.record.id, ContextLoad()), preparing=live.preparing)
            for live in living
        }

    def failed_contexts(self) -> dict[str, str]:
        """Return why contexts of ``spark.contexts`` have failed, by name, unless they live again."""
        return self._open.contexts.failed_configured()

    def start_queue(self) -> StartQueueStatus:
        """Return how many contexts are starting, and which ones are waiting to start."""
        return self._open.registry.start_queue

    def resource_usage(self) -> Sequence[ResourceUsage]:
        """Return the maximum usage of all contexts together, and its limit, for each resource.

        Contexts count with the maximum that their settings ask for, and pools of spares with their full size.
        """
        return self._open.registry.usage

    @property
    def takeovers(self) -> Takeovers:
        """What this server has taken over from other servers, and lost to them, since it started."""
        services = self._open
        return Takeovers(
            contexts_reattached=services.registry.reattached,
            leases_taken_over=services.membership.leases_taken_over,
            leases_lost=services.membership.leases_lost,
        )

    def spare_pools(self) -> Sequence[SparePool]:
        """Return the pools of contexts that are started in advance, for new ones with the same settings."""
        return self._open.launcher.spare_pools()

    # -- jobs --------------------------------------------------------------------------------------

    def submit(self, request: JobRequest) -> JobHandle:
        """Accept a job. From then on, it is recorded, and no crash loses it.

        May block while a URI is fetched. If it raises, nothing was recorded.

        Raises:
            InvalidRequest: The parts of the request contradict each other, or are of the wrong kind.
            InvalidConfig: The job's configuration or a context setting is invalid.
            InvalidCallbackUrl: No callback can ever be sent to the URL.
            MalformedUrl: A URI of the class path is invalid or not allowed.
            FetchError: A URI of the class path could not be fetched.
            NotAnArchive: What a URI of the class path refers to is not the code of a job.
            BinaryNotFound: A name of the class path is unknown.
            ContextNotFound: No live context has the name.
            ContextStopping: The context is being stopped.
            NoSlots: The context has neither a free slot nor room in its queue.
            ContextTooLarge: The job's own context would exceed a limit even if it were the only one.
            CapacityReached: The job's own context, in addition to the living ones, would exceed a limit.
            IdempotencyMismatch: The idempotency key was used for a different request.
            ServerClosed: The server accepts no new work.
            Unavailable: The server of the context is shutting down.
        """
        with self.begin_submit(request) as preparation:
            return preparation.finish()

    def begin_submit(
        self, request: JobRequest, *, caller: str = "", durable: bool = True
    ) -> Preparation[JobHandle]:
        """Begin to fetch what a job needs. Finishing the returned preparation submits the job.

        For callers that must not block, such as event loops::

            with server.begin_submit(request) as preparation:
                await preparation.ready
                handle = preparation.finish()

        ``caller`` is as in :meth:`begin_context`. Without ``durable``, a power cut (but not a crash of the
        process) may lose the job before it has ended. Use this only if the client gets no response before the
        job ends.

        Raises:
            JobServerError: As :meth:`submit` does.
        """
        check_kind("the request", request, JobRequest, "a JobRequest")
        check_kind("caller", caller, str, "a string")
        return self._new_work.submissions.begin(request, caller, durable=durable)

    def jobs(self, query: JobQuery | None = None) -> JobPage:
        """Return a page of jobs, newest first."""
        query = JobQuery() if query is None else query
        check_kind("the query", query, JobQuery, "a JobQuery")
        return self._open.jobs.page(query)

    def job(self, job_id: str) -> Job:
        """Return a job as it is recorded.

        Raises:
            JobNotFound: No job has this ID.
        """
        check_job_id(job_id)
        return self._open.jobs.get(job_id)

    def job_handle(self, job_id: str) -> JobHandle:
        """Return a handle to wait for a job, no matter when it was submitted.

        Raises:
            JobNotFound: No job has this ID.
        """
        check_job_id(job_id)
        return self._running.jobs.handle(job_id)

    def job_config(self, job_id: str) -> str:
        """Return the job's configuration as JSON text.

        Raises:
            JobNotFound: No job has this ID.
        """
        check_job_id(job_id)
        return self._open.jobs.config(job_id)

    def open_result(self, job_id: str) -> ResultReader | None:
        """Open a finished job's result for reading in chunks. Return None if it has no result.

        Raises:
            JobNotFound: No job has this ID.
        """
        check_job_id(job_id)
        return self._open.jobs.open_result(job_id)

    def deliveries(self, job_id: str) -> list[Delivery]:
        """Return the callback deliveries of a job, with their attempts and states.

        Raises:
            JobNotFound: No job has this ID.
        """
        check_job_id(job_id)
        services = self._open
        deliveries = services.metadata.deliveries_of(job_id)
        if not deliveries:
            services.jobs.get(job_id)
        return deliveries

    def kill_job(self, job_id: str, *, force: bool = False, user: str = "") -> Waiter[Job]:
        """Begin to kill a job. The waiter returns it once it is final: KILLED, unless it ended first.

        With ``force``, the context is killed if the job has not ended after the configured ``kill-timeout``.
        The log of this server and the job's error name the ``user`` who killed it.

        If the job is on another server, this blocks for up to 10 seconds until that server has accepted.

        Raises:
            JobNotFound: No job has the id.
            JobAlreadyFinal: The job has ended.
            Unavailable: Its server is gone or does not respond. Try again.
            ServerClosed: This server closed in the meantime.
        """
        check_job_id(job_id)
        check_kind("user", user, str, "a string")
        return self._running.jobs.kill(job_id, force=force, user=user)

    # -- logs and data files -----------------------------------------------------------------------

    def job_log(self, job_id: str) -> Path:
        """Return the file with a job's output.

        Raises:
            JobNotFound: No job has this ID.
            LogNotFound: Nothing was written to it, or it was removed.
            OnAnotherServer: Another server has it.
        """
        check_job_id(job_id)
        return self._open.logs.job_file(job_id)

    def context_log(self, name: str) -> Path:
        """Return the file with a context's driver output, given its name or id.

        Raises:
            ContextNotFound: No context has this name or ID.
            LogNotFound: Nothing was written to it, or it was removed.
            OnAnotherServer: Another server has it.
        """
        check_name("context", name)
        return self._open.logs.context_file(name)

    def open_job_log(self, job_id: str, *, last: int | None = None) -> LogReader:
        """Return a reader of a job's output, wherever the job runs: the ``last`` bytes, or all of it.

        If the log is on another server that does not respond, opening and reading block for up to 10 seconds.
        If that server has ended, they fail at once.

        Raises:
            JobNotFound: No job has this ID.
            InvalidRequest: ``last`` is not a number of bytes.
        """
        check_job_id(job_id)
        check_last(last)
        return self._open.logs.open_job(job_id, last)

    def open_context_log(self, name: str, *, last: int | None = None) -> LogReader:
        """Return a reader of a context's driver output, as :meth:`open_job_log` does.

        Raises:
            ContextNotFound: No context has this name or ID.
            InvalidRequest: ``last`` is not a number of bytes.
        """
        check_name("context", name)
        check_last(last)
        return self._open.logs.open_context(name, last)

    def add_data_file(
        self, prefix: str, data: bytes | BinaryIO | Iterable[bytes], *, ending: str | None = None
    ) -> DataFile:
        """Store a data file that jobs on this machine can read by its path.

        Its name is ``<prefix>-<time><ending>``. Spark recognizes compressed files by their ending, such as
        ``.csv.gz``. By default, the ending is taken from ``prefix``: for example, ``sales.csv.gz`` becomes
        ``sales-<time>.csv.gz``, and ``sales`` becomes ``sales-<time>.dat``.

        Raises:
            InvalidName: The prefix or the ending is not allowed.
            TooLarge: It has more bytes than ``upload-size`` allows.
            StorageError: It could not be stored.
        """
        return self._new_files.data_files.add(prefix, data, ending)

    def begin_data_file(self, prefix: str, *, ending: str | None = None) -> DataUpload:
        """Return a data file to write to in chunks; see :class:`DataUpload`.

        It gets the same kind of name as in :meth:`add_data_file`.

        Raises:
            InvalidName: The prefix or the ending is not allowed.
            StorageError: The directory cannot be written to.
        """
        return self._new_files.data_files.begin(prefix, ending)

    def data_files(self) -> list[DataFile]:
        """Return the data files, sorted by path."""
        return self._open.data_files.all()

    def delete_data_file(self, name: str | PathLike[str]) -> None:
        """Remove a data file by its full path or its plain name.

        Raises:
            DataFileNotFound: The server has no such file.
        """
        check_data_file_name(name)
        self._open.data_files.delete(name)

    def reset_data_files(self) -> None:
        """Remove every data file."""
        # Not on a closing server: jobs that wait for the next start may need the files.
        self._new_files.data_files.reset()
