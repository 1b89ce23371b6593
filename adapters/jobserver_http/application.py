"""The ASGI application: routes requests to handlers, and turns errors into responses."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from urllib.parse import quote, unquote

import attrs
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from jobserver_core.errors import BackendError, JobServerError, ServerClosed
from jobserver_core.models.arguments import check_kind
from jobserver_core.server import JobServer
from jobserver_http.access import Namespace, allows
from jobserver_http.addresses import BrowserGuard, without_password_dialog
from jobserver_http.authentication import (
    Authenticator,
    CredentialVerifier,
    Identity,
    authenticator_from_settings,
    checked_authenticator,
)
from jobserver_http.bodies import BodyGuard, Disconnected
from jobserver_http.calls import ApplicationState, Call
from jobserver_http.errors import INTERNAL, REFUSALS, Rejected, StatusResponse, response_to
from jobserver_http.old_java_client import is_old_java_client, with_stack_lines
from jobserver_http.openapi import document
from jobserver_http.parameters import parse_query, parsed
from jobserver_http.responses import ValueResponse, respond
from jobserver_http.routes import chosen
from jobserver_http.routing import Route

_log = logging.getLogger(__name__)
_access = logging.getLogger("jobserver_http.access")

_OVERRIDES = ("DELETE", "PUT")
_OWNER = re.compile(r"[^/\\\s~\x00-\x1f\x7f]{1,128}")
_UNKNOWN = "none"
_AMBIGUOUS = StatusResponse(
    status=400,
    result="the request has both Content-Length and Transfer-Encoding",
    code=REFUSALS[400],
    headers={"Connection": "close"},
)
_NO_PATH = StatusResponse(status=400, result="the request target must start with /", code=REFUSALS[400])
_UNFINISHED = (
    "the job server is shutting down and could not finish this request in time; it may have been carried "
    "out, so check before you repeat it"
)
CHALLENGE = "WWW-Authenticate"
CLIENT_DISCONNECTED = 499
"""The status in logs and metrics if the client disconnected before the response."""


def create_app(
    server: JobServer,
    *,
    routes: Collection[str] | None = None,
    authenticator: Authenticator | None = None,
    browsers: BrowserGuard | None = None,
) -> HttpApplication:
    """Create the ASGI application for a job server. The caller starts and closes the job server.

    The application can be mounted below any path of another one.

    Args:
        server: The job server.
        routes: Groups (``binaries``, ``contexts``, ``jobs``, ``data``, ``operations``, ``ui``) or names of
            routes. By default, all routes are included.
        authenticator: Verifies callers. By default, it is created from ``settings.auth``; with ``none``,
            every caller may do everything.
        browsers: Refuses requests of web pages from other sites.

    Raises:
        InvalidRequest: A route or group is unknown, or an argument has the wrong type.
        InvalidSetting: The authenticator's settings are invalid.
        PluginNotFound: The authenticator is not installed.
    """
    check_kind("the server", server, JobServer, "a JobServer")
    check_kind("browsers", browsers, (BrowserGuard, type(None)), "a BrowserGuard")
    expected = "an object of a subclass of Authenticator"
    check_kind("authenticator", authenticator, (Authenticator, type(None)), expected)
    if authenticator is None:
        authenticator = authenticator_from_settings(server.settings)
    else:
        authenticator = checked_authenticator(authenticator)
    guarded, selected = authenticator is not None, chosen(routes)
    state = ApplicationState(
        server=server,
        description=document(selected, guarded=guarded),
        guarded=guarded,
        authenticator=authenticator,
    )
    state.metrics.watch(server)
    verifier = CredentialVerifier(authenticator, state.threads.passwords) if authenticator else None
    return HttpApplication(state, selected, verifier, browsers or BrowserGuard())


class HttpApplication:
    """An ASGI 3 application, created by :func:`create_app`."""

    def __init__(
        self,
        state: ApplicationState,
        routes: Iterable[Route],
        verifier: CredentialVerifier | None,
        browsers: BrowserGuard,
    ) -> None:
        self.state = state
        by_path: dict[str, dict[str, Route]] = {}
        for route in routes:
            by_path.setdefault(route.path, {})[route.method] = route
        # Starlette tries one path after the other, and most requests are about jobs.
        jobs_first = sorted(by_path.items(), key=lambda item: not item[0].startswith("/jobs"))
        # Starlette's middleware is left out: endpoints turn their errors into responses themselves.
        self._router = Router(
            routes=[
                StarletteRoute(path, _Endpoint(state, verifier, browsers, methods))
                for path, methods in jobs_first
            ],
            redirect_slashes=False,
            default=_respond_not_found,
        )

    def drain(self) -> None:
        """Report in ``/readyz`` that no new work is accepted. The job server is not affected."""
        self.state.draining = True

    def close(self) -> None:
        """End endless streams and waiting calls. The job server is not affected."""
        self.state.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request or a lifespan message."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await self._router(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        guard, routed = BodyGuard(scope, receive, send), _routed(scope)
        recorder = _ResponseRecorder(scope, guard)
        self.state.metrics.request_started()
        routed["jobserver.guard"] = guard
        try:
            rejected = _AMBIGUOUS if guard.ambiguous else None if scope["path"].startswith("/") else _NO_PATH
            if rejected is not None:
                await respond(rejected)(scope, guard.receive, recorder.send)
            else:
                await self._router(routed, guard.receive, recorder.send)
        finally:
            route = routed.get("jobserver.route", _UNKNOWN)
            method = scope["method"] if route != _UNKNOWN else "ANY"
            seconds = time.monotonic() - recorder.started
            self.state.metrics.request_ended(route, method, recorder.status, seconds)
            client = (scope.get("client") or ("-",))[0]
            # The query is not logged, because it may contain secrets, for example in a callback URL.
            path = quote(scope["path"], safe="/:@!$&'()*+,;=~-._")
            user = quote(routed.get("jobserver.user", ""), safe="@:+")
            last = f" {user}" if user else ""
            text = "%s %s %s %s %.3f%s"
            _access.info(text, client, scope["method"], path, recorder.status, seconds, last)


_SLASH = "\udc2f"
"""What a slash in a name is while the path is routed: in its decoded form, a name would be two segments."""
_NAMED = ("binaries", "contexts", "jars", "jobs")
"""The first segments of paths with names. Those of data files are whole paths."""


def _routed(scope: Scope) -> Scope:
    """Return a scope whose path has each name in one segment, and no trailing slash, which is ignored."""
    path, root = scope["path"], scope.get("root_path", "")
    raw = (scope.get("raw_path") or b"/").decode("latin-1")
    relative = raw.removeprefix(quote(root))
    if "%2f" in relative.lower() and relative[1:].partition("/")[0] in _NAMED:
        path = root + _SLASH.join(map(unquote, re.split("%2f", relative, flags=re.IGNORECASE)))
    if len(path.removeprefix(root)) > 1 and path.endswith("/") and raw.endswith("/"):
        path = path[:-1]
    return scope if path == scope["path"] else {**scope, "path": path}


class _ResponseRecorder:
    """Forwards the messages of a response, records its status, and drops the body for HEAD."""

    def __init__(self, scope: Scope, guard: BodyGuard) -> None:
        self._guard = guard
        self._head = scope["method"] == "HEAD"
        self.started = time.monotonic()
        self.status = CLIENT_DISCONNECTED

    async def send(self, message: Message) -> None:
        """Send a message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": headers}
        elif self._head and message.get("body"):
            message = {**message, "body": b""}
        await self._guard.send(message)


@attrs.frozen(eq=False)
class _Endpoint:
    """Handles the requests for one path: selects the route by method, and checks permissions."""

    _state: ApplicationState
    _verifier: CredentialVerifier | None
    _browsers: BrowserGuard
    _routes: Mapping[str, Route]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._respond(scope)
            if isinstance(response, ValueResponse) and is_old_java_client(scope):
                response.encode_again(with_stack_lines(response.body))
            await response(scope, receive, send)
        except (Disconnected, ClientDisconnect):
            return

    async def _respond(self, scope: Scope) -> Response:
        names, operation = Namespace(), None
        try:
            query = parse_query(scope["query_string"])
            route = self._route(scope["method"], query)
            if route is None:
                return Response(status_code=204, headers=self._allowed())
            scope["jobserver.route"] = operation = route.name
            self._browsers.check(route.method, dict(scope["headers"]))
            identity = await self._authenticate(scope, route)
            names = self._namespace(identity)
            call = Call(
                state=self._state,
                operation=operation,
                scope=scope,
                guard=scope["jobserver.guard"],
                query=query,
                params=parsed(route.parameters, query) | _header_values(route, scope),
                path={name: value.replace(_SLASH, "/") for name, value in scope["path_params"].items()},
                names=names,
                identity=identity,
                admit=partial(self._authenticate, scope, route),
            )
            return await route.handler(call)
        except (Disconnected, ClientDisconnect):
            raise
        except asyncio.CancelledError:
            if not self._state.closing.is_set():
                raise
            # uvicorn cancels what still waits, such as for a database that hangs, and would send plain text.
            return respond(response_to(ServerClosed(message=_UNFINISHED), operation, names))
        except (Rejected, JobServerError) as error:
            if isinstance(error, BackendError):
                self._state.faults.warning(f"{operation}: {error}", "%s: %s", operation, error)
            return respond(response_to(error, operation, names))
        except Exception:  # noqa: BLE001 - becomes a response with a reference to the log entry
            reference = secrets.token_hex(4)
            _log.exception("%s failed (reference %s)", operation, reference)
            text = f"internal error; the server's log has the details under reference {reference}"
            return respond(StatusResponse(status=500, result=text, code=INTERNAL))

    def _route(self, method: str, query: dict[str, str]) -> Route | None:
        """Return the route for a method, or None for OPTIONS. POST can override its method."""
        override = query.pop("_method", None) if method == "POST" else None
        if override is not None:
            method = override.upper()
            if method not in _OVERRIDES:
                raise Rejected(400, f"_method must be DELETE or PUT, got {override[:32]!a}")
        if method == "OPTIONS":
            return None
        route = self._routes.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = self._allowed()
            text = f"method {method[:32]} is not allowed; allowed methods: {allowed['Allow']}"
            raise Rejected(405, text, allowed)
        return route

    def _allowed(self) -> dict[str, str]:
        methods = {*self._routes, "OPTIONS"} | ({"HEAD"} if "GET" in self._routes else set())
        return {"Allow": ", ".join(sorted(methods))}

    async def _authenticate(self, scope: Scope, route: Route) -> Identity | None:
        if self._verifier is None or route.permission is None:
            return None
        address = str((scope.get("client") or ("unknown",))[0])
        try:
            identity = await self._verifier.admit(scope["headers"], address)
        except Rejected as rejected:
            if challenge := rejected.headers.get(CHALLENGE):
                headers = dict(scope["headers"])
                rejected.headers[CHALLENGE] = without_password_dialog(challenge, headers)
            raise
        scope["jobserver.user"] = identity.name
        if route.permission and not allows(identity.permissions, route.permission):
            raise Rejected(403, f"missing permission {route.permission}")
        return identity

    def _namespace(self, identity: Identity | None) -> Namespace:
        if identity is None or not self._state.server.settings.auth.use_as_proxy_user:
            return Namespace()
        if not _OWNER.fullmatch(identity.name):
            raise Rejected(403, "a proxy user's name must not contain ~, / or whitespace")
        return Namespace(identity.name)


def _header_values(route: Route, scope: Scope) -> dict[str, object]:
    """Parse the values of the route's header parameters."""
    names = {parameter.name.lower().encode("ascii") for parameter in route.headers}
    given: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in names:
            key = name.decode("ascii")
            if key in given:
                raise Rejected(400, f"header {key} is repeated")
            given[key] = value.decode("latin-1")
    lower = {parameter.name: given.get(parameter.name.lower(), "") for parameter in route.headers}
    return parsed(route.headers, lower)


async def _respond_not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        await WebSocketClose()(scope, receive, send)
        return
    text = f"unknown path {scope['path'].replace(_SLASH, '/')[:256]!a}"
    await respond(StatusResponse(status=404, result=text, code=REFUSALS[404]))(scope, receive, send)
