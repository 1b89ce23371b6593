"""The threads of a synchronous client.

Calls of the user hand a coroutine to an event loop in a thread, and block on its future. Two rules follow:

- The loop never runs code of the user. Callbacks and subscribers run on a second thread, in the order of
  events, where they may call the client, and may even wait for a job.
- Threads do not survive a fork, so a client can only be used in the process that created it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import TypeVar

from jobserver_client.errors import ClientClosed
from jobserver_client.handles import AsyncWaiter
from jobserver_core.errors import Conflict, JobServerError
from jobserver_core.running.user_thread import UserThread
from jobserver_core.running.waiting import Waiter

T = TypeVar("T")

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 5.0
"""Seconds to wait for connections to close, and for functions of the user to return."""


class LoopThread:
    """An event loop in a thread, and a second thread for the code of the user."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._closed = False
        self._callbacks = UserThread("jobserver-client-callbacks")
        self.call_back = self._callbacks.run
        self._thread = threading.Thread(target=self._serve, name="jobserver-client", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(_end_tasks())
        self._loop.close()

    @property
    def is_open(self) -> bool:
        """Whether it runs in this process."""
        return not self._closed and self._pid == os.getpid()

    def check(self) -> None:
        """Check that the client can be used.

        Raises:
            ClientClosed: The client is closed.
            Conflict: It belongs to another process.
        """
        if self._closed:
            raise ClientClosed()
        if self._pid != os.getpid():
            raise Conflict(message="this client was created in another process; each process needs its own")

    def begin(self, work: Coroutine[object, None, T]) -> Future[T]:
        """Run a coroutine on the loop.

        Raises:
            ClientClosed: The client is closed.
            Conflict: It belongs to another process.
        """
        try:
            self.check()
        except JobServerError:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[object, None, T]) -> T:
        """Run a coroutine on the loop, and wait for it. An interrupted wait cancels it.

        Raises:
            ClientClosed: The client is closed.
            Conflict: It belongs to another process.
        """
        future = self.begin(work)
        try:
            return future.result()
        except CancelledError:
            raise ClientClosed() from None
        except BaseException:
            future.cancel()
            raise

    def call_on_loop(self, call: Callable[[], object]) -> None:
        """Call it on the loop, without waiting; a closed client ignores it."""
        if not self._closed:
            self._loop.call_soon_threadsafe(call)

    def close(self, last: Coroutine[object, None, None]) -> None:
        """Run the last coroutine, and end the threads. Idempotent."""
        if not self.is_open:
            last.close()
            return
        closing = self.begin(last)
        self._closed = True
        with suppress(FutureTimeout):
            closing.result(CLOSE_TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT)
        if not self._callbacks.close(CLOSE_TIMEOUT):
            _log.warning(
                "a callback or subscriber takes too long; the client is closed without waiting for it"
            )


async def _end_tasks() -> None:
    """End what still runs, so that nobody waits for it forever."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def waiter_for(thread: LoopThread, waiter: AsyncWaiter[T], what: str) -> Waiter[T]:
    """Return a waiter for the value of an asynchronous one, which is first asked for when this one is."""
    return Waiter(_LazyFuture(thread, waiter), what, thread.call_back)


class _LazyFuture(Future[T]):
    """A future whose work begins when somebody first asks for it."""

    def __init__(self, thread: LoopThread, waiter: AsyncWaiter[T]) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()  # a waiter that calls cancel() does not affect the others
        self._thread = thread
        self._waiter = waiter
        self._beginning = threading.Lock()
        self._has_begun = False

    def _begin(self) -> None:
        with self._beginning:
            if not self._has_begun:
                self._thread.begin(self._waiter.result()).add_done_callback(self._end)
                self._has_begun = True

    def _end(self, ended: Future[T]) -> None:
        if ended.cancelled():
            self.set_exception(ClientClosed())
        elif (error := ended.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(ended.result())

    def done(self) -> bool:
        """Whether the value is available, or its computation failed."""
        if not super().done():
            self._begin()
        return super().done()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the value."""
        if not super().done():
            self._begin()
        return super().result(timeout)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call it once the value is available."""
        if not super().done():
            self._begin()
        super().add_done_callback(fn)
