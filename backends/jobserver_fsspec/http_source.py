"""Files from HTTP and HTTPS servers.

fsspec's own HTTP driver is not used, because it supports neither conditional requests nor a limit on the
total time, and follows all redirects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from jobserver_core.errors import FetchError
from jobserver_core.uris import Uri
from jobserver_fsspec.sources import Interrupted, Opened, Source, Stamp
from jobserver_net.connections import Connector, is_unknown_host
from jobserver_net.deadlines import Deadline

if TYPE_CHECKING:
    from jobserver_net.http import HttpClient, HttpResponse

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class HttpSource(Source):
    """Downloads files, each with a GET request on a separate connection."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._client: HttpClient | None = None

    @contextmanager
    def open(
        self, uri: Uri, *, known: Stamp, partial: Stamp, offset: int, deadline: Deadline
    ) -> Iterator[Opened | None]:
        """Start a download: a conditional request for a known version, a range request for a partial file."""
        headers = _range(partial, offset) or _conditions(known)
        with self._response(uri, headers, deadline) as response:
            if response.status != 416 or "Range" not in headers:
                yield _opened(uri, response, headers)
                return
        with self._response(uri, {}, deadline) as response:
            yield _opened(uri, response, {})

    @contextmanager
    def _response(self, uri: Uri, headers: Mapping[str, str], deadline: Deadline) -> Iterator[HttpResponse]:
        from jobserver_net.http import HttpRequest  # noqa: PLC0415 - see _open_client

        request = HttpRequest(uri=uri, headers={**headers, "Accept-Encoding": "identity"})
        with ExitStack() as stack:
            with _translated(uri):
                response = stack.enter_context(self._open_client().exchange(request, deadline))
            yield response

    def _open_client(self) -> HttpClient:
        """Return the client. It is created at its first use, because it imports large libraries."""
        from jobserver_net.http import HttpClient, tls_context  # noqa: PLC0415

        if self._client is None:
            self._client = HttpClient(self._connector, tls=lambda: tls_context(trust_env=True))
        return self._client


@contextmanager
def _translated(uri: Uri) -> Iterator[None]:
    from jobserver_net.http import ConnectionFailed, RedirectRefused  # noqa: PLC0415

    try:
        yield
    except RedirectRefused as error:
        raise FetchError(url=str(uri), reason=str(error)) from None
    except ConnectionFailed as error:
        if is_unknown_host(error.__cause__):
            raise FetchError(url=str(uri), reason=str(error)) from None
        raise Interrupted(str(error)) from None


def _chunks(uri: Uri, response: HttpResponse) -> Iterator[bytes]:
    with _translated(uri):
        yield from response.chunks


def _opened(uri: Uri, response: HttpResponse, headers: Mapping[str, str]) -> Opened | None:
    code, conditional = response.status, "If-None-Match" in headers or "If-Modified-Since" in headers
    if code == 304 and conditional:
        return None
    if code >= 500:
        raise Interrupted(f"HTTP {code} {response.reason}")
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        reason = f"the server sent an encoding that was not requested: {encoding}"
        raise FetchError(url=str(uri), reason=reason)
    chunks, stamp = _chunks(uri, response), _stamp(response)
    if code == 200:
        length = response.headers.get("content-length", "")
        return Opened(chunks=chunks, stamp=stamp, total=int(length) if length.isdecimal() else None)
    if code == 206 and "Range" in headers:
        found = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if found is None or headers["Range"] != f"bytes={found[1]}-":
            raise FetchError(url=str(uri), reason="the server sent a range that was not requested")
        return Opened(chunks=chunks, stamp=stamp, start=int(found[1]), total=int(found[3]))
    raise FetchError(url=str(uri), reason=f"HTTP {code} {response.reason}".rstrip())


def _stamp(response: HttpResponse) -> dict[str, str]:
    """Return the validators of a response.

    Last-Modified has a resolution of one second (RFC 9110, section 8.8.2.2). So it identifies a version only
    if the content was old enough when it was sent.
    """
    headers = response.headers
    stamp = {"etag": headers["etag"]} if headers.get("etag") else {}
    with suppress(TypeError, ValueError, KeyError):
        modified, sent = (parsedate_to_datetime(headers[name]) for name in ("last-modified", "date"))
        if (sent - modified).total_seconds() >= 2:
            stamp["modified"] = headers["last-modified"]
    return stamp


def _conditions(known: Stamp) -> dict[str, str]:
    names = {"etag": "If-None-Match", "modified": "If-Modified-Since"}
    return {header: known[name] for name, header in names.items() if name in known}


def _range(partial: Stamp, offset: int) -> dict[str, str]:
    """Request the rest if the version has not changed, which weak tags cannot ensure (RFC 9110, 13.1.5)."""
    etag = partial.get("etag", "")
    same = etag if etag and not etag.startswith("W/") else partial.get("modified")
    return {"Range": f"bytes={offset}-", "If-Range": same} if offset and same else {}
