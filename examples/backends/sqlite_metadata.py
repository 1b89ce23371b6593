"""A metadata store in one SQLite file, with nothing but the standard library.

Each record is stored as one JSON document. Fields used for lookups have their own columns. Every method
is one transaction, and a writing transaction locks the database when it begins. So what it reads cannot
change before it writes, and compare-and-set is simply "read, compare, write".

Strings are stored as bytes: a record may contain any Python string, and SQLite takes neither NUL nor lone
surrogates in text. Bytes of UTF-8 also sort as the strings do.

Left out, for brevity: all calls share one connection, so they take turns, and there are no migrations.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import attrs

from jobserver_core import (
    Binary,
    BinaryInUse,
    BinaryNotFound,
    Context,
    ContextExists,
    ContextNotFound,
    ContextQuery,
    ContextState,
    ContextStopping,
    Delivery,
    DeliveryState,
    DuplicateId,
    InvalidSetting,
    Job,
    JobPage,
    JobProgress,
    JobQuery,
    JobResult,
    JobState,
    MetadataUsage,
    QueueLimits,
    Server,
    ServerClosed,
    ServerRequest,
    Settings,
    StaleOwner,
    StaleState,
    StorageError,
)
from jobserver_core.ports import PIN_EXPIRY, MetadataStore
from jobserver_core.ports.formats import decode_cursor, dumps, encode_cursor, loads

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS binaries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id UNIQUE, name, uploaded_at, digest, document);
CREATE INDEX IF NOT EXISTS binaries_by_name ON binaries (name, uploaded_at, seq);
CREATE INDEX IF NOT EXISTS binaries_by_digest ON binaries (digest);
CREATE TABLE IF NOT EXISTS contexts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id UNIQUE, name, state, epoch, owner, started_at, ended_at,
    document);
CREATE INDEX IF NOT EXISTS contexts_by_name ON contexts (name, started_at, seq);
CREATE TABLE IF NOT EXISTS jobs (
    id PRIMARY KEY, idempotency_key UNIQUE, state, epoch, class_name, context_id, context_name, submitted_at,
    ended_at, document, config, progress, result, result_digest);
CREATE INDEX IF NOT EXISTS jobs_by_time ON jobs (submitted_at, id);
CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (ended_at);
CREATE INDEX IF NOT EXISTS jobs_by_context ON jobs (context_id);
CREATE INDEX IF NOT EXISTS jobs_by_result ON jobs (result_digest);
CREATE TABLE IF NOT EXISTS uses (job_id, binary_id, digest);
CREATE INDEX IF NOT EXISTS uses_by_job ON uses (job_id);
CREATE INDEX IF NOT EXISTS uses_by_binary ON uses (binary_id);
CREATE INDEX IF NOT EXISTS uses_by_digest ON uses (digest);
CREATE TABLE IF NOT EXISTS deliveries (
    id PRIMARY KEY, job_id, state, epoch, receiver, created_at, due_at, document);
CREATE INDEX IF NOT EXISTS deliveries_by_job ON deliveries (job_id);
CREATE INDEX IF NOT EXISTS deliveries_by_time ON deliveries (state, due_at);
CREATE TABLE IF NOT EXISTS servers (id PRIMARY KEY, started_at, lease_until, document);
CREATE TABLE IF NOT EXISTS requests (id PRIMARY KEY, recipient, created_at, document);
CREATE TABLE IF NOT EXISTS pins (id PRIMARY KEY, server_id, digest, expires_at);
CREATE INDEX IF NOT EXISTS pins_by_digest ON pins (digest);
CREATE TABLE IF NOT EXISTS removals (digest PRIMARY KEY, server_id, until);
CREATE TABLE IF NOT EXISTS checks (id PRIMARY KEY, at);
"""
_REFERENCED = """SELECT EXISTS (SELECT 1 FROM binaries WHERE digest = ?1)
                 OR EXISTS (SELECT 1 FROM uses WHERE digest = ?1)
                 OR EXISTS (SELECT 1 FROM jobs WHERE result_digest = ?1)"""
_LIVE_CONTEXTS = [state for state in ContextState if not state.final]
_LIVE_JOBS = [state for state in JobState if not state.final]
_LIVE_DELIVERIES = [state for state in DeliveryState if not state.final]
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _value(value: Any) -> Any:
    """Return what stands for a value in a column: bytes for strings, microseconds for times."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, datetime):
        return (value - _EPOCH) // timedelta(microseconds=1)
    return value


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogatepass")


def _after(seconds: float) -> datetime:
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


def _marks(values: Sequence[object]) -> str:
    return f"({', '.join('?' * len(values))})"


def _columns_of_context(context: Context) -> dict[str, object]:
    names = ("name", "state", "epoch", "owner", "started_at", "ended_at")
    return {name: getattr(context, name) for name in names} | {"document": dumps(context)}


def _columns_of_job(job: Job) -> dict[str, object]:
    """Return the columns of a job. Its progress has one, which another method writes too."""
    names = (
        "idempotency_key",
        "state",
        "epoch",
        "class_name",
        "context_id",
        "context_name",
        "submitted_at",
        "ended_at",
    )
    columns = {name: getattr(job, name) for name in names}
    progress = {} if job.progress is None else {"progress": dumps(job.progress)}
    return columns | progress | {"document": dumps(attrs.evolve(job, progress=None))}


def _columns_of_delivery(delivery: Delivery) -> dict[str, object]:
    names = ("job_id", "state", "epoch", "receiver", "created_at", "due_at")
    return {name: getattr(delivery, name) for name in names} | {"document": dumps(delivery)}


def _where(equal: dict[str, object], states: Sequence[Enum] | None) -> tuple[str, list[object]]:
    """Return a WHERE clause for the columns whose value is not None, and its values."""
    chosen = {name: value for name, value in equal.items() if value is not None}
    conditions, values = [f"{name} = ?" for name in chosen], list(chosen.values())
    if states is not None:
        conditions.append(f"state IN {_marks(states)}")
        values += states
    return f"WHERE {' AND '.join(conditions) or 'TRUE'}", values


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(message=f"metadata database: {error}") from error


class SqliteMetadataStore(MetadataStore):
    """Records in a SQLite file. The option ``path`` names it."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._receivers: list[Callable[[str | None], None]] = []
        with _translated():
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            self._db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {_SCHEMA}")

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        """Refuse unknown options, and a path of the wrong type."""
        for key in settings.metadata.options.keys() - {"path"}:
            message = "is not an option; expected path"
            raise InvalidSetting(key=f"jobserver.metadata.options.{key}", message=message)
        settings.option_path("jobserver.metadata.options.path", settings.data_dir)

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> SqliteMetadataStore:
        """Open the database that the settings name."""
        return cls(settings.option_path("jobserver.metadata.options.path", data_dir / "metadata.sqlite"))

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        with self._lock, _translated():
            self._db.execute(begin)
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _reading(self) -> Any:
        return self._transaction("BEGIN")

    def _writing(self) -> Any:
        return self._transaction("BEGIN IMMEDIATE")

    def _all(self, statement: str, *values: Any) -> list[Any]:
        return self._db.execute(statement, [_value(value) for value in values]).fetchall()

    def _one(self, statement: str, *values: Any) -> Any:
        row = self._db.execute(statement, [_value(value) for value in values]).fetchone()
        return None if row is None else row[0]

    def _put(self, table: str, **columns: Any) -> None:
        statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES {_marks(list(columns))}"
        self._all(statement, *columns.values())

    def _change(self, table: str, record_id: str, **columns: Any) -> None:
        changes = ", ".join(f"{name} = ?" for name in columns)
        self._all(f"UPDATE {table} SET {changes} WHERE id = ?", *columns.values(), record_id)

    def _documents(self, kind: type[T], statement: str, *values: Any) -> list[T]:
        with self._reading():
            return [loads(_text(row[0]), kind) for row in self._all(statement, *values)]

    def _refuse_known(self, table: str, kind: str, record_id: str) -> None:
        if self._one(f"SELECT 1 FROM {table} WHERE id = ?", record_id):
            raise DuplicateId(kind=kind, id=record_id, holder=record_id)

    def _compare(
        self, table: str, kind: str, record: Context | Job | Delivery, expected: Enum, epoch: int | None
    ) -> None:
        found = self._one(f"SELECT state FROM {table} WHERE id = ?", record.id)
        if found != expected.value:
            raise StaleState(kind=kind, id=record.id, expected=expected.value, found=found)
        held = record.epoch if epoch is None else epoch
        if self._one(f"SELECT epoch FROM {table} WHERE id = ?", record.id) != held:
            raise StaleOwner(kind=kind, id=record.id, expected=expected.value, found=found)

    # -- binaries ----------------------------------------------------------------------------------

    def add_binary(self, binary: Binary) -> None:
        """Insert a version."""
        with self._writing():
            self._refuse_known("binaries", "binary", binary.id)
            names = ("id", "name", "uploaded_at", "digest")
            columns = {name: getattr(binary, name) for name in names}
            self._put("binaries", **columns, document=dumps(binary))

    def binary(self, name: str) -> Binary | None:
        """Return the first of all versions."""
        return next(iter(self.binary_versions(name)), None)

    def binaries(self) -> list[Binary]:
        """Return the versions than which none is newer."""
        newest = (
            """SELECT seq FROM binaries WHERE name = b.name ORDER BY uploaded_at DESC, seq DESC LIMIT 1"""
        )
        statement = f"SELECT document FROM binaries AS b WHERE seq = ({newest}) ORDER BY name"
        return self._documents(Binary, statement)

    def binary_versions(self, name: str) -> list[Binary]:
        """Return all versions."""
        order = "ORDER BY uploaded_at DESC, seq DESC"
        return self._documents(Binary, f"SELECT document FROM binaries WHERE name = ? {order}", name)

    def delete_binary(self, name: str) -> list[Binary]:
        """Delete all versions, unless a live job uses one."""
        users = """SELECT DISTINCT jobs.id, submitted_at FROM jobs JOIN uses ON job_id = jobs.id
                   WHERE binary_id IN (SELECT id FROM binaries WHERE name = ?)
                   ORDER BY submitted_at, jobs.id"""
        with self._writing():
            order = "ORDER BY uploaded_at DESC, seq DESC"
            rows = self._all(f"SELECT document FROM binaries WHERE name = ? {order}", name)
            if not rows:
                raise BinaryNotFound(name=name)
            if job_ids := tuple(_text(row[0]) for row in self._all(users, name)):
                raise BinaryInUse(name=name, job_ids=job_ids)
            self._all("DELETE FROM binaries WHERE name = ?", name)
            return [loads(_text(row[0]), Binary) for row in rows]

    def delete_old_binaries(self, *, uploaded_before: datetime, keep: int, limit: int) -> list[Binary]:
        """Delete old versions that have enough newer ones and no user."""
        newer = """SELECT count(*) FROM binaries AS n
                   WHERE n.name = b.name AND (n.uploaded_at, n.seq) > (b.uploaded_at, b.seq)"""
        old = f"""SELECT seq, document FROM binaries AS b WHERE uploaded_at < ? AND ({newer}) >= ?
                  AND NOT EXISTS (SELECT 1 FROM uses WHERE binary_id = b.id)
                  ORDER BY uploaded_at, seq LIMIT ?"""
        with self._writing():
            rows = self._all(old, uploaded_before, keep, limit)
            for row in rows:
                self._all("DELETE FROM binaries WHERE seq = ?", row[0])
            return [loads(_text(row[1]), Binary) for row in rows]

    # -- servers -----------------------------------------------------------------------------------

    def register_server(
        self, server_id: str, *, started_at: datetime, address: str, lease: float, version: str = ""
    ) -> None:
        """Insert or replace a server."""
        until = _after(lease)
        server = Server(
            id=server_id, started_at=started_at, address=address, lease_until=until, version=version
        )
        with self._writing():
            self._all("DELETE FROM servers WHERE id = ?", server_id)
            self._put_server(server)
            self._limit_pins("server_id = ?", server_id)

    def renew_server(self, server_id: str, *, lease: float) -> bool:
        """Replace a server by the same one with a later end of its lease."""
        return self._change_server(server_id, lease_until=_after(lease))

    def drain_server(self, server_id: str) -> bool:
        """Replace a server by the same one that drains."""
        return self._change_server(server_id, draining=True)

    def _change_server(self, server_id: str, **changes: Any) -> bool:
        with self._writing():
            document = self._one("SELECT document FROM servers WHERE id = ?", server_id)
            if document is None:
                return False
            self._all("DELETE FROM servers WHERE id = ?", server_id)
            self._put_server(attrs.evolve(loads(_text(document), Server), **changes))
            return True

    def servers(self, *, expired: bool | None = None) -> list[Server]:
        """Return the servers."""
        found = self._documents(Server, "SELECT document FROM servers ORDER BY started_at, id")
        now = datetime.now(timezone.utc)
        return [server for server in found if expired in (None, server.lease_until <= now)]

    def remove_server(self, server_id: str, *, only_expired: bool = False) -> bool:
        """Delete a server."""
        condition = "id = ? AND lease_until <= ?" if only_expired else "id = ?"
        values = (server_id, datetime.now(timezone.utc)) if only_expired else (server_id,)
        with self._writing():
            if not self._one(f"SELECT 1 FROM servers WHERE {condition}", *values):
                return False
            self._all("DELETE FROM servers WHERE id = ?", server_id)
            return True

    def _put_server(self, server: Server) -> None:
        times = {"started_at": server.started_at, "lease_until": server.lease_until}
        self._put("servers", id=server.id, **times, document=dumps(server))

    # -- contexts ----------------------------------------------------------------------------------

    def add_context(self, context: Context) -> None:
        """Insert a context."""
        with self._writing():
            self._insert_context(context)

    def _insert_context(self, context: Context) -> None:
        self._refuse_known("contexts", "context", context.id)
        self._refuse_second(context)
        self._put("contexts", id=context.id, **_columns_of_context(context))

    def context(self, context_id: str) -> Context | None:
        """Return a context."""
        found = self._documents(Context, "SELECT document FROM contexts WHERE id = ?", context_id)
        return next(iter(found), None)

    def context_named(self, name: str) -> Context | None:
        """Return the live context of the name, or else the first of all."""
        live = self.contexts(ContextQuery(name=name, states=tuple(_LIVE_CONTEXTS), limit=1))
        return next(iter(live or self.contexts(ContextQuery(name=name, limit=1))), None)

    def contexts(self, query: ContextQuery) -> list[Context]:
        """Return the selected contexts."""
        where, values = _where({"name": query.name, "owner": query.owner}, query.states)
        limit = -1 if query.limit is None else query.limit
        statement = f"SELECT document FROM contexts {where} ORDER BY started_at DESC, seq DESC LIMIT ?"
        return self._documents(Context, statement, *values, limit)

    def advance_context(
        self,
        context: Context,
        *,
        expected: ContextState,
        epoch: int | None = None,
        successor: Context | None = None,
    ) -> None:
        """Update a context, if it has the expected state and epoch, and add its successor."""
        with self._writing():
            self._compare("contexts", "context", context, expected, epoch)
            self._refuse_second(context)
            self._change("contexts", context.id, **_columns_of_context(context))
            if successor is not None:
                self._insert_context(successor)

    def delete_contexts(self, *, ended_before: datetime, limit: int) -> list[str]:
        """Delete old contexts without jobs."""
        live = _marks(_LIVE_CONTEXTS)
        old = f"""SELECT id FROM contexts AS c WHERE ended_at < ? AND state NOT IN {live}
                  AND NOT EXISTS (SELECT 1 FROM jobs WHERE context_id = c.id)
                  ORDER BY ended_at, seq LIMIT ?"""
        with self._writing():
            ids = [_text(row[0]) for row in self._all(old, ended_before, *_LIVE_CONTEXTS, limit)]
            for context_id in ids:
                self._all("DELETE FROM contexts WHERE id = ?", context_id)
            return ids

    def _refuse_second(self, context: Context) -> None:
        """Refuse a second live context of one name."""
        live = _marks(_LIVE_CONTEXTS)
        rival = f"SELECT 1 FROM contexts WHERE name = ? AND id != ? AND state IN {live}"
        if not context.state.final and self._one(rival, context.name, context.id, *_LIVE_CONTEXTS):
            raise ContextExists(name=context.name)

    # -- jobs --------------------------------------------------------------------------------------

    def add_job(self, job: Job, *, config: str) -> None:
        """Insert a job, if its binaries are there."""
        with self._writing():
            self._insert_job(job, config)

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        """Insert a job, if its context has room."""
        live = f"SELECT document FROM jobs WHERE context_id = ? AND state IN {_marks(_LIVE_JOBS)}"
        with self._writing():
            document = self._one("SELECT document FROM contexts WHERE id = ?", job.context_id)
            context = loads(_text(document), Context) if document is not None else None
            if context is None or context.state.final:
                raise ContextNotFound(name=job.context_name)
            if context.state is ContextState.STOPPING or context.stop_requested:
                raise ContextStopping(name=job.context_name)
            owner = self._one("SELECT document FROM servers WHERE id = ?", context.owner)
            if owner is not None and loads(_text(owner), Server).draining:
                raise ServerClosed()
            others = [loads(_text(row[0]), Job) for row in self._all(live, job.context_id, *_LIVE_JOBS)]
            waiting = [other.submitted_by for other in others if other.waiting]
            limits.check(
                job.context_name,
                job.submitted_by,
                running=len(others) - len(waiting),
                waiting=len(waiting),
                waiting_of_user=waiting.count(job.submitted_by),
            )
            self._insert_job(job, config)

    def _insert_job(self, job: Job, config: str) -> None:
        self._refuse_known("jobs", "job", job.id)
        self._refuse_known_key(job)
        for entry in job.class_path:
            known = "SELECT 1 FROM binaries WHERE id = ?"
            if entry.binary_id is not None and not self._one(known, entry.binary_id):
                raise BinaryNotFound(name=entry.source)
        self._put("jobs", id=job.id, config=config, **_columns_of_job(job))
        self._put_uses(job)

    def job(self, job_id: str) -> Job | None:
        """Return a job."""
        return next(iter(self._jobs("WHERE id = ?", job_id)), None)

    def job_with_key(self, idempotency_key: str) -> Job | None:
        """Return the job with the key."""
        return next(iter(self._jobs("WHERE idempotency_key = ?", idempotency_key)), None)

    def job_config(self, job_id: str) -> str | None:
        """Return a configuration."""
        with self._reading():
            config = self._one("SELECT config FROM jobs WHERE id = ?", job_id)
            return None if config is None else _text(config)

    def job_result(self, job_id: str) -> JobResult | None:
        """Return a result."""
        with self._reading():
            result = self._one("SELECT result FROM jobs WHERE id = ?", job_id)
            return None if result is None else loads(_text(result), JobResult)

    def jobs(self, query: JobQuery) -> JobPage:
        """Return a page. One job more is read, to see whether another page follows."""
        equal = {name: getattr(query, name) for name in ("context_id", "context_name", "class_name")}
        where, values = _where(equal, query.states)
        if query.since is not None:
            where, values = f"{where} AND submitted_at >= ?", [*values, query.since]
        if query.until is not None:
            where, values = f"{where} AND submitted_at < ?", [*values, query.until]
        if query.after is not None:
            where += " AND (submitted_at, id) < (?, ?)"
            values += decode_cursor(query.after)
        statement = f"{where} ORDER BY submitted_at DESC, id DESC LIMIT ? OFFSET ?"
        found = self._jobs(statement, *values, query.limit + 1, query.offset)
        page = tuple(found[: query.limit])
        return JobPage(jobs=page, next=encode_cursor(page[-1]) if page and len(found) > len(page) else None)

    def advance_job(
        self,
        job: Job,
        *,
        expected: JobState,
        epoch: int | None = None,
        result: JobResult | None = None,
        delivery: Delivery | None = None,
    ) -> None:
        """Update a job, if it has the expected state and epoch, and insert what comes with it."""
        with self._writing():
            self._compare("jobs", "job", job, expected, epoch)
            self._refuse_known_key(job)
            self._change("jobs", job.id, **_columns_of_job(job))
            self._all("DELETE FROM uses WHERE job_id = ?", job.id)
            self._put_uses(job)
            if result is not None:
                self._change("jobs", job.id, result=dumps(result), result_digest=result.digest)
            if delivery is not None:
                self._refuse_known("deliveries", "callback delivery", delivery.id)
                self._put("deliveries", id=delivery.id, **_columns_of_delivery(delivery))

    def record_progress(self, job_id: str, progress: JobProgress) -> None:
        """Update the progress of a live job."""
        update = f"UPDATE jobs SET progress = ? WHERE id = ? AND state IN {_marks(_LIVE_JOBS)}"
        with self._writing():
            self._all(update, dumps(progress), job_id, *_LIVE_JOBS)

    def delete_jobs(self, *, ended_before: datetime, limit: int) -> int:
        """Delete old jobs that owe no callback."""
        owed = f"job_id = jobs.id AND state IN {_marks(_LIVE_DELIVERIES)}"
        old = f"""SELECT id FROM jobs WHERE ended_at < ? AND state NOT IN {_marks(_LIVE_JOBS)}
                  AND NOT EXISTS (SELECT 1 FROM deliveries WHERE {owed})
                  ORDER BY ended_at, submitted_at, id LIMIT ?"""
        with self._writing():
            rows = self._all(old, ended_before, *_LIVE_JOBS, *_LIVE_DELIVERIES, limit)
            for row in rows:
                self._all("DELETE FROM deliveries WHERE job_id = ?", row[0])
                self._all("DELETE FROM jobs WHERE id = ?", row[0])
            return len(rows)

    def newest_excess_job(self, *, jobs: int | None, result_bytes: int | None) -> datetime | None:
        """Look at the ended jobs, newest first."""
        where = f"ended_at IS NOT NULL AND state NOT IN {_marks(_LIVE_JOBS)} ORDER BY ended_at DESC"
        with self._reading():
            rows = self._all(f"SELECT document, result FROM jobs WHERE {where}", *_LIVE_JOBS)
        excess: list[datetime] = []
        total = 0
        for place, (document, result) in enumerate(rows):
            size = loads(_text(result), JobResult).size if result is not None else 0
            total += size
            too_much = result_bytes is not None and total > result_bytes
            if too_much or (jobs is not None and place >= jobs):
                ended_at = loads(_text(document), Job).ended_at
                excess += [] if ended_at is None else [ended_at]
                break
        return max(excess, default=None)

    def _jobs(self, where: str, *values: Any) -> list[Job]:
        with self._reading():
            rows = self._all(f"SELECT document, progress FROM jobs {where}", *values)
        return [_job(document, progress) for document, progress in rows]

    def _put_uses(self, job: Job) -> None:
        """Record what a live job uses; a final job uses nothing."""
        for entry in () if job.state.final else job.class_path:
            self._put("uses", job_id=job.id, binary_id=entry.binary_id, digest=entry.digest)

    def _refuse_known_key(self, job: Job) -> None:
        if (key := job.idempotency_key) is not None:
            holder = self._one("SELECT id FROM jobs WHERE idempotency_key = ? AND id != ?", key, job.id)
            if holder is not None:
                raise DuplicateId(kind="idempotency key", id=key, holder=_text(holder))

    # -- callback deliveries -----------------------------------------------------------------------

    def delivery(self, delivery_id: str) -> Delivery | None:
        """Return a delivery."""
        return next(iter(self._deliveries("WHERE id = ?", delivery_id)), None)

    def deliveries_of(self, job_id: str) -> list[Delivery]:
        """Return the deliveries of a job."""
        return self._deliveries("WHERE job_id = ? ORDER BY created_at, id", job_id)

    def due_deliveries(self, *, now: datetime, limit: int, excluding: Iterable[str] = ()) -> list[Delivery]:
        """Return the due deliveries to receivers that are not excluded."""
        excluded = list(excluding)
        where = f"WHERE state = ? AND due_at <= ? AND receiver NOT IN {_marks(excluded)}"
        order = "ORDER BY due_at, created_at, id LIMIT ?"
        return self._deliveries(f"{where} {order}", DeliveryState.PENDING, now, *excluded, limit)

    def advance_delivery(
        self, delivery: Delivery, *, expected: DeliveryState, epoch: int | None = None
    ) -> None:
        """Update a delivery, if it has the expected state and epoch."""
        with self._writing():
            self._compare("deliveries", "callback delivery", delivery, expected, epoch)
            self._change("deliveries", delivery.id, **_columns_of_delivery(delivery))

    def deliveries_in(
        self, state: DeliveryState, *, limit: int, excluding: Iterable[str] = ()
    ) -> list[Delivery]:
        """Return the deliveries in a state, except those of some owners."""
        left_out = set(excluding)
        found = self._deliveries("WHERE state = ? ORDER BY created_at, id", state)
        return [delivery for delivery in found if delivery.owner not in left_out][:limit]

    def _deliveries(self, where: str, *values: Any) -> list[Delivery]:
        return self._documents(Delivery, f"SELECT document FROM deliveries {where}", *values)

    # -- blobs in use, and the store itself --------------------------------------------------------

    def unreferenced(self, digests: Iterable[str]) -> list[str]:
        """Look each digest up where records refer to blobs."""
        with self._reading():
            return [digest for digest in dict.fromkeys(digests) if not self._one(_REFERENCED, digest)]

    def pin_blob(self, pin_id: str, *, server_id: str, digest: str) -> bool:
        """Insert a pin, and look for a removal: writing transactions do not overlap."""
        removed = "SELECT 1 FROM removals WHERE digest = ? AND until > ?"
        with self._writing():
            self._all("INSERT OR IGNORE INTO pins VALUES (?, ?, ?, NULL)", pin_id, server_id, digest)
            return self._one(removed, digest, _after(0)) is None

    def unpin_blobs(self, pin_ids: Iterable[str]) -> None:
        """Delete pins."""
        with self._writing():
            for pin_id in pin_ids:
                self._all("DELETE FROM pins WHERE id = ?", pin_id)

    def begin_removal(self, digests: Iterable[str], *, server_id: str, lease: float) -> list[str]:
        """Insert a removal for each digest that has neither a record nor a pin nor a removal."""
        taken = f"""{_REFERENCED} OR EXISTS (SELECT 1 FROM pins WHERE digest = ?1)
                    OR EXISTS (SELECT 1 FROM removals WHERE digest = ?1)"""
        with self._writing():
            self._limit_pins("server_id NOT IN (SELECT id FROM servers)")
            self._all("DELETE FROM pins WHERE expires_at <= ?", _after(0))
            self._all("DELETE FROM removals WHERE until <= ?", _after(0))
            free = [digest for digest in dict.fromkeys(digests) if not self._one(taken, digest)]
            for digest in free:
                self._put("removals", digest=digest, server_id=server_id, until=_after(lease))
            return free

    def end_removal(self, digests: Iterable[str], *, server_id: str) -> None:
        """Delete removals."""
        with self._writing():
            for digest in digests:
                self._all("DELETE FROM removals WHERE digest = ? AND server_id = ?", digest, server_id)

    def _limit_pins(self, condition: str, *values: Any) -> None:
        statement = f"UPDATE pins SET expires_at = ? WHERE expires_at IS NULL AND {condition}"
        self._all(statement, _after(PIN_EXPIRY), *values)

    def usage(self) -> MetadataUsage:
        """Count the rows; sizes are in the documents."""
        with self._reading():
            counts = {
                name: self._one(f"SELECT count(*) FROM {name}")
                for name in ("binaries", "contexts", "jobs", "deliveries")
            }
            results = [
                loads(_text(row[0]), JobResult)
                for row in self._all("SELECT result FROM jobs WHERE result IS NOT NULL")
            ]
            binaries = [loads(_text(row[0]), Binary) for row in self._all("SELECT document FROM binaries")]
        return MetadataUsage(
            **counts,
            binary_bytes=sum(binary.size for binary in binaries),
            results=len(results),
            result_bytes=sum(result.size for result in results),
        )

    def add_request(self, request: ServerRequest) -> None:
        """Insert a request."""
        with self._writing():
            self._refuse_known("requests", "request", request.id)
            columns = {"recipient": request.recipient, "created_at": request.created_at}
            self._put("requests", id=request.id, **columns, document=dumps(request))

    def requests_to(self, server_id: str) -> list[ServerRequest]:
        """Return those without an answer."""
        where = "WHERE recipient = ? ORDER BY created_at, id"
        found = self._documents(ServerRequest, f"SELECT document FROM requests {where}", server_id)
        return [request for request in found if request.answer is None]

    def answer_request(self, request_id: str, answer: str) -> bool:
        """Update a request that has no answer."""
        with self._writing():
            document = self._one("SELECT document FROM requests WHERE id = ?", request_id)
            request = None if document is None else loads(_text(document), ServerRequest)
            if request is None or request.answer is not None:
                return False
            self._change("requests", request_id, document=dumps(attrs.evolve(request, answer=answer)))
            return True

    def request(self, request_id: str) -> ServerRequest | None:
        """Return a request."""
        found = self._documents(ServerRequest, "SELECT document FROM requests WHERE id = ?", request_id)
        return next(iter(found), None)

    def remove_request(self, request_id: str) -> ServerRequest | None:
        """Delete a request."""
        with self._writing():
            document = self._one("SELECT document FROM requests WHERE id = ?", request_id)
            self._all("DELETE FROM requests WHERE id = ?", request_id)
            return None if document is None else loads(_text(document), ServerRequest)

    def delete_requests(self, *, created_before: datetime) -> int:
        """Delete old requests."""
        with self._writing():
            old = self._all("SELECT id FROM requests WHERE created_at < ?", created_before)
            self._all("DELETE FROM requests WHERE created_at < ?", created_before)
            return len(old)

    def notify(self, notice: str) -> None:
        """Pass a notice to those who listen to this store, which nobody shares."""
        for receive in list(self._receivers):
            receive(notice)

    def listen(self, receive: Callable[[str | None], None]) -> None:
        """Remember who listens."""
        self._receivers.append(receive)

    def check(self) -> None:
        """Write a row."""
        with self._writing():
            self._all("INSERT OR REPLACE INTO checks VALUES (1, ?)", datetime.now(timezone.utc))

    def close(self) -> None:
        """Close the connection."""
        with self._lock, _translated():
            self._db.close()


def _job(document: bytes, progress: bytes | None) -> Job:
    job = loads(_text(document), Job)
    return job if progress is None else attrs.evolve(job, progress=loads(_text(progress), JobProgress))
