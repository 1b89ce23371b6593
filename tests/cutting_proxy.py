"""A TCP proxy in front of a server that breaks connections when a test wants."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

__all__ = ["CuttingProxy"]


class CuttingProxy:
    """Forwards connections to a server. Responses can be cut after a number of bytes.

    ``cut_after`` is that number for each of the next responses, one per connection; None lets all pass.
    ``away`` resets new connections at once, as if the server were gone.
    """

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.cut_after: list[int | None] = []
        self.connections = 0
        self.away = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._start(self._accept)

    @property
    def url(self) -> str:
        """The address of the proxy."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut_all(self) -> None:
        """Reset all connections that are open now."""
        with self._lock:
            for one in self._open:
                _reset(one)

    def close(self) -> None:
        """Reset all connections, and stop listening."""
        self.away = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        for thread in list(self._threads):
            thread.join(10)

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                if self.away:
                    _reset(client)
                    client.close()
                    continue
                server = socket.create_connection((self._target.hostname, self._target.port))
                limit = self.cut_after.pop(0) if self.cut_after else None
                self._start(self._forward, client, server, None)
                self._start(self._forward, server, client, limit)

    def _forward(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        with self._kept(source), contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data if limit is None else data[:limit])
                limit = None if limit is None else limit - len(data)
                if limit is not None and limit <= 0:
                    break
            else:
                sink.shutdown(socket.SHUT_WR)
                return
            _reset(sink)

    @contextmanager
    def _kept(self, one: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(one)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(one)
            one.close()


def _reset(one: socket.socket) -> None:
    """End a connection with a RST."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RDWR)
        one.close()


@contextmanager
def cutting(target: str) -> Iterator[CuttingProxy]:
    """A proxy for the ``with`` block."""
    proxy = CuttingProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
