"""The calls on ``/binaries``."""

from __future__ import annotations

from starlette.responses import Response

from jobserver_core.models.binaries import BinaryType
from jobserver_http.answers import json_response, respond
from jobserver_http.calls import Call
from jobserver_http.errors import Answer
from jobserver_http.routing import NO_BINARY, SUCCESS_BODY, Body, Reply, Route, failures
from jobserver_http.wire import binary_report, named_report, version_report

__all__ = [
    "ROUTES",
    "delete_binary",
    "get_binary",
    "list_binaries",
    "list_versions",
    "stored",
    "upload_binary",
]


async def list_binaries(call: Call) -> Response:
    """Answer with the newest upload of each name."""
    binaries = await call.pools.quick.run(call.server.binaries)
    return json_response({binary.name: binary_report(binary) for binary in binaries})


async def get_binary(call: Call) -> Response:
    """Answer with the newest upload of a name."""
    return json_response(named_report(await call.pools.quick.run(call.server.binary, call.path["name"])))


async def list_versions(call: Call) -> Response:
    """Answer with every upload of a name, newest first."""
    versions = await call.pools.quick.run(call.server.binary_versions, call.path["name"])
    return json_response([version_report(binary) for binary in versions])


async def upload_binary(call: Call) -> Response:
    """Store the body as a new version, of the type that its content type says."""
    await stored(call, BinaryType.from_media_type(call.header("content-type")))
    return respond(Answer(status=201, label="SUCCESS"))


async def stored(call: Call, kind: BinaryType) -> None:
    """Store the body as a new version of the name in the path, as it arrives."""
    name = call.path["name"]
    pieces = call.upload(f"binary {name}")
    upload = await call.pools.quick.run(call.server.begin_upload, name, kind)
    try:
        async for piece in pieces:
            await call.pools.quick.run(upload.write, piece)
        await call.pools.slow.run(upload.finish)
    finally:
        await call.pools.quick.run(upload.discard)


async def delete_binary(call: Call) -> Response:
    """Remove every version of a name."""
    await call.pools.quick.run(call.server.delete_binary, call.path["name"])
    return respond(Answer(status=200, label="SUCCESS"))


BINARY_TYPES = (
    "application/java-archive",
    "application/python-egg",
    "application/python-wheel",
    "application/python-archive",
)

ROUTES = (
    Route(
        name="list_binaries",
        method="GET",
        path="/binaries",
        handler=list_binaries,
        group="binaries",
        permission="binaries:read",
        summary="The newest upload of each name",
        replies=(Reply(200, "The binaries by name", "Binaries"),),
    ),
    Route(
        name="get_binary",
        method="GET",
        path="/binaries/{name}",
        handler=get_binary,
        group="binaries",
        permission="binaries:read",
        summary="The newest upload of a name",
        replies=(Reply(200, "The binary", "Binary"), *NO_BINARY),
    ),
    Route(
        name="list_versions",
        method="GET",
        path="/binaries/{name}/versions",
        handler=list_versions,
        group="binaries",
        permission="binaries:read",
        summary="Every upload of a name, newest first",
        replies=(Reply(200, "The versions", "Versions"), *NO_BINARY),
        extension=True,
    ),
    Route(
        name="upload_binary",
        method="POST",
        path="/binaries/{name}",
        handler=upload_binary,
        group="binaries",
        permission="binaries:upload",
        summary="Upload a jar, an egg or a wheel",
        body=Body("The file; its content type tells its kind", BINARY_TYPES, required=True),
        replies=(
            Reply(201, "It was stored as the newest version of its name", SUCCESS_BODY),
            *failures(
                s400="The body is not a ZIP archive, or the name is not allowed",
                s413="The body is larger than the limit",
                s415="The content type is missing, or none of a binary's",
                s500="It could not be stored",
                s503="The server is shutting down",
            ),
        ),
    ),
    Route(
        name="delete_binary",
        method="DELETE",
        path="/binaries/{name}",
        handler=delete_binary,
        group="binaries",
        permission="binaries:delete",
        summary="Remove every version of a name",
        replies=(
            Reply(200, "They were removed", SUCCESS_BODY),
            *NO_BINARY,
            *failures(s403="A job that has not ended uses it"),
        ),
    ),
)
