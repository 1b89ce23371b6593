"""One database: its transactions, and the translation of its errors.

There are two interfaces. Statements that run for every job use the driver directly (:meth:`Database.commit`,
:meth:`Database.record`; see :mod:`jobserver_sql.statements`); rare ones use SQLAlchemy
(:meth:`Database.read`, :meth:`Database.write`).

SQLite: a write-ahead log, so readers and a writer do not wait for each other. A write transaction
takes the database's write lock at its beginning (``BEGIN IMMEDIATE``), so that its reads stay valid
until it writes. Writers of this process queue on a separate lock, which is fair, unlike SQLite's
polling. A write waits at most ``lock_timeout`` for both locks together: if another process locks the
database, each caller waits that long, regardless of their number. With ``synchronous=FULL`` (the default) a
durable commit is on the disk when the call returns and survives even a power cut; with ``NORMAL`` it survives
a crash of the process, but a power cut may undo the last commits.

PostgreSQL: always READ COMMITTED, because the statements are written for it.

A commit that reaches the disk costs milliseconds, one that does not costs microseconds. So the caller of a
write says whether it must be ``durable``. Other writes also survive a crash of the process, and
:meth:`Database.sync` brings them to the disk together (:mod:`jobserver_core.ports.durability`).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from jobserver_core.errors import InvalidSetting, StorageError
from jobserver_core.ports.durability import Barrier
from jobserver_sql.sqlite_file import DatabaseFile, SqliteFile
from jobserver_sql.statements import DriverConnection, Statement

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow
    from sqlalchemy.engine.interfaces import DBAPIConnection

T = TypeVar("T")
P = ParamSpec("P")

_NO_DRIVER = "PostgreSQL needs psycopg: pip install 'jobserver-core[postgresql]'"
_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
_ATTEMPTS = 3
"""How often a write is tried if the reason for its refusal has gone: twice is nearly always enough."""
_WAIT = "jobserver_wait"
"""Marks a SQLite connection that is about to write, with the seconds that it may wait for other processes."""


class _Refused(StorageError):
    """A unique index refused a row; the caller finds out which and why."""


class Database:
    """Provides transactions. Thread-safe."""

    def __init__(self, url: str | URL, *, synchronous: str, pool_size: int, lock_timeout: float) -> None:
        parsed = _parse(url)
        self._lock_timeout = lock_timeout
        self._closed = False
        self._turn = threading.Lock()
        self._file: DatabaseFile | None = None
        if parsed.get_backend_name() == "sqlite":
            path = Path(parsed.database or "")
            self._file = DatabaseFile(path)
            self._engine = _sqlite_engine(parsed, synchronous, lock_timeout)
            self._sqlite = SqliteFile(path, lock_timeout)
        else:
            self._engine = _postgresql_engine(parsed, pool_size)
        event.listen(self._engine, "checkin", self._close_late)
        self.is_file = self._file is not None
        """Whether this is a SQLite file."""
        self.syncs_after_commit = self._file is not None and synchronous == "full"
        """Whether committing and syncing to the disk are two steps."""
        # Elsewhere a commit is on the disk already, or the operating system decides when it is.
        self.barrier = Barrier(self._sync_sqlite if self.syncs_after_commit else lambda: None)
        self._unsynced: dict[str, bool] = {}
        """Records that must not be shown before a sync, and whether they are committed."""
        driver: Any = self._engine.dialect.loaded_dbapi
        self._driver_error: type[Exception] = driver.Error
        self._refusal: type[Exception] = driver.IntegrityError

    # -- hot: through the driver -------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[DriverConnection]:
        """Yield a connection for reading, in which each statement is a separate transaction."""
        with self._translated():
            if self._file is not None:
                with self._sqlite.reading() as reader:
                    yield reader
            else:
                with self._engine.begin() as connection:
                    yield _psycopg_of(connection)

    def record(self, statement: Statement[T], *values: object) -> T | None:
        """Return the object made of a statement's first row, or None."""
        with self.reading() as connection:
            return connection.record(statement, *values)

    def commit(
        self,
        work: Callable[[DriverConnection], T],
        *,
        conflict: Callable[[DriverConnection], Exception | None] | None = None,
        durable: bool = True,
        lock_timeout: float | None = None,
    ) -> T:
        """Write; if a unique index refuses it, raise the reason that ``conflict`` returns.

        If the reason has disappeared when it is checked, the write is tried again. With ``durable``
        it is on the disk when this returns, else after the next :meth:`sync` (in PostgreSQL soon after).
        ``lock_timeout`` is as in :meth:`write`.
        """
        for _ in range(_ATTEMPTS):
            try:
                with self._translated(), self._writing(lock_timeout, durable=durable) as connection:
                    done = work(connection)
            except _Refused as refused:
                last = refused
            else:
                if durable:
                    self.sync()
                return done
            with self.reading() as connection:
                reason = conflict(connection) if conflict is not None else None
            if reason is not None:
                raise reason
        raise StorageError(message=last.message)

    @contextmanager
    def _writing(self, lock_timeout: float | None, *, durable: bool) -> Iterator[DriverConnection]:
        if self._file is not None:
            with self._writing_turn(lock_timeout) as left, self._sqlite.writing(left) as made:
                yield made
            self._file.verify_commit()
            return
        with self._engine.begin() as connection:
            made = _psycopg_of(connection)
            if not durable:
                made.driver.execute("SET LOCAL synchronous_commit = off")
            yield made

    def sync(self) -> None:
        """Return once all earlier writes survive a power cut.

        Raises:
            StorageError: The disk failed.
        """
        with self._translated():
            self.barrier.wait()

    def _sync_sqlite(self) -> None:
        committed = [key for key, written in list(self._unsynced.items()) if written]
        self._sqlite.sync()
        for key in committed:
            self._unsynced.pop(key, None)

    @contextmanager
    def unsynced(self, key: str) -> Iterator[None]:
        """Let :meth:`sync_records` wait for the commits of the block that did not wait for the disk."""
        self._unsynced[key] = False
        try:
            yield
        except BaseException:
            self._unsynced.pop(key, None)
            raise
        self._unsynced[key] = True

    def sync_records(self, *keys: str) -> None:
        """Wait for the disk if one of these records is not there yet.

        Raises:
            StorageError: The disk failed.
        """
        if self._unsynced and not self._unsynced.keys().isdisjoint(keys):
            self.sync()

    def listening(self) -> psycopg.Connection[TupleRow]:
        """Return a new connection of psycopg in autocommit, outside of the pool; the caller closes it."""
        with self._translated():
            connection = self._engine.raw_connection()
            driver: psycopg.Connection[TupleRow] | None = connection.driver_connection
            assert driver is not None  # it was just opened
            connection.detach()
            driver.autocommit = True
            return driver

    # -- rare: through SQLAlchemy ------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a read transaction. Errors of the database become StorageError."""
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self, *, lock_timeout: float | None = None) -> Iterator[Connection]:
        """Yield a transaction that is committed to the disk when the block ends without an error.

        ``lock_timeout`` is the number of seconds to wait for other writers to a SQLite file; the default
        is ``lock_timeout``.
        """
        with self._translated():
            if self._file is None:
                with self._engine.begin() as connection:
                    yield connection
                return
            with self._writing_turn(lock_timeout) as left:
                with self._engine.connect() as connection:
                    connection.info[_WAIT] = left
                    try:
                        with connection.begin():
                            yield connection
                    finally:
                        connection.info.pop(_WAIT, None)
                self._file.verify_commit()

    def query(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **named: P.kwargs) -> T:
        """Return what ``work`` returns in a transaction of :meth:`read`."""
        with self.read() as connection:
            return work(connection, *args, **named)

    def change(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **named: P.kwargs) -> T:
        """Return what ``work`` returns in a transaction of :meth:`write`."""
        with self.write() as connection:
            return work(connection, *args, **named)

    @contextmanager
    def _writing_turn(self, lock_timeout: float | None) -> Iterator[float]:
        """Wait for other writers of this process; yield the seconds left to wait for other processes."""
        allowed = self._lock_timeout if lock_timeout is None else lock_timeout
        left = allowed
        if not self._turn.acquire(blocking=False):
            deadline = time.monotonic() + allowed
            if not self._turn.acquire(timeout=allowed):
                message = f"the metadata database is locked: other writes took longer than {allowed:g} s"
                raise StorageError(message=message)
            left = max(0.0, deadline - time.monotonic())
        try:
            yield left
        finally:
            self._turn.release()

    def _close_late(self, connection: DBAPIConnection | None, _record: object) -> None:
        """Close a connection that was in use when the database was closed, once it is given back."""
        if self._closed and connection is not None:
            connection.close()

    def close(self) -> None:
        """Close every connection that is not in use, and others after that; refuse later transactions."""
        self._closed = True
        self._engine.dispose()
        if self._file is not None and self._turn.acquire(timeout=self._lock_timeout):
            self._sqlite.close()
            self._turn.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        if self._closed:
            raise StorageError(message="the metadata store is closed")
        if self._file is not None:
            self._file.verify()
        try:
            yield
        except (IntegrityError, self._refusal) as error:
            raise _Refused(message=_reason(error)) from error
        except (SQLAlchemyError, self._driver_error) as error:
            raise StorageError(message=_reason(error)) from error


def check_driver(url: str) -> None:
    """Check that a database of this URL is supported, and that its driver is installed. Connects to nothing.

    Raises:
        InvalidSetting: The URL is not that of a supported database.
        StorageError: The driver is not installed.
    """
    if _parse(url).get_backend_name() == "postgresql" and find_spec("psycopg") is None:
        raise StorageError(message=_NO_DRIVER)


def _psycopg_of(connection: Connection) -> DriverConnection:
    driver = connection.connection.driver_connection
    assert driver is not None  # only a closed connection has none
    return DriverConnection("postgresql", driver)


def _reason(error: Exception) -> str:
    """Describe a failure without the statement and its values, which may contain secrets."""
    cause: Any = error.orig if isinstance(error, DBAPIError) else error
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    lines = str(primary or cause).strip().splitlines()
    return f"the metadata database failed: {lines[0] if lines else type(cause).__name__}"


def _parse(url: str | URL) -> URL:
    """Return a URL with our driver.

    Raises:
        InvalidSetting: The database is not supported.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise _bad_url("not a database URL") from error
    if parsed.drivername in _POSTGRESQL:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise _bad_url(f"{parsed.drivername!r} is not a supported database")
    if not parsed.database or ":memory:" in parsed.database or "uri" in parsed.query:
        raise _bad_url("a SQLite database must be a file; to keep nothing, choose the backend 'memory'")
    return parsed


def _bad_url(problem: str) -> InvalidSetting:
    forms = "sqlite:////directory/metadata.db or postgresql://user:password@host/database"
    return InvalidSetting(key="jobserver.metadata.url", message=f"{problem}; write {forms}")


def _postgresql_engine(url: URL, pool_size: int) -> Engine:
    # Notice a vanished server within half a minute, not after TCP's quarter of an hour.
    defaults = {
        "application_name": "jobserver",
        "connect_timeout": 10,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }
    try:
        return create_engine(
            url,
            connect_args={name: value for name, value in defaults.items() if name not in url.query},
            hide_parameters=True,
            isolation_level="READ COMMITTED",
            max_overflow=pool_size,
            pool_pre_ping=True,
            pool_size=pool_size,
            pool_use_lifo=True,
        )
    except (ImportError, NoSuchModuleError) as error:
        raise StorageError(message=_NO_DRIVER) from error


def _sqlite_engine(url: URL, synchronous: str, lock_timeout: float) -> Engine:
    engine = create_engine(
        url,
        connect_args={"timeout": lock_timeout},
        hide_parameters=True,
        max_overflow=30,
        pool_size=10,
        pool_use_lifo=True,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transactions: "begin" below does
        connection.execute(f"PRAGMA synchronous={synchronous}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        wait = connection.info.get(_WAIT)
        if wait is not None:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={int(wait * 1000)}")
        connection.exec_driver_sql("BEGIN" if wait is None else "BEGIN IMMEDIATE")

    _keep_write_ahead_log(engine, lock_timeout)
    return engine


def _keep_write_ahead_log(engine: Engine, lock_timeout: float) -> None:
    """Switch the file to WAL permanently; SQLite does not wait for others that do the same."""
    deadline = time.monotonic() + lock_timeout
    while True:
        try:
            with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
                cursor.execute("PRAGMA journal_mode=WAL")
                mode = cursor.fetchone()
            if mode == ("wal",):
                return
            problem = f"its journal mode stays {mode}; is it on a network drive?"
        except (SQLAlchemyError, sqlite3.Error) as error:
            problem = str(getattr(error, "orig", None) or error)
        if time.monotonic() > deadline or "locked" not in problem:
            engine.dispose()
            raise StorageError(message=f"the metadata database cannot be opened: {problem}")
        time.sleep(0.01)
