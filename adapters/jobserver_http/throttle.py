"""Slowing down those who guess passwords, without locking out anyone else.

A failed log-in counts for its account *from its network*, never for the account alone: otherwise anyone
could lock out anybody whose name they know. After ``per_account`` failures in a window, that account
is refused from that network for the rest of the window.

Trying one password on many accounts is slowed down by a second count, for the network. It refuses nobody
by itself: once it is full, accounts are refused from there after one failure instead of ``per_account``.
Others behind the same address, such as the users of one proxy, still log in.

Only failures are stored. A refused attempt changes nothing, so refusing costs no memory and never
prolongs a window.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

import attrs

__all__ = ["Throttle"]

_Key = tuple[str, ...]


@attrs.define
class _Count:
    since: float
    failures: int = 0


class Throttle:
    """Counts failed log-ins by network and account, in windows of ``window`` seconds from the first failure.

    Holds at most ``capacity`` counts; the oldest go first.
    """

    def __init__(
        self,
        *,
        per_account: int = 5,
        per_network: int = 50,
        window: float = 60.0,
        capacity: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_account = per_account
        self._per_network = per_network
        self._window = window
        self._capacity = capacity
        self._clock = clock
        self._counts: OrderedDict[_Key, _Count] = OrderedDict()

    def wait(self, network: str, account: str) -> int | None:
        """Return the seconds until an attempt is allowed, None when it is allowed now."""
        count = self._current((network, account))
        if count is None:
            return None
        whole = self._current((network,))
        sprayed = whole is not None and whole.failures >= self._per_network
        if count.failures < (1 if sprayed else self._per_account):
            return None
        return max(1, math.ceil(count.since + self._window - self._clock()))

    def failed(self, network: str, account: str) -> None:
        """Count a failure."""
        for key in ((network, account), (network,)):
            count = self._current(key)
            if count is None:
                count = self._counts[key] = _Count(since=self._clock())
            count.failures += 1
            self._counts.move_to_end(key)
        while len(self._counts) > self._capacity:
            self._counts.popitem(last=False)

    def _current(self, key: _Key) -> _Count | None:
        count = self._counts.get(key)
        if count is not None and self._clock() - count.since >= self._window:
            del self._counts[key]
            return None
        return count
