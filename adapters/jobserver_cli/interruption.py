"""Ctrl-C that works at once, and never in the middle of a library that is not made for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["apart", "interrupted_later", "terminated_like_interrupted", "uninterrupted"]

T = TypeVar("T")

LOOK = 0.1
"""Seconds between looks for a signal that came just before the wait for it began."""


def apart(call: Callable[[], T]) -> T:
    """Run the call on a thread of its own, and return or raise what it does.

    KeyboardInterrupt then reaches the main thread while it waits here, and the call is left behind. Raised
    inside the call it could do harm: httpcore's connection pool, interrupted at the wrong moment,
    keeps its lock, and waits for it for ever when it is closed.
    """
    done = threading.Event()
    returned: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            returned.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
            raised.append(error)
        finally:
            done.set()

    threading.Thread(target=work, name="command", daemon=True).start()
    while not done.wait(LOOK):
        pass
    if raised:
        raise raised[0]
    return returned[0]


@contextmanager
def _handling(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM do in the block what Ctrl-C does."""
    with _handling(signal.default_int_handler, signal.SIGTERM):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore signals while what must be done is done; it has to be bounded in time."""
    with _handling(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
        yield


@contextmanager
def interrupted_later() -> Iterator[None]:
    """Keep a signal until the block is done, so that what it starts is not left half started."""
    came: list[int] = []
    with _handling(lambda number, _frame: came.append(number), signal.SIGINT, signal.SIGTERM):
        yield
    if came:
        raise KeyboardInterrupt
