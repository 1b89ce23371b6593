"""Connections over real sockets: idle timeouts, limits, and running out of descriptors."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_site import Site, Start

from conditions import wait_until
from jobserver_http import connections
from serving import WAIT

TESTS = Path(__file__).resolve().parents[2]
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
OK = b'{"status":"SUCCESS"}'


class Peer:
    """A client's end of a connection."""

    def __init__(self, site: Site) -> None:
        url = httpx.URL(site.url)
        self.socket = socket.create_connection((url.host, url.port or 80), timeout=WAIT)

    def get(self) -> bytes:
        """Return the response to a request, empty when the server has closed the connection."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(GET)
        return self.received()

    def received(self) -> bytes:
        response = b""
        with contextlib.suppress(ConnectionError):
            while not response.endswith(b"}") and (piece := self.socket.recv(65536)):
                response += piece
        return response

    def closed(self) -> bool:
        """Wait until the server closes the connection; False when it sends something instead."""
        return self.received() == b""


@pytest.fixture
def peers() -> Iterator[Any]:
    """Connect to a server; every connection is closed after the test."""
    with contextlib.ExitStack() as stack:

        def connect(site: Site) -> Peer:
            peer = Peer(site)
            stack.callback(peer.socket.close)
            return peer

        yield connect


def test_a_connection_is_kept_for_a_minute_by_default(site: Site) -> None:
    assert site.server.settings.http.idle_timeout == 60.0


def test_an_idle_connection_is_kept_as_long_as_configured(start: Start, peers: Any) -> None:
    site = start({"http": {"idle-timeout": "6 s"}})
    used, fresh = peers(site), peers(site)
    assert used.get().endswith(OK)
    begun = time.monotonic()
    assert used.closed()
    assert fresh.closed()
    assert time.monotonic() - begun > 5.5


def test_the_head_of_a_request_must_come_in_time(
    site: Site, peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.3)
    first, later = peers(site), peers(site)
    first.socket.sendall(GET[:20])
    assert first.closed()
    assert later.get().endswith(OK)
    later.socket.sendall(GET[:5])
    assert later.closed()


def test_trickling_bytes_do_not_extend_the_timeout(
    site: Site, peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.5)
    slow = peers(site)
    slow.socket.settimeout(0.05)
    slow.socket.sendall(b"GET /healthz HTTP/1.1\r\n")
    deadline = time.monotonic() + WAIT
    ended = False
    while not ended:
        assert time.monotonic() < deadline, "a client that sends byte by byte holds its connection"
        try:
            slow.socket.sendall(b"X")
            ended = slow.socket.recv(1) == b""
        except TimeoutError:
            continue
        except ConnectionError:
            ended = True


def test_a_client_that_does_not_read_is_disconnected(
    site: Site, peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = threading.Event()
    ended = connections.LimitedProtocol.connection_lost

    def told(self: connections.LimitedProtocol, error: Exception | None) -> None:
        ended(self, error)
        lost.set()

    monkeypatch.setattr(connections.LimitedProtocol, "connection_lost", told)
    monkeypatch.setattr(connections, "UNREAD_TIMEOUT", 0.3)
    job_id = site.submit("w.Echo", "value = " + "x" * 900_000, sync="true").json()["jobId"]
    deaf = peers(site)
    deaf.socket.sendall(f"GET /jobs/{job_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 20)
    assert lost.wait(WAIT), "a client that does not read holds its connection"


def test_at_the_limit_the_longest_idle_connection_is_closed(start: Start, peers: Any) -> None:
    site = start({"http": {"max-connections": 3}})
    site.client.close()
    one, two, three = peers(site), peers(site), peers(site)
    for peer in (two, three, one):
        assert peer.get().endswith(OK)
    assert peers(site).get().endswith(OK)
    assert two.closed()
    assert three.get().endswith(OK)
    assert one.get().endswith(OK)


def test_a_flood_of_connections_does_not_lock_out_other_clients(start: Start, peers: Any) -> None:
    site = start({"http": {"max-connections": 20}})
    for _ in range(100):
        peers(site).socket.sendall(GET[:9])
    wait_until(lambda: peers(site).get().endswith(OK), "a request is served")  # 503 while the flood is read


def test_a_request_beyond_connections_that_are_all_in_use_is_503(start: Start, peers: Any) -> None:
    site = start({"http": {"max-connections": 2}})
    site.client.close()
    for _ in range(2):
        busy = peers(site)
        busy.socket.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in busy.socket.recv(65536)
    refused = peers(site)
    response = refused.get()
    assert response.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 5" in response.lower()
    assert b'"code":"too_many_connections"' in response
    assert refused.closed()


BURST = 300
POST = (
    b"POST /jobs?cp=w&mainClass=w.Count HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"
    + b" " * 5000
)


def burst(site: Site, peers: Any, request: bytes) -> list[bytes]:
    """The responses to a request on many connections that are open at once; empty after a reset."""
    burst = [peers(site) for _ in range(BURST)]
    for peer in burst:
        peer.socket.sendall(request)
    return [peer.received() for peer in burst]


@pytest.mark.parametrize("request_bytes", [GET, POST], ids=["GET", "POST"])
def test_every_request_of_a_burst_beyond_the_limit_is_503(
    start: Start, peers: Any, request_bytes: bytes
) -> None:
    site = start({"http": {"max-connections": 20}})
    site.client.close()
    for _ in range(20):
        busy = peers(site)
        busy.socket.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in busy.socket.recv(65536)
    for response in burst(site, peers, request_bytes):
        assert response.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"too_many_connections"' in response
        assert b"retry-after: 5" in response.lower()
        assert b"connection: close" in response.lower()


def test_no_request_of_a_burst_is_reset_to_make_room_for_another(
    start: Start, peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "FIRST_REQUEST_TIMEOUT", WAIT)
    site = start({"http": {"max-connections": 20}})
    site.client.close()
    statuses = [response[9:12] for response in burst(site, peers, GET)]
    assert set(statuses) == {b"200", b"503"}
    assert statuses.count(b"200") >= 20


class Connection(connections.LimitedProtocol):
    """A connection without a network: just the parts that the connection counter uses."""

    def __init__(self, *, busy: bool = False, since: float = 0.0) -> None:
        self.idle_since = since
        self.is_busy = busy
        self._silent = False
        self.closed = False
        self.transport = self  # type: ignore[assignment]

    @property
    def busy(self) -> bool:
        return self.is_busy

    def close(self) -> None:
        self.closed = True


def test_one_client_cannot_use_the_share_of_others() -> None:
    counted = connections.Connections(total=100, per_network=2)
    busy = [Connection(busy=True) for _ in range(2)]
    for each, address in zip(busy, ("2001:db8::1", "2001:db8::2"), strict=True):
        assert counted.admit(each, address)
    assert not counted.admit(Connection(), "2001:db8::3")
    assert counted.admit(Connection(), "2001:db8:0:1::1")
    assert counted.admit(Connection(), "192.0.2.1")
    counted.remove(busy[0])
    quiet = Connection(since=5.0)
    counted = connections.Connections(total=100, per_network=1)
    assert counted.admit(quiet, "192.0.2.1")
    assert counted.admit(Connection(), "192.0.2.2")
    assert counted.admit(Connection(), "192.0.2.1")
    assert quiet.closed


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.1.2.3", "::ffff:127.0.0.1"])
def test_loopback_and_trusted_proxies_may_have_any_share(address: str) -> None:
    counted = connections.Connections(total=100, per_network=1, proxies=("10.1.0.0/16",))
    assert all(counted.admit(Connection(busy=True), address) for _ in range(50))


def test_clients_behind_a_trusted_proxy_are_distinguished(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    site = start({"http": {"trusted-proxies": "127.0.0.1"}})
    with caplog.at_level("INFO", logger="jobserver_http.access"):
        site.client.get("/jobs", headers={"X-Forwarded-For": "203.0.113.9, 203.0.113.7"})
        site.client.get("/jobs")  # a call is logged once its response was sent
    assert any("203.0.113.7 GET /jobs" in record.getMessage() for record in caplog.records)


def test_forwarded_headers_from_untrusted_peers_are_ignored(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="jobserver_http.access"):
        site.client.get("/jobs", headers={"X-Forwarded-For": "203.0.113.9"})
        site.client.get("/jobs")
    assert not any("203.0.113.9" in record.getMessage() for record in caplog.records)


# -- without descriptors ---------------------------------------------------------------------------

PROGRAM = textwrap.dedent(
    """
    import logging, os, resource, sys
    from contextlib import suppress
    from serving import a_server
    from jobserver_core import Settings
    from jobserver_http import connections, serve

    soft = 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    connections.SHARE = 1  # so that connections alone use up the descriptors
    logging.basicConfig(level=logging.INFO, filename=sys.argv[1])
    http = {"port": 0, "drain-timeout": "0 s", "max-connections": 1000}
    taken = []


    def announce(host, port):
        if "one-left" in sys.argv:
            with suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            os.close(taken.pop())
        print(f"http://{host}:{port}", flush=True)


    serve(a_server(settings=Settings.from_mapping({"jobserver": {"http": http}})), on_listening=announce)
    """
)


@contextlib.contextmanager
def limited(log: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], httpx.URL]]:
    """A server that may have few descriptors, and its address. It has ended after the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(log), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    try:
        assert process.stdout is not None
        yield process, httpx.URL(process.stdout.readline().strip())
    finally:
        process.terminate()
        process.wait(WAIT)
        assert process.stdout is not None
        process.stdout.close()


@contextlib.contextmanager
def starved(log: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.URL, contextlib.ExitStack]]:
    """A server without descriptors, its address, and the connections that have used them up."""
    with limited(log) as (process, url), contextlib.ExitStack() as stack:
        for _ in range(150):
            peer = stack.enter_context(socket.create_connection((url.host, url.port or 80), timeout=WAIT))
            peer.sendall(UPLOAD)
        wait_until(lambda: "cannot accept connections" in log.read_text(), log.read_text)
        yield process, url, stack


UPLOAD = (
    b"POST /binaries/slow HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/java-archive\r\nContent-Length: 1000\r\n\r\nPK\x03\x04"
)
"""The beginning of an upload, which keeps its connection in use."""


def test_running_out_of_descriptors_logs_one_line_and_the_server_recovers(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with starved(log) as (process, url, clients):
        pause = time.monotonic() + 3.0  # the attempts of three seconds, of which none is to be logged
        while time.monotonic() < pause:
            assert process.poll() is None
            time.sleep(0.1)
        clients.close()
        assert httpx.get(url.join("/healthz"), timeout=30.0).status_code == 200
    text = log.read_text()
    assert text.count("cannot accept connections: Too many open files") == 1
    assert "Traceback" not in text
    assert len(text) < 20_000


def test_a_server_that_stops_while_it_has_no_descriptors_logs_no_tracebacks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with starved(log) as (process, _, _):
        process.terminate()
        assert process.wait(WAIT) == 0
    assert "Traceback" not in log.read_text()


def test_the_first_request_needs_no_descriptor_but_that_of_its_connection(tmp_path: Path) -> None:
    with limited(tmp_path / "log", "one-left") as (_, url):
        response = httpx.get(url.join("/jobs"), timeout=WAIT)
        assert (response.status_code, response.json()) == (200, []), (tmp_path / "log").read_text()
