"""Requests to one server: address, credentials, timeouts, and repeating what may be repeated."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from os import PathLike
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

import httpx

from jobserver_client.errors import (
    ClientClosed,
    ConnectionLost,
    InvalidProxy,
    ServerUnreachable,
    UnexpectedResponse,
    WrongScheme,
    error_from,
    is_gateway_error,
    is_refusal,
)
from jobserver_client.options import ConnectionOptions
from jobserver_core.errors import (
    BinaryNotFound,
    Conflict,
    ContextNotFound,
    DataFileNotFound,
    InvalidRequest,
    JobNotFound,
    NotFound,
    ResultTimeout,
)
from jobserver_core.models.arguments import check_data_file_name, check_job_id, check_name, chunks_of
from jobserver_core.models.json_values import Json, loads

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0
"""Seconds before the first repeated attempt, and at most before any."""
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""What OpenSSL calls a response that is not TLS, depending on its release."""
KEEP_ALIVE = 2.0
"""Seconds for which an unused connection is kept. Servers keep it longer, so none is used too late."""
Content = bytes | AsyncIterable[bytes]
Params = Mapping[str, str | int | None]

_COLLECTIONS: Mapping[str, tuple[Callable[[object], None], Callable[[str], NotFound]]] = {
    "binaries": (partial(check_name, "binary"), lambda name: BinaryNotFound(name=name)),
    "contexts": (partial(check_name, "context"), lambda name: ContextNotFound(name=name)),
    "data": (check_data_file_name, lambda name: DataFileNotFound(name=name)),
    "jobs": (check_job_id, lambda name: JobNotFound(job_id=name)),
}
"""How a name is checked, and the error for one that nothing can have."""


def path_to(collection: str, name: str | PathLike[str], *rest: str) -> str:
    """Return the path of a resource, with each segment quoted.

    Raises:
        InvalidRequest: The name or ID is not a string.
        NotFound: A path with this name would lead elsewhere, so there can be no such resource.
    """
    check, not_found = _COLLECTIONS[collection]
    check(name)
    name = str(name)
    if name in ("", ".", "..") or ("/" in name and collection != "data"):
        raise not_found(name)
    return "".join(f"/{quote(segment, safe='')}" for segment in (collection, name, *rest))


def decoded(response: httpx.Response) -> Json:
    """Return the JSON of a response.

    Raises:
        UnexpectedResponse: It is not JSON.
    """
    try:
        return loads(response.text)
    except ValueError as error:
        raise UnexpectedResponse(
            url=str(response.request.url), status=response.status_code, reason="the response is not JSON"
        ) from error


def decoded_list(response: httpx.Response) -> list[Json]:
    """Return the JSON array of a response.

    Raises:
        UnexpectedResponse: It is something else.
    """
    items = decoded(response)
    if not isinstance(items, list):
        reason = "the response is not a JSON array"
        raise UnexpectedResponse(url=str(response.request.url), status=response.status_code, reason=reason)
    return items


_PROXY = "the proxy of the environment (HTTPS_PROXY, HTTP_PROXY or ALL_PROXY)"
"""What errors call it: its address may contain a password, so it is not shown."""


class Connection:
    """Sends requests to one server, from one event loop.

    A request that never reached the server is repeated. One whose connection was cut, or that a proxy could
    not forward, may have been carried out, so it is repeated only if that is harmless: if it only reads, or
    carries an idempotency key. The pauses between attempts grow, and differ between clients so that they do
    not come back all at once.

    Raises:
        InvalidProxy: A proxy of the environment is refused by httpx.
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self.options = options
        self.url = options.address
        self._loop: asyncio.AbstractEventLoop | None = None
        try:
            self._http = httpx.AsyncClient(
                auth=options.auth(),
                headers={"User-Agent": options.user_agent, "Accept": "application/json, */*;q=0.5"},
                timeout=self._timeout(options.response_timeout),
                limits=httpx.Limits(max_connections=100, keepalive_expiry=KEEP_ALIVE),
                trust_env=urlsplit(self.url).hostname not in _LOOPBACK,
                verify=options.verification(),
            )
        except ImportError as error:
            raise InvalidProxy(message=f"{_PROXY} needs a package: pip install 'httpx[socks]'") from error
        except (ValueError, httpx.InvalidURL) as error:
            message = f"{_PROXY} has no valid address; expected a URL such as http://proxy.example.com:3128"
            raise InvalidProxy(message=message) from error

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._http.is_closed

    def check_loop(self) -> None:
        """Check that this is the event loop of the first call: connections and tasks work in that one only.

        Raises:
            Conflict: It is another one, or none.
        """
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if self._loop is None:
            self._loop = running
        if running is None or running is not self._loop:
            message = "this client belongs to the event loop in which it was opened; create one in each loop"
            raise Conflict(message=message)

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._http.aclose()

    def _timeout(self, seconds: float | None) -> httpx.Timeout:
        return httpx.Timeout(seconds, connect=self.options.connect_timeout, pool=None)

    async def get(self, path: str, **params: str | int | None) -> Json:
        """Return the JSON of a resource."""
        return decoded(await self.request("GET", path, params=params))

    async def get_list(self, path: str, **params: str | int | None) -> list[Json]:
        """Return the JSON array that a resource is."""
        return decoded_list(await self.request("GET", path, params=params))

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        content: Content = b"",
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        slow: bool = False,
        unlimited: bool = False,
        accept_errors: bool = False,
    ) -> httpx.Response:
        """Send a request, repeat it if necessary, and return its complete response.

        ``timeout`` is in seconds without a byte, by default that of the options; ``unlimited`` waits forever.
        A ``slow`` request is one for which the server may have much to do before it responds.

        Raises:
            Conflict: The client belongs to another event loop.
            InvalidRequest: The path does not begin with a slash.
            ServerUnreachable: No server answers.
            ConnectionLost: The connection was lost.
            ResultTimeout: The response did not arrive in time.
            JobServerError: The error that the server answered with, unless errors are accepted.
        """
        self.check_loop()
        _check_path(path)
        default = self.options.slow_timeout if slow else self.options.response_timeout
        seconds = None if unlimited else timeout or default

        def build() -> httpx.Request:
            return self._http.build_request(
                method,
                self.url + path,
                params={name: value for name, value in (params or {}).items() if value is not None},
                content=content or None,
                headers=headers,
                timeout=self._timeout(seconds),
            )

        # A body that is read from a file is not consumed before the connection is open.
        repeatable = method in ("GET", "HEAD") or "Idempotency-Key" in (headers or {})
        harmless = repeatable and isinstance(content, bytes)
        try:
            response = await self._send(build, harmless=harmless)
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise ResultTimeout(what=f"{method} {self.url}{path}", seconds=seconds) from error
        if is_refusal(response) and not accept_errors:
            raise error_from(response)
        return response

    async def _send(self, build: Callable[[], httpx.Request], *, harmless: bool) -> httpx.Response:
        """Send a request, and repeat it: if it may have been carried out, only a harmless one."""
        for attempt in itertools.count(1):
            if self._http.is_closed:
                raise ClientClosed()
            is_last = attempt > self.options.retries
            try:
                response = await self._http.send(build())
                if is_last or not harmless or not is_gateway_error(response):
                    return response
            except (httpx.ReadTimeout, httpx.WriteTimeout):
                raise
            except httpx.RequestError as error:
                if self._http.is_closed or is_last or _is_tls(error) or not (harmless or _never_sent(error)):
                    raise self._unreachable(error) from error
            await asyncio.sleep(delay(attempt))
        raise AssertionError("counting never ends")

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        *,
        read_timeout: float | None = None,
        accept_errors: bool = False,
        headers: Mapping[str, str] | None = None,
        **params: str | None,
    ) -> AsyncIterator[httpx.Response]:
        """Open the response of a GET request for reading as it arrives. Nothing is repeated.

        ``read_timeout`` is in seconds without a byte; None waits forever once the response has begun, within
        the ``timeout`` of the options. An error response that is accepted has been read.

        Raises:
            Conflict: The client belongs to another event loop.
            ServerUnreachable: No server answers.
            ConnectionLost: The connection was lost while reading.
            ResultTimeout: No byte arrived in time.
            JobServerError: The error that the server answered with, unless errors are accepted.
        """
        if self._http.is_closed:
            raise ClientClosed()
        self.check_loop()
        _check_path(path)
        given = {name: value for name, value in params.items() if value is not None}
        opening = self.options.response_timeout
        seconds = opening if read_timeout is None else min(opening, read_timeout)
        timeout = self._timeout(seconds)
        try:
            async with self._http.stream(
                "GET", self.url + path, params=given, headers=headers, timeout=timeout
            ) as response:
                if is_refusal(response):
                    await response.aread()
                    if not accept_errors:
                        raise error_from(response)
                response.request.extensions["timeout"]["read"] = read_timeout  # from here on
                seconds = read_timeout or seconds
                yield response
        except httpx.ReadTimeout as error:
            raise ResultTimeout(what=f"GET {self.url}{path}", seconds=seconds) from error
        except httpx.RequestError as error:
            raise self._unreachable(error) from error

    def current(
        self, path: str, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[httpx.Response]:
        """Open a response as :meth:`stream` does, but one whose bytes are all there already."""
        return self.stream(path, read_timeout=self.options.response_timeout, headers=headers)

    def _unreachable(self, error: Exception) -> ServerUnreachable | ClientClosed:
        if self._http.is_closed:
            return ClientClosed()
        if any(getattr(one, "reason", None) in _NO_TLS for one in _causes(error)):
            reason = f"the server does not use TLS; try {self.url.replace('https:', 'http:', 1)}"
            return WrongScheme(url=self.url, reason=reason)
        kind = ServerUnreachable if _never_sent(error) else ConnectionLost
        return kind(url=self.url, reason=str(error) or type(error).__name__)


def _check_path(path: object) -> None:
    if not isinstance(path, str) or not path.startswith("/"):
        raise InvalidRequest(message=f"the path must begin with '/', such as /jobs, got {path!r}")


def _never_sent(error: Exception) -> bool:
    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


def _is_tls(error: Exception) -> bool:
    """Whether a connection failed for its certificate: another attempt would fail as well."""
    return any(isinstance(cause, ssl.SSLError) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, its cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def delay(attempt: int) -> float:
    """Return the seconds to wait after this many failed attempts."""
    longest: float = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0**attempt)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not for secrets


class FileBody:
    """The body of an upload, read without blocking the event loop. It can be sent once."""

    def __init__(self, data: BinaryIO | Iterable[bytes]) -> None:
        self._data = data
        self.sent = 0
        """How many bytes were read from the file."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = chunks_of(self._data)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            self.sent += len(chunk)
            yield chunk

    @property
    def size(self) -> int | None:
        """The number of bytes from the current position to the end, or None for what cannot seek."""
        file: Any = self._data
        try:
            position = file.tell()
            size = int(file.seek(0, os.SEEK_END) - position)
            file.seek(position)
        except (OSError, AttributeError):
            return None
        return size


def body_of(data: bytes | BinaryIO | Iterable[bytes]) -> bytes | FileBody:
    """Return the body of an upload: bytes as they are, anything else to be read as it is sent."""
    return bytes(data) if isinstance(data, (bytes, bytearray, memoryview)) else FileBody(data)
