"""Log lines of loops that fail over and over: one a minute for each cause, with a count of the others.

A loop that cannot do its work, since the disk is full or no file descriptor is left, tries again many times a
second. A line for each attempt would fill the disk and hide everything else, which helps nobody.
What matters is the first failure, and that it continues.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

INTERVAL = 60.0
"""Seconds between two lines for the same cause."""
_MOST = 1000
"""How many causes are remembered; beyond that the oldest is forgotten."""


class Repeats:
    """Writes to a logger, for each cause at most one line per :data:`INTERVAL`. Thread-safe."""

    def __init__(self, log: logging.Logger, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._written: dict[str, tuple[float, int]] = {}

    def warning(self, cause: str, message: str, *args: object, exc_info: bool = False) -> None:
        """Log a warning, unless one for the same cause was written a short while ago; then it is counted."""
        self._write(logging.WARNING, cause, message, args, exc_info)

    def error(
        self, cause: str, message: str, *args: object, exc_info: bool | BaseException | None = None
    ) -> None:
        """Log an error, under the same condition."""
        self._write(logging.ERROR, cause, message, args, exc_info)

    def _write(
        self,
        level: int,
        cause: str,
        message: str,
        args: tuple[object, ...],
        exc_info: bool | BaseException | None,
    ) -> None:
        now = self._monotonic()
        with self._lock:
            at, suppressed = self._written.pop(cause, (now - INTERVAL, 0))
            due = now - at >= INTERVAL
            self._written[cause] = (now, 0) if due else (at, suppressed + 1)
            if len(self._written) > _MOST:
                del self._written[next(iter(self._written))]
        if due and suppressed:
            message, args = f"{message} (%d more like this since the last line)", (*args, suppressed)
        if due:
            self._log.log(level, message, *args, exc_info=exc_info)
