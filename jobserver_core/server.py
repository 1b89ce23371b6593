"""The job server: the one object that an embedder holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar

from jobserver_core.assembly import STORAGE, Services
from jobserver_core.binaries.data_files import DataUpload
from jobserver_core.binaries.uploads import Upload
from jobserver_core.data_directory import lock_data_dir
from jobserver_core.events import Event, Subscription
from jobserver_core.models.arguments import check_job_id, check_kind, check_seconds
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
from jobserver_core.models.servers import ServerStatus
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
from jobserver_core.running.context_settings import check_common_settings
from jobserver_core.running.fetching import Preparation
from jobserver_core.running.logs import LogReader
from jobserver_core.running.results import ResultReader
from jobserver_core.running.waiting import JobHandle, Waiter

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["JobServer"]

_Server = TypeVar("_Server", bound="JobServer")
Part = TypeVar("Part", MetadataStore, BlobStore, Fetcher, Launcher, Transport)


class JobServer:
    """Keeps binaries, runs contexts and jobs in them, and remembers what came of it.

    Pass it a backend for every port, or use :meth:`in_memory` or :meth:`from_settings`.
    Use it as a context manager, or call :meth:`start` and :meth:`close`. Every method may be
    called from any thread. Methods that take long hand back a
    :class:`~jobserver_core.running.waiting.Waiter`, which can be blocked on, called back by, or awaited.

    Logs and data files are in ``data_dir``; without one, in a temporary directory that is removed with the
    server. The server closes its backends, and then ``resources``, when it is closed.
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
        data_dir: Path | None = None,
        resources: ExitStack | None = None,
    ) -> None:
        from jobserver_core.config.settings import Settings  # noqa: PLC0415 - keeps the import of core light

        self.settings = settings or Settings()
        self._starting = threading.Lock()
        self._started = False
        self._detached = False
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
                data_dir=data_dir,
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
        data_dir: Path | None = None,
    ) -> _Server:
        """Return a server that keeps all in memory and runs Python callables in this process.

        Each part that is given takes the place of the one in memory.
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

        Each part that is given takes the place of the selected one. ``transports`` are used beside the
        selected ones. The server closes the given parts too, but not when this raises.

        Raises:
            PluginNotFound: A selected backend is not installed.
            PluginFailed: A selected backend of another package cannot be imported or created.
            InvalidSetting: A backend refuses its settings, or ``spark.context-settings`` has a mistake.
            DataDirLocked: Another server uses the data directory.
            StorageError: The data directory or a store cannot be opened.
            TransportError: Two transports serve the same URL scheme.
        """
        from jobserver_core import plugins  # noqa: PLC0415 - keeps the import of core light

        owned = ExitStack()
        with ExitStack() as resources:
            data_dir = lock_data_dir(settings.data_dir, resources)

            def selected(port: type[Part], name: str, given: Part | None = None) -> Part:
                if given is not None:
                    return given
                part = plugins.load(port, name, settings, data_dir)
                resources.callback(part.close)
                return part

            chosen = selected(Launcher, settings.launcher.backend, launcher)
            check_common_settings(settings.spark, chosen)
            server = cls(
                metadata=selected(MetadataStore, settings.metadata.backend, metadata),
                blobs=selected(BlobStore, settings.blobs.backend, blobs),
                fetcher=selected(Fetcher, settings.fetcher.backend, fetcher),
                launcher=chosen,
                transports=[
                    *transports,
                    *(selected(Transport, name) for name in settings.callbacks.transports),
                ],
                settings=settings,
                clock=clock,
                ids=ids,
                data_dir=data_dir,
                resources=owned,
            )
            owned.push(resources.pop_all())  # only now: when something above raises, all is closed here
            return server

    @property
    def _new_work(self) -> Services:
        """The services for what a closing server refuses. Raises ServerClosed."""
        self._services.admission.check()
        return self._services

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> JobServer:
        """Reconcile what an earlier run left behind, start the configured contexts, then accept work.

        Contexts that outlived the last server are taken over if the launcher can do that. All others end as
        ERROR, and so do the jobs that had begun in them; their other jobs run in other contexts. Callbacks
        that are due are sent. Idempotent. Returns the server itself.
        """
        with self._starting:
            if not self._started:
                self._started = True
                self._services.start()
        return self

    def drain(self) -> None:
        """Take nothing new from now on: no job, no context, no upload, no reset.

        Jobs that have begun go on; :attr:`begun_jobs` counts them. Jobs that have not begun stay accepted:
        they run when a server starts again on the same metadata.
        """
        self._services.drain()

    @property
    def begun_jobs(self) -> int:
        """How many jobs have begun and not ended: what there is to wait for after :meth:`drain`."""
        return self._services.jobs.begun

    @property
    def detaches(self) -> bool:
        """Whether :meth:`close` leaves contexts to the next server, if it is not called with ``contexts``."""
        return self.settings.contexts.on_shutdown == "detach" and self._services.launcher.reattaches

    def close(
        self, timeout: float | None = None, *, contexts: Literal["stop", "detach"] | None = None
    ) -> None:
        """Stop contexts or leave them to the next server, and close all stores, within ``timeout`` seconds.

        ``contexts`` is by default the configured ``contexts.on-shutdown``. With ``"detach"``, contexts and
        their jobs continue, and the next server that starts within ``contexts.reattach-timeout`` on the same
        data directory and metadata takes them over. A launcher that cannot do that stops them. Idempotent.

        The default is the configured ``stop-timeout``. The last 7 seconds of it are for killing contexts that
        have not stopped by then, and for closing the stores; what hangs even then is left behind. Jobs
        that run end as ERROR, jobs that have not begun run under the next server.

        Raises:
            InvalidRequest: The timeout is not a number of seconds.
        """
        check_seconds("timeout", timeout)
        if (contexts or self.settings.contexts.on_shutdown) == "detach":
            self._detached = True  # for good: a second call must not end the contexts
        timeout = self.settings.stop_timeout if timeout is None else timeout
        self._services.close(min(timeout, threading.TIMEOUT_MAX), detach=self._detached)

    def __enter__(self: _Server) -> _Server:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def check(self) -> dict[str, str | None]:
        """Return for each part (metadata, blobs, launcher) what is wrong with it, None for nothing.

        Storage is written to. Outcomes are shared for a moment, and a part that does not answer in
        time counts as not working, as probes need it: see :mod:`jobserver_core.running.health`.
        """
        return self._services.health.check()

    def check_storage(self) -> dict[str, str | None]:
        """As :meth:`check`, for the parts without which nothing can be recorded: metadata and blobs."""
        return self._services.health.check(STORAGE)

    def subscribe(self, subscriber: Callable[[Event], None]) -> Subscription:
        """Call ``subscriber`` with every event from now on, until the subscription is closed."""
        return self._services.bus.subscribe(subscriber)

    def parse_config(self, text: str | bytes) -> JsonMapping:
        """Parse what a user posted as HOCON or JSON: no includes, no environment, within the limits.

        JSON keeps its text: a job whose ``config`` is this object gets exactly that text.
        Raises InvalidConfig.
        """
        return self._services.configs.parse(text)

    @property
    def id(self) -> str:
        """The id of this server among those that share the metadata store. It stays after a restart."""
        return self._services.server_id

    def servers(self) -> list[ServerStatus]:
        """Return the servers that share the metadata store, this one included, oldest first.

        Raises StorageError.
        """
        return self._services.membership.statuses()

    def storage(self) -> list[StorageUsage]:
        """Return what uses how much storage, and its limits. May take long. Raises StorageError."""
        return self._services.storage.usage()

    def prune(self) -> dict[str, int]:
        """Remove now what the hourly sweep would remove; return how many of each kind.

        May take long: it works in small steps, so that others are not blocked. Raises ServerClosed.
        """
        return self._new_work.sweeper.sweep()

    # -- binaries ----------------------------------------------------------------------------------

    def upload(
        self,
        name: str,
        type: BinaryType | str,
        data: bytes | BinaryIO | Iterable[bytes],
    ) -> Binary:
        """Store a new version of a binary.

        ``type`` may be its name: ``"jar"``, ``"egg"`` or ``"wheel"``.

        Raises InvalidName, InvalidRequest, NotAnArchive, TooLarge, StorageError; then nothing was stored.
        """
        return self._new_work.binaries.upload(name, BinaryType.of(type), data)

    def begin_upload(self, name: str, type: BinaryType | str) -> Upload:
        """Return an upload to write to in chunks; see :class:`Upload`. Raises InvalidName, InvalidRequest."""
        return self._new_work.binaries.begin_upload(name, BinaryType.of(type))

    def binaries(self) -> list[Binary]:
        """Return the newest version of every binary, sorted by name."""
        return self._services.binaries.newest()

    def binary(self, name: str) -> Binary:
        """Return the newest version of a binary. Raises BinaryNotFound."""
        return self._services.binaries.get(name)

    def binary_versions(self, name: str) -> list[Binary]:
        """Return all versions of a binary, newest first. Raises BinaryNotFound."""
        return self._services.binaries.versions(name)

    def delete_binary(self, name: str) -> list[Binary]:
        """Remove every version of a binary. Raises BinaryNotFound, BinaryInUse."""
        return self._services.binaries.delete(name)

    # -- contexts ----------------------------------------------------------------------------------

    def create_context(self, name: str, settings: JsonMapping | None = None) -> Waiter[Context]:
        """Begin to start a context; the waiter has it once jobs can run, or raises ContextFailed.

        ``settings`` are laid over the server's ``spark.context-settings``. Raises ContextExists,
        InvalidName, InvalidSetting, ContextTooLarge, CapacityReached, MalformedUrl, FetchError, ServerClosed
        at once.
        """
        with self.begin_context(name, settings) as preparation:
            return preparation.finish()

    def begin_context(
        self, name: str, settings: JsonMapping | None = None, *, caller: str = ""
    ) -> Preparation[Waiter[Context]]:
        """Fetch what a context needs, without waiting; finishing what this returns starts the context.

        For callers that must not block, such as event loops. The limit
        ``jobserver.fetcher.per-caller`` applies to each ``caller``, and callers take turns when contexts wait
        to be started. Raises as :meth:`create_context`.
        """
        return self._new_work.contexts.begin(name, {} if settings is None else settings, caller)

    def contexts(self, query: ContextQuery | None = None) -> list[Context]:
        """Return contexts, newest first; without a query those that are not final."""
        return self._services.contexts.select(query)

    def context(self, name: str) -> Context:
        """Return the living context of a name, or else the newest that ended. Raises ContextNotFound."""
        return self._services.contexts.get(name)

    def stop_context(self, name: str, *, timeout: float | None = None) -> Waiter[Context]:
        """Begin to stop a context; the waiter has it once it ended.

        After ``timeout`` seconds (default: the configured ``deletion-timeout``) it is ended by force.
        Its jobs end as ERROR, without callbacks.

        Blocks for up to 10 seconds if the context is on another server, until that one has accepted.

        Raises:
            ContextNotFound: No context has the name, or it has ended already.
            Unavailable: Its server is gone or does not respond. Try again.
            ServerClosed: This server closed in the meantime.
            StorageError: The metadata store failed.
        """
        return self._services.contexts.stop(name, timeout)

    def kill_context(self, name: str) -> Waiter[Context]:
        """End a context by force; the waiter has it once it ended.

        Blocks and raises as :meth:`stop_context` does.
        """
        return self._services.contexts.kill(name)

    def reset_contexts(self) -> Waiter[None]:
        """Have every server stop its contexts, and start those of its configuration again.

        The waiter is done once all contexts have stopped and this server has started its own again. Blocks
        for up to 10 seconds until the other servers have accepted the request. Those that do not are left
        out, which is logged. Raises ServerClosed, StorageError.
        """
        return self._new_work.contexts.reset()

    @property
    def load(self) -> LoadStatus:
        """How many jobs run and wait, and whether submits are being refused for lack of room."""
        return self._services.jobs.load

    def context_loads(self) -> dict[str, ContextLoad]:
        """Return how many jobs run and wait in each context that this server runs, by its ID."""
        loads, living = self._services.jobs.context_loads, self._services.registry.all()
        return {live.record.id: loads.get(live.record.id, ContextLoad()) for live in living}

    def start_queue(self) -> StartQueueStatus:
        """Return how many contexts are starting now, and which ones wait for their turn to start."""
        return self._services.registry.start_queue

    def resource_usage(self) -> Sequence[ResourceUsage]:
        """Return what all contexts together may use at most, and what the configuration allows, by resource.

        Contexts count with what their settings ask for, and pools of spares with their full size.
        """
        return self._services.registry.usage

    def spare_pools(self) -> Sequence[SparePool]:
        """Return the pools of contexts that are kept started for new ones of the same settings."""
        return self._services.launcher.spare_pools()

    # -- jobs --------------------------------------------------------------------------------------

    def submit(self, request: JobRequest) -> JobHandle:
        """Accept a job: from here on it is recorded, and nothing that happens loses it.

        May block while a URI is fetched. Raises InvalidRequest, InvalidConfig, InvalidCallbackUrl,
        MalformedUrl, FetchError, NotAnArchive, BinaryNotFound, ContextNotFound, ContextStopping, NoSlots,
        ContextTooLarge, CapacityReached, IdempotencyMismatch, ServerClosed, or Unavailable if the server of
        the context is shutting down; then nothing was recorded.
        """
        with self.begin_submit(request) as preparation:
            return preparation.finish()

    def begin_submit(
        self, request: JobRequest, *, caller: str = "", durable: bool = True
    ) -> Preparation[JobHandle]:
        """Fetch what a job needs, without waiting; finishing what this returns submits the job.

        For callers that must not block, such as event loops::

            with server.begin_submit(request) as preparation:
                await preparation.ready
                handle = preparation.finish()

        ``caller`` is as for :meth:`begin_context`. Without ``durable``, a power cut may lose the job until it
        has ended; the end of the process does not. Use this only if the client gets no response before
        the job ends. Raises the errors of :meth:`submit`.
        """
        check_kind("the request", request, JobRequest, "a JobRequest")
        return self._new_work.submissions.begin(request, caller, durable=durable)

    def jobs(self, query: JobQuery | None = None) -> JobPage:
        """Return a page of jobs, newest first."""
        query = JobQuery() if query is None else query
        check_kind("the query", query, JobQuery, "a JobQuery")
        return self._services.jobs.page(query)

    def job(self, job_id: str) -> Job:
        """Return a job as it is recorded. Raises JobNotFound."""
        check_job_id(job_id)
        return self._services.jobs.get(job_id)

    def job_handle(self, job_id: str) -> JobHandle:
        """Return a handle to wait for a job, whenever it was submitted. Raises JobNotFound."""
        check_job_id(job_id)
        return self._services.jobs.handle(job_id)

    def job_config(self, job_id: str) -> str:
        """Return the job's configuration as JSON text. Raises JobNotFound."""
        check_job_id(job_id)
        return self._services.jobs.config(job_id)

    def open_result(self, job_id: str) -> ResultReader | None:
        """Open a finished job's result for reading in chunks; None when it has none.

        Raises JobNotFound.
        """
        check_job_id(job_id)
        return self._services.jobs.open_result(job_id)

    def deliveries(self, job_id: str) -> list[Delivery]:
        """Return the callback deliveries of a job, with their attempts and states."""
        check_job_id(job_id)
        return self._services.metadata.deliveries_of(job_id)

    def kill_job(self, job_id: str, *, force: bool = False) -> Waiter[Job]:
        """Begin to end a job; the waiter has it once it is final: KILLED, unless it ended before that.

        With ``force`` the context is killed when the job has not ended after the configured
        ``kill-timeout``.

        Blocks for up to 10 seconds if the job is on another server, until that one has accepted.

        Raises:
            JobNotFound: No job has the id.
            JobAlreadyFinal: The job has ended.
            Unavailable: Its server is gone or does not respond. Try again.
            ServerClosed: This server closed in the meantime.
            StorageError: The metadata store failed.
        """
        check_job_id(job_id)
        return self._services.jobs.kill(job_id, force=force)

    # -- logs and data files -----------------------------------------------------------------------

    def job_log(self, job_id: str) -> Path:
        """Return the file that a job's output goes to. Raises JobNotFound, LogNotFound, OnAnotherServer."""
        check_job_id(job_id)
        return self._services.logs.job_file(job_id)

    def context_log(self, name: str) -> Path:
        """Return the file that a context's driver output goes to.

        Raises ContextNotFound, LogNotFound, OnAnotherServer.
        """
        return self._services.logs.context_file(name)

    def open_job_log(self, job_id: str, *, last: int | None = None) -> LogReader:
        """Return a reader of a job's output, on whatever server that is; ``last`` bytes of it, or all.

        Opening and reading block for up to 10 seconds if another server has the log and does not respond.
        Raises JobNotFound.
        """
        check_job_id(job_id)
        return self._services.logs.open_job(job_id, last)

    def open_context_log(self, name: str, *, last: int | None = None) -> LogReader:
        """Return a reader of a context's driver output, as :meth:`open_job_log` does.

        Raises ContextNotFound.
        """
        return self._services.logs.open_context(name, last)

    def add_data_file(
        self, prefix: str, data: bytes | BinaryIO | Iterable[bytes], *, ending: str | None = None
    ) -> DataFile:
        """Store a data file that jobs on this machine can read by its path.

        Its name is ``<prefix>-<time><ending>``. Spark recognizes compressed files by the ending, such as
        ``.csv.gz``. By default it is taken from ``prefix``, so ``sales.csv.gz`` becomes
        ``sales-<time>.csv.gz``, and ``sales`` becomes ``sales-<time>.dat``.

        Raises InvalidName, TooLarge, StorageError.
        """
        return self._new_work.data_files.add(prefix, data, ending)

    def begin_data_file(self, prefix: str, *, ending: str | None = None) -> DataUpload:
        """Return a data file to write to in chunks; see :class:`DataUpload`.

        Its name is that which :meth:`add_data_file` gives it.
        Raises InvalidName, StorageError.
        """
        return self._new_work.data_files.begin(prefix, ending)

    def data_files(self) -> list[DataFile]:
        """Return the data files, sorted by path."""
        return self._services.data_files.all()

    def delete_data_file(self, name: str | PathLike[str]) -> None:
        """Remove a data file by its full path or its plain name. Raises DataFileNotFound."""
        self._services.data_files.delete(name)

    def reset_data_files(self) -> None:
        """Remove every data file."""
        # Jobs that wait for the next start may need them.
        self._new_work.data_files.reset()
