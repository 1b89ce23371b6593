"""The file of a log: here, on another server, or not there yet."""

from __future__ import annotations

import base64
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from jobserver_core.models.json_values import JsonObject

__all__ = [
    "LOCAL_POLL_INTERVAL",
    "REMOTE_CHUNK_SIZE",
    "REMOTE_POLL_INTERVAL",
    "LogFile",
    "log_here",
    "log_of",
]

REMOTE_CHUNK_SIZE = 512 * 1024
"""The most bytes of a log in one answer of another server."""
LOCAL_POLL_INTERVAL = 0.2
"""Seconds between two looks at a file of this server."""
REMOTE_POLL_INTERVAL = 1.0
"""Seconds between two looks at one of another server; each costs a few statements in the database."""
_HEAD_SIZE = 64
"""How many bytes at the start of a file show whether it is still the same log."""


class LogFile(ABC):
    """One file of a log, here or on another server. ``identity`` differs from that of every other file."""

    identity: str
    poll_interval: float
    """Seconds to wait for more after the current end was read."""
    head: bytes
    """The first bytes as of the last read. They change only if the log was cut."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The size in bytes, as far as it is known here."""

    @abstractmethod
    def read(self, offset: int, limit: int) -> bytes:
        """Return up to ``limit`` bytes from a position, none at the current end."""

    @abstractmethod
    def replaced(self) -> bool:
        """Whether another file has taken the place of this one."""

    def close(self) -> None:
        """Close the file. Idempotent."""
        return


class _LocalLog(LogFile):
    """A log of this server. A file that is removed while it is open can be read to its end."""

    poll_interval = LOCAL_POLL_INTERVAL

    def __init__(self, path: Path, server_id: str) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._inode = os.fstat(self._file.fileno()).st_ino
        self.identity = f"{server_id}/{self._inode}"
        self.head = b""
        self.read(0, 0)

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, limit: int) -> bytes:
        data = os.pread(self._file.fileno(), limit, offset)
        self.head = os.pread(
            self._file.fileno(), _HEAD_SIZE, 0
        )  # last, to show a cut before the data was read
        return data

    def replaced(self) -> bool:
        try:
            return self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self._file.close()


class _NoOutput(LogFile):
    """The log of a job of this server that has written nothing yet: its first output creates the file."""

    poll_interval = LOCAL_POLL_INTERVAL
    identity = ""
    head = b""
    size = 0

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, offset: int, limit: int) -> bytes:
        return b""

    def replaced(self) -> bool:
        return self._path.exists()


class _RemoteLog(LogFile):
    """A log of another server. ``ask`` has that server read, and returns its answer."""

    poll_interval = REMOTE_POLL_INTERVAL

    def __init__(self, ask: Callable[[int, int], JsonObject]) -> None:
        self._ask = ask
        answer = ask(0, 0)
        self.identity: str = answer["file"]
        self._take(answer)
        self._replaced = False

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, limit: int) -> bytes:
        answer = self._ask(offset, min(limit, REMOTE_CHUNK_SIZE))
        self._replaced = answer["file"] != self.identity
        if self._replaced:
            return b""
        self._take(answer)
        decoder = zlib.decompressobj()
        return decoder.decompress(base64.b64decode(answer["data"]), limit)

    def _take(self, answer: JsonObject) -> None:
        self._size: int = answer["size"]
        self.head = base64.b64decode(answer.get("head", ""))  # a server of an older release sends none

    def replaced(self) -> bool:
        return self._replaced


def log_here(path: Path, server_id: str, *, may_be_silent: bool) -> LogFile:
    """Return a log of this server. With ``may_be_silent``, one that is not there reads as empty.

    Raises:
        FileNotFoundError: There is no log.
    """
    try:
        return _LocalLog(path, server_id)
    except FileNotFoundError:
        if may_be_silent:
            return _NoOutput(path)
        raise


def log_of(ask: Callable[[int, int], JsonObject]) -> LogFile:
    """Return a log of another server. ``ask`` has that server read. Raises LogNotFound, Unavailable."""
    return _RemoteLog(ask)
