"""Handlers and routes of ``/data``."""

from __future__ import annotations

from functools import partial

from starlette.responses import Response

from jobserver_core.models.validation import DEFAULT_ENDING
from jobserver_http.calls import Call
from jobserver_http.parameters import Parameter
from jobserver_http.responses import json_response, success
from jobserver_http.routing import (
    NOT_STORED,
    RESET,
    SUCCESS_BODY,
    SYNC,
    Body,
    RouteResponse,
    Routes,
    failures,
)

ROUTES = Routes()

ENDING = Parameter(
    "ending",
    f"the end of the file's name, such as `.csv.gz`, by which Spark recognizes compressed files; "
    f"by default `{DEFAULT_ENDING}`, whatever the path is, as in spark-jobserver",
)


@ROUTES.add(
    "GET /data",
    permission="data:read",
    summary="The full names of the data files",
    responses=(RouteResponse(200, "The names", "Names"),),
)
async def list_data_files(call: Call) -> Response:
    files = await call.threads.quick.run(call.server.data_files)
    return json_response([str(file.path) for file in files])


@ROUTES.add(
    "POST /data/{name:jobserver_path}",
    permission="data:upload",
    summary="Upload a data file. The path is the prefix of its name",
    parameters=(ENDING,),
    body=Body("The file", ("application/octet-stream",)),
    responses=(
        RouteResponse(200, "The file's full name, `<directory>/<prefix>-<time><ending>`", "Stored"),
        *failures(s400="The name is not allowed", s415="The body is a multipart form"),
        *NOT_STORED,
    ),
)
async def upload_data_file(call: Call) -> Response:
    ending = call.params["ending"] or DEFAULT_ENDING
    begin = partial(call.server.begin_data_file, call.path["name"], ending=ending)
    file = await call.store_body("data file", begin)
    return json_response({"result": {"filename": str(file.path)}})


@ROUTES.add(
    "DELETE /data/{name:jobserver_path}",
    permission="data:delete",
    summary="Delete a data file by its URL-encoded full name",
    responses=(
        RouteResponse(200, "The file was deleted", SUCCESS_BODY),
        *failures(s400="It is not one of the server's files"),
    ),
)
async def delete_data_file(call: Call) -> Response:
    await call.threads.quick.run(call.server.delete_data_file, call.path["name"])
    return success()


@ROUTES.add(
    "PUT /data",
    permission="data:reset",
    summary="Delete all data files",
    parameters=(RESET, SYNC),
    responses=(
        RouteResponse(200, "The files were deleted", SUCCESS_BODY),
        *failures(s503="The server is shutting down"),
    ),
)
async def reset_data_files(call: Call) -> Response:
    """Delete all data files, before the response even with ``sync=false``, because this is quick."""
    await call.threads.quick.run(call.server.reset_data_files)
    return success("Data reset requested" if call.params["sync"] is False else "Data reset")
