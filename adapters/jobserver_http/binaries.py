"""Handlers and routes of ``/binaries``, and of ``/jars``.

``/jars`` is the API of spark-jobserver 0.6 to 0.9, which has only jars. Its list has upload times instead of
objects, and an upload returns 200 with a message. The content type of an upload is optional.
"""

from __future__ import annotations

from starlette.responses import Response

from jobserver_core.errors import BinaryInUse, BinaryNotFound
from jobserver_core.models.binaries import Binary, BinaryType
from jobserver_core.models.jobs import Job, JobQuery
from jobserver_core.models.lifecycle import JOBS
from jobserver_http.calls import Call
from jobserver_http.errors import BinaryInUseByOthers
from jobserver_http.responses import json_response, success
from jobserver_http.routing import NO_BINARY, NOT_STORED, SUCCESS_BODY, Body, RouteResponse, Routes, failures
from jobserver_http.wire import binary_record, named_binary_record, timestamp

MAX_USERS = 1000
"""The maximum number of jobs that have not ended in which the users of a binary are searched."""
_VISIBLE_USERS = "`job_ids` has those that the caller may see: with separate contexts, only the caller's own"

ROUTES = Routes()

BINARY_TYPES = (
    "application/java-archive",
    "application/python-egg",
    "application/python-wheel",
    "application/python-archive",
)


@ROUTES.add(
    "GET /binaries",
    permission="binaries:read",
    summary="List the binaries, each with its newest version",
    responses=(RouteResponse(200, "The binaries by name", "Binaries"),),
)
async def list_binaries(call: Call) -> Response:
    binaries = await call.threads.quick.run(call.server.binaries)
    return json_response({binary.name: binary_record(binary) for binary in binaries})


@ROUTES.add(
    "GET /binaries/{name}",
    permission="binaries:read",
    summary="Get the newest version of a binary",
    responses=(RouteResponse(200, "The binary", "Binary"), *NO_BINARY),
)
async def get_binary(call: Call) -> Response:
    binary = await call.threads.quick.run(call.server.binary, call.path["name"])
    return json_response(named_binary_record(binary))


@ROUTES.add_extension(
    "GET /binaries/{name}/versions",
    permission="binaries:read",
    summary="List all versions of a binary, newest first",
    responses=(RouteResponse(200, "The versions", "Versions"), *NO_BINARY),
)
async def list_versions(call: Call) -> Response:
    versions = await call.threads.quick.run(call.server.binary_versions, call.path["name"])
    users: dict[str | None, list[str]] = {}
    for job in await call.threads.quick.run(_unfinished, call):
        for binary_id in {entry.binary_id for entry in job.class_path}:
            users.setdefault(binary_id, []).append(job.id)
    return json_response([{**binary_record(one), "usedBy": users.get(one.id, [])} for one in versions])


def _unfinished(call: Call) -> list[Job]:
    """Return those of the newest jobs that have not ended which the caller may see."""
    found = call.server.jobs(JobQuery(states=JOBS.live_states, limit=MAX_USERS)).jobs
    return [job for job in found if call.names.owns(job.context_name)]


@ROUTES.add(
    "POST /binaries/{name}",
    permission="binaries:upload",
    summary="Upload a jar, an egg or a wheel",
    body=Body("The file. Its content type determines the binary's type", BINARY_TYPES, required=True),
    responses=(
        RouteResponse(201, "The file is now the newest version of the binary", SUCCESS_BODY),
        *failures(
            s400="The body is not a ZIP archive, or the name is not allowed",
            s415="The content type is missing or not one of a binary",
        ),
        *NOT_STORED,
    ),
)
async def upload_binary(call: Call) -> Response:
    await _store(call, BinaryType.from_media_type(call.header("content-type")))
    return success(status=201)


async def _store(call: Call, kind: BinaryType) -> None:
    """Store the body as a new version of the binary while it arrives."""
    name = call.path["name"]
    await call.store_body(f"binary {name}", lambda: call.server.begin_upload(name, kind))


@ROUTES.add(
    "DELETE /binaries/{name}",
    permission="binaries:delete",
    summary="Delete all versions of a binary",
    responses=(
        RouteResponse(200, "The binary was deleted", SUCCESS_BODY),
        *NO_BINARY,
        *failures(s403=f"A job that has not ended uses the binary. {_VISIBLE_USERS}"),
    ),
)
async def delete_binary(call: Call) -> Response:
    await call.threads.quick.run(_delete, call, call.path["name"])
    return success()


def _delete(call: Call, name: str) -> None:
    """Delete a binary. An error names no jobs that the caller may not see."""
    try:
        call.server.delete_binary(name)
    except BinaryInUse as error:
        if call.names.owner is None:
            raise
        own = {job.id for job in _unfinished(call)}.intersection(error.job_ids)
        if len(own) == len(error.job_ids):
            raise
        visible = tuple(job_id for job_id in error.job_ids if job_id in own)
        raise BinaryInUseByOthers(name=name, job_ids=visible) from None


@ROUTES.add(
    "GET /jars",
    permission="binaries:read",
    summary="List the jars, each with the upload time of its newest version",
    responses=(RouteResponse(200, "The upload times by name", "Jars"),),
)
async def list_jars(call: Call) -> Response:
    binaries = await call.threads.quick.run(call.server.binaries)
    return json_response({b.name: timestamp(b.uploaded_at) for b in binaries if b.type is BinaryType.JAR})


@ROUTES.add_extension(
    "GET /jars/{name}",
    permission="binaries:read",
    summary="Get the newest version of a jar",
    responses=(RouteResponse(200, "The jar", "Binary"), *NO_BINARY),
)
async def get_jar(call: Call) -> Response:
    return json_response(named_binary_record(await _jar(call)))


@ROUTES.add(
    "POST /jars/{name}",
    permission="binaries:upload",
    summary="Upload a jar",
    body=Body("The jar, regardless of the content type", ("application/java-archive",), required=True),
    responses=(
        RouteResponse(200, "The file is now the newest version of the jar", SUCCESS_BODY),
        *failures(s400="The body is not a ZIP archive, or the name is not allowed"),
        *NOT_STORED,
    ),
)
async def upload_jar(call: Call) -> Response:
    await _store(call, BinaryType.JAR)
    return success("Jar uploaded")


@ROUTES.add(
    "DELETE /jars/{name}",
    permission="binaries:delete",
    summary="Delete all versions of a jar",
    responses=(
        RouteResponse(200, "The jar was deleted", SUCCESS_BODY),
        *NO_BINARY,
        *failures(s403=f"A job that has not ended uses the jar. {_VISIBLE_USERS}"),
    ),
)
async def delete_jar(call: Call) -> Response:
    jar = await _jar(call)
    await call.threads.quick.run(_delete, call, jar.name)
    return success()


async def _jar(call: Call) -> Binary:
    binary = await call.threads.quick.run(call.server.binary, call.path["name"])
    if binary.type is not BinaryType.JAR:
        raise BinaryNotFound(name=binary.name)
    return binary
