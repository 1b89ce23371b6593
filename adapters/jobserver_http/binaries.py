"""The calls on ``/binaries``, and on ``/jars`` as older clients use it."""

from __future__ import annotations

import attrs
from starlette.responses import Response

from jobserver_core.errors import BinaryNotFound
from jobserver_core.models.binaries import Binary, BinaryType
from jobserver_http.answers import json_response, respond
from jobserver_http.calls import Call
from jobserver_http.errors import Answer
from jobserver_http.routing import NO_BINARY, SUCCESS_BODY, Body, Reply, Route, failures
from jobserver_http.wire import binary_report, version_report

__all__ = [
    "ROUTES",
    "delete_binary",
    "get_binary",
    "list_binaries",
    "list_versions",
    "upload_binary",
]


def _jars_only(call: Call) -> bool:
    return call.route.path.startswith("/jars")


def _visible(call: Call, binary: Binary) -> Binary:
    if _jars_only(call) and binary.type is not BinaryType.JAR:
        raise BinaryNotFound(name=binary.name)
    return binary


async def list_binaries(call: Call) -> Response:
    """Answer with the newest upload of each name."""
    binaries = await call.pools.quick.run(call.server.binaries)
    jars_only = _jars_only(call)
    return json_response(
        {b.name: binary_report(b) for b in binaries if not jars_only or b.type is BinaryType.JAR}
    )


async def get_binary(call: Call) -> Response:
    """Answer with the newest upload of a name."""
    binary = _visible(call, await call.pools.quick.run(call.server.binary, call.path["name"]))
    return json_response({"app-name": binary.name, **binary_report(binary)})


async def list_versions(call: Call) -> Response:
    """Answer with every upload of a name, newest first."""
    versions = await call.pools.quick.run(call.server.binary_versions, call.path["name"])
    return json_response([version_report(binary) for binary in versions])


async def upload_binary(call: Call) -> Response:
    """Store the body as a new version, as it arrives."""
    name = call.path["name"]
    kind = _kind(call)
    pieces = call.upload(f"binary {name}")
    upload = await call.pools.quick.run(call.server.begin_upload, name, kind)
    try:
        async for piece in pieces:
            await call.pools.quick.run(upload.write, piece)
        await call.pools.slow.run(upload.finish)
    finally:
        await call.pools.quick.run(upload.discard)
    return respond(Answer(status=201, label="SUCCESS"))


async def delete_binary(call: Call) -> Response:
    """Remove every version of a name."""
    if _jars_only(call):
        _visible(call, await call.pools.quick.run(call.server.binary, call.path["name"]))
    await call.pools.quick.run(call.server.delete_binary, call.path["name"])
    return respond(Answer(status=200, label="SUCCESS"))


def _kind(call: Call) -> BinaryType:
    """Return the type that the content type says. On ``/jars`` it need not say anything."""
    if _jars_only(call):
        return BinaryType.JAR
    return BinaryType.from_media_type(call.header("content-type"))


BINARY_TYPES = (
    "application/java-archive",
    "application/python-egg",
    "application/python-wheel",
    "application/python-archive",
)

_UPLOAD_REPLIES = (
    Reply(201, "It was stored as the newest version of its name", SUCCESS_BODY),
    *failures(
        s400="The body is not a ZIP archive, or the name is not allowed",
        s413="The body is larger than the limit",
        s500="It could not be stored",
        s503="The server is shutting down",
    ),
)

_BINARIES = (
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
            *_UPLOAD_REPLIES,
            *failures(s415="The content type is missing, or none of a binary's"),
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


def _as_jars(route: Route) -> Route:
    """Return the route as older clients have it: for jars alone, whatever the content type."""
    body = Body("The jar", ("application/java-archive",), required=True) if route.body else None
    replies = tuple(reply for reply in route.replies if reply.status != 415)
    summary = route.summary.replace("a jar, an egg or a wheel", "a jar")
    return attrs.evolve(
        route,
        name=route.name.replace("binaries", "jars").replace("binary", "jar"),
        path=route.path.replace("/binaries", "/jars"),
        summary=f"{summary} (jars only, for older clients)",
        body=body,
        replies=replies,
    )


_JARS = tuple(_as_jars(route) for route in _BINARIES if not route.extension)


ROUTES = (*_BINARIES, *_JARS)
