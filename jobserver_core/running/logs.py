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
it, and nothing is left behind when either of them dies. The reader also remembers which file it has read, and
how that began: a log that begins anew, in another file, on another server or because it was cut, is read from
its new start.

The server of a context that has not ended has its logs. A file here may be older: a restartable job that
began here may run on another server now. So the owner comes first, and a reader at the end of a log looks
from time to time whether the job has moved. The logs of a context that has ended may be on any server that
is alive, as the last owner may only have taken over the record. So the owner comes first, then a file here,
then all others, which are asked at once.

Deliberately not handled: the logs of a machine that is gone, which are gone with it.
"""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

from jobserver_core.data_directory import DataDirectory
from jobserver_core.errors import ContextNotFound, JobNotFound, JobServerError, LogNotFound, Unavailable
from jobserver_core.models.contexts import Context
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_core.ports import MetadataStore
from jobserver_core.running.log_files import (
    LOCAL_POLL_INTERVAL,
    REMOTE_CHUNK_SIZE,
    REMOTE_POLL_INTERVAL,
    LogFile,
    log_here,
    log_of,
)
from jobserver_core.running.records import Records
from jobserver_core.running.requests import Action, Requests

__all__ = ["LogReader", "LogService"]

CHUNK_SIZE = 64 * 1024
"""How many bytes are read at a time, if the caller does not say."""
SEARCH_INTERVAL = 5.0
"""Seconds between two looks of one reader for where its log is now."""


class LogReader:
    """Reads a log from its start to its current end, and then what is appended.

    With ``last``, it starts that many bytes before the current end. A log that does not exist yet reads as
    empty. One that begins anew is read from its new start: after it was cut, because it had reached its
    largest size, or when its job runs again on another server, which is noticed within seconds. Close it
    after use, or use it as a context manager. Not thread-safe.
    """

    def __init__(self, search: LogSearch, last: int | None = None) -> None:
        self._search = search
        self._last = last
        self._file: LogFile | None = None
        self._identity: str | None = None
        self._head = b""
        self._offset = 0

    def open(self) -> LogReader:
        """Find the log, which :meth:`read` does as well.

        Raises:
            LogNotFound: There is no log, or not yet.
            Unavailable: Its server is gone or does not respond. Try again.
        """
        self.close()
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

    def read(self, limit: int = CHUNK_SIZE) -> bytes:
        """Return the next bytes, or ``b""`` if there are none yet.

        Raises:
            Unavailable: The server that has the log is gone or does not respond. Reading again goes on where
                this failed, as soon as the log can be found.
        """
        try:
            file = self._file or self.open()._file
            assert file is not None
            chunk = self._next(file, limit)
        except (LogNotFound, Unavailable) as error:
            self.close()
            if isinstance(error, LogNotFound):
                return b""
            raise
        if not chunk and (file.replaced() or self._search.moved()):
            self.close()
            return self.read(limit)
        return chunk

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
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class LogSearch:
    """Finds the log of one reader, whenever that asks. Not thread-safe.

    ``context`` returns the context of the log as it is recorded now. ``here`` returns the log of this server,
    or raises FileNotFoundError. ``ask`` has another server read.
    """

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        server_id: str,
        missing: LogNotFound,
        context: Callable[[], Context | None],
        here: Callable[[Context | None], LogFile],
        ask: Callable[[str, int, int], JsonObject],
    ) -> None:
        self._metadata = metadata
        self._server_id = server_id
        self._missing = missing
        self._context = context
        self._here = here
        self._ask = ask
        self._place: tuple[str, str] | None = None
        self._looks_at = 0.0
        self._asks_all_at = 0.0
        self._problem: LogNotFound | Unavailable = missing

    @property
    def poll_interval(self) -> float:
        """Seconds to wait before another search if the last one has found nothing."""
        elsewhere = self._place is not None and self._place[1] != self._server_id
        return REMOTE_POLL_INTERVAL if elsewhere else LOCAL_POLL_INTERVAL

    def find(self) -> LogFile:
        """Return the log. Raises LogNotFound, Unavailable, JobNotFound."""
        context = self._context()
        self._place = self._place_of(context)
        self._looks_at = time.monotonic() + SEARCH_INTERVAL
        owner = context.owner if context is not None and self._metadata.shared else self._server_id
        ended = context is not None and context.state.final
        if owner != self._server_id and not ended:
            return self._remote(owner)
        try:
            local = self._here(context)
        except FileNotFoundError:
            if ended and self._metadata.shared:
                return self._ask_all(owner)
            raise self._missing from None
        if owner == self._server_id:
            return local
        try:
            found = self._remote(owner)
        except (LogNotFound, Unavailable):
            return local
        local.close()
        return found

    def moved(self) -> bool:
        """Whether the log may be elsewhere by now. This looks rarely; in between, nothing has moved."""
        if not self._metadata.shared or time.monotonic() < self._looks_at:
            return False
        self._looks_at = time.monotonic() + SEARCH_INTERVAL
        try:
            return self._place_of(self._context()) != self._place
        except JobServerError:  # the record was removed, or storage fails: what was found can still be read
            return False

    def _ask_all(self, owner: str) -> LogFile:
        """Ask all other servers at once. Only every few seconds: one that hangs lets the others wait."""
        if time.monotonic() < self._asks_all_at:
            raise self._problem.with_traceback(None)
        self._problem = self._missing
        ids = [server.id for server in self._metadata.servers() if server.id != self._server_id]
        with _threads(len(ids)) as pool:
            asked = {server_id: pool.submit(self._remote, server_id) for server_id in ids}
            first = [asked.pop(owner)] if owner in asked else []  # it has the latest one
            for answer in chain(first, as_completed(asked.values())):
                try:
                    return answer.result()
                except LogNotFound:
                    continue
                except Unavailable as error:
                    self._problem = error
        self._asks_all_at = time.monotonic() + SEARCH_INTERVAL
        raise self._problem

    def _remote(self, server_id: str) -> LogFile:
        return log_of(partial(self._ask, server_id))

    @staticmethod
    def _place_of(context: Context | None) -> tuple[str, str] | None:
        return (context.id, context.owner) if context is not None else None


@contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Provide threads, and do not wait for those that still run at the end."""
    pool = ThreadPoolExecutor(max(number, 1), "jobserver-logs")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False)


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
        moved = context is not None and not context.state.final and context.owner != self._records.server_id
        if moved or not path.exists():
            self._records.check_here(f"the log of {kind}", name, context)
        if not path.exists():
            raise LogNotFound(kind=kind, id=name)
        return path

    # -- logs of any server ------------------------------------------------------------------------

    def open_job(self, job_id: str, last: int | None) -> LogReader:
        """Return a reader of a job's output, which is not open yet. Raises JobNotFound."""
        self._context_of(job_id)
        return LogReader(self._search("job", job_id, job_id, partial(self._context_of, job_id)), last)

    def open_context(self, name: str, last: int | None) -> LogReader:
        """Return a reader of a context's driver output, which is not open yet. Raises ContextNotFound."""
        context = self._named(name)

        def current() -> Context:
            return self._metadata.context(context.id) or context

        return LogReader(self._search("context", context.id, name, current), last)

    def _search(
        self, kind: str, record_id: str, name: str, context: Callable[[], Context | None]
    ) -> LogSearch:
        what, log = f"the log of {kind} {name}", {"kind": kind, "id": record_id}
        return LogSearch(
            metadata=self._metadata,
            server_id=self._records.server_id,
            missing=LogNotFound(kind=kind, id=name),
            context=context,
            here=partial(self._here, kind, record_id),
            ask=partial(self._ask, what, log),
        )

    def _here(self, kind: str, record_id: str, context: Context | None) -> LogFile:
        """Return a log of this server. Raises FileNotFoundError.

        Every context has a log where it runs, so a job without one there has written nothing.
        """
        silent = kind == "job" and context is not None and self._paths["context"](context.id).exists()
        return log_here(self._paths[kind](record_id), self._records.server_id, may_be_silent=silent)

    def _ask(self, what: str, log: JsonObject, server_id: str, offset: int, limit: int) -> JsonObject:
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
            head = base64.b64encode(file.head).decode("ascii")
            return {"file": file.identity, "size": file.size, "head": head, "data": encoded}
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
