"""What a handler is given: the call, and what all calls of an application share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import attrs
from starlette.types import Scope

from jobserver_core.errors import FetchError, ResultTimeout, ServerClosed
from jobserver_core.running.fetching import Preparation
from jobserver_core.running.waiting import Waiter
from jobserver_core.server import JobServer
from jobserver_http.authentication import Identity
from jobserver_http.bodies import BodyGuard, Disconnected, decoded, read_body, stream_body
from jobserver_http.errors import BodyTooLarge
from jobserver_http.metrics import Metrics
from jobserver_http.namespaces import Namespace
from jobserver_http.pools import Pools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobserver_http.routing import Route

__all__ = ["Call", "Site", "first_of"]

T = TypeVar("T")


@attrs.define(kw_only=True, eq=False)
class Site:
    """What the calls of one application share.

    ``draining`` says that no new work is taken; ``closing`` is set when the server ends: streams without
    end stop then, and nothing is waited for any longer. ``heartbeat`` is how many seconds an event stream
    may be silent.
    """

    server: JobServer
    routes: tuple[Route, ...] = ()
    pools: Pools = attrs.field(factory=Pools)
    metrics: Metrics = attrs.field(factory=Metrics)
    guarded: bool = False
    heartbeat: float = 15.0
    draining: bool = False
    closing: asyncio.Event = attrs.field(factory=asyncio.Event)


_SMALL_CONFIG = 16 * 1024
"""Characters of a configuration that takes no more than some tenths of a second, whatever is in it."""


@attrs.frozen(kw_only=True, eq=False)
class Call:
    """One request, routed, allowed, and with its parameters read."""

    site: Site
    route: Route
    scope: Scope
    guard: BodyGuard
    query: Mapping[str, str]
    params: Mapping[str, Any]
    path: Mapping[str, str]
    names: Namespace
    identity: Identity | None

    @property
    def server(self) -> JobServer:
        """The job server."""
        return self.site.server

    @property
    def pools(self) -> Pools:
        """Where blocking calls run."""
        return self.site.pools

    @property
    def caller(self) -> str:
        """The caller for per-caller limits: the user, or the address where nobody logs in."""
        if self.identity is not None:
            return f"user {self.identity.name}"
        return f"address {(self.scope.get('client') or ('unknown',))[0]}"

    def header(self, name: str) -> str | None:
        """Return a header's value, None when it is missing; repeated ones are joined by commas."""
        values = [value for key, value in self.scope["headers"] if key == name.lower().encode("ascii")]
        return b", ".join(values).decode("latin-1") if values else None

    def url(self, *segments: str) -> str:
        """Return the path of a resource of this application, wherever it is mounted."""
        root: str = self.scope.get("root_path", "")
        return root.rstrip("/") + "".join(f"/{quote(segment, safe='')}" for segment in segments)

    async def text(self, what: str) -> str:
        """Return the text of a posted configuration. Raises as ``read_body`` and ``decoded``."""
        limit = self.server.settings.limits.config_size
        body = await read_body(self.guard.receive, limit=limit, what=what)
        return decoded(body, self.header("content-type"))

    async def with_config(self, text: str, use: Callable[[dict[str, Any]], T]) -> T:
        """Parse a posted configuration and use it, both in threads.

        Large configurations are parsed one after the other, so that many expensive ones at once take one
        core at most and leave the threads that all other calls need alone.

        Raises:
            InvalidConfig: for what is not HOCON, or over a limit.
        """
        parse = self.server.parse_config
        if len(text) <= _SMALL_CONFIG:
            return await self.pools.slow.run(lambda: use(parse(text)))
        config = await self.pools.parsing.run(parse, text)
        return await self.pools.slow.run(use, config)

    def upload(self, what: str) -> AsyncIterator[bytes]:
        """Yield the pieces of an uploaded file; one that says it is too large is refused unread."""
        limit = self.server.settings.limits.upload_size
        if self.guard.declared is not None and self.guard.declared > limit:
            raise BodyTooLarge(what=what, limit=limit)
        return stream_body(self.guard.receive, limit=limit, what=what)

    async def wait(self, waiter: Waiter[T], timeout: float | None = None) -> T:
        """Wait without a thread, and return what the waiter has, or raise what it raises.

        Raises ResultTimeout after ``timeout`` seconds, Disconnected as soon as the client has gone, and
        ServerClosed when the server ends; in all these cases what was waited for goes on.
        """
        if not waiter.done():
            await first_of(_settled(waiter), self._gone(), self.site.closing.wait(), timeout=timeout)
        if waiter.done():
            return waiter.result(0)
        if timeout is None or self.site.closing.is_set():
            raise ServerClosed
        raise ResultTimeout(what=self.route.name, seconds=timeout)

    async def prepared(self, begin: Callable[[], Preparation[T]], patience: float | None = None) -> T:
        """Begin an operation, wait without a thread until its files are fetched, and finish it.

        Raises:
            FetchError: The files are not here after ``patience`` seconds; nothing was done then.
            Disconnected: The client has gone; nothing was done then.
        """
        preparation = await self.pools.slow.run(begin)
        try:
            await self.wait(preparation.ready, patience)
            return await self.pools.slow.run(preparation.finish)
        except ResultTimeout:
            reason = f"it did not come within the {patience:g} s for which this request waits"
            raise FetchError(url=", ".join(preparation.missing), reason=reason) from None
        finally:
            await self.pools.quick.run(preparation.close)

    async def _gone(self) -> None:
        while True:
            message = await self.guard.receive()
            if message["type"] == "http.disconnect":
                raise Disconnected


async def _settled(waiter: Waiter[Any]) -> None:
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(_waiter: Waiter[Any]) -> None:
        try:
            loop.call_soon_threadsafe(done.set)
        except RuntimeError:  # the loop has ended, so nobody waits
            return

    waiter.add_done_callback(tell)
    await done.wait()


async def first_of(*things: Coroutine[Any, Any, Any], timeout: float | None = None) -> None:
    """Wait until one of them is done or the time is over, cancel the others, and raise what one raised."""
    tasks: list[asyncio.Task[Any]] = [asyncio.ensure_future(thing) for thing in things]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
