"""Thread pools for blocking calls, so that the event loop never blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")
P = ParamSpec("P")


class ThreadPool:
    """Runs up to ``size`` blocking calls at once in threads. Further calls wait without a thread."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the call, and return its value or raise its exception.

        If the caller is cancelled, cancellation takes effect when the call has ended.
        """
        if self._limiter is None:  # a limiter can only be created inside an event loop
            self._limiter = anyio.CapacityLimiter(self._size)
        return await anyio.to_thread.run_sync(partial(call, *args, **kwargs), limiter=self._limiter)


class ThreadPools:
    """A thread pool for each kind of blocking call, so that slow calls do not delay the others.

    ``quick`` is for the metadata store and for reading and writing chunks of files. ``slow`` is for calls
    that may wait for something else, such as a submit, and ``ending`` for ends, which may wait for another
    server but never for slow submits. ``logs`` is for logs, which another server may have to read.
    ``passwords`` is for hashing, which uses much memory by design.
    ``parsing`` is for large configurations, each of which can take seconds of CPU time. ``maintenance`` is
    for calls of operators that read all records and files, ``pruning`` for those that remove some of them.
    """

    def __init__(self) -> None:
        self.quick = ThreadPool(16)
        self.slow = ThreadPool(16)
        self.ending = ThreadPool(16)
        self.logs = ThreadPool(16)
        self.passwords = ThreadPool(2)
        self.parsing = ThreadPool(1)
        self.maintenance = ThreadPool(1)
        self.pruning = ThreadPool(1)
