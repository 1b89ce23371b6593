"""Where context hosts connect to: a listener on loopback that knows its hosts by their secrets."""

from __future__ import annotations

import contextlib
import hmac
import logging
import queue
import secrets
import socket
import threading

from jobserver_core.repeats import Repeats
from jobserver_pyspark.protocol.frames import Channel, ChannelClosed, FrameError

__all__ = ["Connections"]

_HELLO_TIMEOUT = 10.0
_PAUSE = 0.2
_repeats = Repeats(logging.getLogger(__name__))


class Connections:
    """Accepts hosts, and hands each connection to the context whose secret it told.

    A connection that tells no secret, or a wrong or used one, is closed after a few seconds.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._expected: dict[str, queue.Queue[Channel]] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._accept, name="host connections", daemon=True).start()

    def expect(self) -> tuple[str, queue.Queue[Channel]]:
        """Return a new secret, and the queue that its host's connection comes out of."""
        token = secrets.token_hex(32)
        arrivals: queue.Queue[Channel] = queue.Queue(1)
        with self._lock:
            self._expected[token] = arrivals
        return token, arrivals

    def forget(self, token: str) -> None:
        """Accept a secret no more."""
        with self._lock:
            self._expected.pop(token, None)

    def _accept(self) -> None:
        """Accept until closed: running out of descriptors or threads passes, and must not end this thread."""
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
                with contextlib.ExitStack() as refused:
                    refused.callback(connection.close)
                    threading.Thread(
                        target=self._greet, args=(connection,), name="host greeting", daemon=True
                    ).start()
                    refused.pop_all()
            except (OSError, RuntimeError) as error:
                if not self._closed.is_set():
                    _repeats.warning("accept", "a context cannot connect, trying again: %s", error)
                self._closed.wait(_PAUSE)

    def _greet(self, connection: socket.socket) -> None:
        channel = Channel(connection, max_payload=0)
        channel.settimeout(_HELLO_TIMEOUT)
        try:
            header, _ = channel.receive()
        except (ChannelClosed, FrameError, TimeoutError):
            channel.close()
            return
        arrivals = self._claim(str(header.get("token")))
        if arrivals is None:
            channel.close()
            return
        channel.settimeout(None)
        arrivals.put(Channel(connection))

    def _claim(self, told: str) -> queue.Queue[Channel] | None:
        with self._lock:
            for token in self._expected:
                if hmac.compare_digest(token.encode(), told.encode(errors="replace")):
                    return self._expected.pop(token)
        return None

    def close(self) -> None:
        """Accept nobody any more."""
        self._closed.set()
        with contextlib.suppress(OSError):  # it never accepted
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
