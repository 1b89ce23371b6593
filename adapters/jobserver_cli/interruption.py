"""Handling Ctrl-C immediately, but never inside a library that cannot be interrupted safely."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

POLL_INTERVAL = 0.1
"""Seconds between checks for a signal that arrived just before the wait began."""


def run_on_thread(call: Callable[[], T]) -> T:
    """Run the call on a separate thread, and return its value or raise its exception.

    KeyboardInterrupt is raised here, in the main thread, and the call is abandoned. Raised inside the call,
    it could do harm: if it interrupts httpcore's connection pool at the wrong moment, the pool keeps its lock
    and blocks forever when it is closed.
    """
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
            done.set_exception(error)

    threading.Thread(target=work, name="command", daemon=True).start()
    while not wait([done], POLL_INTERVAL).done:
        pass
    return done.result()


@contextmanager
def _handling(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def sigterm_as_interrupt() -> AbstractContextManager[None]:
    """Within the block, let SIGTERM raise KeyboardInterrupt, as Ctrl-C does."""
    return _handling(signal.default_int_handler, signal.SIGTERM)


def signals_ignored() -> AbstractContextManager[None]:
    """Ignore signals within the block, which must end in bounded time."""
    return _handling(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupt_delayed() -> Iterator[None]:
    """Delay KeyboardInterrupt until the block is done, so that nothing is left half started."""
    received: list[int] = []
    with _handling(lambda number, _frame: received.append(number), signal.SIGINT, signal.SIGTERM):
        yield
    if received:
        raise KeyboardInterrupt
