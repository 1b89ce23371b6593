"""Waiting for a condition, with a deadline that a busy machine does not miss."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["PATIENCE", "wait_until"]

PATIENCE = 60.0


def wait_until(
    condition: Callable[[], object],
    what: str | Callable[[], object] = "",
    timeout: float = PATIENCE,
    pause: float = 0.01,
) -> None:
    """Wait until a condition holds. Otherwise fail with ``what`` was waited for, or what it returns."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what() if callable(what) else what}")
        time.sleep(pause)
