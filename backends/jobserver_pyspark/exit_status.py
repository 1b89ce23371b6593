"""Interpret the exit status of a context's process."""

from __future__ import annotations

import signal

__all__ = ["describe_exit", "killed_from_outside"]

_SENT_BY_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_CAUGHT = 128
"""A JVM catches signals; its exit status is then this plus the number of the signal."""


def killed_from_outside(status: int | None) -> bool:
    """Return whether a signal of a user or of the kernel (out of memory) ended a process.

    ``status`` is as in ``subprocess``, or None if it is unknown.
    """
    return status is not None and _signal_of(status) in _SENT_BY_OTHERS


def describe_exit(status: int | None) -> str:
    """Return how a process ended, as the end of a sentence."""
    if not killed_from_outside(status):
        how = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        return f"ended by itself ({how})"
    if status == -signal.SIGKILL:
        return "was killed from outside (signal 9): by a user, or by the system because memory ran out"
    return f"was killed from outside (signal {_signal_of(status or 0)})"


def _signal_of(status: int) -> int:
    return -status if status < 0 else status - _CAUGHT
