"""Errors of the client, and turning error responses into the server's exceptions.

A response has the ``code`` and the ``fields`` of the error, so the client raises an exception that equals
the server's. A response that is not from a job server becomes one of the errors below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jobserver_core import errors as core
from jobserver_core.errors import Conflict, InvalidRequest, JobServerError, ResultTimeout, Unavailable
from jobserver_core.models.json_values import Json, JsonMapping
from jobserver_core.uris import redacted

if TYPE_CHECKING:
    import httpx


class ServerUnreachable(Unavailable):
    """No server answers at the URL. Nothing was carried out."""

    template = "no job server answers at {url}: {reason}"
    url: str
    reason: str


class ConnectionLost(ServerUnreachable):
    """The connection was lost before the response was complete. The operation may have been carried out."""

    template = "lost the connection to {url}: {reason}"


class ClientClosed(Conflict):
    """The client is closed, so it cannot call the server. What runs there continues."""

    message: str = "this client is closed; create a new one"


class WrongScheme(ServerUnreachable):
    """The address begins with https, but the server does not use TLS."""


class InvalidProxy(InvalidRequest):
    """The environment names a proxy that cannot be used."""


class AccessDenied(JobServerError):
    """Credentials are missing or wrong, or do not permit this call.

    ``reason`` is the error code: ``unauthenticated``, ``permission_denied`` or ``too_many_failed_logins``.
    """

    message: str
    reason: str


class UnexpectedResponse(JobServerError):
    """The response is not one that a job server gives, for example the error page of a proxy."""

    template = "{url} answered {status}: {reason}"
    url: str
    status: int
    reason: str


_ERRORS = {kind.code: kind for kind in (getattr(core, name) for name in core.__all__)}
OUTAGES = (502, 503, 504)
"""The statuses of a proxy whose server is away."""
_DENIALS = ("unauthenticated", "permission_denied", "too_many_failed_logins")


def error_from(response: httpx.Response) -> JobServerError:
    """Return the exception for an error response or a redirect, whose body was read."""
    if response.has_redirect_location:
        return _unexpected(response, f"it redirects to {redacted(response.headers['location'])}")
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, Mapping) or "status" not in body:
        return _unexpected(response, response.reason_phrase)
    code = str(body.get("code", ""))
    if code in _DENIALS:
        return AccessDenied(message=message_of(body), reason=code)
    kind = _ERRORS.get(code)
    if kind is None:
        return _unexpected(response, message_of(body))
    from jobserver_core.models.serialization import structure  # noqa: PLC0415 - only errors need cattrs

    try:
        return structure({"type": kind.__name__, "fields": body.get("fields", {})}, JobServerError)
    except (ValueError, TypeError):  # an error of another release, with other fields
        return _unexpected(response, message_of(body))


def is_refusal(response: httpx.Response) -> bool:
    """Whether a response is an error or a redirect, which a job server does not send."""
    return response.is_error or response.has_redirect_location


def is_outage(error: JobServerError) -> bool:
    """Whether the server is away, for example for a restart, so that another attempt may succeed."""
    if isinstance(error, UnexpectedResponse):
        return error.status in OUTAGES
    return isinstance(error, Unavailable | ResultTimeout)


def is_gateway_error(response: httpx.Response) -> bool:
    """Whether a proxy answered, because its server is away. The server's own responses are JSON."""
    return response.status_code in OUTAGES and "json" not in response.headers.get("content-type", "")


def _unexpected(response: httpx.Response, reason: str) -> UnexpectedResponse:
    return UnexpectedResponse(url=str(response.request.url), status=response.status_code, reason=reason)


def message_of(body: JsonMapping) -> str:
    """Return the message in the body of an error response: its label, message and detail."""
    result: Json = body.get("result")
    text = result.get("message") if isinstance(result, Mapping) else result
    label = body["status"]
    words = f"{text}" if label == "ERROR" and text else f"{label}: {text}" if text else f"{label}"
    detail = body.get("detail")
    return f"{words}: {detail}" if detail else words
