"""Real HTTP and FTP servers on loopback that serve files, and misbehave on request."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports asyncore, which Python 3.12 lacks
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import DTPHandler, FTPHandler
    from pyftpdlib.ioloop import IOLoop
    from pyftpdlib.servers import FTPServer

__all__ = ["DTPHandler", "FtpServer", "HttpServer", "Request", "Route", "silent_server"]

# Its thread may outlive the stream that a test captured the log in.
logging.getLogger("pyftpdlib").setLevel(logging.WARNING)


@attrs.define(kw_only=True)
class Route:
    """What the HTTP server does for one path."""

    content: bytes = b""
    status: int = 200
    etag: bool = True
    weak: bool = False
    """Whether the ETag is weak."""
    modified: float | None = None
    ranges: bool = True
    length: int | None = None
    """A wrong Content-Length."""
    chunked: bool = False
    cut: list[int] = attrs.field(factory=list)
    """After how many bytes the next answers are cut."""
    drip: float | None = None
    """Seconds between two bytes."""
    drip_headers: bool = False
    redirect: str | None = None
    password: str | None = None
    encoding: str | None = None
    answer_range: str | None = None
    """A Content-Range that was not asked for."""


@attrs.frozen(kw_only=True)
class Request:
    path: str
    headers: dict[str, str]


class HttpServer:
    """Serves routes. Records the requests, and the paths of the full and partial responses."""

    def __init__(self, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.routes: dict[str, Route] = {}
        self.requests: list[Request] = []
        self.bodies: list[str] = []
        self.gate: threading.Event | None = None
        """When set, bodies wait for it."""
        self.hold_after: int | None = None
        """After how many bytes bodies stop, until the server is closed."""
        self.stopping = threading.Event()
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = _Server((host, 0), handler)
        self._server.context = context
        self._scheme = "https" if context else "http"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self.authority}"

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    context: ssl.SSLContext | None = None

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError):  # tests disconnect clients on purpose
            if self.context is not None:
                request = self.context.wrap_socket(request, server_side=True)
            self.finish_request(request, client_address)
        self.shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    site: HttpServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        self.site.requests.append(Request(path=self.path, headers=dict(self.headers)))
        route = self.site.routes.get(self.path)
        if route is None:
            self._head(404, {"Content-Length": "0"})
        elif route.password is not None and not self._authorized(route.password):
            self._head(401, {"Content-Length": "0", "WWW-Authenticate": "Basic"})
        elif route.redirect is not None:
            self._head(302, {"Location": route.redirect, "Content-Length": "0"})
        elif route.drip_headers:
            self._drip_headers()
        else:
            self._content(route)

    def _authorized(self, password: str) -> bool:
        pair = base64.b64encode(f"user:{password}".encode()).decode()
        return bool(self.headers.get("Authorization") == f"Basic {pair}")

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _content(self, route: Route) -> None:
        headers = {}
        etag = f'"{hashlib.sha256(route.content).hexdigest()[:16]}"'
        if route.etag:
            headers["ETag"] = f"W/{etag}" if route.weak else etag
        if route.modified is not None:
            headers["Last-Modified"] = formatdate(route.modified, usegmt=True)
        if self._unchanged(route, headers):
            self._head(304, headers)
            return
        status, body = route.status, route.content
        start = self._start(route, headers)
        if start is not None and start >= len(route.content):
            self._head(416, {"Content-Length": "0"})
            return
        if start is not None:
            status, body = 206, route.content[start:]
            total = len(route.content)
            headers["Content-Range"] = route.answer_range or f"bytes {start}-{total - 1}/{total}"
        if route.encoding:
            headers["Content-Encoding"] = route.encoding
        if route.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body) if route.length is None else route.length)
        self._head(status, headers)
        self.site.bodies.append(self.path)
        if self.site.gate is not None:
            self.site.gate.wait(30)
        self._body(route, body)

    def _unchanged(self, route: Route, headers: dict[str, str]) -> bool:
        if "If-None-Match" in self.headers:
            return self.headers["If-None-Match"] == headers.get("ETag")
        since = self.headers.get("If-Modified-Since")
        return since is not None and since == headers.get("Last-Modified")

    def _start(self, route: Route, headers: dict[str, str]) -> int | None:
        asked = self.headers.get("Range")
        if not route.ranges or asked is None:
            return None
        if self.headers.get("If-Range") not in (None, headers.get("ETag"), headers.get("Last-Modified")):
            return None
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def _body(self, route: Route, body: bytes) -> None:
        cut = route.cut.pop(0) if route.cut else None
        sent = body if cut is None else body[:cut]
        step = 1 if route.drip and self.site.hold_after is None else 16_384
        for at in range(0, len(sent), step):
            if self.site.hold_after is not None and at >= self.site.hold_after:
                self.site.stopping.wait()
                return
            piece = sent[at : at + step]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if route.chunked else piece)
            if route.drip and step == 1 and self.site.stopping.wait(route.drip):
                return
        if route.chunked and cut is None:
            self.wfile.write(b"0\r\n\r\n")

    def _drip_headers(self) -> None:
        for letter in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 10_000:
            self.wfile.write(bytes([letter]))
            if self.site.stopping.wait(0.05):
                return


class FtpServer:
    """pyftpdlib's server for a directory: anonymous, and ``user`` with a password."""

    def __init__(self, directory: Path, password: str, **handling: Any) -> None:
        authorizer = DummyAuthorizer()
        authorizer.add_anonymous(str(directory))
        authorizer.add_user("user", password, str(directory))
        self.commands: list[str] = []
        self.directory = directory
        seen = self.commands

        def pre_process_command(self: Any, line: str, cmd: str, arg: str) -> Any:
            seen.append(f"{cmd} {arg}".strip() if cmd != "PASS" else cmd)
            return FTPHandler.pre_process_command(self, line, cmd, arg)

        self.handler: Any = type(
            "Handler",
            (FTPHandler,),
            {"authorizer": authorizer, "auth_failed_timeout": 0, "pre_process_command": pre_process_command}
            | handling,
        )
        self._server = FTPServer(("127.0.0.1", 0), self.handler, ioloop=IOLoop())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.address[1])

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _serve(self) -> None:
        while not self._stop.is_set():
            self._server.serve_forever(timeout=0.01, blocking=False)
        self._server.close_all()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """A server that takes connections and never says anything; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])
