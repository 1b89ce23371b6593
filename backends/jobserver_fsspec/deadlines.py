"""A limit on the time that everything about one fetch may take together."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

__all__ = ["Deadline"]


class Deadline:
    """Ends a fetch after ``seconds``, also while it waits for a peer that sends a byte now and then.

    Time limits of single reads never end such a transfer. So sockets that are watched are shut down
    when the time is over, which wakes whoever reads from them.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer: threading.Timer | None = None

    @property
    def expired(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._end

    def remaining(self, most: float) -> float:
        """Return the seconds that are left, at most ``most`` and never zero, for use as a time limit."""
        return max(0.001, min(most, self._end - time.monotonic()))

    def watch(self, connection: socket.socket) -> None:
        """Shut the connection of a socket down when the time is over."""
        # A copy, since TLS takes the descriptor away from the socket that it is laid over.
        copy = connection.dup()
        with self._lock:
            self._sockets.append(copy)
            if self._timer is None:
                self._timer = threading.Timer(self.remaining(self.seconds), self._expire)
                self._timer.daemon = True
                self._timer.start()

    def __enter__(self) -> Deadline:
        return self

    def __exit__(self, *_exc: object) -> None:
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            timer.join()
        self._drop()

    def _expire(self) -> None:
        with self._lock:
            for connection in self._sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _drop(self) -> None:
        with self._lock:
            for connection in self._sockets:
                connection.close()
            self._sockets.clear()
