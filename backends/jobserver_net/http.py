"""HTTP requests to checked addresses. The policy is applied to each redirect again.

Every request has its own connection. There are no cookies and no proxies. Of the environment, only the
certificates of :func:`tls_context` are used.
"""

from __future__ import annotations

import base64
import functools
import os
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import attrs
import certifi
import httpcore

from jobserver_core.errors import InvalidSetting, MalformedUrl
from jobserver_core.uris import Uri, redacted
from jobserver_net.connections import IDLE_SECONDS, Connector
from jobserver_net.deadlines import Deadline, Expired

MAX_REDIRECTS = 5
"""The most redirects to follow: package indexes and object stores need two or three."""
_PORTS = {"http": 80, "https": 443}
_FAILURES = (OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)
_REDIRECTS = (301, 302, HTTPStatus.SEE_OTHER, 307, 308)


class ConnectionFailed(Exception):
    """A connection failed, or the peer does not speak HTTP; ``str()`` returns the reason."""


class RedirectRefused(Exception):
    """A redirect that is not followed; ``str()`` returns the reason."""


@attrs.frozen(kw_only=True)
class HttpRequest:
    """A request. ``headers`` are sent in addition to the usual ones, ``body_headers`` only with the body."""

    uri: Uri
    method: str = "GET"
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body_headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b""


@attrs.frozen(kw_only=True)
class HttpResponse:
    """The head of a response, and its body as it arrives. Header names are in lower case."""

    status: int
    reason: str
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


class HttpClient:
    """Sends requests to the addresses that a policy allows, and follows up to ``MAX_REDIRECTS`` redirects.

    301, 302, 307 and 308 repeat the request at the new location; 303 continues with a GET. A redirect from
    https to http is refused. Credentials in the URI are sent as Basic authentication, only to the origin of
    the URI and only until a redirect leaves it. ``tls`` is called once, for the first request over https.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        tls: Callable[[], ssl.SSLContext],
        user_agent: str = "jobserver-core",
    ) -> None:
        self._connector = connector
        self._tls = functools.cache(tls)
        self._user_agent = user_agent

    @contextmanager
    def exchange(self, request: HttpRequest, deadline: Deadline) -> Iterator[HttpResponse]:
        """Send a request and yield the first response that is not a redirect; its body is not read yet.

        Reading the body can also raise ConnectionFailed and Expired.

        Raises:
            MalformedUrl: The policy does not allow an address of the host.
            RedirectRefused: The policy does not allow a redirect, or there are too many.
            ConnectionFailed: The connection could not be made, or broke.
            Expired: There is no time left.
        """
        target, credentials = request.uri, _basic(request.uri)
        for _ in range(MAX_REDIRECTS + 1):
            with ExitStack() as stack:
                try:
                    response = stack.enter_context(self._opened(target, request, credentials, deadline))
                except MalformedUrl as error:
                    raise error if target is request.uri else _not_followed(error) from None
                if response.status not in _REDIRECTS:
                    yield response
                    return
            following = self._following(target, response)
            credentials = credentials if _origin(following) == _origin(target) else None
            if response.status == HTTPStatus.SEE_OTHER and request.method != "GET":
                request = HttpRequest(uri=request.uri, headers=request.headers)
            target = following
        raise RedirectRefused(f"it was redirected more than {MAX_REDIRECTS} times")

    @contextmanager
    def _opened(
        self, target: Uri, request: HttpRequest, credentials: str | None, deadline: Deadline
    ) -> Iterator[HttpResponse]:
        given = {**request.headers, **request.body_headers}
        headers = {
            "host": _host(target),
            "user-agent": self._user_agent,
            "accept": "*/*",
            "connection": "close",
            **{name.lower(): value for name, value in given.items()},
        }
        if request.method != "GET":
            headers["content-length"] = str(len(request.body))
        if credentials is not None:
            headers["authorization"] = credentials
        query = f"?{target.encoded_query}" if target.query else ""
        backend = _PinnedBackend(self._connector, target, deadline)
        tls = self._tls() if target.scheme == "https" else None
        with httpcore.ConnectionPool(
            ssl_context=tls, network_backend=backend, max_keepalive_connections=0
        ) as pool:
            with _translated(deadline):
                stream = pool.stream(
                    request.method,
                    httpcore.URL(
                        scheme=target.scheme.encode(),
                        host=target.host.encode("ascii"),
                        port=target.port or _PORTS[target.scheme],
                        target=f"{target.encoded_path}{query}".encode("ascii"),
                    ),
                    # In the usual case, for servers that accept no other.
                    headers=[(name.title().encode("ascii"), text.encode()) for name, text in headers.items()],
                    content=request.body or None,
                )
                response = stream.__enter__()
            try:
                yield _response(response, deadline)
            finally:
                with suppress(*_FAILURES):
                    stream.__exit__(None, None, None)

    def _following(self, target: Uri, response: HttpResponse) -> Uri:
        location = response.headers.get("location")
        if location is None:
            raise RedirectRefused("it was redirected without saying where to")
        query = f"?{target.encoded_query}" if target.query else ""
        base = f"{target.scheme}://{target.authority}{target.encoded_path}{query}"
        try:
            following = self._connector.policy.check(urljoin(base, location))
        except MalformedUrl as error:
            raise _not_followed(error) from None
        except ValueError:
            raise RedirectRefused(f"it was redirected to {redacted(location)}, which is not a URI") from None
        if following.scheme not in _PORTS or (target.scheme, following.scheme) == ("https", "http"):
            raise RedirectRefused(
                f"it was redirected from {target.scheme} to {following.scheme}, which is not followed"
            )
        return following


def tls_context(ca_file: Path | None = None, *, key: str = "", trust_env: bool = False) -> ssl.SSLContext:
    """Trust the usual authorities, or those in a file instead; ``trust_env`` respects SSL_CERT_FILE.

    Raises:
        InvalidSetting: The file of the setting ``key`` cannot be used.
    """
    if ca_file is None:
        file = os.environ.get("SSL_CERT_FILE") if trust_env else None
        directory = os.environ.get("SSL_CERT_DIR") if trust_env else None
        if not file and not directory:
            file = certifi.where()
        return ssl.create_default_context(cafile=file or None, capath=directory or None)
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:
        no_certificates = isinstance(error, ssl.SSLError) or not error.strerror
        reason = "it contains no certificates in PEM format" if no_certificates else error.strerror
        raise InvalidSetting(key=key, message=f"cannot use {ca_file}: {reason}") from error


class _PinnedBackend(httpcore.NetworkBackend):
    """Connects to a checked address of one URI's host, whatever host httpcore names."""

    def __init__(self, connector: Connector, uri: Uri, deadline: Deadline) -> None:
        self._connector = connector
        self._uri = uri
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._connector.connect(self._uri, port, self._deadline), self._deadline)


class _TimedStream(httpcore.NetworkStream):
    """A connection whose operations all end by a deadline, however slowly data arrives."""

    def __init__(self, connection: Any, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._connection.settimeout(self._deadline.left(IDLE_SECONDS))
        received: bytes = self._connection.recv(max_bytes)
        return received

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        rest = memoryview(buffer)
        while rest:
            self._connection.settimeout(self._deadline.left(IDLE_SECONDS))
            rest = rest[self._connection.send(rest) :]

    def close(self) -> None:
        self._connection.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            self._connection.settimeout(self._deadline.left(IDLE_SECONDS))
            secured = ssl_context.wrap_socket(self._connection, server_hostname=server_hostname)
        except BaseException:
            self.close()
            raise
        return _TimedStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._connection if info == "socket" else None


@contextmanager
def _translated(deadline: Deadline) -> Iterator[None]:
    """Raise errors of sockets, TLS and httpcore as ConnectionFailed, or as Expired after the deadline."""
    try:
        yield
    except Expired:
        raise
    except _FAILURES as error:
        deadline.left()
        raise ConnectionFailed(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return f"no data arrived for {IDLE_SECONDS:g} s"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _response(response: httpcore.Response, deadline: Deadline) -> HttpResponse:
    headers: dict[str, str] = {}
    for raw, value in response.headers:
        name = raw.decode("ascii", "replace").lower()
        text = value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    reason = response.extensions.get("reason_phrase", b"").decode("latin-1")

    def chunks() -> Iterator[bytes]:
        with _translated(deadline):
            yield from response.iter_stream()

    return HttpResponse(status=response.status, reason=reason, headers=headers, chunks=chunks())


def _not_followed(error: MalformedUrl) -> RedirectRefused:
    return RedirectRefused(f"it was redirected to {error.url}: {error.reason}")


def _host(uri: Uri) -> str:
    host = uri.host.partition("%")[0]
    host = f"[{host}]" if ":" in host else host
    return host if uri.port in (None, _PORTS[uri.scheme]) else f"{host}:{uri.port}"


def _origin(uri: Uri) -> tuple[str, str, int]:
    return uri.scheme, uri.host, uri.port or _PORTS[uri.scheme]


def _basic(uri: Uri) -> str | None:
    if uri.user is None:
        return None
    pair = f"{uri.user}:{uri.password or ''}".encode()
    return f"Basic {base64.b64encode(pair).decode('ascii')}"
