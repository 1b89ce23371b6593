"""The logs of jobs and contexts, on any server.

Theory
======

The problem: a log is a file in the data directory of the server that runs the context. But users may ask any
server for it, even while it is still growing.

The idea: the server that was asked has the other one read the file, one chunk at a time, through the same
requests in the database that a kill uses (:mod:`~jobserver_core.running.requests`). A chunk is compressed in
the answer, and removed from the database once it has arrived. So servers need no connection to each other: no
shared secret, no certificates, no address that all can reach. Even a server that listens only on loopback, or
has no HTTP API at all, can serve its logs.

The invariants: only the reader knows how far it has read, so the server with the file keeps no state for it,
and nothing is left behind when either of them dies. The reader also remembers which file it has read, and how
that file began. If a log starts over, in another file, on another server or because it was cut, it is read
from its new start.

A context lives on one machine, and its record names the server there, even after another server has taken
over the record. Only that server is asked. A restartable job that began there may now run elsewhere, so a
file here may belong to an earlier run. Therefore the record is read first, and a reader at the end of a log
checks from time to time whether the job has moved. A server whose lease has expired is not asked; the error
names it.

Deliberately not handled: the logs of a machine that is gone. They are gone with it.
"""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attrs

from jobserver_core.data_directory import DataDirectory
from jobserver_core.errors import (
    JobNotFound,
    JobServerError,
    LogNotFound,
    LogServerGone,
    OnAnotherServer,
    Unavailable,
)
from jobserver_core.models.arguments import check_size
from jobserver_core.models.contexts import Context
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_core.ports import MetadataStore
from jobserver_core.running.contexts import named_context
from jobserver_core.running.log_files import (
    LOCAL_POLL_INTERVAL,
    REMOTE_CHUNK_SIZE,
    REMOTE_POLL_INTERVAL,
    LogFile,
    RemoteLog,
    log_here,
)
from jobserver_core.running.records import Records
from jobserver_core.running.requests import Action, Requests
from jobserver_core.running.results import reader_closed

__all__ = ["LogReader", "LogService"]

CHUNK_SIZE = 64 * 1024
"""How many bytes to read at a time by default."""
SEARCH_INTERVAL = 5.0
"""Seconds between two checks of where a reader's log is now."""


class LogReader:
    """Reads a log from its start to its current end, and then whatever is appended.

    With ``last``, it starts that many bytes before the current end. A log that does not exist yet reads as
    empty. A log that starts over is read from its new start. This happens when it was cut because it had
    reached its maximum size, or when its job runs again on another server, which is noticed within seconds.
    Iterating yields chunks up to the current end. Close the reader after use, or use it as a context manager;
    then reading raises Conflict. Not thread-safe.
    """

    def __init__(self, search: LogSearch, last: int | None = None) -> None:
        self._search = search
        self._last = last
        self._file: LogFile | None = None
        self._identity: str | None = None
        self._head = b""
        self._offset = 0
        self._closed = False

    def open(self) -> LogReader:
        """Find the log. :meth:`read` does this, too, if necessary.

        Raises:
            LogNotFound: The log does not exist, or not yet.
            LogServerGone: It is on the machine of a server that has ended.
            Unavailable: Its server does not respond, or is gone and has not been taken over yet. Try again.
            Conflict: The reader is closed.
        """
        if self._closed:
            raise reader_closed("log")
        self._close_file()
        self._file = file = self._search.find()
        if self._last is not None:
            self._offset = max(0, file.size - self._last)
            self._last = None  # a file that replaces this one is read from its start
        elif file.identity != self._identity:
            self._offset = 0
        if file.identity != self._identity:
            self._identity, self._head = file.identity, file.head
        return self

    @property
    def poll_interval(self) -> float:
        """Seconds to wait before another read if the last one returned nothing."""
        return self._file.poll_interval if self._file is not None else self._search.poll_interval

    @property
    def remaining(self) -> int:
        """The number of bytes from the position to the current end."""
        return max(0, self._file.size - self._offset) if self._file is not None else 0

    def read(self, size: int = CHUNK_SIZE) -> bytes:
        """Return the next bytes, at most ``size``, or ``b""`` if there are none yet.

        A negative size reads to the current end.

        Raises:
            InvalidRequest: The size is not a whole number.
            Unavailable: The server that has the log is gone or does not respond. Another read continues
                where this one failed, as soon as the log can be found.
            Conflict: The reader is closed.
        """
        check_size(size)
        if size < 0:
            return b"".join(self)
        try:
            file = self._file or self.open()._file
            assert file is not None
            chunk = self._next(file, size)
        except LogNotFound:
            self._close_file()
            return b""
        except Unavailable:
            self._close_file()
            raise
        if not chunk and (file.replaced() or self._search.moved()):
            self._close_file()
            return self.read(size)
        return chunk

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read():
            yield chunk

    def _next(self, file: LogFile, limit: int) -> bytes:
        while True:
            chunk = file.read(self._offset, limit)
            cut = not file.head.startswith(self._head) or (not chunk and self._offset > file.size)
            self._head = file.head
            if not cut:
                self._offset += len(chunk)
                return chunk
            self._offset = 0

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._closed = True
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


@attrs.define(kw_only=True, eq=False)
class LogSearch:
    """Finds the log for one reader. Not thread-safe.

    ``kind`` and ``name`` identify the log in errors. ``context`` returns the log's context as currently
    recorded. ``here`` returns the log on this server, or raises FileNotFoundError. ``is_copied`` says whether
    this server has the logs of a context of another one. ``ask`` has another server read the log.
    """

    _metadata: MetadataStore
    _server_id: str
    _kind: str
    _name: str
    _context: Callable[[], Context | None]
    _here: Callable[[Context | None], LogFile]
    _is_copied: Callable[[Context], bool]
    _ask: Callable[[str, int, int], JsonObject]
    _place: tuple[str, str] | None = attrs.field(default=None, init=False)
    _next_check: float = attrs.field(default=0.0, init=False)

    @property
    def poll_interval(self) -> float:
        """Seconds to wait before another search if the last one found nothing."""
        elsewhere = self._place is not None and self._place[1] != self._server_id
        return REMOTE_POLL_INTERVAL if elsewhere else LOCAL_POLL_INTERVAL

    def find(self) -> LogFile:
        """Return the log.

        Raises:
            LogNotFound: Nothing was written to it, or it was removed.
            LogServerGone: The server that has it has ended.
            Unavailable: The server that has it does not respond.
            JobNotFound: The job's record was removed in the meantime.
        """
        context = self._context()
        self._place = _place_of(context)
        self._next_check = time.monotonic() + SEARCH_INTERVAL
        if context is not None and self._metadata.shared and context.home != self._server_id:
            living = (server.id for server in self._metadata.servers(expired=False))
            if context.home in living:
                return RemoteLog(partial(self._ask, context.home))
            if not self._is_copied(context):
                raise gone(self._kind, self._name, context)
        try:
            return self._here(context)
        except FileNotFoundError:
            raise LogNotFound(kind=self._kind, id=self._name) from None

    def moved(self) -> bool:
        """Whether the log may be elsewhere by now. Checks rarely, and returns False between two checks."""
        if not self._metadata.shared or time.monotonic() < self._next_check:
            return False
        self._next_check = time.monotonic() + SEARCH_INTERVAL
        try:
            return _place_of(self._context()) != self._place
        except JobServerError:  # no record, or storage fails: what was found can still be read
            return False


def _place_of(context: Context | None) -> tuple[str, str] | None:
    return (context.id, context.home) if context is not None else None


def gone(kind: str, name: str, context: Context) -> LogServerGone | Unavailable:
    """Return the error for a log whose server has ended, or is about to be declared dead."""
    server = context.server or context.home
    if context.state.final:
        return LogServerGone(kind=kind, id=name, server=server)
    return Unavailable(
        message=f"the log of {kind} {name} is on server {server}, which does not respond; "
        f"context {context.name} is being taken over by another server; try again"
    )


@attrs.define(kw_only=True, eq=False)
class LogService:
    """Finds the logs of jobs and contexts, and reads those of this server for the others. Thread-safe.

    Its methods have the errors of :class:`~jobserver_core.JobServer`.
    """

    _metadata: MetadataStore
    _records: Records
    _data_directory: DataDirectory
    _requests: Requests

    def __attrs_post_init__(self) -> None:
        self._requests.on(Action.READ_LOG, self._read_for_another)

    # -- files of this server ----------------------------------------------------------------------

    def job_file(self, job_id: str) -> Path:
        """Return the file of the job's output."""
        return self._path("job", job_id, job_id, self._context_of(job_id))

    def context_file(self, name: str) -> Path:
        """Return the file of a context's driver output."""
        context = named_context(self._metadata, name)
        return self._path("context", context.id, name, context)

    def _path(self, kind: str, record_id: str, name: str, context: Context | None) -> Path:
        if context is not None and self._metadata.shared and context.home != self._records.server_id:
            for server in self._metadata.servers():
                if server.id == context.home:
                    address = server.address or server.id
                    raise OnAnotherServer(kind=f"the log of {kind}", id=name, server=address)
            if not self._is_copied(context):
                raise gone(kind, name, context)
        path = self._file_of(kind, record_id)
        if not path.exists():
            raise LogNotFound(kind=kind, id=name)
        return path

    # -- logs of any server ------------------------------------------------------------------------

    def open_job(self, job_id: str, last: int | None) -> LogReader:
        """Return a reader of a job's output, which is not open yet."""
        self._context_of(job_id)
        return LogReader(self._search("job", job_id, job_id, partial(self._context_of, job_id)), last)

    def open_context(self, name: str, last: int | None) -> LogReader:
        """Return a reader of a context's driver output, which is not open yet."""
        context = named_context(self._metadata, name)

        def current() -> Context:
            self._data_directory.check_open()
            return self._metadata.context(context.id) or context

        return LogReader(self._search("context", context.id, name, current), last)

    def _search(
        self, kind: str, record_id: str, name: str, context: Callable[[], Context | None]
    ) -> LogSearch:
        def ask(server_id: str, offset: int, limit: int) -> JsonObject:
            arguments: JsonObject = {"kind": kind, "id": record_id, "offset": offset, "limit": limit}
            return self._requests.ask(server_id, Action.READ_LOG, arguments, f"the log of {kind} {name}")

        return LogSearch(
            metadata=self._metadata,
            server_id=self._records.server_id,
            kind=kind,
            name=name,
            context=context,
            here=partial(self._here, kind, record_id),
            is_copied=self._is_copied,
            ask=ask,
        )

    def _here(self, kind: str, record_id: str, context: Context | None) -> LogFile:
        """Return a log of this server.

        Every context has a log where it runs. So if its log is here but the job's is not, the job has written
        nothing.

        Raises:
            FileNotFoundError: This server does not have it.
        """
        silent = kind == "job" and context is not None and self._file_of("context", context.id).exists()
        return log_here(self._file_of(kind, record_id), self._records.server_id, may_be_silent=silent)

    def _is_copied(self, context: Context) -> bool:
        """Whether this server has the logs of a context that ended on another one: those of a backup.

        Every context has a log where it ran. A job's log alone may be that of an earlier run.
        """
        return context.state.final and self._file_of("context", context.id).exists()

    def _file_of(self, kind: str, record_id: str) -> Path:
        directory = self._data_directory
        return directory.job_log(record_id) if kind == "job" else directory.context_log(record_id)

    def _read_for_another(self, arguments: JsonMapping) -> JsonObject:
        kind, record_id = arguments["kind"], arguments["id"]
        # Only the id of an existing record may become a file name.
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
            head = base64.b64encode(file.head).decode("ascii")
            return {"file": file.identity, "size": file.size, "head": head, "data": encoded}
        finally:
            file.close()

    # -- records -----------------------------------------------------------------------------------

    def _context_of(self, job_id: str) -> Context | None:
        self._data_directory.check_open()  # readers outlive the server
        job = self._metadata.job(job_id)
        if job is None:
            raise JobNotFound(job_id=job_id)
        return self._metadata.context(job.context_id)
