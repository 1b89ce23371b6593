"""An S3-compatible server, and a proxy before it that counts requests and breaks them."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from conditions import wait_until
from jobserver_fsspec import FsspecBlobStore

__all__ = ["ROOT_KEY", "ROOT_SECRET", "MakeStore", "S3Proxy", "S3Server", "require_versitygw", "s3_server"]

ROOT_KEY, ROOT_SECRET = "root-of-the-tests", "hunter2-hunter2-hunter2"
_CI = Path(__file__).parents[1] / ".ci"
_ATTEMPTS = 5
_HOP = {"connection", "transfer-encoding", "keep-alive"}


def require_versitygw() -> str:
    """Return the program of the S3 server, or skip the test."""
    version = (_CI / "versitygw-version").read_text(encoding="utf-8").strip()
    program = shutil.which(str(_CI / "bin" / f"versitygw-{version}")) or shutil.which("versitygw")
    if program is None:
        pytest.skip(
            "needs the S3 server versitygw on the PATH: "
            f"go install github.com/versity/versitygw/cmd/versitygw@{version}"
        )
    return program


class S3Server:
    """A gateway that keeps each bucket in a directory below ``root``."""

    def __init__(self, program: str, directory: Path) -> None:
        self.root = directory / "buckets"
        self._program = program
        self._users = directory / "users"
        self._log = directory / "log"
        self.root.mkdir()
        self._users.mkdir()
        self._environment = {
            "PATH": os.environ.get("PATH", ""),
            "ROOT_ACCESS_KEY": ROOT_KEY,
            "ROOT_SECRET_KEY": ROOT_SECRET,
        }
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, on another port if something else has taken the first one in the meantime."""
        for _ in range(_ATTEMPTS):
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
            options = ["--port", f"127.0.0.1:{self.port}", "--quiet", "--health", "/health"]
            options += ["--iam-dir", str(self._users), "--iam-cache-disable", "posix", str(self.root)]
            command = [self._program, *options]
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command, stdout=log, stderr=log, env=self._environment, start_new_session=True
                )
            wait_until(lambda: not self._alive or self._healthy(), "the S3 server answers")
            if self._alive:
                return
        raise AssertionError(self._log.read_text())

    @property
    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def files(self) -> Any:
        """The server as a file system of the user who may do everything."""
        return fsspec.filesystem("s3", key=ROOT_KEY, secret=ROOT_SECRET, endpoint_url=self.url)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def add_user(self, name: str, secret: str) -> None:
        """Add a user who may do nothing yet."""
        where = ["--endpoint-url", self.url, "--access", ROOT_KEY, "--secret", ROOT_SECRET]
        user = ["--access", name, "--secret", secret, "--role", "user"]
        command = [self._program, "admin", *where, "create-user", *user]
        subprocess.run(command, check=True, capture_output=True, timeout=60, env=self._environment)

    def unfinished(self, bucket: str) -> list[str]:
        """Return the parts of multipart uploads that were neither completed nor aborted."""
        files = (self.root / bucket / ".sgwtmp").rglob("*")
        return sorted(str(path.relative_to(self.root)) for path in files if path.is_file())

    def close(self) -> None:
        if self._process is not None and self._alive:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def s3_server(directory: Path) -> Iterator[S3Server]:
    """A server for the ``with`` block."""
    server = S3Server(require_versitygw(), directory)
    try:
        server.start()
        yield server
    finally:
        server.close()


Rule = Callable[[str, str], Any]
MakeStore = Callable[..., FsspecBlobStore]


class S3Proxy:
    """Forwards requests to a server, and notes them as ``METHOD path?query`` in ``seen``.

    ``rule`` is called with the method and the path of each request. It returns None to forward it, a status
    for an error response, or a number of bytes as ``-n``, after which the response is cut; ``-1`` cuts before
    the head.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.seen: list[str] = []
        self.rule: Rule = lambda _method, _path: None
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, method: str, part: str = "") -> int:
        """Return how many requests have this method, and this in their path or query."""
        return sum(seen.startswith(f"{method} ") and part in seen for seen in self.seen)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: S3Proxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.owner.seen.append(f"{self.command} {self.path}")
        action = self.owner.rule(self.command, self.path)
        if action is not None and action > 0:
            self._refuse(action)
        elif action == -1:
            self._cut()
        else:
            self._forward(body, None if action is None else -action)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 - the names of the base class

    def _refuse(self, status: int) -> None:
        code = {403: "AccessDenied", 503: "SlowDown"}[status]
        body = f"<Error><Code>{code}</Code><Message>refused by the test</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    def _forward(self, body: bytes, limit: int | None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.owner.target, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP | {"expect"}:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in _HOP | {"content-length", "date", "server"}:
                self.send_header(name, value)
        length = response.headers.get("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data if limit is None else data[:limit])
        if limit is not None:
            self._cut()

    def _cut(self) -> None:
        """Reset the connection."""
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""
