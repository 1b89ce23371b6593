"""File hosts that hang, on a real server: they delay only the callers that requested their files."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_site import WHEEL, Site, Start

from conditions import WAIT, wait_until
from file_servers import HttpServer, Route, silent_server
from jobserver_fsspec import FsspecFetcher
from serving import archive

EACH = 5
"""URIs of each host: one more than it has places, so that some wait for their turn."""
STALL = 10.0
"""Seconds after which a fetch that brings nothing ends; until then the others must have been served."""
"""Seconds that a request of this test may take on a busy machine."""


@contextmanager
def hosts_that_hang() -> Iterator[tuple[list[str], Callable[[str, int], list[str]]]]:
    """Hosts that hang, each in its own way: the bases of their URIs, and a resolver that knows them."""
    over = threading.Event()

    def resolver(name: str, port: int) -> list[str]:
        if name == "resolving.example":
            over.wait(2 * WAIT)
        return ["127.0.0.1"]

    content = {f"/{number}.egg": Route(content=bytes(100_000), drip=0.5) for number in range(EACH)}
    with ExitStack() as stack:
        dripping, stopping = HttpServer(), HttpServer()
        stopping.hold_after = 20_000
        for server in (dripping, stopping):
            server.routes.update(content)
            stack.callback(server.close)
        stack.callback(over.set)
        yield (
            [
                "http://resolving.example",
                f"http://connecting.example:{stack.enter_context(full_backlog())}",
                f"https://handshaking.example:{stack.enter_context(silent_server())}",
                f"http://answering.example:{stack.enter_context(silent_server())}",
                f"ftp://greeting.example:{stack.enter_context(silent_server())}",
                f"http://dripping.example:{dripping.port}",
                f"http://stopping-midway.example:{stopping.port}",
            ],
            resolver,
        )


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
            fetcher = FsspecFetcher(cache_directory=tmp_path / "cache", resolver=resolver, timeout=WAIT)
            stack.callback(fetcher.close)
            return start({"fetcher": {"stall-timeout": f"{STALL} s", **limits}}, fetcher=fetcher)

        yield make


def submit(site: Site, uri: str, **params: Any) -> httpx.Response:
    query = {"cp": uri, "mainClass": "w.Echo", **params}
    return httpx.post(f"{site.url}/jobs", params=query, timeout=WAIT)


def test_hosts_that_hang_fail_without_delaying_others(begin: Callable[..., Site]) -> None:
    with hosts_that_hang() as (bases, resolver), ThreadPoolExecutor(EACH * len(bases)) as pool:
        site = begin(resolver, **{"per-caller": 100, "concurrency": 100})
        hanging = []
        for number, base in enumerate(bases):
            uris = [f"{base}/{name}.egg" for name in range(EACH)]
            hanging.append(pool.submit(begin_context, site, f"hangs-{number}", uris[0]))
            hanging += [pool.submit(submit, site, uri) for uri in uris[1:]]
        wait_until(lambda: len(fetching(site)) == len(hanging))
        others_are_served(site)
        assert not any(call.done() for call in hanging)
        for call in hanging:
            ends_with_an_error(call)
    wait_until(lambda: not threads_that_fetch())


def begin_context(site: Site, name: str, uri: str) -> httpx.Response:
    return httpx.post(f"{site.url}/contexts/{name}", params={"dependent-jar-uris": uri}, timeout=WAIT)


def fetching(site: Site) -> list[Any]:
    service = site.server._services.fetching
    return [*service._running, *service._waiting]


def threads_that_fetch() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("jobserver-fetch")]


def others_are_served(site: Site) -> None:
    for number in range(3):
        response = site.client.post(f"/binaries/words{number}", content=archive(), headers=WHEEL)
        assert response.status_code == 201
        assert site.client.post(f"/contexts/quick{number}").status_code == 200
        done = site.submit("w.Echo", f"value = {number}", context=f"quick{number}", sync="true")
        assert done.json()["result"] == number
    assert site.client.get("/healthz").status_code == 200


def ends_with_an_error(call: Future[httpx.Response]) -> None:
    body = call.result(WAIT).json()
    assert body["status"] in ("JOB LOADING FAILED", "CONTEXT INIT ERROR"), body
    assert f"in {STALL:g} s" in body["result"]["message"], body


def test_a_client_that_disconnects_cancels_its_fetch(begin: Callable[..., Site]) -> None:
    with silent() as (base, connections):
        site = begin(lambda name, port: ["127.0.0.1"], **{"stall-timeout": "60 s"})
        with socket.create_connection(("127.0.0.1", int(site.url.rpartition(":")[2]))) as client:
            target = f"/jobs?cp={base}/x.egg&mainClass=w.Echo"
            client.sendall(f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
            wait_until(lambda: connections)
        connections[0].settimeout(WAIT)
        while connections[0].recv(4096):
            pass  # the request; then the connection ends, long before the time limit
        wait_until(lambda: not threads_that_fetch())
        assert site.client.get("/jobs").json() == []


def test_a_synchronous_call_waits_for_a_fetch_no_longer_than_it_says(begin: Callable[..., Site]) -> None:
    with silent() as (base, _):
        site = begin(lambda name, port: ["127.0.0.1"], **{"stall-timeout": "60 s"})
        response = submit(site, f"{base}/x.egg", sync="true", timeout="1")
        assert response.status_code == 400
        message = response.json()["result"]["message"]
        assert message == f"cannot fetch {base}/x.egg: not fetched within the request's timeout of 1 s"
        wait_until(lambda: not threads_that_fetch())
        assert site.client.get("/jobs").json() == []


def test_a_server_that_drains_ends_fetches_with_a_503(begin: Callable[..., Site]) -> None:
    with silent() as (base, connections), ThreadPoolExecutor(1) as pool:
        site = begin(lambda name, port: ["127.0.0.1"], **{"stall-timeout": "60 s"})
        call = pool.submit(submit, site, f"{base}/x.egg")
        wait_until(lambda: connections)
        site.server.drain()
        assert call.result(WAIT).status_code == 503
        wait_until(lambda: not threads_that_fetch())


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
