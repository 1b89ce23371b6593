"""Handlers and routes for operators: storage, health, metrics, and the documentation of the API."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.resources import files

import anyio
from starlette.responses import Response

from jobserver_core.models.contexts import ContextQuery
from jobserver_core.models.lifecycle import CONTEXTS
from jobserver_core.repeats import Repeats
from jobserver_http.answers import json_response, respond
from jobserver_http.calls import Call
from jobserver_http.errors import Answer, Rejected
from jobserver_http.metrics import CONTENT_TYPE
from jobserver_http.routing import SUCCESS_BODY, Reply, Routes, failures
from jobserver_http.wire import server_report, storage_report

_repeats = Repeats(logging.getLogger(__name__))

THREAD_TIMEOUT = 5.0
"""The server counts as alive if a thread becomes free within this many seconds."""
ASSETS = {
    "docs.html": "text/html; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "docs.css": "text/css; charset=utf-8",
}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'"
SUCCESS = Answer(status=200, label="SUCCESS")
SHEDDING = Answer(
    status=200,
    label="SUCCESS",
    result="shedding load: within the last minute, a submit was refused for lack of room",
)
UNHEALTHY = "unhealthy"
NOT_READY = "not_ready"

ROUTES = Routes()


@ROUTES.add(
    "GET",
    "/storage",
    permission="storage:read",
    summary="List what uses how much storage, and the settings that limit it",
    replies=(Reply(200, "Each kind of data with its number and bytes", "StorageReports"),),
    extension=True,
)
async def get_storage(call: Call) -> Response:
    """Return what uses how much storage. Such calls run one after the other, as they look at everything."""
    usage = await call.pools.maintenance.run(call.server.storage)
    return json_response([storage_report(kind) for kind in usage])


@ROUTES.add(
    "POST",
    "/storage/prune",
    permission="storage:prune",
    summary="Remove now what the hourly sweep would remove",
    replies=(
        Reply(200, "How many of each kind were removed", "Pruned"),
        *failures(s503="The server is shutting down"),
    ),
    extension=True,
)
async def prune_storage(call: Call) -> Response:
    """Remove what is beyond the limits, and return how many of each kind."""
    return json_response({"removed": await call.pools.pruning.run(call.server.prune)})


@ROUTES.add(
    "GET",
    "/servers",
    permission="storage:read",
    summary="List the servers that share the database",
    replies=(Reply(200, "Each server with the state of its lease", "ServerReports"),),
    extension=True,
)
async def list_servers(call: Call) -> Response:
    """Return the servers, this one included, oldest first."""
    found = await call.pools.quick.run(call.server.servers)
    return json_response([server_report(server) for server in found])


@ROUTES.add(
    "GET",
    "/healthz",
    permission=None,
    summary="Check that the server is alive and can write to its storage",
    replies=(
        Reply(200, "The server is healthy", SUCCESS_BODY),
        *failures(s500="The server is not healthy"),
    ),
)
async def get_health(call: Call) -> Response:
    """Report whether the server is alive: its loop runs, a thread is free, and storage is writable.

    This call needs no credentials. So with authentication, details are only logged.
    """
    with anyio.move_on_after(THREAD_TIMEOUT):
        problem = await _failures(call, call.server.check_storage)
        if not problem:
            return respond(SUCCESS)
        return respond(Answer(status=500, result=f"cannot write to storage: {problem}", code=UNHEALTHY))
    return respond(
        Answer(status=500, result=f"no thread was free for {THREAD_TIMEOUT:g} seconds", code=UNHEALTHY)
    )


@ROUTES.add(
    "GET",
    "/readyz",
    permission=None,
    summary="Check that storage and launcher work, and that the server accepts jobs",
    replies=(
        Reply(200, "The server is ready", SUCCESS_BODY),
        *failures(s503="The server is not ready"),
    ),
    extension=True,
)
async def get_readiness(call: Call) -> Response:
    """Report whether the server accepts jobs: storage and launcher work, and it is not shutting down.

    A server that refuses submits because a queue is full is ready all the same: other contexts have room, and
    without the server there is less. It says so in the response.

    This call needs no credentials. So with authentication, details are only logged.
    """
    if call.state.draining:
        return respond(Answer(status=503, result="the server is shutting down", code=NOT_READY))
    if problem := await _failures(call, call.server.check):
        return respond(Answer(status=503, result=problem, code=NOT_READY))
    return respond(SHEDDING if call.server.load.shedding else SUCCESS)


async def _failures(call: Call, check: Callable[[], dict[str, str | None]]) -> str:
    """Return the components that do not work, with details if authentication is off; empty if all work."""
    components = await call.pools.quick.run(check)
    failed = {name: reason for name, reason in components.items() if reason is not None}
    for name, reason in failed.items():
        _repeats.warning(f"{name}: {reason}", "%s does not work: %s", name, reason)
    return "; ".join(name if call.state.guarded else f"{name}: {reason}" for name, reason in failed.items())


@ROUTES.add(
    "GET",
    "/metrics",
    permission="jobs:read",
    group="operations",
    summary="Get metrics in Prometheus' format",
    replies=(Reply(200, "The metrics", media_type=CONTENT_TYPE),),
    extension=True,
)
async def get_metrics(call: Call) -> Response:
    """Return the metrics in Prometheus' format."""
    server = call.server
    # Only those of this server, as all other metrics: or a sum over servers would count them repeatedly.
    here = ContextQuery(states=CONTEXTS.live_states, owner=server.id)
    contexts = await call.pools.quick.run(server.contexts, here)
    storage = await call.pools.quick.run(server.check_storage)
    text = call.state.metrics.render(
        contexts,
        server.start_queue(),
        server.load,
        server.spare_pools(),
        storage,
        usage=server.resource_usage(),
    )
    return Response(text, media_type=CONTENT_TYPE)


@ROUTES.add(
    "GET",
    "/openapi.json",
    permission=None,
    summary="Get this description as OpenAPI",
    replies=(Reply(200, "The OpenAPI document", "OpenApi"),),
    extension=True,
)
async def get_openapi(call: Call) -> Response:
    """Return the OpenAPI document of the routes that this application has."""
    return json_response(call.state.describe(call.url()))


@ROUTES.add(
    "GET",
    "/docs",
    permission=None,
    summary="Show the interactive documentation",
    replies=(Reply(200, "An HTML page", media_type="text/html; charset=utf-8"),),
    extension=True,
)
async def get_docs(call: Call) -> Response:
    """Return the page with the interactive documentation. It loads nothing from other servers."""
    return _asset("docs.html")


@ROUTES.add(
    "GET",
    "/docs/{file}",
    permission=None,
    summary="Get a file of the interactive documentation",
    replies=(
        *(Reply(200, "The file", media_type=media_type) for media_type in ASSETS.values()),
        *failures(s404="The file does not exist"),
    ),
    extension=True,
)
async def get_asset(call: Call) -> Response:
    """Return a file of the interactive documentation."""
    return _asset(call.path["file"])


def _asset(name: str) -> Response:
    if name not in ASSETS:
        raise Rejected(404, "file not found")
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    return Response(_content(name), headers=headers, media_type=ASSETS[name])


@cache
def _content(name: str) -> bytes:
    return files("jobserver_http").joinpath("assets").joinpath(name).read_bytes()
