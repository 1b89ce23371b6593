"""Files from HTTP and HTTPS servers, through httpx.

fsspec's own driver for HTTP knows neither conditional requests nor a limit on the whole time, and follows
redirects where they lead, so it is not used.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from jobserver_core.errors import FetchError, MalformedUrl
from jobserver_core.uris import Uri, UriPolicy
from jobserver_fsspec.deadlines import Deadline
from jobserver_fsspec.sources import IDLE_SECONDS, Interrupted, Opened, Source, Stamp, resolve

if TYPE_CHECKING:
    import ssl

    import httpx

__all__ = ["HttpSource"]

_MAX_HOPS = 5
_CONNECT_SECONDS = 10.0
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class HttpSource(Source):
    """Sends one GET on a connection of its own, follows redirects that the policy allows, and reads."""

    def __init__(self, policy: UriPolicy) -> None:
        self._policy = policy
        self._tls: ssl.SSLContext | None = None

    @contextmanager
    def open(
        self, uri: Uri, *, known: Stamp, partial: Stamp, offset: int, deadline: Deadline
    ) -> Iterator[Opened | None]:
        """Begin a download: conditional when a version is known, of a range when a part of it is here."""
        target, credentials = uri, _basic(uri)
        headers = _range(partial, offset) or _conditions(known)
        for _ in range(_MAX_HOPS + 1):
            authorization = {"Authorization": credentials} if credentials else {}
            with self._answer(uri, target, headers | authorization, deadline) as response:
                if response.status_code in _REDIRECTS:
                    following = self._redirected(uri, target, response)
                    credentials = credentials if _origin(following) == _origin(target) else None
                    target = following
                elif response.status_code == 416 and "Range" in headers:
                    headers = {}
                else:
                    yield _opened(uri, response, headers)
                    return
        raise FetchError(url=str(uri), reason=f"it was redirected more than {_MAX_HOPS} times")

    @contextmanager
    def _answer(
        self, uri: Uri, target: Uri, headers: dict[str, str], deadline: Deadline
    ) -> Iterator[httpx.Response]:
        import httpx  # noqa: PLC0415 - only who fetches over HTTP needs it

        # The transport below httpx's client: the client would log the URL with its query.
        with httpx.HTTPTransport(verify=self._context(target), trust_env=False) as transport:
            try:
                with _translated():
                    resolve(target, target.port or _PORTS[target.scheme], self._policy)
                    response = transport.handle_request(self._request(target, headers, deadline))
            except MalformedUrl as error:
                raise error if target is uri else _not_followed(uri, error) from None
            try:
                yield response
            finally:
                response.close()

    def _request(self, uri: Uri, headers: dict[str, str], deadline: Deadline) -> httpx.Request:
        import httpx  # noqa: PLC0415

        def watch(event: str, info: dict[str, Any]) -> None:
            """Judge the address that was really connected to, before anything is sent to it."""
            if event == "connection.connect_tcp.complete":
                connection = info["return_value"].get_extra_info("socket")
                try:
                    self._policy.check_addresses(uri, [connection.getpeername()[0]])
                except (MalformedUrl, OSError):
                    info["return_value"].close()
                    raise
                deadline.watch(connection)

        idle = deadline.remaining(IDLE_SECONDS)
        timeout = httpx.Timeout(idle, connect=deadline.remaining(_CONNECT_SECONDS))
        query = f"?{uri.encoded_query}" if uri.query else ""
        url = httpx.URL(f"{uri.scheme}://{uri.authority}{uri.encoded_path}{query}")
        if url.host != uri.host:
            raise FetchError(url=str(uri), reason="its host can be read in more than one way")
        fixed = {"User-Agent": "jobserver-core", "Accept": "*/*", "Accept-Encoding": "identity"}
        return httpx.Request(
            "GET",
            url,
            headers={**fixed, "Connection": "close", **headers},
            extensions={"timeout": timeout.as_dict(), "trace": watch},
        )

    def _redirected(self, uri: Uri, target: Uri, response: httpx.Response) -> Uri:
        """Return where an answer leads. Raises FetchError when the policy does not allow it."""
        location = response.headers.get("Location", "")
        base = f"{target.scheme}://{target.authority}{target.encoded_path}"
        try:
            following = self._policy.check(urljoin(base, location))
        except MalformedUrl as error:
            raise _not_followed(uri, error) from None
        if following.scheme not in _PORTS or (target.scheme, following.scheme) == ("https", "http"):
            reason = f"it was redirected from {target.scheme} to {following.scheme}, which is not allowed"
            raise FetchError(url=str(uri), reason=reason)
        return following

    def _context(self, target: Uri) -> ssl.SSLContext:
        import ssl  # noqa: PLC0415

        import httpx  # noqa: PLC0415

        if target.scheme == "http":
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used, and made without reading certificates
        if self._tls is None:
            self._tls = httpx.create_ssl_context()
        return self._tls


@contextmanager
def _translated() -> Iterator[None]:
    import httpx  # noqa: PLC0415

    try:
        yield
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Interrupted(str(error) or type(error).__name__) from None


def _not_followed(uri: Uri, error: MalformedUrl) -> FetchError:
    return FetchError(url=str(uri), reason=f"it was redirected to {error.url}: {error.reason}")


def _chunks(response: httpx.Response) -> Iterator[bytes]:
    with _translated():
        yield from response.iter_raw()


def _opened(uri: Uri, response: httpx.Response, headers: dict[str, str]) -> Opened | None:
    code, conditional = response.status_code, "If-None-Match" in headers or "If-Modified-Since" in headers
    if code == 304 and conditional:
        return None
    if code >= 500:
        raise Interrupted(f"HTTP {code} {response.reason_phrase}")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        reason = f"the server sent it encoded as {encoding}, which was not asked for"
        raise FetchError(url=str(uri), reason=reason)
    chunks, stamp = _chunks(response), _stamp(response)
    if code == 200:
        length = response.headers.get("Content-Length", "")
        return Opened(chunks=chunks, stamp=stamp, total=int(length) if length.isdecimal() else None)
    if code == 206 and "Range" in headers:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is None or headers["Range"] != f"bytes={found[1]}-":
            raise FetchError(url=str(uri), reason="the server answered with a range that was not asked for")
        return Opened(chunks=chunks, stamp=stamp, start=int(found[1]), total=int(found[3]))
    raise FetchError(url=str(uri), reason=f"HTTP {code} {response.reason_phrase}".rstrip())


def _basic(uri: Uri) -> str | None:
    if uri.user is None:
        return None
    pair = f"{uri.user}:{uri.password or ''}".encode()
    return f"Basic {base64.b64encode(pair).decode('ascii')}"


def _origin(uri: Uri) -> tuple[str, str, int]:
    return uri.scheme, uri.host, uri.port or _PORTS[uri.scheme]


def _stamp(response: httpx.Response) -> dict[str, str]:
    """Keep what later tells whether the content is the same."""
    stamp = {}
    if etag := response.headers.get("ETag"):
        stamp["etag"] = etag
    if _settled(response):
        stamp["modified"] = response.headers["Last-Modified"]
    return stamp


def _settled(response: httpx.Response) -> bool:
    """Whether the content was a while old when it was sent, so that Last-Modified tells it from the next.

    It has a resolution of one second (RFC 9110, section 8.8.2.2).
    """
    try:
        modified, sent = (
            parsedate_to_datetime(response.headers.get(name, "")) for name in ("Last-Modified", "Date")
        )
        return (sent - modified).total_seconds() >= 2
    except (TypeError, ValueError):
        return False


def _conditions(known: Stamp) -> dict[str, str]:
    headers = {}
    if "etag" in known:
        headers["If-None-Match"] = known["etag"]
    if "modified" in known:
        headers["If-Modified-Since"] = known["modified"]
    return headers


def _range(partial: Stamp, offset: int) -> dict[str, str]:
    """Ask for the rest, if it still is of the same version; weak tags do not say so (RFC 9110, 13.1.5)."""
    etag = partial.get("etag", "")
    same = etag if etag and not etag.startswith("W/") else partial.get("modified")
    return {"Range": f"bytes={offset}-", "If-Range": same} if offset and same else {}
