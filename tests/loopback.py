"""HTTP servers on loopback that behave as badly as a test wants."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs

__all__ = ["Call", "Loopback", "callback_receiver", "refused_port"]


@attrs.frozen(kw_only=True)
class Call:
    """A request as it came in; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Handler(BaseHTTPRequestHandler):
    """Reads a request whole, records it, and leaves the answer to the server's behaviour."""

    protocol_version = "HTTP/1.1"
    server: Loopback

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = Call(method=self.command, path=self.path, headers=headers, body=body)
        with self.server.lock:
            self.server.calls.append(call)
            behave = self.server.plan.get(self.path.partition("?")[0], self.server.behave)
        behave(self)

    def do_GET(self) -> None:
        self.do_POST()

    def say(self, status: int, body: bytes = b"ok", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def reset(self) -> None:
        """End the connection with a RST instead of an answer."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):
            return

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            return

    def log_message(self, format: str, *args: Any) -> None:
        return


class Loopback(ThreadingHTTPServer):
    """A server on a free port of a loopback address, in a ``with`` block."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(
        self,
        behave: Callable[[Handler], None] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.lock = threading.Lock()
        self.calls: list[Call] = []
        self.plan: dict[str, Callable[[Handler], None]] = {}
        self.behave = behave or (lambda handler: handler.say(200))
        self.tls = tls
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name="loopback", daemon=True)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str = "/done", *, host: str | None = None) -> str:
        scheme = "https" if self.tls else "http"
        host = host or str(self.server_address[0])
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}{path}"

    def get_request(self) -> tuple[Any, Any]:
        sock, address = super().get_request()
        if self.tls is not None:
            sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        return

    def __enter__(self) -> Loopback:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join(5)


@contextlib.contextmanager
def callback_receiver() -> Iterator[tuple[str, queue.Queue[Any]]]:
    """A callback receiver: its URL and the requests it got."""
    got: queue.Queue[Any] = queue.Queue()

    def behave(handler: Handler) -> None:
        with handler.server.lock:
            call = handler.server.calls.pop()
        got.put(json.loads(call.body))
        handler.say(200)

    with Loopback(behave) as server:
        yield server.url("", host="localhost"), got


def refused_port() -> int:
    """A port of 127.0.0.1 without a listener."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
