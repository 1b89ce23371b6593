"""File hosts that hang, on a real server: they hold up nobody but those who asked for their files."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import WHEEL, Site, Start
from file_servers import HttpServer, Route, silent_server, wait_until
from jobserver_fsspec import FsspecFetcher
from serving import WAIT, archive

MANY = 20
"""More than the threads of any pool of the server."""
STALL = 3.0
PATIENCE = 60.0
"""Seconds that a request of this test may take on a busy machine."""


@contextmanager
def host(kind: str) -> Iterator[tuple[str, Callable[[str, int], list[str]]]]:
    """A host that hangs in some way: the base of its URIs, and the resolver that knows it."""
    over = threading.Event()

    def resolver(name: str, port: int) -> list[str]:
        if name == "slow-dns.example":
            over.wait(PATIENCE)
        return ["127.0.0.1"]

    with ExitStack() as stack:
        stack.callback(over.set)
        if kind == "resolving":
            yield "http://slow-dns.example", resolver
        elif kind == "connecting":
            yield f"http://deaf.example:{stack.enter_context(full_backlog())}", resolver
        elif kind in ("answering", "handshaking"):
            scheme = "https" if kind == "handshaking" else "http"
            yield f"{scheme}://silent.example:{stack.enter_context(silent_server())}", resolver
        else:
            server = HttpServer()
            stack.callback(server.close)
            for number in range(MANY):
                server.routes[f"/{number}.egg"] = Route(content=bytes(100_000), drip=0.5)
            if kind == "stopping midway":
                server.hold_after = 50_000
            yield f"http://slow.example:{server.port}", resolver


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port that takes no further connection, so that connecting to it hangs."""
    with socket.socket() as listening, ExitStack() as stack:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(address)
        yield int(address[1])


@pytest.fixture
def begin(start: Start, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Start servers that fetch, with short time limits."""
    with ExitStack() as stack:

        def make(resolver: Callable[[str, int], list[str]], **limits: Any) -> Site:
            fetcher = FsspecFetcher(cache_folder=tmp_path / "cache", resolver=resolver, timeout=PATIENCE)
            stack.callback(fetcher.close)
            return start({"fetcher": {"stall-timeout": f"{STALL} s", **limits}}, fetcher=fetcher)

        yield make


def submit(site: Site, uri: str, **params: Any) -> httpx.Response:
    query = {"cp": uri, "mainClass": "w.Echo", **params}
    return httpx.post(f"{site.url}/jobs", params=query, timeout=PATIENCE)


@pytest.mark.parametrize(
    "kind", ["resolving", "connecting", "handshaking", "answering", "dripping", "stopping midway"]
)
def test_a_host_that_hangs_holds_up_nobody_else_and_ends_with_an_error(
    begin: Callable[..., Site], kind: str
) -> None:
    with host(kind) as (base, resolver), ThreadPoolExecutor(MANY) as pool:
        site = begin(resolver)
        begun = time.monotonic()
        uris = [f"{base}/{number}.egg" for number in range(MANY)]
        hanging = [pool.submit(submit, site, uri) for uri in uris[2:]]
        hanging += [
            pool.submit(
                httpx.post,
                f"{site.url}/contexts/hangs-{number}",
                params={"dependent-jar-uris": uri},
                timeout=PATIENCE,
            )
            for number, uri in enumerate(uris[:2])
        ]
        wait_until(lambda: len(fetching(site)) >= MANY, PATIENCE)
        others_are_served(site)
        assert not any(call.done() for call in hanging)
        for call in hanging:
            ends_with_an_error(call)
        assert time.monotonic() - begun < STALL + WAIT
    wait_until(lambda: not threads_that_fetch(), PATIENCE)


def fetching(site: Site) -> list[Any]:
    service = site.server._services.jobs._fetching
    return [*service._running, *service._waiting]


def threads_that_fetch() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("jobserver-fetch")]


def others_are_served(site: Site) -> None:
    for number in range(3):
        answer = site.client.post(f"/binaries/words{number}", content=archive(), headers=WHEEL)
        assert answer.status_code == 201
        assert site.client.post(f"/contexts/quick{number}").status_code == 200
        done = site.submit("w.Echo", f"value = {number}", context=f"quick{number}", sync="true")
        assert done.json()["result"] == number
    assert site.client.get("/healthz").status_code == 200


def ends_with_an_error(call: Future[httpx.Response]) -> None:
    body = call.result(PATIENCE).json()
    assert body["status"] in ("JOB LOADING FAILED", "CONTEXT INIT ERROR"), body
    assert f"in {STALL:g} s" in body["result"]["message"], body


def test_a_client_that_leaves_ends_its_fetch(begin: Callable[..., Site]) -> None:
    with silent() as (base, connections):
        site = begin(lambda name, port: ["127.0.0.1"], **{"stall-timeout": "60 s"})
        with socket.create_connection(("127.0.0.1", int(site.url.rpartition(":")[2]))) as client:
            target = f"/jobs?cp={base}/x.egg&mainClass=w.Echo"
            client.sendall(f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
            wait_until(lambda: connections, PATIENCE)
        connections[0].settimeout(PATIENCE)
        while connections[0].recv(4096):
            pass  # the request; then the connection ends, long before the time limit
        wait_until(lambda: not threads_that_fetch(), PATIENCE)
        assert site.client.get("/jobs").json() == []


def test_a_synchronous_call_waits_for_a_fetch_no_longer_than_it_says(begin: Callable[..., Site]) -> None:
    with silent() as (base, _):
        site = begin(lambda name, port: ["127.0.0.1"], **{"stall-timeout": "60 s"})
        answer = submit(site, f"{base}/x.egg", sync="true", timeout="1")
        assert answer.status_code == 400
        message = answer.json()["result"]["message"]
        assert (
            message
            == f"cannot fetch {base}/x.egg: it did not come within the 1 s for which this request waits"
        )
        wait_until(lambda: not threads_that_fetch(), PATIENCE)
        assert site.client.get("/jobs").json() == []


def test_a_server_that_drains_ends_fetches_with_a_503(begin: Callable[..., Site]) -> None:
    with silent() as (base, connections), ThreadPoolExecutor(1) as pool:
        site = begin(lambda name, port: ["127.0.0.1"], **{"stall-timeout": "60 s"})
        call = pool.submit(submit, site, f"{base}/x.egg")
        wait_until(lambda: connections, PATIENCE)
        site.server.drain()
        assert call.result(PATIENCE).status_code == 503
        wait_until(lambda: not threads_that_fetch(), PATIENCE)


@contextmanager
def silent() -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that accepts connections and never answers; the base of its URIs, and the connections."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    connections.append(listening.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://silent.example:{listening.getsockname()[1]}", connections
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()
