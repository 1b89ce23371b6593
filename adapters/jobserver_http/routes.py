"""The table of routes, from which routing, permissions, OpenAPI and the reference page are derived."""

from __future__ import annotations

from collections.abc import Collection

from jobserver_core.errors import InvalidRequest
from jobserver_core.models.arguments import check_several
from jobserver_http import binaries, contexts, data_files, events, jobs, logs, operations, ui
from jobserver_http.routing import Route

ROUTES: tuple[Route, ...] = (
    *binaries.ROUTES,
    *contexts.ROUTES,
    *jobs.ROUTES,
    *logs.ROUTES,
    *events.ROUTES,
    *data_files.ROUTES,
    *operations.ROUTES,
    *ui.ROUTES,
)
"""All routes. Names are unique."""

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(route.group for route in ROUTES))
"""The groups that an application can be limited to."""


def chosen(wanted: Collection[str] | None) -> tuple[Route, ...]:
    """Return the routes with these names or in these groups, or all routes for None.

    Raises:
        InvalidRequest: There is no such route or group, or ``wanted`` is not a collection of names.
    """
    if wanted is None:
        return ROUTES
    check_several("routes", wanted, str, "names of groups or routes, such as 'jobs'")
    known = {*GROUPS, *(route.name for route in ROUTES)}
    for word in wanted:
        if word not in known:
            groups = ", ".join(GROUPS)
            raise InvalidRequest(message=f"unknown route or group {word!r}; the groups are {groups}")
    return tuple(route for route in ROUTES if route.group in wanted or route.name in wanted)
