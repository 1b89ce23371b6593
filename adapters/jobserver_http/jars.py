"""The calls on ``/jars``: the dialect of spark-jobserver 0.6 to 0.9, which knows jars alone.

It differs from ``/binaries`` in its answers too: a list has upload times instead of objects, and an upload
answers 200 with a text. The content type is optional.
"""

from __future__ import annotations

from starlette.responses import Response

from jobserver_core.errors import BinaryNotFound
from jobserver_core.models.binaries import Binary, BinaryType
from jobserver_http.answers import json_response, respond
from jobserver_http.binaries import stored
from jobserver_http.calls import Call
from jobserver_http.errors import Answer
from jobserver_http.routing import NO_BINARY, SUCCESS_BODY, Body, Reply, Route, failures
from jobserver_http.wire import named_report, timestamp

__all__ = ["ROUTES", "delete_jar", "get_jar", "list_jars", "upload_jar"]


async def list_jars(call: Call) -> Response:
    """Answer with the time of the newest upload of each name."""
    binaries = await call.pools.quick.run(call.server.binaries)
    return json_response({b.name: timestamp(b.uploaded_at) for b in binaries if b.type is BinaryType.JAR})


async def get_jar(call: Call) -> Response:
    """Answer with the newest upload of a name."""
    return json_response(named_report(await _jar(call)))


async def upload_jar(call: Call) -> Response:
    """Store the body as a new version, as it arrives."""
    await stored(call, BinaryType.JAR)
    return respond(Answer(status=200, label="SUCCESS", result="Jar uploaded"))


async def delete_jar(call: Call) -> Response:
    """Remove every version of a name."""
    jar = await _jar(call)
    await call.pools.quick.run(call.server.delete_binary, jar.name)
    return respond(Answer(status=200, label="SUCCESS"))


async def _jar(call: Call) -> Binary:
    binary = await call.pools.quick.run(call.server.binary, call.path["name"])
    if binary.type is not BinaryType.JAR:
        raise BinaryNotFound(name=binary.name)
    return binary


ROUTES = (
    Route(
        name="list_jars",
        method="GET",
        path="/jars",
        handler=list_jars,
        group="binaries",
        permission="binaries:read",
        summary="The time of the newest upload of each jar",
        replies=(Reply(200, "The upload times by name", "Jars"),),
    ),
    Route(
        name="get_jar",
        method="GET",
        path="/jars/{name}",
        handler=get_jar,
        group="binaries",
        permission="binaries:read",
        summary="The newest upload of a jar",
        replies=(Reply(200, "The jar", "Binary"), *NO_BINARY),
        extension=True,
    ),
    Route(
        name="upload_jar",
        method="POST",
        path="/jars/{name}",
        handler=upload_jar,
        group="binaries",
        permission="binaries:upload",
        summary="Upload a jar",
        body=Body("The jar, whatever the content type says", ("application/java-archive",), required=True),
        replies=(
            Reply(200, "It was stored as the newest version of its name", SUCCESS_BODY),
            *failures(
                s400="The body is not a ZIP archive, or the name is not allowed",
                s413="The body is larger than the limit",
                s500="It could not be stored",
                s503="The server is shutting down",
            ),
        ),
    ),
    Route(
        name="delete_jar",
        method="DELETE",
        path="/jars/{name}",
        handler=delete_jar,
        group="binaries",
        permission="binaries:delete",
        summary="Remove every version of a jar",
        replies=(
            Reply(200, "They were removed", SUCCESS_BODY),
            *NO_BINARY,
            *failures(s403="A job that has not ended uses it"),
        ),
    ),
)
