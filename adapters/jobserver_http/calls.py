"""The arguments of handlers: one call, and the state that all calls of an application share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar
from urllib.parse import quote

import attrs
from starlette.types import Scope

from jobserver_core.binaries.uploads import ChunkedUpload
from jobserver_core.errors import FetchError, ResultTimeout, ServerClosed, Unavailable
from jobserver_core.models.jobs import Job
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.repeats import Repeats
from jobserver_core.running.fetching import Preparation
from jobserver_core.running.waiting import Waiter
from jobserver_core.server import JobServer
from jobserver_http.access import Namespace
from jobserver_http.authentication import Authenticator, AuthenticatorFailed, Identity
from jobserver_http.bodies import BodyGuard, Disconnected, decoded, read_body, refuse_form, stream_body
from jobserver_http.errors import BodyTooLarge
from jobserver_http.metrics import Metrics
from jobserver_http.old_java_client import FALLBACK_CHARSET, is_old_java_client
from jobserver_http.schemas import Schema
from jobserver_http.thread_pools import ThreadPools

_log = logging.getLogger(__name__)

T = TypeVar("T")


@attrs.define(kw_only=True, eq=False)
class ApplicationState:
    """The state that all calls of one application share.

    ``draining``: no new work is accepted. ``closing`` is set when the server stops; endless streams and
    waiting calls end then. ``faults`` logs failures of backends, one line a minute for each operation and
    reason. After ``heartbeat`` seconds, an idle event stream sends a comment. ``description`` is the OpenAPI
    document. Without an ``authenticator``, every caller may do everything.
    """

    server: JobServer
    description: Schema
    threads: ThreadPools = attrs.field(factory=ThreadPools)
    metrics: Metrics = attrs.field(factory=Metrics)
    faults: Repeats = attrs.field(factory=lambda: Repeats(_log))
    guarded: bool = False
    authenticator: Authenticator | None = None
    heartbeat: float = 15.0
    draining: bool = False
    closing: asyncio.Event = attrs.field(factory=asyncio.Event)
    _waiting: set[asyncio.Future[None]] = attrs.field(factory=set, init=False)

    def close(self) -> None:
        """End endless streams and waiting calls."""
        self.draining = True
        self.closing.set()
        for future in self._waiting:
            _resolve(future)

    @contextmanager
    def notified(self, waiter: Waiter[object]) -> Iterator[asyncio.Future[None]]:
        """Yield a future that is done once the waiter is done or the server stops; one costs little."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def notify(_waiter: Waiter[object]) -> None:
            with suppress(RuntimeError):  # the loop was closed in the meantime
                loop.call_soon_threadsafe(_resolve, future)

        self._waiting.add(future)
        waiter.notify(notify)
        if self.closing.is_set():
            _resolve(future)
        try:
            yield future
        finally:
            self._waiting.discard(future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_SMALL_CONFIG = 16 * 1024
"""Configurations of up to this many characters are parsed within a few tenths of a second at worst."""


@attrs.frozen(kw_only=True, eq=False)
class Call:
    """One authorized request with its parsed parameters.

    ``operation`` is the name of its route. ``admit`` checks the caller's credentials and permissions again.
    """

    state: ApplicationState
    operation: str
    scope: Scope
    guard: BodyGuard
    query: Mapping[str, str]
    params: JsonMapping
    path: Mapping[str, str]
    names: Namespace
    identity: Identity | None
    admit: Callable[[], Awaitable[object]]

    @property
    def server(self) -> JobServer:
        """The job server that handles the call."""
        return self.state.server

    @property
    def threads(self) -> ThreadPools:
        """The thread pools for blocking calls."""
        return self.state.threads

    @property
    def caller(self) -> str:
        """The key for limits per caller: the user, or the address if authentication is off."""
        if self.identity is not None:
            return f"user {self.identity.name}"
        return f"address {(self.scope.get('client') or ('unknown',))[0]}"

    @property
    def user(self) -> str:
        """The name of the authenticated user, or empty if authentication is off."""
        return self.identity.name if self.identity is not None else ""

    @property
    def revoked(self) -> bool:
        """Whether the caller's credentials have become invalid since the call began. Streams end then."""
        authenticator = self.state.authenticator
        if authenticator is None or self.identity is None:
            return False
        try:
            return not authenticator.current(self.identity)
        except (Unavailable, AuthenticatorFailed):
            return True  # a stream ends, and any other call is verified again

    async def recheck(self) -> None:
        """Refuse a caller whose credentials have become invalid while the call waited, as a new request.

        Raises:
            Rejected: The caller may not make this call any more.
        """
        if self.revoked:
            await self.admit()

    async def job(self) -> Job:
        """Return the job that the path names, as its owner sees it.

        Raises:
            JobNotFound: No job has this ID, or none that the caller may see.
        """
        return self.names.checked(await self.threads.quick.run(self.server.job, self.path["id"]))

    def header(self, name: str) -> str | None:
        """Return a header's value, or None. Repeated headers are joined with commas."""
        values = [value for key, value in self.scope["headers"] if key == name.lower().encode("ascii")]
        return b", ".join(values).decode("latin-1") if values else None

    def url(self, *segments: str) -> str:
        """Return the path of a resource, including the path at which the application is mounted.

        Clients of the old server append it to the address of the server, so it is not relative.
        """
        root: str = self.scope.get("root_path", "")
        return root.rstrip("/") + "".join(f"/{quote(segment, safe='')}" for segment in segments)

    async def text(self, what: str) -> str:
        """Read and decode a posted configuration.

        Raises:
            JobServerError: As ``read_body``, ``decoded`` and ``recheck`` do.
        """
        if self.guard.empty:
            return ""
        limit = self.server.settings.limits.config_size
        body = await read_body(self.guard.receive, limit=limit, what=what)
        await self.recheck()
        fallback = FALLBACK_CHARSET if is_old_java_client(self.scope) else None
        return decoded(body, self.header("content-type"), fallback=fallback)

    async def store_body(self, what: str, begin: Callable[[], ChunkedUpload[T]]) -> T:
        """Store the body with an upload while it arrives, completely or not at all.

        Raises:
            BodyTooLarge: The file is larger than the limit. If its Content-Length is, nothing is read.
            Rejected: The body is a multipart form, or the caller may not make this call any more.
        """
        refuse_form(self.header("content-type"))
        limit = self.server.settings.limits.upload_size
        if self.guard.declared is not None and self.guard.declared > limit:
            raise BodyTooLarge(what=what, limit=limit)
        upload = await self.threads.quick.run(begin)
        try:
            async for chunk in stream_body(self.guard.receive, limit=limit, what=what):
                await self.threads.quick.run(upload.write, chunk)
            await self.recheck()
            return await self.threads.slow.run(upload.finish)
        finally:
            await self.threads.quick.run(upload.discard)

    async def wait(self, waiter: Waiter[T], timeout: float | None = None) -> T:
        """Wait without occupying a thread, and return the waiter's value or raise its error.

        In case of the following errors, the operation itself continues.

        Raises:
            ResultTimeout: ``timeout`` seconds have passed.
            Disconnected: The client has disconnected.
            ServerClosed: The server is stopping.
            Rejected: The caller may not make this call any more.
        """
        if not waiter.done():
            with self.state.notified(waiter) as done:
                await wait_for_first(done, self._wait_for_disconnect(), timeout=timeout)
            await self.recheck()
        if waiter.done():
            return waiter.result(0)
        if timeout is None or self.state.closing.is_set():
            raise ServerClosed
        raise ResultTimeout(what=self.operation, seconds=timeout)

    async def run_prepared(
        self, text: str, begin: Callable[[JsonMapping], Preparation[T]], timeout: float | None = None
    ) -> T:
        """Parse a posted configuration, begin an operation with it, and finish that when its files are here.

        Usually one thread does all of this, but files are waited for without a thread. Large configurations
        are parsed one at a time, so that they use at most one core and no thread that other calls need. After
        the following errors, the operation has not been carried out.

        Raises:
            InvalidConfig: The configuration is not HOCON, or exceeds a limit.
            ServerClosed: The server stopped before it was the turn of a large configuration.
            FetchError: The files were not fetched within ``timeout`` seconds.
            Disconnected: The client has disconnected.
            Rejected: The caller may not make this call any more.
        """
        parse = self.server.parse_config
        config = await self._parse_in_turn(text) if len(text) > _SMALL_CONFIG else None

        def start() -> tuple[Preparation[T], list[T]]:
            """Return the preparation, and what it results in if it could be finished at once."""
            preparation = begin(parse(text) if config is None else config)
            if not preparation.ready.done():
                return preparation, []
            with preparation:
                return preparation, [preparation.finish()]

        preparation, done = await self.threads.slow.run(start)
        if done:
            return done[0]
        try:
            await self.wait(preparation.ready, timeout)
            return await self.threads.slow.run(preparation.finish)
        except ResultTimeout:
            reason = f"not fetched within the request's timeout of {timeout:g} s"
            raise FetchError(url=", ".join(preparation.missing), reason=reason) from None
        finally:
            await self.threads.quick.run(preparation.close)

    async def _parse_in_turn(self, text: str) -> JsonMapping:
        parsed: list[JsonMapping] = []

        async def parse() -> None:
            parsed.append(await self.threads.parsing.run(self.server.parse_config, text))

        await wait_for_first(parse(), self.state.closing.wait())
        if not parsed:
            raise ServerClosed
        return parsed[0]

    async def _wait_for_disconnect(self) -> None:
        while True:
            message = await self.guard.receive()
            if message["type"] == "http.disconnect":
                raise Disconnected


async def wait_for_first(*waits: Awaitable[object], timeout: float | None = None) -> None:
    """Wait until one of them is done or the timeout expires, cancel the others, and raise its error."""
    futures = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)
    for future in done:
        future.result()
