"""The logs of jobs and contexts, on whatever server they are.

Theory
======

The problem: a log is a file in the data directory of the server that runs the context. A user asks any
server, also for a log that still grows.

The idea: the server that was asked has the other one read the file, one chunk at a time, by the same requests
through the database as a kill (:mod:`~jobserver_core.running.requests`). A chunk is compressed in the answer,
and gone from the database once it has arrived. Servers need no connection to each other for this: no shared
secret, no certificates, no address that all can reach; one that listens on loopback only, or has no HTTP API
at all, serves its logs as well.

The invariants: only the reader knows how far it has read, so the server that has the file keeps nothing for
it, and nothing is left behind when either of them dies. The reader also remembers which file it has read: a
log that begins anew, in another file or on another server, is read from its new start. The server of a
context that has not ended has its logs. Those of one that has ended may be on any server that is alive, as
the last owner may only have taken over the record; so all of them are asked.

Deliberately not handled: the logs of a machine that is gone, which are gone with it.
"""

from __future__ import annotations

import base64
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from jobserver_core.data_directory import DataDirectory
from jobserver_core.errors import ContextNotFound, JobNotFound, LogNotFound, Unavailable
from jobserver_core.models.contexts import Context
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_core.ports import MetadataStore
from jobserver_core.running.records import Records
from jobserver_core.running.requests import Action, Requests

__all__ = ["LogReader", "LogService"]

CHUNK_SIZE = 64 * 1024
"""How many bytes are read at a time, if the caller does not say."""
REMOTE_CHUNK_SIZE = 512 * 1024
"""The most bytes of a log in one answer of another server."""


class LogFile(ABC):
    """One file of a log, here or on another server. ``identity`` differs from that of every other file."""

    identity: str
    poll_interval: float
    """Seconds to wait for more after the current end was read."""

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

    poll_interval = 0.2

    def __init__(self, path: Path, server_id: str) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._inode = os.fstat(self._file.fileno()).st_ino
        self.identity = f"{server_id}/{self._inode}"

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, limit: int) -> bytes:
        return os.pread(self._file.fileno(), limit, offset)

    def replaced(self) -> bool:
        try:
            return self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self._file.close()


class _NoOutput(LogFile):
    """The log of a job of this server that has written nothing yet: its first output creates the file."""

    poll_interval = _LocalLog.poll_interval
    identity = ""
    size = 0

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, offset: int, limit: int) -> bytes:
        return b""

    def replaced(self) -> bool:
        return self._path.exists()


class _RemoteLog(LogFile):
    """A log of another server. ``ask`` has that server read, and returns its answer."""

    poll_interval = 1.0  # each look costs a few statements in the database

    def __init__(self, ask: Callable[[int, int], JsonObject]) -> None:
        self._ask = ask
        answer = ask(0, 0)
        self.identity: str = answer["file"]
        self._size: int = answer["size"]
        self._replaced = False

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, limit: int) -> bytes:
        answer = self._ask(offset, min(limit, REMOTE_CHUNK_SIZE))
        self._replaced = answer["file"] != self.identity
        self._size = answer["size"]
        if self._replaced:
            return b""
        decoder = zlib.decompressobj()
        return decoder.decompress(base64.b64decode(answer["data"]), limit)

    def replaced(self) -> bool:
        return self._replaced


class LogReader:
    """Reads a log from its start to its current end, and then what is appended.

    With ``last``, it starts that many bytes before the current end. A log that does not exist yet reads as
    empty, and one that was truncated or replaced is read from its new start. Close it after use, or use it as
    a context manager. Not thread-safe.
    """

    def __init__(self, find: Callable[[], LogFile], last: int | None = None) -> None:
        self._find = find
        self._last = last
        self._file: LogFile | None = None
        self._identity: str | None = None
        self._offset = 0

    def open(self) -> LogReader:
        """Find the log, which :meth:`read` does as well.

        Raises:
            LogNotFound: There is no log, or not yet.
            Unavailable: Its server is gone or does not respond. Try again.
        """
        self._file = file = self._find()
        if self._last is not None:
            self._offset = max(0, file.size - self._last)
            self._last = None  # a file that replaces this one is read from its start
        elif file.identity != self._identity:
            self._offset = 0
        self._identity = file.identity
        return self

    @property
    def poll_interval(self) -> float:
        """Seconds to wait before another read if the last one returned nothing."""
        return self._file.poll_interval if self._file is not None else _LocalLog.poll_interval

    @property
    def remaining(self) -> int:
        """The number of bytes from the position to the current end."""
        return max(0, self._file.size - self._offset) if self._file is not None else 0

    def read(self, limit: int = CHUNK_SIZE) -> bytes:
        """Return the next bytes, or ``b""`` if there are none yet.

        Raises:
            Unavailable: The server that has the log is gone or does not respond. Reading again goes on where
                this failed, as soon as the log can be found.
        """
        try:
            file = self._file or self.open()._file
            assert file is not None
            chunk = file.read(self._offset, limit)
        except (LogNotFound, Unavailable) as error:
            self.close()
            if isinstance(error, LogNotFound):
                return b""
            raise
        if not chunk and file.replaced():
            self.close()
            return self.read(limit)
        if not chunk and self._offset > file.size:
            self._offset = 0
            chunk = file.read(0, limit)
        self._offset += len(chunk)
        return chunk

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class LogService:
    """Finds the logs of jobs and contexts, and reads those of this server for the others. Thread-safe."""

    def __init__(
        self, *, metadata: MetadataStore, records: Records, data_directory: DataDirectory, requests: Requests
    ) -> None:
        self._metadata = metadata
        self._records = records
        self._requests = requests
        self._paths = {"job": data_directory.job_log, "context": data_directory.context_log}
        requests.on(Action.READ_LOG, self._read_for_another)

    # -- files of this server ----------------------------------------------------------------------

    def job_file(self, job_id: str) -> Path:
        """Return the file of the job's output. Raises JobNotFound, LogNotFound, OnAnotherServer."""
        return self._path("job", job_id, job_id, self._context_of(job_id))

    def context_file(self, name: str) -> Path:
        """Return the file of a context's driver output.

        Raises ContextNotFound, LogNotFound, OnAnotherServer.
        """
        context = self._named(name)
        return self._path("context", context.id, name, context)

    def _path(self, kind: str, record_id: str, name: str, context: Context | None) -> Path:
        path = self._paths[kind](record_id)
        if not path.exists():
            self._records.check_here(f"the log of {kind}", name, context)
            raise LogNotFound(kind=kind, id=name)
        return path

    # -- logs of any server ------------------------------------------------------------------------

    def open_job(self, job_id: str, last: int | None) -> LogReader:
        """Return a reader of a job's output, which is not open yet. Raises JobNotFound."""
        self._context_of(job_id)
        return LogReader(partial(self._find_of_job, job_id), last)

    def open_context(self, name: str, last: int | None) -> LogReader:
        """Return a reader of a context's driver output, which is not open yet. Raises ContextNotFound."""
        context = self._named(name)
        return LogReader(partial(self._find_of_context, context), last)

    def _find_of_job(self, job_id: str) -> LogFile:
        return self._find("job", job_id, job_id, self._context_of(job_id))

    def _find_of_context(self, context: Context) -> LogFile:
        current = self._metadata.context(context.id) or context
        return self._find("context", context.id, context.name, current)

    def _find(self, kind: str, record_id: str, name: str, context: Context | None) -> LogFile:
        with suppress(FileNotFoundError):
            return self._here(kind, record_id, context)
        problem: LogNotFound | Unavailable = LogNotFound(kind=kind, id=name)
        what, log = f"the log of {kind} {name}", {"kind": kind, "id": record_id}
        for server_id in self._servers_of(context):
            try:
                return _RemoteLog(partial(self._ask, server_id, what, log))
            except LogNotFound:
                continue
            except Unavailable as error:
                problem = error
        raise problem

    def _here(self, kind: str, record_id: str, context: Context | None) -> LogFile:
        """Return a log of this server. Raises FileNotFoundError.

        Every context has a log where it runs, so a job without one there has written nothing.
        """
        path = self._paths[kind](record_id)
        try:
            return _LocalLog(path, self._records.server_id)
        except FileNotFoundError:
            if kind == "job" and context is not None and self._paths["context"](context.id).exists():
                return _NoOutput(path)
            raise

    def _servers_of(self, context: Context | None) -> list[str]:
        """Return the other servers that may have the logs of a context, its owner first."""
        if context is None or not self._metadata.shared:
            return []
        if not context.state.final:
            return [context.owner] if context.owner != self._records.server_id else []
        others = [server.id for server in self._metadata.servers() if server.id != self._records.server_id]
        return sorted(others, key=lambda server_id: server_id != context.owner)

    def _ask(self, server_id: str, what: str, log: JsonObject, offset: int, limit: int) -> JsonObject:
        arguments: JsonObject = {**log, "offset": offset, "limit": limit}
        return self._requests.ask(server_id, Action.READ_LOG, arguments, what)

    def _read_for_another(self, arguments: JsonMapping) -> JsonObject:
        kind, record_id = arguments["kind"], arguments["id"]
        # An id of no record is no name of a file either.
        context = self._context_of(record_id) if kind == "job" else self._metadata.context(record_id)
        if context is None:
            raise LogNotFound(kind=kind, id=record_id)
        try:
            file = self._here(kind, record_id, context)
        except FileNotFoundError:
            raise LogNotFound(kind=kind, id=record_id) from None
        try:
            data = file.read(arguments["offset"], min(arguments["limit"], REMOTE_CHUNK_SIZE))
            encoded = base64.b64encode(zlib.compress(data, 1)).decode("ascii")
            return {"file": file.identity, "size": file.size, "data": encoded}
        finally:
            file.close()

    # -- records -----------------------------------------------------------------------------------

    def _context_of(self, job_id: str) -> Context | None:
        job = self._metadata.job(job_id)
        if job is None:
            raise JobNotFound(job_id=job_id)
        return self._metadata.context(job.context_id)

    def _named(self, name: str) -> Context:
        context = self._metadata.context_named(name)
        if context is None:
            raise ContextNotFound(name=name)
        return context
