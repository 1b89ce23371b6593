"""Handlers and routes of ``/storage``."""

from __future__ import annotations

from starlette.responses import Response

from jobserver_http.answers import json_response
from jobserver_http.calls import Call
from jobserver_http.routing import Reply, Route, failures
from jobserver_http.wire import storage_report

__all__ = ["ROUTES", "get_storage", "prune_storage"]


async def get_storage(call: Call) -> Response:
    """Return what uses how much storage. Such calls run one after the other, as they look at everything."""
    usage = await call.pools.maintenance.run(call.server.storage)
    return json_response([storage_report(kind) for kind in usage])


async def prune_storage(call: Call) -> Response:
    """Remove what is beyond the limits, and return how many of each kind."""
    return json_response({"removed": await call.pools.pruning.run(call.server.prune)})


ROUTES = (
    Route(
        name="get_storage",
        method="GET",
        path="/storage",
        handler=get_storage,
        group="storage",
        permission="storage:read",
        summary="List what uses how much storage, and the settings that limit it",
        replies=(Reply(200, "Each kind of data with its number and bytes", "StorageReports"),),
        extension=True,
    ),
    Route(
        name="prune_storage",
        method="POST",
        path="/storage/prune",
        handler=prune_storage,
        group="storage",
        permission="storage:prune",
        summary="Remove now what the hourly sweep would remove",
        replies=(
            Reply(200, "How many of each kind were removed", "Pruned"),
            *failures(s503="The server is shutting down"),
        ),
        extension=True,
    ),
)
