"""What a route is: the rows that routing, permissions, the OpenAPI document and the reference come from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
from starlette.responses import Response

from jobserver_http.calls import Call
from jobserver_http.parameters import Choice, Flag, Parameter

__all__ = [
    "CONFIGURATION",
    "FOLLOW",
    "NO_BINARY",
    "NO_CONTEXT",
    "NO_JOB",
    "RESET",
    "SUCCESS_BODY",
    "SYNC",
    "Body",
    "Reply",
    "Route",
    "failures",
]

Handler = Callable[[Call], Awaitable[Response]]

JSON = "application/json"


@attrs.frozen
class Reply:
    """An answer that a route gives: its status, what it means, and the schema of its body."""

    status: int
    doc: str
    schema: str | None = None
    media_type: str = JSON


@attrs.frozen
class Body:
    """What a route takes as its body."""

    doc: str
    media_types: tuple[str, ...]
    required: bool = False


@attrs.frozen(kw_only=True)
class Route:
    """One call. ``permission`` None means that everybody may make it.

    ``open_query`` says that any further query parameter is a setting. ``extension`` marks what
    the old server did not have.
    """

    name: str
    method: str
    path: str
    handler: Handler
    group: str
    permission: str | None
    summary: str
    parameters: tuple[Parameter, ...] = ()
    headers: tuple[Parameter, ...] = ()
    body: Body | None = None
    replies: tuple[Reply, ...] = ()
    open_query: bool = False
    extension: bool = False


SUCCESS_BODY = "Success"


def failures(**statuses: str) -> tuple[Reply, ...]:
    """Return replies in the contract's shape of failures, from ``s404="what it means"``."""
    return tuple(Reply(int(status[1:]), doc, "Failure") for status, doc in statuses.items())


CONFIG_TYPES = ("text/plain", "application/json", "application/x-www-form-urlencoded")
CONFIGURATION = Body("HOCON, of which JSON is a part, whatever the content type says", CONFIG_TYPES)
SYNC = Parameter(name="sync", kind=Flag(), doc="false answers before it is done")
RESET = Parameter(name="reset", kind=Choice(("reboot",)), doc="must be reboot", required=True)
FOLLOW = Parameter(name="follow", kind=Flag(), doc="true goes on until the end")
NO_BINARY = failures(s404="There is no binary of this name")
NO_JOB = failures(s404="There is no job of this id")
NO_CONTEXT = failures(s404="There is no context of this name")
