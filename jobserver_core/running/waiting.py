"""Wait for a value without a thread: block, use a callback, or await."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Generic, TypeVar

from jobserver_core.errors import ResultTimeout

__all__ = ["Promise", "Waiter", "all_done"]

T = TypeVar("T")


class Waiter(Generic[T]):
    """A read-only handle to a future value.

    Any number of threads and event loops may wait; none of them costs a thread. A waiter cannot
    be cancelled: if one stops waiting, the operation continues.
    """

    def __init__(self, future: Future[T], what: str) -> None:
        self._future = future
        self._what = what

    def done(self) -> bool:
        """Whether the value is available, or its computation failed."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> T:
        """Wait up to ``timeout`` seconds (None: forever) and return the value, or raise the error.

        Raises ResultTimeout when it takes longer; you can wait again.
        """
        try:
            return self._future.result(timeout)
        except FutureTimeout:
            if self._future.done():
                raise
            raise ResultTimeout(what=self._what, seconds=timeout) from None

    def add_done_callback(self, call: Callable[[Waiter[T]], None]) -> None:
        """Call with this waiter once it is done, on the thread that finished it; at once if it is done."""
        self._future.add_done_callback(lambda _future: call(self))

    def __await__(self) -> Generator[object, None, T]:
        import asyncio  # noqa: PLC0415 - only needed to await

        return asyncio.wrap_future(self._future).__await__()


class Promise(Generic[T]):
    """The other side of a waiter: sets its value or its error, once."""

    def __init__(self, what: str) -> None:
        self._future: Future[T] = Future()
        # From here on, a waiter that calls cancel() does not affect the others.
        self._future.set_running_or_notify_cancel()
        self.waiter: Waiter[T] = Waiter(self._future, what)

    @classmethod
    def kept(cls, value: T, what: str = "") -> Waiter[T]:
        """Return a waiter for a value that is available already."""
        promise: Promise[T] = cls(what)
        promise.keep(value)
        return promise.waiter

    def keep(self, value: T) -> None:
        """Set the value; does nothing once a value or an error is set."""
        if not self._future.done():
            self._future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Set the error; does nothing once a value or an error is set."""
        if not self._future.done():
            self._future.set_exception(error)


def all_done(waiters: Iterable[Waiter[Any]]) -> Waiter[None]:
    """Return a waiter that is done when all of them are, whether they succeeded or failed."""
    pending = list(waiters)
    done: Promise[None] = Promise(f"{len(pending)} things")
    lock = threading.Lock()
    left = len(pending)

    def one_done(_waiter: Waiter[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            done.keep(None)

    for waiter in pending:
        waiter.add_done_callback(one_done)
    if not pending:
        done.keep(None)
    return done.waiter
