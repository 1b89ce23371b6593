"""Handlers and routes for operators: storage, health, metrics, and the documentation of the API."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.resources import files

import anyio
from starlette.responses import Response

from jobserver_core.errors import JobServerError
from jobserver_core.models.contexts import ContextQuery
from jobserver_core.models.lifecycle import CONTEXTS
from jobserver_core.repeats import Repeats
from jobserver_http.access import EVERYTHING, SIGNED_IN, single_permissions
from jobserver_http.calls import Call
from jobserver_http.errors import Rejected, StatusResponse
from jobserver_http.metrics import CONTENT_TYPE
from jobserver_http.responses import json_response, respond, success
from jobserver_http.routing import SUCCESS_BODY, RouteResponse, Routes, failures
from jobserver_http.ui import HEADERS
from jobserver_http.wire import server_record, storage_object

_repeats = Repeats(logging.getLogger(__name__))

THREAD_TIMEOUT = 5.0
"""The server counts as alive if a thread becomes free within this many seconds."""
ASSETS = {
    "docs.html": "text/html; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "docs.css": "text/css; charset=utf-8",
}
SHEDDING = "shedding load: within the last minute, a submit was refused for lack of room"
UNHEALTHY = "unhealthy"
NOT_READY = "not_ready"

ROUTES = Routes()


@ROUTES.add_extension(
    "GET /storage",
    permission="storage:read",
    summary="List what uses how much storage, and the settings that limit it",
    responses=(RouteResponse(200, "Each kind of data with its number and bytes", "StorageUsages"),),
)
async def get_storage(call: Call) -> Response:
    """Return what uses how much storage. Such calls run one at a time, as they read everything."""
    usage = await call.threads.maintenance.run(call.server.storage)
    return json_response([storage_object(kind) for kind in usage])


@ROUTES.add_extension(
    "POST /storage/prune",
    permission="storage:prune",
    summary="Remove now what the hourly sweep would remove",
    responses=(
        RouteResponse(200, "How many of each kind were removed", "Pruned"),
        *failures(s503="The server is shutting down"),
    ),
)
async def prune_storage(call: Call) -> Response:
    return json_response({"removed": await call.threads.pruning.run(call.server.prune)})


@ROUTES.add_extension(
    "GET /servers",
    permission="storage:read",
    summary="List the servers that share the database",
    responses=(RouteResponse(200, "Each server with the state of its lease", "ServerStatuses"),),
)
async def list_servers(call: Call) -> Response:
    found = await call.threads.quick.run(call.server.servers)
    return json_response([server_record(server) for server in found])


@ROUTES.add(
    "GET /healthz",
    permission=None,
    summary="Check that the server is alive and can write to its storage",
    responses=(
        RouteResponse(200, "The server is healthy", SUCCESS_BODY),
        *failures(s500="The server is not healthy"),
    ),
)
async def get_health(call: Call) -> Response:
    """Report whether the server is alive: its loop runs, a thread is free, and storage is writable.

    This call needs no credentials. So with authentication, details are only logged.
    """
    with anyio.move_on_after(THREAD_TIMEOUT):
        problem = await _failures(call, call.server.check_storage)
        return _failure(500, f"cannot write to storage: {problem}", UNHEALTHY) if problem else success()
    return _failure(500, f"no thread was free for {THREAD_TIMEOUT:g} seconds", UNHEALTHY)


def _failure(status: int, problem: str, code: str) -> Response:
    return respond(StatusResponse(status=status, result=problem, code=code))


@ROUTES.add_extension(
    "GET /readyz",
    permission=None,
    summary="Check that storage and launcher work, and that the server accepts jobs",
    responses=(
        RouteResponse(200, "The server is ready", SUCCESS_BODY),
        *failures(s503="The server is not ready"),
    ),
)
async def get_readiness(call: Call) -> Response:
    """Report whether the server accepts jobs: it has started and is not shutting down, and its parts work.

    A server that refuses submits because a queue is full is still ready: other contexts have room, and
    without the server there is less. So is one whose configured contexts have failed. The response says so.

    This call needs no credentials. So with authentication, details are only logged.
    """
    if call.state.draining:
        return _failure(503, "the server is shutting down", NOT_READY)
    try:
        call.server.check_accepting()
    except JobServerError as error:
        _repeats.warning("accepting", "not ready: %s", error)
        return _failure(
            503, "the job server does not accept jobs" if call.state.guarded else str(error), NOT_READY
        )
    if problem := await _failures(call, call.server.check):
        return _failure(503, problem, NOT_READY)
    failed = await call.threads.quick.run(call.server.failed_contexts)
    warnings = [f"configured context {name} failed: {reason}" for name, reason in failed.items()]
    if failed and call.state.guarded:
        number = f"configured contexts that failed: {len(failed)}"
        warnings = [f"{number}; the log of the server says which and why"]
    return success(SHEDDING if call.server.load.shedding else None, warnings=warnings)


async def _failures(call: Call, check: Callable[[], dict[str, str | None]]) -> str:
    """Return the components that do not work, with details if authentication is off; empty if all work."""
    components = await call.threads.quick.run(check)
    failed = {name: reason for name, reason in components.items() if reason is not None}
    for name, reason in failed.items():
        _repeats.warning(f"{name}: {reason}", "%s does not work: %s", name, reason)
    return "; ".join(name if call.state.guarded else f"{name}: {reason}" for name, reason in failed.items())


@ROUTES.add_extension(
    "GET /user",
    permission=SIGNED_IN,
    summary="Get the name and the permissions of the caller",
    responses=(
        RouteResponse(200, "Each permission that the caller has, and no name without authentication", "User"),
    ),
)
async def get_user(call: Call) -> Response:
    """Return what the caller may do, so that a program need not offer what would be refused."""
    if call.identity is None:
        return json_response({"permissions": single_permissions({EVERYTHING})})
    return json_response({"name": call.user, "permissions": single_permissions(call.identity.permissions)})


@ROUTES.add_extension(
    "GET /metrics",
    permission="jobs:read",
    group="operations",
    summary="Get metrics in Prometheus' format",
    responses=(RouteResponse(200, "The metrics", media_type=CONTENT_TYPE),),
)
async def get_metrics(call: Call) -> Response:
    # Only those of this server, as all other metrics: or a sum over servers would count them repeatedly.
    here = ContextQuery(states=CONTEXTS.live_states, owner=call.server.id)
    contexts = await call.threads.quick.run(call.server.contexts, here)
    storage = await call.threads.quick.run(call.server.check_storage)
    text = call.state.metrics.render(call.server, contexts, storage)
    return Response(text, media_type=CONTENT_TYPE)


@ROUTES.add_extension(
    "GET /openapi.json",
    permission=None,
    summary="Get this description as OpenAPI",
    responses=(RouteResponse(200, "The OpenAPI document", "OpenApi"),),
)
async def get_openapi(call: Call) -> Response:
    return json_response(call.state.description)


@ROUTES.add_extension(
    "GET /docs",
    permission=None,
    summary="Show the interactive documentation",
    responses=(RouteResponse(200, "An HTML page", media_type="text/html; charset=utf-8"),),
)
async def get_docs(call: Call) -> Response:
    """Return the page with the interactive documentation. It loads nothing from other servers."""
    return _asset("docs.html")


@ROUTES.add_extension(
    "GET /docs/{file}",
    permission=None,
    summary="Get a file of the interactive documentation",
    responses=(
        *(RouteResponse(200, "The file", media_type=media_type) for media_type in ASSETS.values()),
        *failures(s404="The file does not exist"),
    ),
)
async def get_asset(call: Call) -> Response:
    return _asset(call.path["file"])


def _asset(name: str) -> Response:
    if name not in ASSETS:
        raise Rejected(404, "file not found")
    return Response(_content(name), headers=HEADERS, media_type=ASSETS[name])


@cache
def _content(name: str) -> bytes:
    return files("jobserver_http").joinpath("assets").joinpath(name).read_bytes()
