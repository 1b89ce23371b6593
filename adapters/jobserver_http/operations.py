"""Calls about the server itself: health, measurements, and the description of the interface."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.resources import files

import anyio
from starlette.responses import RedirectResponse, Response

from jobserver_core.repeats import Repeats
from jobserver_http.answers import json_response, respond
from jobserver_http.calls import Call
from jobserver_http.errors import Answer, Rejected
from jobserver_http.metrics import CONTENT_TYPE
from jobserver_http.openapi import document
from jobserver_http.routing import SUCCESS_BODY, Reply, Route, failures

__all__ = [
    "NOT_READY",
    "ROUTES",
    "UNHEALTHY",
    "get_asset",
    "get_docs",
    "get_health",
    "get_index",
    "get_metrics",
    "get_openapi",
    "get_readiness",
]

_repeats = Repeats(logging.getLogger(__name__))

ALIVE = 5.0
"""Seconds within which a thread must be free for the server to count as alive."""
ASSETS = {
    "docs.html": "text/html; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "docs.css": "text/css; charset=utf-8",
}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'"
SUCCESS = Answer(status=200, label="SUCCESS")
UNHEALTHY = "unhealthy"
NOT_READY = "not_ready"


async def get_health(call: Call) -> Response:
    """Answer whether the server is alive: its loop runs, a thread is free, and storage can be written to.

    Where callers must log in, the reasons go to the log alone, since everybody may ask.
    """
    with anyio.move_on_after(ALIVE):
        wrong = await _failures(call, call.server.check_storage)
        if not wrong:
            return respond(SUCCESS)
        return respond(Answer(status=500, result=f"storage cannot be written: {wrong}", code=UNHEALTHY))
    return respond(Answer(status=500, result=f"no thread was free for {ALIVE:g} seconds", code=UNHEALTHY))


async def get_readiness(call: Call) -> Response:
    """Answer whether work can be taken: storage and launcher, and that the server is not ending.

    Where callers must log in, the reasons go to the log alone, since everybody may ask.
    """
    if call.site.draining:
        return respond(Answer(status=503, result="the server is shutting down", code=NOT_READY))
    if wrong := await _failures(call, call.server.check):
        return respond(Answer(status=503, result=wrong, code=NOT_READY))
    return respond(SUCCESS)


async def _failures(call: Call, check: Callable[[], dict[str, str | None]]) -> str:
    """Return the parts that do not work, as the caller may know them; empty when all work."""
    parts = await call.pools.quick.run(check)
    wrong = {part: reason for part, reason in parts.items() if reason is not None}
    for part, reason in wrong.items():
        _repeats.warning(f"{part}: {reason}", "%s does not work: %s", part, reason)
    return "; ".join(part if call.site.guarded else f"{part}: {reason}" for part, reason in wrong.items())


async def get_metrics(call: Call) -> Response:
    """Answer with the measurements, for Prometheus."""
    contexts = await call.pools.quick.run(call.server.contexts)
    return Response(call.site.metrics.render(contexts, call.server.start_queue()), media_type=CONTENT_TYPE)


async def get_openapi(call: Call) -> Response:
    """Answer with the OpenAPI description of the routes that this application has."""
    described = document(call.site.routes, root=call.url(), guarded=call.site.guarded)
    return json_response(described)


async def get_index(call: Call) -> Response:
    """Lead from the root to the documentation."""
    return RedirectResponse(call.url("docs"), status_code=302)


async def get_docs(call: Call) -> Response:
    """Answer with the interactive documentation; all of it comes from this server."""
    return _asset("docs.html")


async def get_asset(call: Call) -> Response:
    """Answer with a part of the documentation."""
    return _asset(call.path["file"])


def _asset(name: str) -> Response:
    if name not in ASSETS:
        raise Rejected(404, "there is no such file")
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    return Response(_content(name), headers=headers, media_type=ASSETS[name])


@cache
def _content(name: str) -> bytes:
    return files("jobserver_http").joinpath("assets").joinpath(name).read_bytes()


ROUTES = (
    Route(
        name="get_health",
        method="GET",
        path="/healthz",
        handler=get_health,
        group="operations",
        permission=None,
        summary="Whether the server is alive and can write to its storage",
        replies=(Reply(200, "It is", SUCCESS_BODY), *failures(s500="It is not")),
    ),
    Route(
        name="get_readiness",
        method="GET",
        path="/readyz",
        handler=get_readiness,
        group="operations",
        permission=None,
        summary="Whether storage and launcher work, and the server takes jobs",
        replies=(Reply(200, "It is ready", SUCCESS_BODY), *failures(s503="It is not")),
        extension=True,
    ),
    Route(
        name="get_metrics",
        method="GET",
        path="/metrics",
        handler=get_metrics,
        group="operations",
        permission="jobs:read",
        summary="Measurements for Prometheus",
        replies=(Reply(200, "The measurements", media_type=CONTENT_TYPE),),
        extension=True,
    ),
    Route(
        name="get_openapi",
        method="GET",
        path="/openapi.json",
        handler=get_openapi,
        group="operations",
        permission=None,
        summary="This description",
        replies=(Reply(200, "The OpenAPI document", "OpenApi"),),
        extension=True,
    ),
    Route(
        name="get_index",
        method="GET",
        path="/",
        handler=get_index,
        group="operations",
        permission=None,
        summary="Leads to the interactive documentation",
        replies=(Reply(302, "The documentation is at Location"),),
    ),
    Route(
        name="get_docs",
        method="GET",
        path="/docs",
        handler=get_docs,
        group="operations",
        permission=None,
        summary="Interactive documentation",
        replies=(Reply(200, "A page", media_type="text/html; charset=utf-8"),),
        extension=True,
    ),
    Route(
        name="get_asset",
        method="GET",
        path="/docs/{file}",
        handler=get_asset,
        group="operations",
        permission=None,
        summary="A part of the documentation",
        replies=(
            *(Reply(200, "The part", media_type=media_type) for media_type in ASSETS.values()),
            *failures(s404="There is no such part"),
        ),
        extension=True,
    ),
)
