"""The call on a job's result alone: the stored bytes, whatever they are."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import Response

from jobserver_core.errors import Conflict
from jobserver_core.models.jobs import ResultKind
from jobserver_core.models.lifecycle import JobState
from jobserver_core.running.results import ResultReader
from jobserver_http.answers import JSON, PIECE, StreamedText, json_response
from jobserver_http.calls import Call
from jobserver_http.routing import NO_JOB, Reply, Route, failures

__all__ = ["ROUTES", "get_job_result"]

BYTES = "application/octet-stream"


async def get_job_result(call: Call) -> Response:
    """Answer with a finished job's result: a streamed one as its bytes, any other as JSON.

    The length is always known, so that a client notices when the answer breaks off.
    """
    job = call.names.checked(await call.pools.quick.run(call.server.job, call.path["id"]))
    if job.state is not JobState.FINISHED:
        raise Conflict(message=f"job {job.id} is {job.state.value}: only a finished job has a result")
    reader = await call.pools.quick.run(call.server.open_result, job.id)
    if reader is None:
        return json_response(None)
    return StreamedText(
        _pieces(call, reader),
        media_type=BYTES if reader.kind is ResultKind.STREAM else JSON,
        headers={"content-length": str(reader.size)},
        opened=reader,
    )


async def _pieces(call: Call, reader: ResultReader) -> AsyncIterator[bytes]:
    while piece := await call.pools.quick.run(reader.read, PIECE):
        yield piece


ROUTES = (
    Route(
        name="get_job_result",
        method="GET",
        path="/jobs/{id}/result",
        handler=get_job_result,
        group="jobs",
        permission="jobs:read",
        summary="The job's result alone, as it was stored",
        replies=(
            Reply(200, "The result as JSON, or the bytes of a streamed one"),
            Reply(200, "The result as JSON, or the bytes of a streamed one", media_type=BYTES),
            *NO_JOB,
            *failures(s409="The job has not finished"),
        ),
        extension=True,
    ),
)
