"""Effects that must happen outside a lock, in the order in which they were decided."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Outbox"]

_log = logging.getLogger(__name__)


class Outbox:
    """Runs calls one at a time, in order, on whichever thread comes by with :meth:`drain`.

    A thread that finds another one draining leaves its calls to that one, so draining never blocks.
    """

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._gate = threading.Lock()

    def put(self, call: Callable[[], object]) -> None:
        """Add a call; it runs at the next :meth:`drain`."""
        self._calls.append(call)

    def drain(self) -> None:
        """Run what is there, unless somebody else does; what a call raises is logged."""
        # The check after the release sees what others left while they could not get in.
        while self._calls and self._gate.acquire(blocking=False):
            try:
                self._run()
            finally:
                self._gate.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing run inside the block; what came meanwhile runs at its end."""
        with self._gate:
            yield
        self.drain()

    def _run(self) -> None:
        while self._calls:
            call = self._calls.popleft()
            try:
                call()
            except Exception:  # noqa: BLE001 - one effect that fails must not swallow the others
                _log.exception("an effect of a stored change failed")
