"""Logs of jobs and contexts: read from their files, and followed while they grow."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

import anyio
from starlette.responses import Response

from jobserver_core.errors import LogNotFound
from jobserver_http.answers import StreamedText
from jobserver_http.calls import Call
from jobserver_http.routing import FOLLOW, NO_CONTEXT, NO_JOB, Reply, Route

__all__ = ["ROUTES", "LogTail", "get_context_log", "get_job_log"]

PIECE = 64 * 1024
PAUSE = 0.2
"""Seconds between looks at a file that has not grown."""
TEXT = "text/plain; charset=utf-8"


class LogTail:
    """A log file that is read from its beginning to wherever it ends by now.

    A file that is not there yet reads as empty; one that was cut or replaced is read from its new
    beginning. Used by one thread at a time.
    """

    def __init__(self, find: Callable[[], Path]) -> None:
        self._find = find
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    def open(self) -> LogTail:
        """Open the file. Raises LogNotFound."""
        self._path = self._find()
        try:
            self._file = self._path.open("rb")
        except FileNotFoundError:
            raise LogNotFound(kind="file", id=self._path.name) from None
        return self

    def size(self) -> int:
        """Return how many bytes the file has now."""
        return os.fstat(self._file.fileno()).st_size if self._file else 0

    def read(self, limit: int = PIECE) -> bytes:
        """Return the next bytes; empty when there are none by now."""
        if self._file is None:
            try:
                self.open()
            except LogNotFound:
                return b""
        file = self._file
        assert file is not None
        piece = file.read(limit)
        if not piece and self._replaced(file):
            self.close()
            return self.read(limit)
        if not piece and file.tell() > self.size():
            file.seek(0)
            piece = file.read(limit)
        return piece

    def _replaced(self, file: BinaryIO) -> bool:
        assert self._path is not None
        try:
            return self._path.stat().st_ino != os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let go of the file; repeating this is allowed."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> LogTail:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


async def get_job_log(call: Call) -> Response:
    """Answer with what a job printed and logged; with ``follow`` until it has ended."""
    job = call.names.checked(await call.pools.quick.run(call.server.job, call.path["id"]))
    tail = LogTail(lambda: call.server.job_log(job.id))
    if not call.params["follow"]:
        return await _as_it_is(call, tail)
    handle = await call.pools.quick.run(call.server.job_handle, job.id)
    return StreamedText(_followed(call, tail, handle.done), media_type=TEXT, opened=tail)


async def get_context_log(call: Call) -> Response:
    """Answer with what a context's driver wrote; with ``follow`` until it has ended."""
    name = call.names.stored(call.path["name"])
    context = await call.pools.quick.run(call.server.context, name)
    tail = LogTail(lambda: call.server.context_log(name))
    if not call.params["follow"]:
        return await _as_it_is(call, tail)

    def ended() -> bool:
        newest = call.server.context(name)
        return newest.id != context.id or newest.state.final

    return StreamedText(_followed(call, tail, ended), media_type=TEXT, opened=tail)


async def _as_it_is(call: Call, tail: LogTail) -> Response:
    await call.pools.quick.run(tail.open)
    size = tail.size()
    headers = {"content-length": str(size)}
    return StreamedText(_first(call, tail, size), media_type=TEXT, headers=headers, opened=tail)


async def _first(call: Call, tail: LogTail, size: int) -> AsyncIterator[bytes]:
    """Yield the bytes that were there when the length was told, and no more."""
    while size > 0:
        piece = await call.pools.quick.run(tail.read, min(size, PIECE))
        if not piece:
            return
        size -= len(piece)
        yield piece


async def _followed(call: Call, tail: LogTail, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    # Whether it has ended is asked before the last look, so that nothing it wrote is missed.
    def look() -> tuple[bool, bytes]:
        return ended(), tail.read()

    while True:
        over, piece = await call.pools.quick.run(look)
        if piece:
            yield piece
        elif over or call.site.closing.is_set():
            return
        else:
            await anyio.sleep(PAUSE)


ROUTES = (
    Route(
        name="get_context_log",
        method="GET",
        path="/contexts/{name}/logs",
        handler=get_context_log,
        group="contexts",
        permission="contexts:read",
        summary="What the context's driver wrote",
        parameters=(FOLLOW,),
        replies=(Reply(200, "The log", media_type="text/plain; charset=utf-8"), *NO_CONTEXT),
        extension=True,
    ),
    Route(
        name="get_job_log",
        method="GET",
        path="/jobs/{id}/logs",
        handler=get_job_log,
        group="jobs",
        permission="jobs:read",
        summary="What the job printed and logged",
        parameters=(FOLLOW,),
        replies=(Reply(200, "The log", media_type="text/plain; charset=utf-8"), *NO_JOB),
        extension=True,
    ),
)
