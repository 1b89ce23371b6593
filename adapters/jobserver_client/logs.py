"""Following a log across restarts of the server.

The problem: a response with a growing log ends when the job has ended, but also when the server is stopped,
and breaks off when the server dies. In both of these cases the job may go on.

The idea: at the end of a response, the client asks whether the job or context has ended. If it has not, the
client opens the log again, and skips what it has read. Meanwhile the log may have started over, because it
had reached its maximum size, or because its job runs again on another server. So the client keeps a hash of
what it has read, and skips that only if the log still begins with it.

The invariant: nothing is left out that the log still has. If it has started over while a response was read,
and the connection is lost after that, a part is repeated.

Not handled: a server that is away for longer than ``reconnect_timeout`` ends the log with an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import attrs
import httpx

from jobserver_client.connection import Connection, delay
from jobserver_client.errors import ServerUnreachable, is_outage
from jobserver_core.errors import JobServerError, LogNotFound, Unavailable

STABLE = 5.0
"""Seconds after which a response that ends is opened again at once."""
TAKEOVER_TIMEOUT = 60.0
"""Seconds that other servers may need, at most, to take over the log of a server that has died."""
HasEnded = Callable[[], Awaitable[bool]]


@asynccontextmanager
async def followed_log(
    connection: Connection, path: str, has_ended: HasEnded
) -> AsyncIterator[httpx.Response]:
    """Open a log as one response that lasts until ``has_ended``, also if the server restarts meanwhile.

    Raises:
        ServerUnreachable: No server answers; later, none answers in time.
        JobServerError: The error that the server answered with.
    """
    async with aclosing(_Follower(connection, path, has_ended).chunks()) as chunks:
        await anext(chunks)  # opens it
        yield httpx.Response(200, headers={"content-type": "text/plain; charset=utf-8"}, content=chunks)


@attrs.define(eq=False)
class _Follower:
    """Reads one log, and remembers what it has read."""

    _connection: Connection
    _path: str
    _has_ended: HasEnded
    _position: int = attrs.field(default=0, init=False)
    _digest: hashlib._Hash = attrs.field(factory=hashlib.sha256, init=False)
    _last_open: float | None = attrs.field(default=None, init=False)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield an empty chunk once the log is open, and then what is written, until the end."""
        failures, has_ended = 0, False
        while not has_ended:
            opened = time.monotonic()
            try:
                async for chunk in self._read(follow="true"):
                    yield chunk
                has_ended = await self._has_ended()
                if has_ended and await self._has_more():
                    async for chunk in self._read(follow=None):
                        yield chunk
            except JobServerError as error:
                has_ended = False
                if not self._may_return(error):
                    raise
            failures = 0 if time.monotonic() - opened > STABLE else failures + 1
            if not has_ended:
                await asyncio.sleep(delay(failures))

    async def _read(self, follow: str | None) -> AsyncGenerator[bytes, None]:
        """Yield what follows the position, or everything if the log has started over."""
        if not await self._begins_as_before():
            self._position, self._digest = 0, hashlib.sha256()
        async with self._connection.stream(self._path, follow=follow) as response:
            if self._last_open is None:
                yield b""
            skipped = self._position
            try:
                async for chunk in response.aiter_bytes():
                    new = chunk[skipped:]
                    skipped -= len(chunk) - len(new)
                    self._position += len(new)
                    self._digest.update(new)
                    if new:
                        yield new
            finally:
                self._last_open = time.monotonic()

    async def _begins_as_before(self) -> bool:
        """Whether the log begins with what was read."""
        digest, missing = hashlib.sha256(), self._position
        if not missing:
            return True
        try:
            async with self._connection.current(self._path) as response:
                async for chunk in response.aiter_bytes():
                    digest.update(chunk[:missing])
                    missing -= min(missing, len(chunk))
                    if not missing:
                        break
        except LogNotFound:
            return False
        return not missing and digest.digest() == self._digest.digest()

    async def _has_more(self) -> bool:
        """Whether something was written between the end of the response and that of the job."""
        unpacked = {"Accept-Encoding": "identity"}  # for its size
        try:
            async with self._connection.current(self._path, unpacked) as response:
                is_longer = int(response.headers.get("content-length", 0)) > self._position
        except LogNotFound:
            return False
        return is_longer and await self._begins_as_before()

    def _may_return(self, error: JobServerError) -> bool:
        """Whether to wait for the server, which was there when the log was opened."""
        if self._last_open is None or self._connection.is_closed or not is_outage(error):
            return False
        timeout = self._connection.options.reconnect_timeout
        if isinstance(error, Unavailable) and not isinstance(error, ServerUnreachable):
            timeout = max(timeout, TAKEOVER_TIMEOUT)
        return time.monotonic() - self._last_open <= timeout
