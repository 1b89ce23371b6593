"""Large and slow bodies in both directions: bounded memory, and no remains of aborted transfers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_site import WHEEL, Site, Start

from conditions import wait_until
from jobserver_core.models.binaries import BinaryType
from jobserver_http import bodies
from serving import WAIT

MIB = 1024 * 1024


def resident() -> int:
    """Return this process' resident memory in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def connected(site: Site) -> Iterator[socket.socket]:
    url = httpx.URL(site.url)
    with socket.create_connection((url.host, url.port or 80), timeout=WAIT) as connection:
        yield connection


def read_response(connection: socket.socket) -> tuple[int, bytes]:
    """Read until the server closes, and return the status and everything."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return int(received.split(b" ", 2)[1]), received


# -- uploads ---------------------------------------------------------------------------------------


def test_a_large_upload_arrives_whole_and_in_pieces(start: Start, tmp_path: Path) -> None:
    written: list[int] = []
    site = start()
    begin = site.server.begin_upload

    def watched(name: str, type: BinaryType) -> Any:
        upload = begin(name, type)
        write = upload.write
        upload.write = lambda data: (written.append(len(data)), write(data))[1]  # type: ignore[method-assign]
        return upload

    site.server.begin_upload = watched  # type: ignore[method-assign]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("data.bin", os.urandom(40 * MIB))
    response = site.client.post("/binaries/large", content=buffer.getvalue(), headers=WHEEL)
    assert response.status_code == 201, response.text
    assert sum(written) == len(buffer.getvalue())
    assert max(written) < 2 * MIB
    assert len(written) < 60
    assert site.server.binary("large").size == len(buffer.getvalue())


def test_a_large_data_file_uses_little_memory(site: Site) -> None:
    piece = os.urandom(MIB)
    peak, done = [resident()], threading.Event()
    before = peak[0]

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        response = site.client.post("/data/large", content=(piece for _ in range(400)))
    finally:
        done.set()
        watcher.join()
    name = response.json()["result"]["filename"]
    assert os.path.getsize(name) == 400 * MIB
    assert peak[0] - before < 60 * MIB
    site.client.put("/data?reset=reboot")


@pytest.mark.parametrize("path", ["/binaries/b", "/data/d"])
@pytest.mark.parametrize("declared", [True, False])
def test_an_upload_over_the_limit_is_413_and_leaves_nothing(start: Start, path: str, declared: bool) -> None:
    site = start({"limits": {"upload-size": "100 KiB"}})
    body = b"PK\x03\x04" + b"x" * (4 * MIB)
    content: Any = body if declared else iter([body[:MIB], body[MIB:]])
    response = site.client.post(path, content=content, headers=WHEEL)
    assert response.status_code == 413
    assert (response.json()["status"], response.json()["code"]) == ("ERROR", "too_large")
    assert "102400 bytes" in response.json()["result"]
    assert set(site.client.get("/binaries").json()) == {"words"}
    assert site.client.get("/data").json() == []
    assert not list(site.server._services.data_directory.data_files.iterdir())


def test_curls_expectation_is_answered_before_the_body_is_sent(start: Start) -> None:
    site = start({"limits": {"upload-size": "100 KiB"}})
    head = (
        "POST /binaries/b HTTP/1.1\r\nHost: x\r\nContent-Type: application/python-wheel\r\n"
        "Expect: 100-continue\r\nContent-Length: {}\r\n\r\n"
    )
    with connected(site) as connection:
        connection.sendall(head.replace("Host: x", "Host: localhost").format(10 * MIB).encode())
        status, received = read_response(connection)
        assert status == 413
        assert b"100 Continue" not in received
    with connected(site) as connection:
        connection.sendall(head.replace("Host: x", "Host: localhost").format(1000).encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")


@pytest.mark.parametrize("path", ["/binaries/b", "/data/d"])
def test_a_connection_cut_half_way_leaves_nothing(site: Site, path: str) -> None:
    with connected(site) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/python-wheel\r\n"
            f"Content-Length: {10 * MIB}\r\n\r\n".encode()
        )
        connection.sendall(b"PK\x03\x04" + b"x" * (3 * MIB))
        wait_until(lambda: "1.0" in _open_requests(site))
    wait_until(lambda: "0.0" in _open_requests(site))
    assert set(site.client.get("/binaries").json()) == {"words"}
    assert not list(site.server._services.data_directory.data_files.iterdir())


def _open_requests(site: Site) -> str:
    # The call that asks counts as one.
    text = site.client.get("/metrics").text
    (line,) = [line for line in text.splitlines() if line.startswith("jobserver_http_requests_open ")]
    return str(float(line.split()[1]) - 1)


def test_an_endless_body_is_cut_off(start: Start) -> None:
    site = start({"limits": {"upload-size": "100 KiB", "config-size": "10 KiB"}})
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    for path in ("/binaries/b", "/data/d", "/jobs?appName=words&classPath=w.Echo", "/nothing", "/jobs/none"):
        with connected(site) as connection:
            connection.sendall(
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/python-wheel\r\n"
                "Transfer-Encoding: chunked\r\n\r\n".encode()
            )
            sent = 0
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while sent < 64 * MIB:
                    connection.sendall(chunk)
                    sent += len(chunk)
            assert sent < 64 * MIB, f"{path} swallows a body without end"
    assert set(site.client.get("/binaries").json()) == {"words"}


def test_a_stalled_body_is_aborted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "STALL_TIMEOUT", 0.2)
    for path in ("/data/d", "/jobs?appName=words&classPath=w.Echo"):
        with connected(site) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
            connection.sendall(head.encode() + b"x" * 50)
            status, received = read_response(connection)
        assert status == 408
        assert b"no data of the body arrived" in received
    assert not list(site.server._services.data_directory.data_files.iterdir())


def test_a_configuration_over_the_limit_is_413(start: Start) -> None:
    site = start({"limits": {"config-size": "1 KiB"}})
    response = site.submit("w.Echo", "value = " + "x" * 2000)
    assert response.status_code == 413
    assert site.client.post("/contexts/etl", content=b"x" * 2000).status_code == 413


# -- results ---------------------------------------------------------------------------------------


def test_a_streamed_result_is_sent_chunked_in_the_same_shape(site: Site) -> None:
    def numbers(n: int) -> str:
        return "".join(f"{number}," for number in range(n))

    response = site.submit("w.Stream", "n = 1000", sync="true")
    assert response.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in response.headers
    job_id = site.client.get("/jobs").json()[0]["jobId"]
    assert response.text == f'{{"jobId":"{job_id}","result":{numbers(1000)}}}'
    again = site.client.get(f"/jobs/{job_id}")
    assert again.headers["transfer-encoding"] == "chunked"
    assert again.text.endswith(f',"result":{numbers(1000)}}}')
    head = site.client.head(f"/jobs/{job_id}")
    assert (head.status_code, head.content) == (200, b"")
    assert "content-length" not in head.headers


def test_a_stream_without_a_byte_is_null(start: Start) -> None:
    site = start(functions={"w.EmptyFile": lambda job: io.BytesIO()})
    assert site.submit("w.EmptyFile", sync="true").json()["result"] is None


def test_a_result_that_is_valid_json_arrives_as_its_very_bytes(start: Start) -> None:
    text = '{"a": [1, 2.50, null], "b": "\\u00e9\\ud83d"}'

    def raw(_job: Any) -> Any:
        return json.loads(text)

    site = start(functions={"w.Raw": raw})
    response = site.submit("w.Raw", sync="true")
    stored = site.server.open_result(response.json()["jobId"])
    assert stored is not None
    with stored:
        assert response.content.endswith(b'"result":' + stored.read() + b"}")


def test_a_large_result_is_sent_with_its_length_and_in_little_memory(start: Start) -> None:
    site = start(functions={"w.Large": lambda job: "x" * job.config["n"]})
    job_id = site.submit("w.Large", f"n = {20 * MIB}", sync="true").json()["jobId"]
    with site.client.stream("GET", f"/jobs/{job_id}") as response:
        length, sizes = int(response.headers["content-length"]), [len(piece) for piece in response.iter_raw()]
    assert sum(sizes) == length
    assert max(sizes) <= 256 * 1024
    assert site.client.head(f"/jobs/{job_id}").headers["content-length"] == str(length)


def test_slow_readers_hold_no_worker(start: Start) -> None:
    site = start(functions={"w.Large": lambda job: "x" * (20 * MIB)})
    job_id = site.submit("w.Large", sync="true").json()["jobId"]
    with contextlib.ExitStack() as stack:
        for _ in range(40):  # more than there are threads in any pool
            connection = stack.enter_context(connected(site))
            connection.sendall(f"GET /jobs/{job_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        begun = time.monotonic()
        assert site.client.get("/binaries").status_code == 200
        assert site.submit("w.Echo", "value = 1", sync="true").json()["result"] == 1
        assert time.monotonic() - begun < 5
    wait_until(lambda: _open_requests(site) == "0.0")


def test_slow_senders_hold_no_worker(site: Site) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(40):
            connection = stack.enter_context(connected(site))
            connection.sendall(
                b"POST /data/d%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n" % number
                + b"x" * 100_000
            )
        begun = time.monotonic()
        assert site.client.get("/binaries").status_code == 200
        assert site.submit("w.Echo", "value = 1", sync="true").json()["result"] == 1
        assert time.monotonic() - begun < 5
    wait_until(lambda: _open_requests(site) == "0.0")
    assert not list(site.server._services.data_directory.data_files.iterdir())
