"""Running the application as a server: binding, draining on a signal, and closing everything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import anyio
import uvicorn

from jobserver_core.config.settings import HttpSettings
from jobserver_core.errors import InvalidSetting, JobServerError
from jobserver_core.models.arguments import check_kind
from jobserver_core.server import JobServer
from jobserver_http.addresses import (
    BrowserGuard,
    check_certificate,
    check_exposure,
    is_loopback,
    listening_problem,
)
from jobserver_http.application import HttpApplication, create_app
from jobserver_http.authentication import Authenticator, authenticator_from_settings, checked_authenticator
from jobserver_http.connections import (
    Connections,
    LimitedProtocol,
    report_starvation,
    within_descriptor_limit,
)

_log = logging.getLogger(__name__)

Listening = Callable[[str, int], None]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
FORCED_STOP_TIMEOUT = 9.0
"""Seconds to stop contexts and close stores after a second signal."""
RESPONSE_TIMEOUT = 2
"""Seconds for pending responses after the drain."""
POLL_INTERVAL = 0.2
"""Seconds between two checks whether any job still runs; a shutdown may take this much longer."""
DATE_INTERVAL = 1.0
"""Seconds for which a response's Date header stays the same."""
MAX_HEAD_SIZE = 64 * 1024
"""The maximum size of a request head in bytes."""
BACKLOG = 2048
"""How many connections the operating system queues until they are accepted."""
ACCEPT_BATCH = 16
"""How many connections are accepted at once; also how often asyncio retries without free descriptors.

The next ones are accepted before these are served, so a burst has several times as many that wait.
"""


def serve(
    server: JobServer,
    *,
    authenticator: Authenticator | None = None,
    on_listening: Listening | None = None,
    on_draining: Callable[[], None] | None = None,
    on_overdue: Callable[[], None] | None = None,
) -> None:
    """Start the job server, serve it over HTTP until SIGTERM or SIGINT, and close it.

    Must be called on the main thread. The server listens on the address in ``server.settings.http``.

    The first signal starts the drain: new work is refused, and running jobs have up to ``drain-timeout``
    seconds to finish. Then contexts are stopped and everything is closed, within ``stop-timeout`` seconds. A
    second signal ends the drain and shortens the stop.

    Args:
        server: The job server.
        authenticator: Verifies callers. By default, it is created from ``server.settings.auth``.
        on_listening: Called with the host and the actual port when the server answers requests.
        on_draining: Called when the drain starts.
        on_overdue: Called on a separate thread if the process is still alive after both timeouts, even after
            this function has returned: a hanging thread keeps the process alive.

    Raises:
        InvalidSetting: The server cannot listen on the address, or it would be exposed without
            authentication. In that case, the job server was closed without being started.
    """
    ServerRun(server, authenticator, on_listening, on_draining, on_overdue).run(signals=True)


@contextlib.contextmanager
def running(server: JobServer, *, authenticator: Authenticator | None = None) -> Iterator[str]:
    """Serve a job server on a thread within the ``with`` block, which gets the base URL.

    For tests, and for programs that embed a server. Starts and closes the job server like :func:`serve`, but
    does not handle signals.
    """
    url: Future[str] = Future()
    server_run = ServerRun(
        server, authenticator, lambda host, port: url.set_result(server_run.url(host, port))
    )
    with ThreadPoolExecutor(1, thread_name_prefix="jobserver-http") as threads:
        ended = threads.submit(server_run.run, signals=False)
        either: list[Future[Any]] = [url, ended]
        try:
            futures.wait(either, return_when=futures.FIRST_COMPLETED)
            if ended.done():
                ended.result()
            yield url.result()
        finally:
            server_run.stop()
    ended.result()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, which would kill the process with the signal.

    Its main loop waits for :meth:`stop`; uvicorn's own wakes up ten times a second.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = asyncio.Event()

    def stop(self, *, force: bool) -> None:
        """End the main loop; with ``force`` also the pending responses."""
        self.should_exit = True
        self.force_exit = force
        self._stopped.set()

    async def main_loop(self) -> None:
        """Renew the Date header once a second until the server is stopped."""
        while not await self.on_tick(0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), DATE_INTERVAL)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the server run."""
        yield


class ServerRun:
    """One run of a server, from binding its port to closing the job server."""

    def __init__(
        self,
        server: JobServer,
        authenticator: Authenticator | None,
        on_listening: Listening | None,
        on_draining: Callable[[], None] | None = None,
        on_overdue: Callable[[], None] | None = None,
    ) -> None:
        check_kind("the server", server, JobServer, "a JobServer")
        self._server = server
        self._http: HttpSettings = server.settings.http
        given = checked_authenticator(authenticator) if authenticator else None
        self._authenticator = given or authenticator_from_settings(server.settings)
        self._on_listening = on_listening or (lambda _host, _port: None)
        self._on_draining = on_draining or (lambda: None)
        self._on_overdue = on_overdue
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_requests = 0
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._stopping_since: float | None = None

    def url(self, host: str, port: int) -> str:
        """Return the base URL of a listening address."""
        scheme = "https" if self._http.tls_certificate else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def run(self, *, signals: bool) -> None:
        """Serve until a stop is requested, and close the server."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._server.close)  # even if it was never started
            self._check_exposure()
            check_certificate(self._http)
            listener = stack.enter_context(self._bind())
            asyncio.run(self._run(listener, signals))

    def stop(self) -> None:
        """Request a stop, from any thread. A second request ends the drain and shortens the stop."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is already closed
                self._loop.call_soon_threadsafe(self._request_stop)

    def _request_stop(self) -> None:
        self._stop_requests += 1
        if self._stop_requests > 1:
            self._force.set()
            return
        self._stop.set()
        if self._on_overdue is not None:
            seconds = self._http.drain_timeout + self._server.settings.stop_timeout
            watchdog = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._on_overdue)
            watchdog.name, watchdog.daemon = "shutdown watchdog", True
            watchdog.start()

    async def _run(self, listener: socket.socket, signals: bool) -> None:
        self._loop = asyncio.get_running_loop()
        anyio.current_time()  # imports anyio's backend, which would fail later if no file descriptor is left
        self._loop.set_exception_handler(report_starvation)
        for number in SIGNALS if signals else ():
            self._loop.add_signal_handler(number, self._request_stop)
        try:
            await asyncio.to_thread(self._server.start)
            if not self._stop.is_set():
                await self._serve(listener)
        finally:
            await self._close()

    async def _serve(self, listener: socket.socket) -> None:
        exposed = self._authenticator is not None or self._http.allow_unauthenticated
        browsers = BrowserGuard(local_only=not exposed, hosts=(self._http.host,))
        app = create_app(self._server, authenticator=self._authenticator, browsers=browsers)
        web = _Uvicorn(self._config(app))
        serving = asyncio.ensure_future(web.serve(sockets=[listener]))
        while not web.started and not serving.done():
            await asyncio.sleep(0.01)
        if web.started:
            listener.listen(BACKLOG)  # uvicorn's "backlog" is only the number that it accepts at once
            self._on_listening(*listener.getsockname()[:2])
            await _first(serving, self._stop.wait())
            await self._drain(app, web)
        await serving

    async def _close(self) -> None:
        """Close the job server within the stop timeout, which starts at the end of the drain.

        After a second request to stop, kill its contexts.
        """
        now = time.monotonic()
        seconds = self._server.settings.stop_timeout - (now - (self._stopping_since or now))
        if self._force.is_set():
            seconds = min(FORCED_STOP_TIMEOUT, seconds)
        closing = asyncio.ensure_future(asyncio.to_thread(self._server.close, seconds))
        await _first(closing, self._force.wait())
        if not closing.done():
            await asyncio.to_thread(self._kill_contexts)
        await closing

    def _kill_contexts(self) -> None:
        try:
            for context in self._server.contexts():
                if context.owner == self._server.id:
                    self._server.kill_context(context.name)
        except JobServerError as error:  # expected, as the server is closing at the same time
            _log.info("while killing contexts: %s", error)

    async def _drain(self, app: HttpApplication, web: _Uvicorn) -> None:
        """Refuse new work, and wait for running jobs until the drain timeout or a second request to stop."""
        app.drain()
        deadline = time.monotonic() + self._http.drain_timeout
        await _first(asyncio.to_thread(self._server.drain), timeout=self._http.drain_timeout)
        self._on_draining()
        if not self._server.detaches:  # jobs do not go on without this server
            while self._server.begun_jobs and not self._force.is_set() and time.monotonic() < deadline:
                await _first(self._force.wait(), timeout=POLL_INTERVAL)
        self._stopping_since = time.monotonic()
        app.close()
        web.stop(force=self._force.is_set())

    def _config(self, app: HttpApplication) -> uvicorn.Config:
        connections = Connections(
            total=within_descriptor_limit(self._http.max_connections),
            per_network=self._http.max_connections_per_address,
            idle_timeout=self._http.idle_timeout,
            proxies=self._http.trusted_proxies,
        )
        return uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", partial(LimitedProtocol, connections=connections)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(self._http.trusted_proxies),
            forwarded_allow_ips=list(self._http.trusted_proxies),
            backlog=ACCEPT_BATCH,
            timeout_keep_alive=math.ceil(self._http.idle_timeout),
            h11_max_incomplete_event_size=MAX_HEAD_SIZE,
            timeout_graceful_shutdown=RESPONSE_TIMEOUT,
            ssl_certfile=self._http.tls_certificate,
            ssl_keyfile=self._http.tls_key,
        )

    def _check_exposure(self) -> None:
        check_exposure(self._http, authenticated=self._authenticator is not None)
        if self._authenticator is not None and (problem := self._authenticator.problem()):
            _log.warning(problem)
        plain = self._http.tls_certificate is None
        if self._authenticator is not None and plain and not is_loopback(self._http.host):
            _log.warning("credentials are sent unencrypted: configure jobserver.http.tls-certificate")

    def _bind(self) -> socket.socket:
        host, port = self._http.host, self._http.port
        with contextlib.ExitStack() as stack:
            try:
                family, kind, protocol, _, address = socket.getaddrinfo(
                    host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )[0]
                listener = stack.enter_context(socket.socket(family, kind, protocol))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(BACKLOG)
            except OSError as error:
                key, problem, advice = listening_problem(host, port, error)
                raise InvalidSetting(key=key, message=f"{problem}; {advice}") from None
            listener.setblocking(False)
            stack.pop_all()
            return listener


async def _first(*waits: Awaitable[object], timeout: float | None = None) -> None:
    """Wait until one of them is done or the timeout expires; cancel those that are coroutines, not tasks."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for wait, task in zip(waits, tasks, strict=True):
        if wait is not task:
            task.cancel()
