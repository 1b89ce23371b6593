"""The file of a log: on this server, on another one, or not created yet."""

from __future__ import annotations

import base64
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jobserver_core.models.jobs import Job
from jobserver_core.models.json_values import JsonObject

REMOTE_CHUNK_SIZE = 512 * 1024
"""The maximum number of bytes of a log in one answer from another server."""
LOCAL_POLL_INTERVAL = 0.2
"""Seconds between two checks of a file of this server."""
REMOTE_POLL_INTERVAL = 1.0
"""Seconds between two checks of a file of another server; each costs a few statements in the database."""
_HEAD_SIZE = 64
"""How many bytes at the start of a file to compare, to tell whether it is still the same log."""


class LogFile(ABC):
    """One file of a log, here or on another server. ``identity`` is unique to the file."""

    identity: str
    poll_interval: float
    """Seconds to wait for more output after reading up to the current end."""
    head: bytes
    """The first bytes at the time of the last read. They change only if the log was cut."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The size in bytes, as far as known here."""

    @abstractmethod
    def read(self, offset: int, limit: int) -> bytes:
        """Return up to ``limit`` bytes from a position; empty at the current end."""

    @abstractmethod
    def replaced(self) -> bool:
        """Whether another file has taken the place of this one."""

    def close(self) -> None:
        """Close the file. Idempotent."""
        return


class _LocalLog(LogFile):
    """A log of this server. A file that is removed while it is open can still be read to its end."""

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
        # Last, to show a cut before the data was read.
        self.head = os.pread(self._file.fileno(), _HEAD_SIZE, 0)
        return data

    def replaced(self) -> bool:
        try:
            return self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self._file.close()


class _NoOutput(LogFile):
    """The log of a job of this server that has written nothing yet. Its first output creates the file."""

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


class RemoteLog(LogFile):
    """A log of another server. ``ask`` has that server read, and returns its answer or raises its error."""

    poll_interval = REMOTE_POLL_INTERVAL

    def __init__(self, ask: Callable[[int, int], JsonObject]) -> None:
        self._ask = ask
        answer = ask(0, 0)
        self.identity: str = answer["file"]
        self._update(answer)
        self._replaced = False

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, limit: int) -> bytes:
        answer = self._ask(offset, min(limit, REMOTE_CHUNK_SIZE))
        self._replaced = answer["file"] != self.identity
        if self._replaced:
            return b""
        self._update(answer)
        decoder = zlib.decompressobj()
        return decoder.decompress(base64.b64decode(answer["data"]), limit)

    def _update(self, answer: JsonObject) -> None:
        self._size: int = answer["size"]
        self.head = base64.b64decode(answer.get("head", ""))  # servers of older releases send none

    def replaced(self) -> bool:
        return self._replaced


def log_here(path: Path, server_id: str, *, may_be_silent: bool) -> LogFile:
    """Return a log of this server. With ``may_be_silent``, a missing log reads as empty.

    Raises:
        FileNotFoundError: There is no log.
    """
    try:
        return _LocalLog(path, server_id)
    except FileNotFoundError:
        if may_be_silent:
            return _NoOutput(path)
        raise


def mark_run(path: Path, job: Job) -> None:
    """Append a line to the log of a job's earlier runs, to mark where the next run's output begins.

    A job without such a log needs no line. If the disk fails, the line is left out.
    """
    place = f"context {job.context_name} ({job.context_id})"
    at = f"{job.dispatched_at:%Y-%m-%dT%H:%M:%SZ}"
    line = f"--- run {job.restarts + 1} of job {job.id} starts at {at} in {place} ---\n"

    def append(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_APPEND)

    with suppress(OSError), open(path, "r+b", opener=append) as log:
        if size := log.seek(0, os.SEEK_END):
            log.seek(size - 1)
            log.write((b"" if log.read() == b"\n" else b"\n") + line.encode())
