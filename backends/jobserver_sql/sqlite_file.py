"""A SQLite file: its connections, and whether it is still the file that was opened.

The hot path uses the driver directly: one connection that writes, and some that read. Commits go to the log
without waiting for the disk; :meth:`SqliteFile.sync` syncs the log. :mod:`jobserver_sql.database` explains
how they take turns.
"""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from jobserver_core.data_directory import create_private
from jobserver_core.errors import StorageError
from jobserver_sql.statements import DriverConnection

_LOG_PAGES = 4000
"""The length of the log, in pages of 4 KiB, at which its content is moved to the file. It is large because
moving waits for the disk twice."""


class SqliteFile:
    """The connections of the hot path. Thread-safe, except for :meth:`writing`: writers take turns.

    ``lock_timeout`` is the number of seconds that a write waits for other processes.
    """

    def __init__(self, path: Path, lock_timeout: float) -> None:
        self._path = path
        self._log = f"{path}-wal"
        self._lock_timeout = lock_timeout
        self._wait = lock_timeout
        self._readers: deque[DriverConnection] = deque()
        self._writer: DriverConnection | None = None
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[DriverConnection]:
        """Yield a connection; each statement sees all commits from before it began."""
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = self._connect()
        try:
            yield reader
        finally:
            self._readers.append(reader)
            if self._closed:
                self.close()

    @contextmanager
    def writing(self, wait: float) -> Iterator[DriverConnection]:
        """Yield a transaction that is committed when the block ends without an error.

        ``wait`` is the number of seconds to wait for other processes before it begins.
        """
        if self._writer is None:
            self._writer = self._connect()
            self._writer.driver.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
        driver = self._writer.driver
        if abs(wait - self._wait) > self._wait / 100:
            driver.execute(f"PRAGMA busy_timeout={int(wait * 1000)}")
            self._wait = wait
        driver.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer
            driver.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # the database may have ended the transaction itself
                driver.execute("ROLLBACK")
            raise

    def sync(self) -> None:
        """Sync all earlier commits to the disk.

        The log is opened each time, which closes none of SQLite's own files and detects a log that
        has been moved.

        Raises:
            StorageError: The disk failed.
        """
        try:
            log = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(log)
            finally:
                os.close(log)
        except OSError as error:
            message = f"the metadata database {self._path} could not be written to the disk: {error.strerror}"
            raise StorageError(message=message) from error

    def close(self) -> None:
        """Close the unused connections; readers that are in use are closed when they are returned."""
        self._closed = True
        with suppress(IndexError):
            while True:
                self._readers.pop().driver.close()
        if self._writer is not None:
            self._writer.driver.close()
            self._writer = None

    def _connect(self) -> DriverConnection:
        connection = sqlite3.connect(
            self._path,
            timeout=self._lock_timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        connection.execute("PRAGMA synchronous=normal")
        return DriverConnection("sqlite", connection)


class DatabaseFile:
    """A SQLite database's file; created if it is missing, readable only by this user.

    If a file is removed or replaced while it is open, the operating system keeps it without a name: reads and
    writes still succeed, and everything is lost when the process ends. SQLite does not notice. So the file's
    identity (its device and inode) is compared with that of its path before each transaction and after each
    commit, which costs a few microseconds. Once the original is back in its place, calls succeed again.

    Raises:
        StorageError: It cannot be created or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = f"{path}-wal"
        try:
            create_private(path.parent)
            with open(path, "ab", opener=partial(os.open, mode=0o600)) as file:
                opened = os.fstat(file.fileno())
        except OSError as error:
            raise StorageError(message=f"cannot write the metadata database: {error}") from error
        self._identity = (opened.st_dev, opened.st_ino)

    def verify(self) -> None:
        """Check that the path still leads to the file that was opened.

        Raises:
            StorageError: It does not.
        """
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise self._lost(f"is gone ({error.strerror})") from error
        if (found.st_dev, found.st_ino) != self._identity:
            raise self._lost("was replaced")

    def verify_commit(self) -> None:
        """Check that the last commit is in files that are still in place.

        Raises:
            StorageError: It is not.
        """
        self.verify()
        if not os.path.exists(self._log):
            raise self._lost("has lost its write-ahead log")

    def _lost(self, what: str) -> StorageError:
        return StorageError(
            message=f"the metadata database {self.path} {what} while the server had it open: "
            "put the original back, or restart the server"
        )
