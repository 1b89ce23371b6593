"""Handlers and routes of the logs of jobs and contexts, which can be followed while they grow."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import anyio
from starlette.responses import Response

from jobserver_core.errors import LogNotFound
from jobserver_http.answers import StreamedResponse
from jobserver_http.calls import Call
from jobserver_http.parameters import Integer, Parameter
from jobserver_http.routing import FOLLOW, NO_CONTEXT, NO_JOB, Reply, Routes

CHUNK_SIZE = 64 * 1024
POLL_INTERVAL = 0.2
"""Seconds between checks of a file that has not grown."""
TEXT = "text/plain; charset=utf-8"
TAIL = Parameter(name="tail", kind=Integer(), doc="how many bytes of the end of the log; default all")

ROUTES = Routes()


class LogTail:
    """Reads a log file from the start to its current end, and then what is appended.

    With ``last``, it starts that many bytes before the current end. A missing file reads as empty. A file
    that was truncated or replaced is read from its new start. Not thread-safe.
    """

    def __init__(self, find: Callable[[], Path], last: int | None = None) -> None:
        self._find = find
        self._last = last
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    def open(self) -> LogTail:
        """Open the file.

        Raises:
            LogNotFound: The file does not exist.
        """
        self._path = self._find()
        try:
            self._file = self._path.open("rb")
        except FileNotFoundError:
            raise LogNotFound(kind="file", id=self._path.name) from None
        if self._last is not None:
            self._file.seek(max(0, self.size() - self._last))
            self._last = None  # a file that replaces this one is read from its start
        return self

    def size(self) -> int:
        """Return the current size of the file in bytes."""
        return os.fstat(self._file.fileno()).st_size if self._file else 0

    def remaining(self) -> int:
        """Return the number of bytes from the position to the current end."""
        return max(0, self.size() - self._file.tell()) if self._file else 0

    def read(self, limit: int = CHUNK_SIZE) -> bytes:
        """Return the next bytes, or ``b""`` if there are none yet."""
        if self._file is None:
            try:
                self.open()
            except LogNotFound:
                return b""
        file = self._file
        assert file is not None
        chunk = file.read(limit)
        if not chunk and self._replaced(file):
            self.close()
            return self.read(limit)
        if not chunk and file.tell() > self.size():
            file.seek(0)
            chunk = file.read(limit)
        return chunk

    def _replaced(self, file: BinaryIO) -> bool:
        assert self._path is not None
        try:
            return self._path.stat().st_ino != os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> LogTail:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


@ROUTES.add(
    "GET",
    "/contexts/{name}/logs",
    permission="contexts:read",
    summary="Get the log of a context's driver",
    parameters=(FOLLOW, TAIL),
    replies=(Reply(200, "The log", media_type="text/plain; charset=utf-8"), *NO_CONTEXT),
    extension=True,
)
async def get_context_log(call: Call) -> Response:
    """Return the log of a context's driver. With ``follow``, stream it until the context has ended."""
    name = call.names.stored(call.path["name"])
    context = await call.pools.quick.run(call.server.context, name)
    tail = LogTail(lambda: call.server.context_log(name), call.params["tail"])
    if not call.params["follow"]:
        return await _whole(call, tail)

    def ended() -> bool:
        newest = call.server.context(name)
        return newest.id != context.id or newest.state.final

    return await _growing(call, tail, ended)


@ROUTES.add(
    "GET",
    "/jobs/{id}/logs",
    permission="jobs:read",
    summary="Get the output of a job",
    parameters=(FOLLOW, TAIL),
    replies=(Reply(200, "The log", media_type="text/plain; charset=utf-8"), *NO_JOB),
    extension=True,
)
async def get_job_log(call: Call) -> Response:
    """Return a job's output. With ``follow``, stream it until the job has ended."""
    job = call.names.checked(await call.pools.quick.run(call.server.job, call.path["id"]))
    tail = LogTail(lambda: call.server.job_log(job.id), call.params["tail"])
    if not call.params["follow"]:
        return await _whole(call, tail)
    handle = await call.pools.quick.run(call.server.job_handle, job.id)
    return await _growing(call, tail, handle.done)


async def _whole(call: Call, tail: LogTail) -> Response:
    await call.pools.quick.run(tail.open)
    size = tail.remaining()
    headers = {"content-length": str(size)}
    return StreamedResponse(_first(call, tail, size), media_type=TEXT, headers=headers, opened=tail)


async def _first(call: Call, tail: LogTail, size: int) -> AsyncIterator[bytes]:
    """Yield as many bytes as Content-Length promises."""
    while size > 0:
        chunk = await call.pools.quick.run(tail.read, min(size, CHUNK_SIZE))
        if not chunk:
            return
        size -= len(chunk)
        yield chunk


async def _growing(call: Call, tail: LogTail, ended: Callable[[], bool]) -> Response:
    # Errors such as OnAnotherServer must be raised before the response begins. A log that does not exist
    # yet is no error: it may be created later.
    with suppress(LogNotFound):
        await call.pools.quick.run(tail.open)
    return StreamedResponse(_followed(call, tail, ended), media_type=TEXT, opened=tail)


async def _followed(call: Call, tail: LogTail, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    # Checking for the end before reading ensures that the last lines are not missed.
    def check() -> tuple[bool, bytes]:
        return ended(), tail.read()

    while True:
        has_ended, chunk = await call.pools.quick.run(check)
        if chunk:
            yield chunk
        elif has_ended or call.state.closing.is_set():
            return
        else:
            await anyio.sleep(POLL_INTERVAL)
