"""The table of routes: the one source of routing, permissions, the OpenAPI document and the reference."""

from __future__ import annotations

from collections.abc import Collection

from jobserver_core.errors import InvalidRequest
from jobserver_http import binaries, contexts, data_files, events, jars, jobs, logs, operations, results
from jobserver_http.routing import Body, Reply, Route

__all__ = ["GROUPS", "ROUTES", "Body", "Reply", "Route", "chosen"]

ROUTES: tuple[Route, ...] = (
    *binaries.ROUTES,
    *jars.ROUTES,
    *contexts.ROUTES,
    *jobs.ROUTES,
    *results.ROUTES,
    *logs.ROUTES,
    *events.ROUTES,
    *data_files.ROUTES,
    *operations.ROUTES,
)
"""Every route; names are unique."""

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(route.group for route in ROUTES))
"""The groups that an application can be made of."""


def chosen(wanted: Collection[str] | None) -> tuple[Route, ...]:
    """Return the routes of some groups, or of some names; all for None. Raises InvalidRequest."""
    if wanted is None:
        return ROUTES
    known = {*GROUPS, *(route.name for route in ROUTES)}
    for word in wanted:
        if word not in known:
            raise InvalidRequest(message=f"there is no route or group {word!r}; groups: {', '.join(GROUPS)}")
    return tuple(route for route in ROUTES if route.group in wanted or route.name in wanted)
