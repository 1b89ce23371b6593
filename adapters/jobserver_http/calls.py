"""The arguments of handlers: one call, and the state that all calls of an application share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import attrs
from starlette.types import Scope

from jobserver_core.errors import FetchError, ResultTimeout, ServerClosed
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_core.running.fetching import Preparation
from jobserver_core.running.waiting import Waiter
from jobserver_core.server import JobServer
from jobserver_http.access import Namespace
from jobserver_http.authentication import Identity
from jobserver_http.bodies import BodyGuard, Disconnected, decoded, read_body, stream_body
from jobserver_http.errors import BodyTooLarge
from jobserver_http.metrics import Metrics
from jobserver_http.pools import Pools
from jobserver_http.schemas import Schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Call", "ApplicationState", "wait_for_first"]

T = TypeVar("T")


@attrs.define(kw_only=True, eq=False)
class ApplicationState:
    """The state that all calls of one application share.

    ``draining`` means that no new work is accepted. ``closing`` is set when the server stops; endless streams
    and waiting calls end then. ``heartbeat`` is the number of seconds after which an idle event stream sends
    a comment. ``describe`` returns the OpenAPI document, for the path at which the application is mounted.
    """

    server: JobServer
    describe: Callable[[str], Schema]
    pools: Pools = attrs.field(factory=Pools)
    metrics: Metrics = attrs.field(factory=Metrics)
    guarded: bool = False
    heartbeat: float = 15.0
    draining: bool = False
    closing: asyncio.Event = attrs.field(factory=asyncio.Event)


_SMALL_CONFIG = 16 * 1024
"""Configurations of up to this many characters are parsed within a few tenths of a second at worst."""


@attrs.frozen(kw_only=True, eq=False)
class Call:
    """One authorized request with its parsed parameters. ``operation`` is the name of its route."""

    state: ApplicationState
    operation: str
    scope: Scope
    guard: BodyGuard
    query: Mapping[str, str]
    params: JsonMapping
    path: Mapping[str, str]
    names: Namespace
    identity: Identity | None

    @property
    def server(self) -> JobServer:
        """The job server that handles the call."""
        return self.state.server

    @property
    def pools(self) -> Pools:
        """The thread pools for blocking calls."""
        return self.state.pools

    @property
    def caller(self) -> str:
        """The key for limits per caller: the user, or the address if authentication is off."""
        if self.identity is not None:
            return f"user {self.identity.name}"
        return f"address {(self.scope.get('client') or ('unknown',))[0]}"

    def header(self, name: str) -> str | None:
        """Return a header's value, or None. Repeated headers are joined with commas."""
        values = [value for key, value in self.scope["headers"] if key == name.lower().encode("ascii")]
        return b", ".join(values).decode("latin-1") if values else None

    def url(self, *segments: str) -> str:
        """Return the path of a resource, including the path at which the application is mounted."""
        root: str = self.scope.get("root_path", "")
        return root.rstrip("/") + "".join(f"/{quote(segment, safe='')}" for segment in segments)

    async def text(self, what: str) -> str:
        """Read and decode a posted configuration. Raises the errors of ``read_body`` and ``decoded``."""
        limit = self.server.settings.limits.config_size
        body = await read_body(self.guard.receive, limit=limit, what=what)
        return decoded(body, self.header("content-type"))

    async def with_config(self, text: str, use: Callable[[JsonObject], T]) -> T:
        """Parse a posted configuration and pass it to ``use``, both in threads.

        Large configurations are parsed one after the other, so that they use at most one core and do not
        occupy the threads that other calls need.

        Raises:
            InvalidConfig: The configuration is not HOCON, or exceeds a limit.
            ServerClosed: The server stopped before it was the turn of a large configuration.
        """
        parse = self.server.parse_config
        if len(text) <= _SMALL_CONFIG:
            return await self.pools.slow.run(lambda: use(parse(text)))
        parsed: list[JsonObject] = []

        async def parse_in_turn() -> None:
            parsed.append(await self.pools.parsing.run(parse, text))

        await wait_for_first(parse_in_turn(), self.state.closing.wait())
        if not parsed:
            raise ServerClosed
        return await self.pools.slow.run(use, parsed[0])

    def upload(self, what: str) -> AsyncIterator[bytes]:
        """Yield the chunks of an uploaded file.

        Raises:
            BodyTooLarge: The file is larger than the limit. If its Content-Length is, nothing is read.
        """
        limit = self.server.settings.limits.upload_size
        if self.guard.declared is not None and self.guard.declared > limit:
            raise BodyTooLarge(what=what, limit=limit)
        return stream_body(self.guard.receive, limit=limit, what=what)

    async def wait(self, waiter: Waiter[T], timeout: float | None = None) -> T:
        """Wait without occupying a thread, and return the waiter's value or raise its error.

        In case of the following errors, the operation itself continues.

        Raises:
            ResultTimeout: ``timeout`` seconds have passed.
            Disconnected: The client has disconnected.
            ServerClosed: The server is stopping.
        """
        if not waiter.done():
            await wait_for_first(
                _settled(waiter), self._disconnected(), self.state.closing.wait(), timeout=timeout
            )
        if waiter.done():
            return waiter.result(0)
        if timeout is None or self.state.closing.is_set():
            raise ServerClosed
        raise ResultTimeout(what=self.operation, seconds=timeout)

    async def prepared(self, begin: Callable[[], Preparation[T]], timeout: float | None = None) -> T:
        """Begin an operation, wait without occupying a thread until its files are fetched, and finish it.

        After the following errors, the operation has not been carried out.

        Raises:
            FetchError: The files were not fetched within ``timeout`` seconds.
            Disconnected: The client has disconnected.
        """
        preparation = await self.pools.slow.run(begin)
        try:
            await self.wait(preparation.ready, timeout)
            return await self.pools.slow.run(preparation.finish)
        except ResultTimeout:
            reason = f"not fetched within the request's timeout of {timeout:g} s"
            raise FetchError(url=", ".join(preparation.missing), reason=reason) from None
        finally:
            await self.pools.quick.run(preparation.close)

    async def _disconnected(self) -> None:
        while True:
            message = await self.guard.receive()
            if message["type"] == "http.disconnect":
                raise Disconnected


async def _settled(waiter: Waiter[Any]) -> None:
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def notify(_waiter: Waiter[Any]) -> None:
        try:
            loop.call_soon_threadsafe(done.set)
        except RuntimeError:  # the loop was closed in the meantime
            return

    waiter.add_done_callback(notify)
    await done.wait()


async def wait_for_first(*waits: Coroutine[Any, Any, Any], timeout: float | None = None) -> None:
    """Wait until one of them is done or the timeout expires, cancel the others, and raise its error."""
    tasks: list[asyncio.Task[Any]] = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
