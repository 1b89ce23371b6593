"""Hostile bytes on the wire: no 5xx, no traceback, no leftovers, and the server survives."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import re
import socket
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

import httpx
import pytest
from http_site import WHEEL, Site, Start

from conditions import wait_until
from jobserver_http import Authenticator, Credentials, Identity
from jobserver_http.routes import ROUTES
from serving import WAIT, archive

ROUNDS = 4000
SECONDS = 60.0


def exchange(site: Site, data: bytes, *, cut: bool = False, until: bytes = b"") -> bytes:
    """Send bytes, and return all that comes back, up to some last bytes."""
    url = httpx.URL(site.url)
    received = b""
    with (
        socket.create_connection((url.host, url.port or 80), timeout=WAIT) as connection,
        contextlib.suppress(OSError),  # the server may close at any moment
    ):
        connection.sendall(data)
        if cut:
            # An abrupt end: the other side gets a reset.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return b""
        if not until:
            connection.shutdown(socket.SHUT_WR)
        connection.settimeout(WAIT if until else 2.0)
        while len(received) < 1_000_000 and (piece := connection.recv(65536)):
            received += piece
            if until and until in received:
                break
    return received


def statuses(received: bytes) -> list[int]:
    """Return the statuses of consecutive responses. No body of this server contains a status line."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


@pytest.fixture
def watched(start: Start, caplog: pytest.LogCaptureFixture) -> Iterator[Site]:
    """A server that must come through unharmed."""
    site = start({"limits": {"upload-size": "1 MiB", "config-size": "64 KiB"}})
    with caplog.at_level(logging.ERROR):
        yield site
    assert caplog.text == ""
    assert site.client.get("/healthz").status_code == 200
    assert set(site.client.get("/binaries").json()) == {"words"}
    assert site.client.get("/data").json() == []
    assert not list(site.server._services.data_directory.data_files.iterdir())


# -- fuzz ------------------------------------------------------------------------------------------

PIECES = [
    b"\r\n", b"\n", b"\0", b"\xff\xfe", b"\r", b" ", b"\t", b"%00", b"%", b"%2e%2e%2f", b"..", b"/", b"//",
    b"?",
    b"&", b"=", b";", b":", b"#", b"~", b"\xc0\xaf", b"%c0%af", b"%ff", "é".encode(), b"a" * 5000, b"9" * 400,
    b"-1", b"1e309", b"NaN", b"true", b"{", b"}", b"[" * 2000, b"${HOME}", b'include "x"', b"\\", b"'", b'"',
    b"HTTP/1.1", b"HTTP/9.9", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
]  # fmt: skip
METHODS = [
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"PATCH",
    b"TRACE",
    b"CONNECT",
    b"BREW",
    b"",
]
HEADERS = [
    b"Content-Length: 10", b"Content-Length: -1", b"Content-Length: 99999999999999999999",
    b"Content-Length: 1, 1",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Content-Type: application/java-archive",
    b"Content-Type: \xff", b"Expect: 100-continue", b"Expect: nothing", b"Connection: close",
    b"Connection: upgrade\r\nUpgrade: websocket", b"Connection: upgrade\r\nUpgrade: h2c", b"Range: bytes=0-1",
    b"Idempotency-Key: ", b"Idempotency-Key: " + b"k" * 300, b"Idempotency-Key: a\r\nIdempotency-Key: b",
    b"Authorization: Basic ====", b"Authorization: Bearer \xff", b"Host: a\r\nHost: b", b"Origin: \xff",
    b"X: " + b"y" * 2000, b"Cookie: a=b", b"X-Forwarded-For: 1.2.3.4", b"no colon", b": empty", b"A\0: b",
]  # fmt: skip


def paths() -> list[bytes]:
    return [
        route.path.replace("{name:path}", "x").replace("{name}", "other").replace("{id}", "j").encode()
        for route in ROUTES
        # A stream without an end is none that this test could wait for.
        if route.name != "follow_events"
    ]


def mutated(dice: random.Random, data: bytes) -> bytes:
    for _ in range(dice.choice((0, 0, 1, 1, 2, 4))):
        at = dice.randrange(len(data) + 1)
        kind = dice.randrange(3)
        if kind == 0:
            data = data[:at] + dice.choice(PIECES) + data[at:]
        elif kind == 1:
            data = data[:at] + data[at + dice.randrange(1, 5) :]
        else:
            data = data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
    return data


def a_request(dice: random.Random, known: list[bytes]) -> bytes:
    path = mutated(dice, dice.choice(known))
    names = (
        b"sync",
        b"timeout",
        b"limit",
        b"cp",
        b"appName",
        b"classPath",
        b"reset",
        b"_method",
        b"context",
        b"status",
    )
    query = b"&".join(dice.choice(names) + b"=" + dice.choice(PIECES) for _ in range(dice.randrange(4)))
    head = dice.choice(METHODS) + b" " + path + (b"?" + query if query else b"") + b" HTTP/1.1\r\n"
    lines = [b"Host: localhost", *dice.sample(HEADERS, dice.randrange(4))]
    body = mutated(
        dice, dice.choice((b"", b"a = 1", b'{"a": [1]}', b"PK\x03\x04rest", b"5\r\nhello\r\n0\r\n\r\n"))
    )
    if dice.random() < 0.5:
        lines.append(b"Content-Length: %d" % len(body))
    return mutated(dice, head + b"\r\n".join(lines) + b"\r\n\r\n" + body)


def test_no_bytes_on_the_wire_make_the_server_fail(watched: Site) -> None:
    dice = random.Random(20160619)
    known = paths()
    deadline = time.monotonic() + SECONDS
    seen: dict[int, int] = {}
    for number in range(ROUNDS):
        if time.monotonic() > deadline:
            break
        data = a_request(dice, known)
        for status in statuses(exchange(watched, data, cut=dice.random() < 0.1)):
            seen[status] = seen.get(status, 0) + 1
            assert status < 500, (number, data, status)
    assert number > 100, "too slow to mean anything"
    assert {200, 400, 404, 405} <= set(seen), seen
    for name in watched.client.get("/contexts").json():
        watched.client.delete(f"/contexts/{name}?force=true")
    watched.client.put("/data?reset=reboot")


# -- attacks that have a name ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"GET /jobs HTTP/1.1\r\n" + b"X-Header: y\r\n" * 20_000,
        b"GET /jobs HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 1_000_000,
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n",
        b"\0" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["headers", "header", "path", "zeros", "tls", "http2"],
)
def test_a_flood_in_the_head_is_400(watched: Site, head: bytes) -> None:
    assert set(statuses(exchange(watched, head))) <= {400, 404}


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 3\r\nContent-Length: 4",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: xchunked",
        b"Content-Length: 0x3",
        b"Content-Length: +3",
        b" Content-Length: 3",
    ],
)
def test_framing_that_two_servers_could_read_differently_is_one_request_at_most(
    watched: Site, framing: bytes
) -> None:
    smuggled = b"DELETE /binaries/words HTTP/1.1\r\nHost: localhost\r\n\r\n"
    request = (
        b"POST /data?reset=none HTTP/1.1\r\nHost: localhost\r\n" + framing + b"\r\n\r\n0\r\n\r\n" + smuggled
    )
    received = statuses(exchange(watched, request))
    assert all(400 <= status < 500 for status in received), received


@pytest.mark.parametrize("text", [b"\xff\xfe\xfd", b"a = \xc3\x28", b"\xed\xa0\x80 = 1"])
def test_bodies_that_are_not_utf_8_are_refused(watched: Site, text: bytes) -> None:
    for path in ("/jobs?appName=words&classPath=w.Echo", "/contexts/etl"):
        response = watched.client.post(path, content=text)
        assert response.status_code == 400, response.text
        assert response.json()["result"].startswith("Cannot parse config: ")


BOMBS = {
    "depth": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "lists": b"a = " + b"[" * 20_000,
    "keys": b".".join([b"a"] * 20_000) + b" = 1",
    "substitutions": b"a0 = x\n" + b"\n".join(b"a%d = ${a%d}${a%d}" % (n + 1, n, n) for n in range(40)),
    "self": b"a = ${a}",
    "environment": b"a = ${HOME}",
    "include": b'include file("/etc/passwd")',
    "number": b"a = " + b"9" * 60_000,
    "exponent": b'{"a": 1e999999999}',
    "duplicates": b"{" + b'"a":1,' * 9_000 + b'"a":1}',
    "quotes": b'a = "' + b"\\u0000" * 9_000 + b'"',
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_in_configurations_are_answered_quickly_without_failing(watched: Site, bomb: str) -> None:
    begun = time.monotonic()
    response = watched.client.post("/jobs?appName=words&classPath=w.Echo&sync=true", content=BOMBS[bomb])
    assert time.monotonic() - begun < 8
    assert response.status_code < 500, response.text
    assert b"root:" not in response.content
    if response.status_code == 200:
        config = watched.client.get(f"/jobs/{response.json()['jobId']}/config").text
        assert "root:" not in config
        json.loads(config)
    else:
        assert response.json()["status"] == "ERROR"


@pytest.mark.slow
def test_many_expensive_configurations_at_once_do_not_delay_other_calls(start: Start) -> None:
    site = start()
    expensive = b"\n".join(b"a%d=[]\na%d+=${?z}" % (n, n) for n in range(10_000)) + b"\n}"
    path = "/jobs?appName=words&classPath=w.Echo&sync=true"
    count = 12
    with ThreadPoolExecutor(count) as pool, httpx.Client(base_url=site.url, timeout=300) as client:
        posts = [pool.submit(client.post, path, content=expensive) for _ in range(count)]
        wait(posts, return_when=FIRST_COMPLETED)
        responses = [client.post(path, content=b"a = 1") for _ in range(3)]
        done = sum(post.done() for post in posts)
        statuses = {post.result().status_code for post in posts}
    assert [response.status_code for response in responses] == [200, 200, 200]
    assert done < count - 2, "small configurations waited for large ones"
    assert statuses == {400}


def zip_of(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        zip_of(("../../nowhere/of/any/machine", b"x")),
        zip_of(("/nowhere/of/any/machine", b"x")),
        archive()[:-22],
        archive() + b"x" * 70_000,
        b"PK\x03\x04" + b"\0" * 1000,
        b"PK\x05\x06" + b"\0" * 18,
    ],
    ids=["parent", "absolute", "cut", "appended", "zeros", "empty"],
)
def test_archives_with_tricks_are_refused(watched: Site, content: bytes) -> None:
    response = watched.client.post("/binaries/trick", content=content, headers=WHEEL)
    assert response.status_code == 400
    assert response.json()["result"] == "Binary is not of the right format"


def test_a_zip_bomb_costs_its_compressed_size_alone(start: Start) -> None:
    site = start()
    bomb = zip_of(("zeros", b"\0" * 200_000_000))
    assert len(bomb) < 1_000_000
    tracemalloc.start()
    try:
        assert site.client.post("/binaries/bomb", content=bomb, headers=WHEEL).status_code in (201, 400)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "path",
    [
        "/jobs?limit=1&limit=2",
        "/jobs?limit=" + "9" * 500,
        "/jobs?limit=-9223372036854775809",
        "/jobs?offset=99999999999",
        "/jobs?since=9999999999999",
        "/jobs?cursor=" + "A" * 600,
        "/jobs?cursor=%00",
        "/jobs?status[]=RUNNING&status=%F0%28",
        "/jobs?" + "&".join(f"a{n}=1" for n in range(600)),
    ],
)
def test_parameters_with_tricks_are_400(watched: Site, path: str) -> None:
    response = watched.client.get(path)
    assert response.status_code == 400
    assert response.json()["status"] == "ERROR"


def test_a_hundred_requests_in_one_packet_are_answered_in_order(watched: Site) -> None:
    request = b"GET /binaries/none%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
    requests = b"".join(request % number for number in range(100))
    received = exchange(watched, requests, until=b'name none99"')
    assert statuses(received) == [404] * 100
    positions = [received.index(b'name none%d"' % number) for number in range(100)]
    assert positions == sorted(positions)


def test_many_silent_connections_do_not_block_others(watched: Site) -> None:
    url = httpx.URL(watched.url)
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection((url.host, url.port or 80)))
        assert watched.client.get("/binaries").status_code == 200


def test_secrets_of_a_callback_are_in_no_log_line(watched: Site, caplog: pytest.LogCaptureFixture) -> None:
    def ours() -> list[str]:
        names = ("jobserver_http", "uvicorn")
        return [record.getMessage() for record in caplog.records if record.name.startswith(names)]

    with caplog.at_level(logging.DEBUG):
        watched.submit("w.Echo", callbackUrl="http://user:hunter2@127.0.0.1:1/x?token=hunter3")
        # A call is logged once its response was sent.
        wait_until(lambda: any("POST /jobs" in line for line in ours()), "a line for the call")
    assert not any("hunter" in line for line in ours())


def test_a_line_break_in_a_path_forges_no_log_line(watched: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        exchange(watched, b"GET /x%0d%0aforged HTTP/1.1\r\nHost: localhost\r\n\r\n")
    lines: list[Any] = [r.getMessage() for r in caplog.records if r.name == "jobserver_http.access"]
    assert all("\n" not in line and "\r" not in line for line in lines)


class OneUser(Authenticator):
    """Knows one token, of a user whose name would forge a line of the log."""

    def authenticate(self, credentials: Credentials) -> Identity | None:
        right = credentials.secret == "the-token"
        return Identity(name="ann lee\nforged", permissions=frozenset({"*"})) if right else None


def test_a_line_of_the_log_names_the_user_and_never_the_token(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    site = start(authenticator=OneUser(), credentials=("words", ""))

    def lines() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == "jobserver_http.access"]

    with caplog.at_level(logging.INFO):
        for token in ("the-token", "another-token"):
            httpx.get(f"{site.url}/jobs", headers={"Authorization": f"Bearer {token}"})
        wait_until(lambda: len(lines()) == 2, "a line for each call")
    assert lines()[0].endswith(" ann%20lee%0Aforged")
    assert lines()[1].rpartition(" ")[2].replace(".", "").isdigit()  # nobody: it ends with the seconds
    assert not any("-token" in line for line in lines())
