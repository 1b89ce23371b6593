"""The ASGI application: from a request to the handler of its route, and from any outcome to an answer."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Collection, Mapping
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.types import Message, Receive, Scope, Send

from jobserver_core.errors import BackendError, JobServerError
from jobserver_core.server import JobServer
from jobserver_http.answers import respond
from jobserver_http.authentication import Authenticator, Gate, Identity, authenticator_from_settings
from jobserver_http.bodies import BodyGuard, Disconnected
from jobserver_http.browsers import BrowserGuard
from jobserver_http.calls import Call, Site
from jobserver_http.errors import INTERNAL, REFUSALS, Answer, Rejected, answer_to
from jobserver_http.namespaces import Namespace
from jobserver_http.parameters import parse_query, parsed
from jobserver_http.permissions import allows
from jobserver_http.routes import Route, chosen

__all__ = ["HttpApplication", "create_app"]

_log = logging.getLogger(__name__)
_access = logging.getLogger("jobserver_http.access")

_OVERRIDES = ("DELETE", "PUT")
_OWNER = re.compile(r"[^/\\\s~\x00-\x1f\x7f]{1,128}")
_UNKNOWN = "none"
_AMBIGUOUS = Answer(
    status=400,
    result="a request has either Content-Length or Transfer-Encoding",
    code=REFUSALS[400],
    headers={"Connection": "close"},
)
_NO_PATH = Answer(status=400, result="the target of a request begins with /", code=REFUSALS[400])
CLIENT_LEFT = 499
"""What is logged and counted as the status where the client left before there was one."""


def create_app(
    server: JobServer,
    *,
    routes: Collection[str] | None = None,
    authenticator: Authenticator | None = None,
    browsers: BrowserGuard | None = None,
) -> HttpApplication:
    """Return the ASGI application for a job server, which stays the caller's to start and close.

    ``routes`` picks groups (``binaries``, ``contexts``, ``jobs``, ``data``, ``operations``) or single routes
    by name; all by default. ``authenticator`` is who lets callers in; without one it is what
    ``settings.auth`` names, and with ``none`` there everybody may do everything. The application can
    be mounted below any path of another one. Raises InvalidRequest, InvalidSetting, PluginNotFound.
    """
    if authenticator is None:
        authenticator = authenticator_from_settings(server.settings)
    site = Site(server=server, routes=chosen(routes), guarded=authenticator is not None)
    site.metrics.watch(server)
    gate = Gate(authenticator, site.pools.passwords) if authenticator is not None else None
    return HttpApplication(site, gate, browsers or BrowserGuard())


class HttpApplication:
    """An ASGI 3 application; made by :func:`create_app`."""

    def __init__(self, site: Site, gate: Gate | None, browsers: BrowserGuard) -> None:
        self.site = site
        by_path: dict[str, dict[str, Route]] = {}
        for route in site.routes:
            by_path.setdefault(route.path, {})[route.method] = route
        self._starlette = Starlette(
            routes=[
                StarletteRoute(path, _Endpoint(site, gate, browsers, methods))
                for path, methods in by_path.items()
            ],
            exception_handlers={HTTPException: _not_found},
        )
        self._starlette.router.redirect_slashes = False

    def drain(self) -> None:
        """Tell who asks for readiness that no new work is taken. The job server is not touched."""
        self.site.draining = True

    def close(self) -> None:
        """End streams that would go on for ever, and all waiting. The job server is not touched."""
        self.drain()
        self.site.closing.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or take part in the server's start and end."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await self._starlette(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        guard = BodyGuard(scope, receive, send)
        watched = _Watched(scope, guard)
        self.site.metrics.began()
        scope["jobserver.guard"] = guard
        try:
            wrong = _AMBIGUOUS if guard.ambiguous else None if scope["path"].startswith("/") else _NO_PATH
            if wrong is not None:
                await respond(wrong)(scope, guard.receive, watched.send)
            else:
                await self._starlette(_without_slash(scope), guard.receive, watched.send)
        finally:
            route = scope.get("jobserver.route", _UNKNOWN)
            method = scope["method"] if route != _UNKNOWN else "ANY"
            seconds = time.monotonic() - watched.begun
            self.site.metrics.ended(route, method, watched.status, seconds)
            client = (scope.get("client") or ("-",))[0]
            # The query is not logged: it may hold what is secret, such as a callback's URL.
            path = quote(scope["path"], safe="/:@!$&'()*+,;=~-._")
            _access.info("%s %s %s %s %.3f", client, scope["method"], path, watched.status, seconds)


def _without_slash(scope: Scope) -> Scope:
    """Return the scope without the slash at the end of its path: the old server matched prefixes.

    An encoded slash is a part of a name and stays.
    """
    path, raw = scope["path"], scope.get("raw_path") or b"/"
    inside = path.removeprefix(scope.get("root_path", ""))
    if len(inside) > 1 and inside.endswith("/") and raw.endswith(b"/"):
        scope["path"] = path[:-1]
    return scope


class _Watched:
    """Sends what the application sends, notes the status, and sends no body for HEAD."""

    def __init__(self, scope: Scope, guard: BodyGuard) -> None:
        self._guard = guard
        self._head = scope["method"] == "HEAD"
        self.begun = time.monotonic()
        self.status = CLIENT_LEFT

    async def send(self, message: Message) -> None:
        """Hand on a message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": headers}
        elif self._head and message.get("body"):
            message = {**message, "body": b""}
        await self._guard.send(message)


class _Endpoint:
    """The calls on one path: chooses the route by its method, and lets nothing in that may not."""

    def __init__(
        self, site: Site, gate: Gate | None, browsers: BrowserGuard, routes: Mapping[str, Route]
    ) -> None:
        self._site = site
        self._gate = gate
        self._browsers = browsers
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answered(scope)
            await response(scope, receive, send)
        except (Disconnected, ClientDisconnect):
            return  # nobody is there to be answered

    async def _answered(self, scope: Scope) -> Response:
        names, operation = Namespace(), None
        try:
            query = parse_query(scope["query_string"])
            route = self._route(scope["method"], query)
            if route is None:
                return Response(status_code=204, headers=self._allowed())
            scope["jobserver.route"] = operation = route.name
            self._browsers.check(route.method, dict(scope["headers"]))
            identity = await self._admitted(scope, route)
            names = self._namespace(identity)
            call = Call(
                site=self._site,
                route=route,
                scope=scope,
                guard=scope["jobserver.guard"],
                query=query,
                params={
                    **parsed(route.parameters, query),
                    **_header_values(route, scope),
                },
                path=scope.get("path_params", {}),
                names=names,
                identity=identity,
            )
            return await route.handler(call)
        except (Disconnected, ClientDisconnect):
            raise
        except (Rejected, JobServerError) as error:
            if isinstance(error, BackendError):
                _log.warning("%s: %s", operation, error)
            return respond(answer_to(error, operation, names))
        except Exception:  # noqa: BLE001 - a defect becomes an answer, and is logged in full
            return _unexpected(operation)

    def _route(self, method: str, query: dict[str, str]) -> Route | None:
        """Return the route for a method, None for OPTIONS. Proxies let POST stand for other methods."""
        override = query.pop("_method", None) if method == "POST" else None
        if override is not None:
            method = override.upper()
            if method not in _OVERRIDES:
                raise Rejected(400, f"_method takes DELETE or PUT, got {override[:32]!a}")
        if method == "OPTIONS":
            return None
        route = self._routes.get("GET" if method == "HEAD" else method)
        if route is None:
            headers = self._allowed()
            raise Rejected(405, f"{method[:32]} is not allowed here, but {headers['Allow']}", headers)
        return route

    def _allowed(self) -> dict[str, str]:
        methods = {*self._routes, "OPTIONS"} | ({"HEAD"} if "GET" in self._routes else set())
        return {"Allow": ", ".join(sorted(methods))}

    async def _admitted(self, scope: Scope, route: Route) -> Identity | None:
        if self._gate is None or route.permission is None:
            return None
        address = str((scope.get("client") or ("unknown",))[0])
        identity = await self._gate.admit(scope["headers"], address)
        if not allows(identity.permissions, route.permission):
            raise Rejected(403, f"the permission {route.permission} is missing")
        return identity

    def _namespace(self, identity: Identity | None) -> Namespace:
        if identity is None or not self._site.server.settings.auth.use_as_proxy_user:
            return Namespace()
        if not _OWNER.fullmatch(identity.name):
            raise Rejected(403, "a user of this name cannot be a proxy user: it must not have ~, / or blanks")
        return Namespace(identity.name)


def _header_values(route: Route, scope: Scope) -> dict[str, object]:
    """Return the values of the route's header parameters by name."""
    names = {parameter.name.lower().encode("ascii") for parameter in route.headers}
    given: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in names:
            key = name.decode("ascii")
            if key in given:
                raise Rejected(400, f"header {key} is given more than once")
            given[key] = value.decode("latin-1")
    lower = {parameter.name: given.get(parameter.name.lower(), "") for parameter in route.headers}
    return parsed(route.headers, lower)


def _unexpected(operation: str | None) -> Response:
    """Answer to a defect of the server: the log has all of it, the client a mark to ask by."""
    mark = secrets.token_hex(4)
    _log.exception("%s failed (%s)", operation, mark)
    text = f"internal error; the server's log has it as {mark}"
    return respond(Answer(status=500, result=text, code=INTERNAL))


async def _not_found(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = f"there is nothing at {request.url.path[:256]!a}"
    return respond(Answer(status=status, result=text, code=REFUSALS.get(status, INTERNAL)))
