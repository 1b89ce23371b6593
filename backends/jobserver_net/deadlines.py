"""A limit on the total time of one exchange.

Timeouts of single reads never end a transfer in which a byte arrives now and then. So each exchange has one
:class:`Deadline`, which limits every wait for the network. A cancellation must also reach threads that are
already waiting, so it shuts down the watched sockets, which wakes those threads.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import TypeVar

from jobserver_core.ports.fetcher import Cancellation

T = TypeVar("T")


class Expired(TimeoutError):
    """The deadline has passed, or the exchange was cancelled. ``str()`` returns the reason."""


class Deadline:
    """Ends an exchange after ``seconds``, or when it is cancelled.

    Use it in a ``with`` block. At its end, the watched sockets are released.
    """

    def __init__(self, seconds: float, cancellation: Cancellation | None = None) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._cancelled = threading.Event()
        self._reason = ""
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._futures: list[Future[None]] = []
        self._forget: Callable[[], None] = lambda: None
        if cancellation is not None:
            self._forget = cancellation.subscribe(self._cancel)

    @property
    def expired(self) -> bool:
        return self._cancelled.is_set() or time.monotonic() >= self._end

    @property
    def reason(self) -> str:
        return self._reason if self._cancelled.is_set() else f"it took longer than {self.seconds:g} s"

    def left(self, most: float | None = None) -> float:
        """Return the seconds that are left, at most ``most``, as a limit for a socket.

        Raises:
            Expired: None are left.
        """
        seconds = self._end - time.monotonic()
        if self._cancelled.is_set() or seconds <= 0:
            raise Expired(self.reason)
        return seconds if most is None else min(most, seconds)

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than there is time."""
        self._cancelled.wait(max(0.0, min(seconds, self._end - time.monotonic())))

    def result(self, future: Future[T], most: float | None = None) -> T:
        """Wait for the result of another thread.

        Raises:
            Expired: The deadline has passed.
            TimeoutError: ``most`` seconds have passed.
        """
        done: Future[None] = Future()
        with self._lock:
            self._futures.append(done)
        future.add_done_callback(lambda _future: _finish(done))
        with suppress(FutureTimeout):
            if not self._cancelled.is_set():
                done.result(self.left(most))
        if not future.done():
            self.left()
            raise TimeoutError(f"it took longer than {most:g} s" if most is not None else self.reason)
        return future.result()

    def watch(self, connection: socket.socket) -> None:
        """Shut down the connection of a socket when the exchange is cancelled."""
        # Use a copy, because TLS detaches the descriptor from the underlying socket.
        copy = connection.dup()
        with self._lock:
            self._sockets.append(copy)
        if self._cancelled.is_set():
            _shut_down(copy)

    def __enter__(self) -> Deadline:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._forget()
        with self._lock:
            for connection in self._sockets:
                connection.close()
            self._sockets.clear()

    def _cancel(self, reason: str) -> None:
        self._reason = reason
        self._cancelled.set()
        with self._lock:
            for connection in self._sockets:
                _shut_down(connection)
            waiting = list(self._futures)
        for future in waiting:
            _finish(future)


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _finish(future: Future[None]) -> None:
    with suppress(InvalidStateError):
        future.set_result(None)
