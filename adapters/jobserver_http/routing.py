"""The classes that describe routes, and descriptions that several routes share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypedDict

import attrs
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.responses import Response

from jobserver_http.calls import Call
from jobserver_http.parameters import Choice, Flag, Parameter

if TYPE_CHECKING:
    from typing_extensions import Required, Unpack

Handler = Callable[[Call], Awaitable[Response]]

JSON = "application/json"


class _AnyPath(PathConvertor):
    """The rest of a path, like Starlette's ``path``, line breaks included: the handler refuses them."""

    regex = "(?s:.*)"


register_url_convertor("jobserver_path", _AnyPath())


@attrs.frozen
class RouteResponse:
    """A possible response of a route: its status, its meaning, and the schema of its body."""

    status: int
    doc: str
    schema: str | None = None
    media_type: str = JSON


@attrs.frozen
class Body:
    """The request body that a route accepts."""

    doc: str
    media_types: tuple[str, ...]
    required: bool = False


@attrs.frozen(kw_only=True)
class Route:
    """A call of the API.

    An empty ``permission`` means that any valid credentials will do, None that none are needed.

    ``open_query`` means that any other query parameter is a setting. ``extension`` marks routes that the old
    server did not have.
    """

    name: str
    method: str
    path: str
    handler: Handler
    group: str
    permission: str | None
    summary: str
    responses: tuple[RouteResponse, ...]
    parameters: tuple[Parameter, ...] = ()
    headers: tuple[Parameter, ...] = ()
    body: Body | None = None
    open_query: bool = False
    extension: bool = False


class RouteFields(TypedDict, total=False):
    """The fields of a :class:`Route` that describe it."""

    summary: Required[str]
    responses: Required[tuple[RouteResponse, ...]]
    parameters: tuple[Parameter, ...]
    headers: tuple[Parameter, ...]
    body: Body
    open_query: bool


class Routes(list[Route]):
    """The routes of a module, in the order of their handlers."""

    def add(
        self,
        call: str,
        *,
        permission: str | None,
        group: str | None = None,
        extension: bool = False,
        **fields: Unpack[RouteFields],
    ) -> Callable[[Handler], Handler]:
        """Make the decorated handler a route, with its name.

        ``call`` is the method and the path. Without a ``group``, it is that of the permission, and
        ``operations`` if there is none.
        """
        method, _, path = call.partition(" ")
        group = group or (permission or "operations").partition(":")[0]

        def register(handler: Handler) -> Handler:
            self.append(
                Route(
                    name=handler.__name__,
                    method=method,
                    path=path,
                    handler=handler,
                    group=group,
                    permission=permission,
                    extension=extension,
                    **fields,
                )
            )
            return handler

        return register

    def add_extension(
        self,
        call: str,
        *,
        permission: str | None,
        group: str | None = None,
        **fields: Unpack[RouteFields],
    ) -> Callable[[Handler], Handler]:
        """Do what :meth:`add` does, for a route that the old server did not have."""
        return self.add(call, permission=permission, group=group, extension=True, **fields)


SUCCESS_BODY = "Success"


def failures(**statuses: str) -> tuple[RouteResponse, ...]:
    """Return responses with the contract's body for failures, from ``s404="meaning"``."""
    return tuple(RouteResponse(int(status[1:]), doc, "Failure") for status, doc in statuses.items())


CONFIG_TYPES = ("text/plain", "application/json", "application/x-www-form-urlencoded")
CONFIGURATION = Body("HOCON or JSON, regardless of the content type", CONFIG_TYPES)
SYNC = Parameter("sync", "false returns before the operation is complete", Flag())
RESET = Parameter("reset", "must be reboot", Choice(("reboot",)), required=True)
FOLLOW = Parameter("follow", "true streams new lines until the job or context has ended", Flag())
NOT_STORED = failures(
    s413="The body is larger than the limit",
    s500="The file could not be stored",
    s503="The server is shutting down",
)
NO_BINARY = failures(s404="No binary has this name")
NO_JOB = failures(s404="No job has this ID")
NO_CONTEXT = failures(s404="No context has this name")
NO_LOG = failures(
    s503="The server that has the log does not respond, or is gone and not taken over yet; try again"
)
