"""Where blocking calls run, so that the event loop never waits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread

__all__ = ["Pool", "Pools"]

T = TypeVar("T")


class Pool:
    """Runs blocking calls in threads, at most ``size`` at once; further ones wait without a thread."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run the call and return what it returns, or raise what it raises.

        When the caller is cancelled, the call runs to its end first.
        """
        if self._limiter is None:  # a limiter is made inside an event loop
            self._limiter = anyio.CapacityLimiter(self._size)
        return await anyio.to_thread.run_sync(partial(call, *args, **kwargs), limiter=self._limiter)


class Pools:
    """One pool for each kind of blocking call, so that slow ones hold up none of the others.

    ``quick`` is for the metadata store and pieces of files; ``slow`` for what may wait for somebody
    else (a submit fetches URIs); ``passwords`` for hashing, which costs memory by design; ``parsing`` for
    large configurations, of which each may cost seconds of a core.
    """

    def __init__(self, *, quick: int = 16, slow: int = 16, passwords: int = 2, parsing: int = 1) -> None:
        self.quick = Pool(quick)
        self.slow = Pool(slow)
        self.passwords = Pool(passwords)
        self.parsing = Pool(parsing)
