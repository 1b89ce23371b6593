"""Waits and subscriptions of the client: idle streams, unreadable events, and proxies."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from io import BytesIO
from typing import Any

import pytest

import jobserver_client.connection
from conditions import wait_until
from jobserver_client import AsyncClient, Client, UnexpectedResponse, watching
from jobserver_core import BinaryType, Event, JobState, ResultTimeout, Settings
from jobserver_http import running
from loopback import Handler, Loopback
from scripted_log import JSON, a_record
from serving import WAIT, a_request, a_server, archive

HOUR = 3600.0


@pytest.fixture
def url() -> Iterator[str]:
    """The address of a server with the binary ``words``."""
    http = {"port": 0, "drain-timeout": "0 s"}
    server = a_server(settings=Settings.from_mapping({"jobserver": {"http": http}}))
    with running(server) as url:
        server.upload("words", BinaryType.EGG, archive())
        yield url


@pytest.fixture
def no_regular_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits rely on the event stream alone."""
    monkeypatch.setattr(watching, "READ_INTERVAL", HOUR)


class ScriptedServer:
    """Answers for the job ``j1`` and for the events.

    ``gateway_errors`` is how many of the next requests a proxy refuses, whose paths begin with ``refused``.
    ``events`` are sent on each stream,
    which stays open. The job has ended once ``ended`` holds; it is given the number of requests for the job.
    """

    def __init__(self, *events: bytes, ended: Callable[[int], bool]) -> None:
        self.events = events
        self.ended = ended
        self.gateway_errors = 0
        self.refused = "/"
        self.reads = 0
        self.streams = 0
        self.closing = threading.Event()

    def __call__(self, handler: Handler) -> None:
        path = handler.path.partition("?")[0]
        if self.gateway_errors > 0 and path.startswith(self.refused):
            self.gateway_errors -= 1
            handler.say(502, b"<html>Bad Gateway</html>", content_type="text/html")
        elif path == "/events":
            self._stream(handler)
        else:
            self.reads += 1
            status = "FINISHED" if self.ended(self.reads) else "RUNNING"
            handler.say(200, a_record(status), content_type=JSON)

    def _stream(self, handler: Handler) -> None:
        self.streams += 1
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("connection", "close")
        handler.end_headers()
        for data in self.events:
            handler.wfile.write(b"event: job\ndata: " + data + b"\n\n")
        handler.wfile.flush()
        self.closing.wait(WAIT)


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[ScriptedServer, str]]]:
    """Start a scripted server, and return it with its address."""
    started: list[tuple[ScriptedServer, Loopback]] = []

    def start(*events: bytes, ended: Callable[[int], bool]) -> tuple[ScriptedServer, str]:
        server = ScriptedServer(*events, ended=ended)
        web = Loopback(server).__enter__()
        started.append((server, web))
        return server, web.url("")

    yield start
    for server, web in started:
        server.closing.set()
        web.__exit__()


def test_a_stream_that_is_being_closed_is_opened_again_for_a_new_subscription(url: str) -> None:
    async def scenario() -> list[Event]:
        seen: list[Event] = []
        async with AsyncClient(url) as client:
            (await client.subscribe(lambda _event: None)).close()
            client._stream._close_idle()  # as the timer does
            await client.subscribe(seen.append)
            handle = await client.submit(a_request("w.Echo", "value = 1"))
            assert await handle.result(WAIT) == 1
            await asyncio.to_thread(wait_until, lambda: seen, "an event")
        return seen

    assert asyncio.run(scenario())


def test_a_new_listener_keeps_an_idle_stream_open(url: str) -> None:
    async def scenario() -> None:
        async with AsyncClient(url) as client:
            (await client.subscribe(lambda _event: None)).close()
            timer = client._stream._idle_timer
            assert timer is not None
            assert not timer.cancelled()
            await client.subscribe(lambda _event: None)
            assert timer.cancelled()

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_regular_reads")
def test_an_event_that_cannot_be_read_makes_waits_read_the_job(scripted: Any) -> None:
    """The first read happens before the stream is open, and the second when it opens."""
    _, url = scripted(a_record("PAUSED"), ended=lambda reads: reads > 3)
    with Client(url) as client:
        assert client.job_handle("j1").finished.result(WAIT).state is JobState.FINISHED


@pytest.mark.usefixtures("no_regular_reads")
def test_an_error_of_the_reader_ends_waits_instead_of_leaving_them_behind(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_name: str, _data: str) -> Event:
        raise RuntimeError("a bug")

    monkeypatch.setattr(watching, "event_of", broken)
    _, url = scripted(a_record("RUNNING"), ended=lambda _reads: False)
    with Client(url) as client, pytest.raises(UnexpectedResponse, match="a bug"):
        client.job_handle("j1").finished.result(WAIT)


def test_a_wait_without_events_reads_the_job_regularly(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server behind a load balancer may run the job."""
    monkeypatch.setattr(watching, "READ_INTERVAL", 0.01)
    server, url = scripted(ended=lambda reads: reads > 6)
    with Client(url) as client:
        assert client.job_handle("j1").finished.result(WAIT).state is JobState.FINISHED
    assert server.streams == 1


@pytest.mark.parametrize("refused", ["/jobs", "/events"])
@pytest.mark.usefixtures("no_regular_reads")
def test_a_wait_survives_a_proxy_whose_server_restarts(scripted: Any, refused: str) -> None:
    server, url = scripted(ended=lambda reads: reads > 2)
    with Client(url, retries=0) as client:
        handle = client.job_handle("j1")
        server.refused, server.gateway_errors = refused, 2
        assert handle.finished.result(WAIT).state is JobState.FINISHED
    assert server.gateway_errors == 0


def test_reading_through_a_proxy_is_repeated_while_its_server_restarts(scripted: Any) -> None:
    server, url = scripted(ended=lambda _reads: True)
    with Client(url, retries=2) as client:
        server.gateway_errors = 2
        assert client.job("j1").state is JobState.FINISHED
        server.gateway_errors = 2
        with pytest.raises(UnexpectedResponse, match="502"):
            client.prune()
        assert server.gateway_errors == 1, "a call that may have been carried out is not repeated"


def test_a_subscriber_that_raises_gets_the_next_events_all_the_same(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Event] = []

    def subscriber(event: Event) -> None:
        seen.append(event)
        raise RuntimeError("no such table")

    async def scenario() -> None:
        async with AsyncClient(url) as client:
            await client.subscribe(subscriber)
            handle = await client.submit(a_request("w.Echo", "value = 1"))
            assert await handle.result(WAIT) == 1
            await asyncio.to_thread(wait_until, lambda: len(seen) > 1, "the second event")

    asyncio.run(scenario())
    assert "no such table" in caplog.text
    caplog.clear()
    seen.clear()
    with Client(url) as client:
        client.subscribe(subscriber)
        assert client.submit(a_request("w.Echo", "value = 1")).result(WAIT) == 1
        wait_until(lambda: len(seen) > 1, "the second event")
    assert "no such table" in caplog.text


def test_a_subscription_outlasts_the_timeout_of_requests_and_notices_a_dead_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between two events, a server may be silent for longer than for a request, but not for ever."""
    monkeypatch.setattr(watching, "READ_TIMEOUT", 2.0)
    seen: list[Event] = []
    held, over = threading.Event(), threading.Event()
    record = a_record("RUNNING").decode()

    def behave(handler: Handler) -> None:
        if not handler.path.startswith("/events"):
            over.wait(WAIT)
            return
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        held.wait(WAIT)
        handler.wfile.write(f"event: job\ndata: {record}\n\n".encode())
        over.wait(WAIT)

    with Loopback(behave) as web, Client(web.url(""), timeout=0.2) as client:
        with client.subscribe(seen.append):
            with pytest.raises(ResultTimeout):
                client.jobs()
            held.set()
            wait_until(lambda: len(seen) == 1, "the event on the first stream")
            assert len([call for call in web.calls if call.path.startswith("/events")]) == 1
            wait_until(lambda: len(seen) == 2, "the event on the second stream")
        over.set()


def test_closing_a_client_with_an_open_subscription_logs_nothing(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "jobserver_client"), Client(url) as client:
        client.subscribe(lambda _event: None)
    assert [record for record in caplog.records if record.name.startswith("jobserver_client")] == []


def test_a_result_without_its_size_is_an_unexpected_response() -> None:
    def unsized(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", JSON)
        handler.send_header("connection", "close")
        handler.end_headers()
        handler.wfile.write(b"3")
        handler.close_connection = True

    with Loopback(unsized) as web, Client(web.url("")) as client:
        with pytest.raises(UnexpectedResponse, match="Content-Length"):
            client.open_result("j1")
        assert web.calls[0].headers["accept-encoding"] == "identity"


def test_an_upload_from_a_file_is_repeated_if_no_connection_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[bytes] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # refuses connections until it listens

        def start(_attempt: int) -> float:
            listener.listen()
            threading.Thread(target=respond, daemon=True).start()
            return 0.0

        def respond() -> None:
            connection, _ = listener.accept()
            with connection:
                text = b""
                while not text.endswith(b"0\r\n\r\n"):
                    text += connection.recv(65536)
                got.append(text)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        monkeypatch.setattr(jobserver_client.connection, "delay", start)
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", retries=1) as client:
            client.request("POST", "/data/x", content=BytesIO(b"the whole file"))
    assert b"the whole file" in got[0]


class Interrupted(BaseException):
    """Stands for the KeyboardInterrupt of Ctrl-C."""


def test_an_interrupted_iteration_raises_the_interrupt(url: str) -> None:
    """The iteration closes what it reads, even though a call still reads it."""
    reading, closed = threading.Event(), threading.Event()

    async def lines() -> AsyncGenerator[str, None]:
        try:
            yield "first"
            reading.set()
            await asyncio.sleep(HOUR)
        finally:
            await asyncio.sleep(0.05)  # closing a connection takes time, and must not be interrupted
            closed.set()

    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupted

    def press() -> None:
        reading.wait(WAIT)
        signal.pthread_kill(main.ident or 0, signal.SIGUSR1)

    main = threading.main_thread()
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with Client(url) as client:
            following = client._iterate(lines())
            assert next(following) == "first"
            threading.Thread(target=press, daemon=True).start()
            with pytest.raises(Interrupted):
                next(following)
            assert closed.is_set()
    finally:
        signal.signal(signal.SIGUSR1, before)
