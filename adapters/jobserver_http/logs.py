"""Handlers and routes of the logs of jobs and contexts, which can be followed while they grow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import anyio
from starlette.responses import Response

from jobserver_core import LogReader
from jobserver_core.errors import LogNotFound, LogServerGone, Unavailable
from jobserver_http.calls import Call
from jobserver_http.contexts import named_context
from jobserver_http.parameters import Integer, Parameter
from jobserver_http.responses import ClosingResponse
from jobserver_http.routing import FOLLOW, NO_CONTEXT, NO_JOB, NO_LOG, RouteResponse, Routes

CHUNK_SIZE = 512 * 1024
"""Bytes of a log to read at a time: few calls on other threads, and little memory for each reader."""
TEXT = "text/plain; charset=utf-8"
TAIL = Parameter("tail", "how many bytes of the end of the log; default all", Integer())

ROUTES = Routes()


@ROUTES.add_extension(
    "GET /contexts/{name}/logs",
    permission="contexts:read",
    summary="Get the log of a context's driver, given the name or id of the context",
    parameters=(FOLLOW, TAIL),
    responses=(RouteResponse(200, "The log", media_type="text/plain; charset=utf-8"), *NO_CONTEXT, *NO_LOG),
)
async def get_context_log(call: Call) -> Response:
    """Return the log of a context's driver. With ``follow``, stream it until the context has ended."""
    context = await call.threads.quick.run(named_context, call)
    name = context.id if context.id == call.path["name"] else context.name
    log = call.server.open_context_log(name, last=call.params["tail"])
    if not call.params["follow"]:
        return await _whole(call, log)

    def ended() -> bool:
        newest = call.server.context(name)
        return newest.id != context.id or newest.state.final

    return await _growing(call, log, ended)


@ROUTES.add_extension(
    "GET /jobs/{id}/logs",
    permission="jobs:read",
    summary="Get the output of a job",
    parameters=(FOLLOW, TAIL),
    responses=(RouteResponse(200, "The log", media_type="text/plain; charset=utf-8"), *NO_JOB, *NO_LOG),
)
async def get_job_log(call: Call) -> Response:
    """Return a job's output. With ``follow``, stream it until the job has ended."""
    job = await call.job()
    log = call.server.open_job_log(job.id, last=call.params["tail"])
    if not call.params["follow"]:
        return await _whole(call, log)
    handle = await call.threads.quick.run(call.server.job_handle, job.id)
    return await _growing(call, log, handle.done)


async def _whole(call: Call, log: LogReader) -> Response:
    await call.threads.logs.run(log.open)
    size = log.remaining
    headers = {"content-length": str(size)}
    return ClosingResponse(_first(call, log, size), media_type=TEXT, headers=headers, opened=log)


async def _first(call: Call, log: LogReader, size: int) -> AsyncIterator[bytes]:
    """Yield as many bytes as Content-Length promises."""
    while size > 0:
        chunk = await call.threads.logs.run(log.read, min(size, CHUNK_SIZE))
        if not chunk:
            return
        size -= len(chunk)
        yield chunk


async def _growing(call: Call, log: LogReader, ended: Callable[[], bool]) -> Response:
    # Errors such as Unavailable must be raised before the response begins. A log that does not exist
    # yet is no error: it may be created later, also that of a job that will run on another server.
    def check() -> None:
        try:
            log.open()
        except LogNotFound as error:
            if isinstance(error, LogServerGone) and ended():
                raise

    await call.threads.logs.run(check)
    return ClosingResponse(_follow(call, log, ended), media_type=TEXT, opened=log)


async def _follow(call: Call, log: LogReader, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    # Checking for the end before reading ensures that the last lines are not missed.
    def check() -> tuple[bool, bytes]:
        has_ended = ended()
        try:
            return has_ended, log.read(CHUNK_SIZE)
        except Unavailable:  # another server takes over; until it has, there is nothing to read
            return has_ended, b""

    while True:
        has_ended, chunk = await call.threads.logs.run(check)
        if call.revoked:
            return
        if chunk:
            yield chunk
        elif has_ended or call.state.closing.is_set():
            return
        else:
            await anyio.sleep(log.poll_interval)
