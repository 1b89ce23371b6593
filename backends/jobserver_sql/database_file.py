"""Check that a SQLite file is still the one that was opened.

A file can be removed or replaced while it is open. The operating system then keeps the open file
without a name: reads and writes still succeed, and everything is lost when the process ends. SQLite
does not notice. So the identity of the file (its device and inode) is remembered when it is opened,
and compared with that of its path before each transaction and after each commit, which costs a few
microseconds. Once the original is back in its place, calls succeed again.
"""

from __future__ import annotations

import os
from pathlib import Path

from jobserver_core.errors import StorageError

__all__ = ["DatabaseFile"]


class DatabaseFile:
    """A SQLite database's file; created if it is missing, readable only by this user.

    Raises StorageError if it cannot be created or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = f"{path}-wal"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                opened = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(message=f"cannot write the metadata database: {error}") from error
        self._identity = (opened.st_dev, opened.st_ino)

    def verify(self) -> None:
        """Raise StorageError unless the path still leads to the file that was opened."""
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise self._lost(f"is gone ({error.strerror})") from error
        if (found.st_dev, found.st_ino) != self._identity:
            raise self._lost("was replaced")

    def verify_commit(self) -> None:
        """Raise StorageError unless the last commit is in files that are still in place."""
        self.verify()
        if not os.path.exists(self._log):
            raise self._lost("has lost its write-ahead log")

    def _lost(self, what: str) -> StorageError:
        return StorageError(
            message=f"the metadata database {self.path} {what} while the server had it open: "
            "put the original back, or restart the server"
        )
