"""Serving the application: binding safely, draining on a signal, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import uvicorn

from jobserver_core.config.settings import HttpSettings
from jobserver_core.errors import InvalidSetting, JobServerError
from jobserver_core.server import JobServer
from jobserver_http.addresses import is_loopback
from jobserver_http.application import HttpApplication, create_app
from jobserver_http.authentication import Authenticator, authenticator_from_settings
from jobserver_http.browsers import BrowserGuard
from jobserver_http.connections import Connections, PatientProtocol
from jobserver_http.descriptors import affordable, report_starvation

__all__ = ["is_loopback", "running", "serve"]

_log = logging.getLogger(__name__)

Listening = Callable[[str, int], None]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
HURRY = 9.0
"""Seconds that contexts and stores get to stop and close when a second signal came."""
LAST_ANSWERS = 2
"""Seconds that requests get to be answered, once no job is left to wait for."""
POLL = 0.2
MAX_HEAD = 64 * 1024
"""Bytes that the head of a request may have."""
BACKLOG = 2048
"""Connections that the system holds until they are accepted."""
ACCEPTED_AT_ONCE = 64
"""Connections that are accepted in one go, which is also how often asyncio tries without descriptors."""


def serve(
    server: JobServer,
    *,
    authenticator: Authenticator | None = None,
    on_listening: Listening | None = None,
    on_draining: Callable[[], None] | None = None,
    on_overdue: Callable[[], None] | None = None,
) -> None:
    """Start the job server, serve it over HTTP until SIGTERM or SIGINT, and close it.

    Listens where ``server.settings.http`` says; ``on_listening`` is called with host and port as soon as
    requests are answered (a port 0 is the one that was found). The first signal drains: ``on_draining``
    is called, new work is refused, jobs that have begun go on for up to ``drain-timeout`` seconds. Then,
    within ``stop-timeout`` seconds, contexts are stopped and everything is closed; a second signal hurries.
    Returns when all is done. To be called on the main thread.

    ``on_overdue`` is called, on a thread of its own, when the process still lives after both time-outs: also
    when this function has returned by then, since a thread that hangs keeps a process alive.

    Raises InvalidSetting when it may not or cannot listen there; then the server was not started, but closed.
    """
    Runner(server, authenticator, on_listening, on_draining, on_overdue).run(signals=True)


@contextlib.contextmanager
def running(server: JobServer, *, authenticator: Authenticator | None = None) -> Iterator[str]:
    """Serve a job server on a thread inside the ``with`` block, and give its base URL.

    For tests and for programs that embed a server. Starts and closes the job server as :func:`serve` does,
    and leaves the process' signals alone.
    """
    listening: list[tuple[str, int]] = []
    up = threading.Event()

    def told(host: str, port: int) -> None:
        listening.append((host, port))
        up.set()

    failed: list[BaseException] = []
    runner = Runner(server, authenticator, told)

    def work() -> None:
        try:
            runner.run(signals=False)
        except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
            failed.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=work, name="jobserver-http")
    thread.start()
    try:
        up.wait()  # an interrupt here ends the thread as well
        if failed:
            raise failed[0]
        yield runner.url(*listening[0])
    finally:
        runner.stop()
        thread.join()
    if failed:
        raise failed[0]


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, which would end the process by the signal itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the runner."""
        yield


class Runner:
    """One run of a server, from binding to the last context's end."""

    def __init__(
        self,
        server: JobServer,
        authenticator: Authenticator | None,
        on_listening: Listening | None,
        on_draining: Callable[[], None] | None = None,
        on_overdue: Callable[[], None] | None = None,
    ) -> None:
        self._server = server
        self._http: HttpSettings = server.settings.http
        self._authenticator = authenticator or authenticator_from_settings(server.settings)
        self._on_listening = on_listening or (lambda _host, _port: None)
        self._on_draining = on_draining or (lambda: None)
        self._on_overdue = on_overdue
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = 0
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stopping_since: float | None = None

    def url(self, host: str, port: int) -> str:
        """Return the base URL of a listening address."""
        scheme = "https" if self._http.tls_certificate else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def run(self, *, signals: bool) -> None:
        """Serve until asked to stop, and close the server."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._server.close)  # also when it never started
            self._check_exposure()
            self._check_certificate()
            listener = stack.enter_context(self._bind())
            asyncio.run(self._run(listener, signals))

    def stop(self) -> None:
        """Ask to stop, from any thread; asking twice hurries."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._ask)

    def _ask(self) -> None:
        self._asked += 1
        if self._asked == 1:
            self._watch_the_time()
        (self._stop if self._asked == 1 else self._hurry).set()

    def _watch_the_time(self) -> None:
        if self._on_overdue is not None:
            seconds = self._http.drain_timeout + self._server.settings.stop_timeout
            watch = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._on_overdue)
            watch.name, watch.daemon = "shutdown watch", True
            watch.start()

    async def _run(self, listener: socket.socket, signals: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(report_starvation)
        for number in SIGNALS if signals else ():
            self._loop.add_signal_handler(number, self._ask)
        try:
            await asyncio.to_thread(self._server.start)
            if not self._stop.is_set():
                await self._serve(listener)
        finally:
            await self._close()

    async def _serve(self, listener: socket.socket) -> None:
        app = create_app(self._server, authenticator=self._authenticator, browsers=self._browsers())
        web = _Uvicorn(self._config(app))
        serving = asyncio.ensure_future(web.serve(sockets=[listener]))
        while not web.started and not serving.done():
            await asyncio.sleep(0.01)
        if web.started:
            listener.listen(BACKLOG)  # what uvicorn calls backlog is only how many it accepts in one go
            self._on_listening(*listener.getsockname()[:2])
            await _first(serving, self._stop.wait())
            await self._drain(app, web)
        await serving

    async def _close(self) -> None:
        """Close the job server; once somebody is in a hurry, by force."""
        seconds = min(HURRY, self._left()) if self._hurry.is_set() else self._left()
        closing = asyncio.ensure_future(asyncio.to_thread(self._server.close, seconds))
        await _first(closing, self._hurry.wait())
        if not closing.done():
            await asyncio.to_thread(self._kill_contexts)
        await closing

    def _left(self) -> float:
        """How many seconds of the stop time-out are left, which counts from the end of the drain."""
        begun = self._stopping_since or time.monotonic()
        return self._server.settings.stop_timeout - (time.monotonic() - begun)

    def _kill_contexts(self) -> None:
        try:
            for context in self._server.contexts():
                self._server.kill_context(context.name)
        except JobServerError as error:  # it is closing at the same time
            _log.info("while killing contexts: %s", error)

    async def _drain(self, app: HttpApplication, web: _Uvicorn) -> None:
        """Take no new work, and let the jobs end that have begun, as far as there is time."""
        app.drain()
        deadline = time.monotonic() + self._http.drain_timeout
        await _first(asyncio.to_thread(self._server.drain), timeout=self._http.drain_timeout)
        self._on_draining()
        while self._server.begun_jobs and not self._hurry.is_set() and time.monotonic() < deadline:
            await _first(self._hurry.wait(), timeout=POLL)
        self._stopping_since = time.monotonic()
        app.close()
        web.should_exit = True
        if self._hurry.is_set():
            web.force_exit = True

    def _browsers(self) -> BrowserGuard:
        exposed = self._authenticator is not None or self._http.allow_unauthenticated
        return BrowserGuard(local_only=not exposed, hosts=(self._http.host,))

    def _config(self, app: HttpApplication) -> uvicorn.Config:
        connections = Connections(
            total=affordable(self._http.max_connections),
            per_network=self._http.max_connections_per_address,
            idle_timeout=self._http.idle_timeout,
            proxies=self._http.trusted_proxies,
        )
        options: dict[str, Any] = {}
        if self._http.tls_certificate is not None:
            options = {"ssl_certfile": self._http.tls_certificate, "ssl_keyfile": self._http.tls_key}
        return uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", partial(PatientProtocol, connections=connections)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(self._http.trusted_proxies),
            forwarded_allow_ips=list(self._http.trusted_proxies),
            backlog=ACCEPTED_AT_ONCE,
            timeout_keep_alive=math.ceil(self._http.idle_timeout),
            h11_max_incomplete_event_size=MAX_HEAD,
            timeout_graceful_shutdown=LAST_ANSWERS,
            **options,
        )

    def _check_exposure(self) -> None:
        open_to_all = self._authenticator is None and not self._http.allow_unauthenticated
        if open_to_all and not is_loopback(self._http.host):
            raise InvalidSetting(
                key="jobserver.http.host",
                message=f"{self._http.host} can be reached from other machines, and whoever reaches it can "
                "run code: configure jobserver.auth, listen on 127.0.0.1, or set "
                "jobserver.http.allow-unauthenticated = true",
            )
        plain = self._http.tls_certificate is None
        if self._authenticator is not None and plain and not is_loopback(self._http.host):
            _log.warning("credentials travel unencrypted: configure jobserver.http.tls-certificate")

    def _check_certificate(self) -> None:
        certificate, key = self._http.tls_certificate, self._http.tls_key
        if certificate is None:
            return
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        except OSError as error:  # as all errors of OpenSSL are
            raise InvalidSetting(
                key="jobserver.http.tls-certificate",
                message=f"{certificate} and {key} are no certificate with its key: {error.strerror or error}",
            ) from None

    def _bind(self) -> socket.socket:
        host, port = self._http.host, self._http.port
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, protocol)
        except OSError as error:
            raise _cannot_listen(host, port, error) from None
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise _cannot_listen(host, port, error) from None
        listener.setblocking(False)
        return listener


def _cannot_listen(host: str, port: int, error: OSError) -> InvalidSetting:
    reason = error.strerror or str(error)
    return InvalidSetting(
        key="jobserver.http.port",
        message=f"cannot listen on {host} port {port}: {reason}; choose another one, or 0 for a free one",
    )


async def _first(*things: Any, timeout: float | None = None) -> None:
    """Wait until one of them is done, or the time is over; cancel those that only waited for an event."""
    tasks = [asyncio.ensure_future(thing) for thing in things]
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for thing, task in zip(things, tasks, strict=True):
        if thing is not task:
            task.cancel()
