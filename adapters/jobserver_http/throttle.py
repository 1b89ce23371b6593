"""Slowing down those who guess passwords."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

import attrs

__all__ = ["Throttle"]


@attrs.define
class _Count:
    since: float
    failures: int = 0


class Throttle:
    """Counts log-ins that have not succeeded, by client address, and by address and user.

    An attempt counts as a failure from its beginning until it succeeds, so that many at once gain
    nothing. After ``per_user`` failures of one user from one address, or ``per_address`` from an address,
    the rest of ``window`` seconds is refused. Holds at most ``capacity`` counts; the oldest go first.
    """

    def __init__(
        self,
        *,
        per_user: int = 5,
        per_address: int = 50,
        window: float = 60.0,
        capacity: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = (per_user, per_address)
        self._window = window
        self._capacity = capacity
        self._clock = clock
        self._counts: OrderedDict[tuple[str, ...], _Count] = OrderedDict()

    def begin(self, address: str, user: str) -> int | None:
        """Count an attempt; return None when it may go on, else the seconds until one may."""
        now = self._clock()
        counts = [self._count(key, now) for key in self._keys(address, user)]
        waits = [
            count.since + self._window - now
            for count, limit in zip(counts, self._limits, strict=True)
            if count.failures >= limit
        ]
        if waits:
            return max(1, math.ceil(max(waits)))
        for count in counts:
            count.failures += 1
        return None

    def succeeded(self, address: str, user: str) -> None:
        """Take back what the attempt counted, and forget the user's earlier failures from there."""
        mine, everybody = self._keys(address, user)
        self._counts.pop(mine, None)
        count = self._counts.get(everybody)
        if count is not None:
            count.failures = max(0, count.failures - 1)

    def _keys(self, address: str, user: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (address, user[:256]), (address,)

    def _count(self, key: tuple[str, ...], now: float) -> _Count:
        count = self._counts.get(key)
        if count is None or now - count.since >= self._window:
            self._counts.pop(key, None)
            count = self._counts[key] = _Count(since=now)
            while len(self._counts) > self._capacity:
                self._counts.popitem(last=False)
        return count
