"""The metadata store on SQLite or PostgreSQL: each method is one transaction."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL

from jobserver_core.config.units import lacks_unit, parse_duration
from jobserver_core.errors import InvalidSetting
from jobserver_core.models.binaries import Binary
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.jobs import Job, JobPage, JobProgress, JobQuery, JobResult, QueueLimits
from jobserver_core.models.json_values import Json, JsonObject
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.models.servers import Server, ServerRequest
from jobserver_core.models.storage import MetadataUsage
from jobserver_core.ports.metadata import MetadataStore
from jobserver_sql import binaries, blobs, contexts, deliveries, jobs, schema, servers
from jobserver_sql.database import Database, check_driver
from jobserver_sql.jobs import newest_excess, usage
from jobserver_sql.notices import NoticeListener, notify
from jobserver_sql.statements import DriverConnection

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

FILE_NAME = "metadata.db"
_SYNCHRONOUS = ("full", "normal")
_PROGRESS_TIMEOUT = 0.25
"""Seconds that progress waits for other writes before it is dropped; the next report follows soon."""
_CHECK_TIMEOUT = 2.0
"""Seconds that a check waits for other writes."""


class SqlMetadataStore(MetadataStore):
    """Metadata in a database: a SQLite file, or PostgreSQL by another URL.

    The schema is migrated when the store is created. ``synchronous`` is the durability of SQLite's
    commits (see :mod:`jobserver_sql.database`), ``pool_size`` the number of connections to
    PostgreSQL that are kept (twice as many may be open), ``lock_timeout`` the seconds that a write
    waits for other writes to a SQLite file.

    A SQLite file that is removed or replaced while it is open fails every call with StorageError, until the
    original is back in its place.

    Raises:
        InvalidSetting: The URL is that of an unsupported database.
        SchemaTooNew: A newer release has written the database.
        StorageError: The database cannot be used.
    """

    def __init__(
        self, url: str | URL, *, synchronous: str = "full", pool_size: int = 10, lock_timeout: float = 5.0
    ) -> None:
        _check_arguments(synchronous=synchronous, pool_size=pool_size, lock_timeout=lock_timeout)
        self._defers = False
        self._database = Database(
            url, synchronous=synchronous, pool_size=int(pool_size), lock_timeout=lock_timeout
        )
        self.shared = not self._database.is_file
        self._listeners: list[NoticeListener] = []
        self._receivers: list[Callable[[str | None], None]] = []
        try:
            schema.upgrade(self._database)
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        _check_arguments(**_options_of(settings))
        if settings.metadata.url:
            check_driver(settings.metadata.url)

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> SqlMetadataStore:
        """Create the store that ``jobserver.metadata`` describes.

        Without a URL, it is the SQLite file ``metadata.db`` in the data directory. Options:
        ``synchronous`` (full, normal), ``pool-size``, ``lock-timeout`` (a duration).
        """
        default = URL.create("sqlite", database=str(data_dir / FILE_NAME))
        return cls(settings.metadata.url or default, **_options_of(settings))

    # -- binaries ----------------------------------------------------------------------------------

    def add_binary(self, binary: Binary) -> None:
        work = partial(binaries.add, binary=binary)
        self._database.commit(work, conflict=partial(binaries.conflict, binary=binary))

    def binary(self, name: str) -> Binary | None:
        return self._database.record(binaries.newest, name)

    def binaries(self) -> list[Binary]:
        return self._database.query(binaries.newest_of_all)

    def binary_versions(self, name: str) -> list[Binary]:
        return self._database.query(binaries.versions, name)

    def delete_binary(self, name: str) -> list[Binary]:
        return self._database.change(binaries.remove, name)

    def delete_old_binaries(self, *, uploaded_before: datetime, keep: int, limit: int) -> list[Binary]:
        return self._database.change(binaries.remove_old, uploaded_before, keep, limit)

    # -- servers -----------------------------------------------------------------------------------

    def register_server(
        self, server_id: str, *, started_at: datetime, address: str, lease: float, version: str = ""
    ) -> None:
        values: JsonObject = {"started_at": started_at, "address": address, "version": version}
        with self._database.write() as connection:
            servers.register(connection, server_id, lease, **values)
            blobs.limit_pins(connection, server_id)

    def renew_server(self, server_id: str, *, lease: float) -> bool:
        return self._database.change(servers.renew, server_id, lease)

    def drain_server(self, server_id: str) -> bool:
        return self._database.change(servers.drain, server_id)

    def servers(self, *, expired: bool | None = None) -> list[Server]:
        return self._database.query(servers.registered, expired)

    def remove_server(self, server_id: str, *, only_expired: bool = False) -> bool:
        return self._database.change(servers.remove, server_id, only_expired)

    # -- contexts ----------------------------------------------------------------------------------

    def add_context(self, context: Context) -> None:
        work = partial(contexts.add, context=context)
        self._database.commit(work, conflict=partial(contexts.conflict, context=context, new=True))

    def context(self, context_id: str) -> Context | None:
        return self._database.record(contexts.by_id, context_id)

    def context_named(self, name: str) -> Context | None:
        live = self._database.record(contexts.live_of, name)
        return live if live is not None else self._database.record(contexts.newest_of, name)

    def contexts(self, query: ContextQuery) -> list[Context]:
        return self._database.query(contexts.selected, query)

    def advance_context(
        self,
        context: Context,
        *,
        expected: ContextState,
        epoch: int | None = None,
        successor: Context | None = None,
    ) -> None:
        def work(connection: DriverConnection) -> None:
            contexts.advance(connection, context, expected=expected, epoch=epoch)
            if successor is not None:
                contexts.add(connection, successor)

        conflict = partial(contexts.conflict, context=successor or context, new=successor is not None)
        self._database.commit(work, conflict=conflict)

    def delete_contexts(self, *, ended_before: datetime, limit: int) -> list[str]:
        return self._database.change(contexts.remove_ended, ended_before, limit)

    # -- jobs --------------------------------------------------------------------------------------

    def add_job(self, job: Job, *, config: str) -> None:
        self._write_new(job, partial(jobs.add, job=job, text=config))

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        self._write_new(job, partial(jobs.enqueue, job=job, text=config, limits=limits))

    def _write_new(self, job: Job, work: Callable[[DriverConnection], None]) -> None:
        self._database.commit(work, conflict=partial(jobs.conflict, job=job), durable=not self._defers)

    def job(self, job_id: str) -> Job | None:
        job = self._database.record(jobs.by_id, job_id)
        if job is not None and job.state.final:
            self._database.sync_records(job_id)
        return job

    def job_with_key(self, idempotency_key: str) -> Job | None:
        return self._database.record(jobs.by_key, idempotency_key)

    def job_config(self, job_id: str) -> str | None:
        return self._database.record(jobs.config, job_id)

    def job_result(self, job_id: str) -> JobResult | None:
        result = self._database.record(jobs.result, job_id)
        if result is not None:
            self._database.sync_records(job_id)
        return result

    def jobs(self, query: JobQuery) -> JobPage:
        """Return one page of jobs, newest first.

        The cost of an offset grows with the skipped records; ``after`` is free.

        Raises:
            InvalidRequest: The cursor is invalid.
        """
        with self._database.read() as connection:
            page = jobs.page(connection, query)
        self._database.sync_records(*(job.id for job in page.jobs))
        return page

    def advance_job(
        self,
        job: Job,
        *,
        expected: JobState,
        epoch: int | None = None,
        result: JobResult | None = None,
        delivery: Delivery | None = None,
    ) -> None:
        work = partial(
            jobs.advance, job=job, expected=expected, epoch=epoch, outcome=result, delivery=delivery
        )
        conflict = partial(jobs.advance_conflict, job=job, delivery=delivery)
        # Dispatch and running are not guaranteed to survive a power cut; only ends and kills are.
        if self._defers and job.state.final:
            with self._database.unsynced(job.id):
                self._database.commit(work, conflict=conflict, durable=False)
            return
        durable = not self._defers and (job.state.final or job.kill_requested)
        self._database.commit(work, conflict=conflict, durable=durable)

    def record_progress(self, job_id: str, progress: JobProgress) -> None:
        work = partial(jobs.record_progress, job_id=job_id, progress=progress)
        self._database.commit(work, lock_timeout=_PROGRESS_TIMEOUT, durable=False)

    def delete_jobs(self, *, ended_before: datetime, limit: int) -> int:
        return self._database.change(jobs.remove_ended, ended_before, limit)

    def newest_excess_job(self, *, jobs: int | None, result_bytes: int | None) -> datetime | None:
        return self._database.query(newest_excess, jobs, result_bytes)

    # -- callback deliveries -----------------------------------------------------------------------

    def delivery(self, delivery_id: str) -> Delivery | None:
        return self._database.record(deliveries.by_id, delivery_id)

    def deliveries_of(self, job_id: str) -> list[Delivery]:
        return self._database.query(deliveries.of_job, job_id)

    def due_deliveries(self, *, now: datetime, limit: int, excluding: Iterable[str] = ()) -> list[Delivery]:
        return self._database.query(deliveries.due, now, limit, excluding)

    def advance_delivery(
        self, delivery: Delivery, *, expected: DeliveryState, epoch: int | None = None
    ) -> None:
        self._database.commit(partial(deliveries.advance, record=delivery, expected=expected, epoch=epoch))

    def deliveries_in(
        self, state: DeliveryState, *, limit: int, excluding: Iterable[str] = ()
    ) -> list[Delivery]:
        return self._database.query(deliveries.in_state, state, limit, excluding)

    # -- blobs in use ------------------------------------------------------------------------------

    def unreferenced(self, digests: Iterable[str]) -> list[str]:
        return self._database.query(blobs.unreferenced, digests)

    def pin_blob(self, pin_id: str, *, server_id: str, digest: str) -> bool:
        with self._database.write() as connection:
            blobs.pin(connection, pin_id, server_id, digest)
        with self._database.read() as connection:
            return not blobs.is_removed(connection, digest)

    def unpin_blobs(self, pin_ids: Iterable[str]) -> None:
        self._database.change(blobs.unpin, pin_ids)

    def begin_removal(self, digests: Iterable[str], *, server_id: str, lease: float) -> list[str]:
        with self._database.write() as connection:
            marked = blobs.mark(connection, digests, server_id, lease)
        return self._database.change(blobs.spare_used, marked, server_id)

    def end_removal(self, digests: Iterable[str], *, server_id: str) -> None:
        self._database.change(blobs.unmark, digests, server_id)

    # -- requests to other servers -----------------------------------------------------------------

    def add_request(self, request: ServerRequest) -> None:
        self._database.change(servers.add_request, request)

    def requests_to(self, server_id: str) -> list[ServerRequest]:
        return self._database.query(servers.requests_to, server_id)

    def answer_request(self, request_id: str, answer: str) -> bool:
        return self._database.change(servers.answer_request, request_id, answer)

    def request(self, request_id: str) -> ServerRequest | None:
        return self._database.query(servers.request, request_id)

    def remove_request(self, request_id: str) -> ServerRequest | None:
        return self._database.change(servers.remove_request, request_id)

    def delete_requests(self, *, created_before: datetime) -> int:
        return self._database.change(servers.delete_requests, created_before)

    # -- notices -----------------------------------------------------------------------------------

    def notify(self, notice: str) -> None:
        """Send a notice to all that listen; those of a SQLite file are in this process."""
        if self.shared:
            self._database.commit(partial(notify, notice=notice), durable=False)
        else:
            for receive in list(self._receivers):
                receive(notice)

    def listen(self, receive: Callable[[str | None], None]) -> None:
        """Call ``receive`` with every notice; on PostgreSQL, on a thread that keeps a connection for it."""
        if self.shared:
            self._listeners.append(NoticeListener(self._database.listening, receive))
        else:
            self._receivers.append(receive)

    # -- the store itself --------------------------------------------------------------------------

    def usage(self) -> MetadataUsage:
        return self._database.query(usage)

    def defer_syncs(self) -> bool:
        """Let writes of jobs return before the disk has them; return whether that makes a difference.

        It does not on PostgreSQL, whose server may crash alone and lose such writes without our knowledge.
        """
        self._defers = self._database.syncs_after_commit
        return self._defers

    def sync(self) -> None:
        self._database.sync()

    def check(self) -> None:
        """Write to the database.

        Raises:
            StorageError: It cannot be written to.
            SchemaTooNew: A newer release has migrated it.
        """
        with self._database.write(lock_timeout=_CHECK_TIMEOUT) as connection:
            schema.touch(connection)

    def close(self) -> None:
        """Close every connection. Idempotent; any other call raises StorageError afterwards."""
        self._receivers.clear()
        for listener in self._listeners:
            listener.close()
        self._database.close()


def _options_of(settings: Settings) -> JsonObject:
    """Return the options as arguments of the store.

    Raises:
        InvalidSetting: The store does not have one of them.
    """
    options: JsonObject = {}
    known = ("synchronous", "pool-size", "lock-timeout")
    for name, value in settings.metadata.options.items():
        if name not in known:
            nearest = next(iter(difflib.get_close_matches(name, known)), None)
            raise _bad_option(name, f"is not an option; expected one of {', '.join(known)}", nearest)
        try:
            options[name.replace("-", "_")] = _duration(value) if name == "lock-timeout" else value
        except ValueError as error:
            raise _bad_option(name, str(error)) from None
    return options


def _duration(value: Json) -> float:
    """Return the seconds of an option. Settings without a unit mean ms in a file, but seconds in Python."""
    if lacks_unit(value) and parse_duration(value) > 0:
        raise ValueError(f"takes a duration with a unit, such as 5 s, got {value!r}")
    return parse_duration(value)


def _check_arguments(*, synchronous: str = "full", pool_size: float = 1, lock_timeout: float = 1.0) -> None:
    if synchronous not in _SYNCHRONOUS:
        raise _bad_option("synchronous", f"must be one of {_SYNCHRONOUS}, got {synchronous!r}")
    if isinstance(pool_size, bool) or not isinstance(pool_size, int | float) or pool_size < 1:
        raise _bad_option("pool-size", f"must be a number from 1, got {pool_size!r}")
    if lock_timeout <= 0:
        raise _bad_option("lock-timeout", f"must be longer than 0 s, got {lock_timeout!r}")


def _bad_option(name: str, problem: str, nearest: str | None = None) -> InvalidSetting:
    return InvalidSetting(key=f"jobserver.metadata.options.{name}", message=problem, nearest=nearest)
