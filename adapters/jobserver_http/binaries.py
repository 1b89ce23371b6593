"""Handlers and routes of ``/binaries``, and of ``/jars``.

``/jars`` is the API of spark-jobserver 0.6 to 0.9, which has only jars. Its list has upload times instead of
objects, and an upload returns 200 with a message. The content type of an upload is optional.
"""

from __future__ import annotations

from starlette.responses import Response

from jobserver_core.errors import BinaryNotFound
from jobserver_core.models.binaries import Binary, BinaryType
from jobserver_core.models.jobs import JobQuery
from jobserver_core.models.lifecycle import JobState
from jobserver_http.answers import json_response, respond
from jobserver_http.calls import Call
from jobserver_http.errors import Answer
from jobserver_http.routing import NO_BINARY, NOT_STORED, SUCCESS_BODY, Body, Reply, Routes, failures
from jobserver_http.wire import binary_report, named_report, timestamp

MAX_USERS = 1000
"""The maximum number of jobs that have not ended in which the users of a binary are searched."""

ROUTES = Routes()

BINARY_TYPES = (
    "application/java-archive",
    "application/python-egg",
    "application/python-wheel",
    "application/python-archive",
)


@ROUTES.add(
    "GET",
    "/binaries",
    permission="binaries:read",
    summary="List the binaries, each with its newest version",
    replies=(Reply(200, "The binaries by name", "Binaries"),),
)
async def list_binaries(call: Call) -> Response:
    """Return the newest version of each binary."""
    binaries = await call.pools.quick.run(call.server.binaries)
    return json_response({binary.name: binary_report(binary) for binary in binaries})


@ROUTES.add(
    "GET",
    "/binaries/{name}",
    permission="binaries:read",
    summary="Get the newest version of a binary",
    replies=(Reply(200, "The binary", "Binary"), *NO_BINARY),
)
async def get_binary(call: Call) -> Response:
    """Return the newest version of a binary."""
    return json_response(named_report(await call.pools.quick.run(call.server.binary, call.path["name"])))


@ROUTES.add(
    "GET",
    "/binaries/{name}/versions",
    permission="binaries:read",
    summary="List all versions of a binary, newest first",
    replies=(Reply(200, "The versions", "Versions"), *NO_BINARY),
    extension=True,
)
async def list_versions(call: Call) -> Response:
    """Return all versions of a binary, newest first."""
    versions = await call.pools.quick.run(call.server.binary_versions, call.path["name"])
    users = await call.pools.quick.run(_users, call)
    return json_response(
        [{**binary_report(binary), "usedBy": users.get(binary.id, [])} for binary in versions]
    )


def _users(call: Call) -> dict[str, list[str]]:
    """Return the IDs of the newest jobs that have not ended, by the IDs of the versions that they use."""
    states = tuple(state for state in JobState if not state.final)
    users: dict[str, list[str]] = {}
    for job in call.server.jobs(JobQuery(states=states, limit=MAX_USERS)).jobs:
        if call.names.owns(job.context_name):
            for binary_id in {entry.binary_id for entry in job.class_path if entry.binary_id is not None}:
                users.setdefault(binary_id, []).append(job.id)
    return users


@ROUTES.add(
    "POST",
    "/binaries/{name}",
    permission="binaries:upload",
    summary="Upload a jar, an egg or a wheel",
    body=Body("The file. Its content type determines the binary's type", BINARY_TYPES, required=True),
    replies=(
        Reply(201, "The file is now the newest version of the binary", SUCCESS_BODY),
        *failures(
            s400="The body is not a ZIP archive, or the name is not allowed",
            s415="The content type is missing or not one of a binary",
        ),
        *NOT_STORED,
    ),
)
async def upload_binary(call: Call) -> Response:
    """Store the body as a new version. Its content type determines the binary's type."""
    await _store(call, BinaryType.from_media_type(call.header("content-type")))
    return respond(Answer(status=201, label="SUCCESS"))


async def _store(call: Call, kind: BinaryType) -> None:
    """Store the body as a new version of the binary while it arrives."""
    name = call.path["name"]
    await call.stored(f"binary {name}", lambda: call.server.begin_upload(name, kind))


@ROUTES.add(
    "DELETE",
    "/binaries/{name}",
    permission="binaries:delete",
    summary="Delete all versions of a binary",
    replies=(
        Reply(200, "The binary was deleted", SUCCESS_BODY),
        *NO_BINARY,
        *failures(s403="A job that has not ended uses the binary"),
    ),
)
async def delete_binary(call: Call) -> Response:
    """Delete all versions of a binary."""
    await call.pools.quick.run(call.server.delete_binary, call.path["name"])
    return respond(Answer(status=200, label="SUCCESS"))


@ROUTES.add(
    "GET",
    "/jars",
    permission="binaries:read",
    summary="List the jars, each with the upload time of its newest version",
    replies=(Reply(200, "The upload times by name", "Jars"),),
)
async def list_jars(call: Call) -> Response:
    """Return the upload time of the newest version of each jar."""
    binaries = await call.pools.quick.run(call.server.binaries)
    return json_response({b.name: timestamp(b.uploaded_at) for b in binaries if b.type is BinaryType.JAR})


@ROUTES.add(
    "GET",
    "/jars/{name}",
    permission="binaries:read",
    summary="Get the newest version of a jar",
    replies=(Reply(200, "The jar", "Binary"), *NO_BINARY),
    extension=True,
)
async def get_jar(call: Call) -> Response:
    """Return the newest version of a jar."""
    return json_response(named_report(await _jar(call)))


@ROUTES.add(
    "POST",
    "/jars/{name}",
    permission="binaries:upload",
    summary="Upload a jar",
    body=Body("The jar, regardless of the content type", ("application/java-archive",), required=True),
    replies=(
        Reply(200, "The file is now the newest version of the jar", SUCCESS_BODY),
        *failures(s400="The body is not a ZIP archive, or the name is not allowed"),
        *NOT_STORED,
    ),
)
async def upload_jar(call: Call) -> Response:
    """Store the body as a new version of a jar while it arrives."""
    await _store(call, BinaryType.JAR)
    return respond(Answer(status=200, label="SUCCESS", result="Jar uploaded"))


@ROUTES.add(
    "DELETE",
    "/jars/{name}",
    permission="binaries:delete",
    summary="Delete all versions of a jar",
    replies=(
        Reply(200, "The jar was deleted", SUCCESS_BODY),
        *NO_BINARY,
        *failures(s403="A job that has not ended uses the jar"),
    ),
)
async def delete_jar(call: Call) -> Response:
    """Delete all versions of a jar."""
    jar = await _jar(call)
    await call.pools.quick.run(call.server.delete_binary, jar.name)
    return respond(Answer(status=200, label="SUCCESS"))


async def _jar(call: Call) -> Binary:
    binary = await call.pools.quick.run(call.server.binary, call.path["name"])
    if binary.type is not BinaryType.JAR:
        raise BinaryNotFound(name=binary.name)
    return binary
