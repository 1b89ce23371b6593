"""A server in a process of its own, and clients that keep their connections."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rows.figures import RowError

PROGRAM = str(Path(sys.executable).with_name("jobserver"))


class Client:
    """One connection that is kept, without Nagle's algorithm."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300, blocksize=2**20)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, method: str, path: str, body: bytes = b"", kind: str = "") -> object:
        self._connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        response = self._connection.getresponse()
        data = response.read()
        if response.status >= 300:
            raise RowError(f"{method} {path}: {response.status} {data[:500]!r}")
        return json.loads(data)

    def send(self, method: str, path: str) -> None:
        self._connection.request(method, path)

    def receive(self, method: str, path: str) -> None:
        response = self._connection.getresponse()
        data = response.read()
        if response.status >= 300:
            raise RowError(f"{method} {path}: {response.status} {data[:500]!r}")

    def upload(self, path: str, source: Path) -> None:
        with source.open("rb") as file:
            headers = {
                "Content-Type": "application/java-archive",
                "Content-Length": str(source.stat().st_size),
            }
            self._connection.request("POST", path, file, headers)
            self.receive("POST", path)

    def drain(self, path: str, size: int) -> None:
        """Read a large response of at least this many bytes without keeping it."""
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        buffer = bytearray(1024 * 1024)
        while read := response.readinto(buffer):
            size -= read
        if response.status != 200 or size > 0:
            raise RowError(f"GET {path}: {response.status}, {size} bytes are missing")

    def run(self, app: str, main_class: str, context: str, config: str = "") -> object:
        query = urllib.parse.urlencode(
            {"appName": app, "classPath": main_class, "context": context, "sync": "true", "timeout": "120"}
        )
        record = self.call("POST", f"/jobs?{query}", config.encode())
        if not isinstance(record, dict) or "status" in record:
            raise RowError(f"{main_class}: {record}")
        return record["result"]


class Server:
    """``jobserver serve`` in its own process."""

    def __init__(self, directory: Path, settings: str = "") -> None:
        config = directory / "server.conf"
        config.write_text(
            f'spark.master = "local[2]"\njobserver.contexts.creation-timeout = 5 m\n{settings}\n'
        )
        options = ["--port", "0", "--data-dir", str(directory / "data"), "--config", str(config)]
        self._printed, self._log = directory / "server.out", directory / "server.log"
        with self._printed.open("wb") as printed, self._log.open("wb") as log:
            self.process = subprocess.Popen([PROGRAM, "serve", *options], stdout=printed, stderr=log)
        try:
            self.port = self.wait_healthy()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def wait_healthy(self) -> int:
        """Wait until the server answers; return its port, which is in the first line that it prints."""
        deadline = time.monotonic() + 300  # the first start on a machine compiles the JVM side
        while True:
            lines = self._printed.read_text().splitlines()
            if lines:
                port = urllib.parse.urlsplit(lines[0]).port
                assert port is not None
                Client(port).call("GET", "/healthz")
                return port
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RowError(f"the server does not answer: {self._log.read_text()[-2000:]}")
            time.sleep(0.01)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def throughput(port: int, job: Callable[[Client], object], count: int, clients: int = 16) -> float:
    """Return jobs per second over this many connections, each with its own thread."""
    left = iter(range(count))

    def work() -> None:
        client = Client(port)
        for _ in left:
            job(client)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (time.perf_counter() - begun)


STATIC = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route
app = Starlette(routes=[Route("/", lambda _request: FileResponse(sys.argv[1]))])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


@contextmanager
def static_server(file: Path) -> Iterator[Client]:
    """Serve one file with Starlette and uvicorn, in a separate process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", STATIC, str(file), str(port)])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                client = Client(port)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise RowError("the static server does not answer") from None
                time.sleep(0.02)
        yield client
    finally:
        process.terminate()
        process.wait(30)
