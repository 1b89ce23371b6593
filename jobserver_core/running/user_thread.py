"""Call functions of the user on a thread of their own, which nothing else needs."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

__all__ = ["CallBack", "UserThread", "call_here"]

_log = logging.getLogger(__name__)

Call = Callable[[], object]
CallBack = Callable[[Call], object]
"""Calls a function of the user, now or later."""
_LINGER = 1.0
"""Seconds for which the thread waits for another call before it ends."""


def call_here(call: Call) -> None:
    """Call a function on the current thread."""
    call()


class UserThread:
    """Calls functions one after another, in order, on a thread that exists only while there are some.

    A call may block, or wait for a job, without delaying anything but later calls. Thread-safe.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition(threading.Lock())
        self._calls: deque[Call] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, call: Call) -> None:
        """Call after all earlier calls, without waiting for it. Its exceptions are logged."""
        with self._changed:
            self._calls.append(call)
            if self._thread is not None:
                self._changed.notify()
                return
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads; the next call tries again
                _log.warning("cannot start the thread for functions of the user: %s", error)
                return
            self._thread = thread

    def close(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the pending calls; return whether they have returned.

        On the thread itself this does not wait. Later calls are still made. Idempotent.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _work(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except BaseException:  # noqa: BLE001 - the function is the user's, and others follow
                _log.exception("a function of the user raised an exception")

    def _next(self) -> Call | None:
        """Return the next call, or None if the thread ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._closed, _LINGER)
            if self._calls:
                return self._calls.popleft()
            self._thread = None
            return None
