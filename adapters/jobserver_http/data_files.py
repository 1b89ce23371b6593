"""Handlers and routes of ``/data``."""

from __future__ import annotations

from starlette.responses import Response

from jobserver_core.binaries.data_files import DataUpload
from jobserver_core.models.validation import DEFAULT_ENDING
from jobserver_http.answers import json_response, respond
from jobserver_http.calls import Call
from jobserver_http.errors import Answer
from jobserver_http.parameters import Parameter
from jobserver_http.routing import NOT_STORED, RESET, SUCCESS_BODY, SYNC, Body, Reply, Routes, failures

ROUTES = Routes()

ENDING = Parameter(
    name="ending",
    doc=f"the end of the file's name, such as `.csv.gz`, by which Spark recognizes compressed files; "
    f"by default `{DEFAULT_ENDING}`, whatever the path is, as in spark-jobserver",
)


@ROUTES.add(
    "GET",
    "/data",
    permission="data:read",
    summary="The full names of the data files",
    replies=(Reply(200, "The names", "Names"),),
)
async def list_data_files(call: Call) -> Response:
    """Return the full names of the data files."""
    files = await call.pools.quick.run(call.server.data_files)
    return json_response([str(file.path) for file in files])


@ROUTES.add(
    "POST",
    "/data/{name:path}",
    permission="data:upload",
    summary="Upload a data file. The path is the prefix of its name",
    parameters=(ENDING,),
    body=Body("The file", ("application/octet-stream",)),
    replies=(
        Reply(200, "The file's full name, `<directory>/<prefix>-<time><ending>`", "Stored"),
        *failures(s400="The name is not allowed"),
        *NOT_STORED,
    ),
)
async def upload_data_file(call: Call) -> Response:
    """Store the body as a data file while it arrives."""
    ending = call.params["ending"] or DEFAULT_ENDING

    def begin() -> DataUpload:
        return call.server.begin_data_file(call.path["name"], ending=ending)

    file = await call.stored("data file", begin)
    return json_response({"result": {"filename": str(file.path)}})


@ROUTES.add(
    "DELETE",
    "/data/{name:path}",
    permission="data:delete",
    summary="Delete a data file by its URL-encoded full name",
    replies=(
        Reply(200, "The file was deleted", SUCCESS_BODY),
        *failures(s400="It is not one of the server's files"),
    ),
)
async def delete_data_file(call: Call) -> Response:
    """Delete a data file."""
    await call.pools.quick.run(call.server.delete_data_file, call.path["name"])
    return respond(Answer(status=200, label="SUCCESS"))


@ROUTES.add(
    "PUT",
    "/data",
    permission="data:reset",
    summary="Delete all data files",
    parameters=(RESET, SYNC),
    replies=(
        Reply(200, "The files were deleted", SUCCESS_BODY),
        *failures(s503="The server is shutting down"),
    ),
)
async def reset_data_files(call: Call) -> Response:
    """Delete all data files, before the response even with ``sync=false``, because this is quick."""
    await call.pools.quick.run(call.server.reset_data_files)
    requested = call.params["sync"] is False
    return respond(
        Answer(status=200, label="SUCCESS", result="Data reset requested" if requested else "Data reset")
    )
