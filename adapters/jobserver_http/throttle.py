"""Slowing down those who guess passwords, without locking out anyone else.

Nobody can tell a guess from the right password before it is checked. So a rule that refuses log-ins after
some failures also refuses the owner of the account, and anyone who knows a user's name can keep that user
out. Here failures never refuse a log-in, they only make it wait: the guesser gets fewer checks, the owner a
short delay.

- A failure counts for its account *from its network*. Failures elsewhere never matter.
- Sending the same wrong credentials again is no guess. A client with an old password does not count twice.
- After ``per_account`` failures, that account is *slow* from that network until a minute without a failure
  has passed: its log-ins are checked one after another, at least ``pace`` seconds after the last failure.
  They wait in the order in which they came, so the right password is let in after those before it.
- At most ``line`` log-ins wait for one account from one network. More are refused with 429. That answer
  waits for ``pace`` seconds as well, so that nobody takes every free place by asking again at once.
- Trying one password on many accounts is slowed down by a count for the whole network. Once it reaches
  ``per_network``, accounts become slow from there after one failure.

Only failures and waiting log-ins take memory, in bounded numbers; a refused log-in is not stored at all.
What this does not prevent: somebody who opens dozens of connections from a user's own address can delay
that user's first log-in from there for as long as the connections last.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

import attrs

__all__ = ["Throttle"]

_Key = tuple[str, ...]


@attrs.define
class _Count:
    failures: int = 0
    last: float = 0.0


class Throttle:
    """Counts failed log-ins by network and account; a count ends ``window`` seconds after its last failure.

    Holds at most ``capacity`` counts; the oldest go first. ``pace`` is in seconds.
    """

    def __init__(
        self,
        *,
        per_account: int = 5,
        per_network: int = 50,
        window: float = 60.0,
        pace: float = 2.0,
        line: int = 20,
        capacity: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pace = pace
        self.line = line
        self._per_account = per_account
        self._per_network = per_network
        self._window = window
        self._capacity = capacity
        self._clock = clock
        self._counts: OrderedDict[_Key, _Count] = OrderedDict()

    def pause(self, network: str, account: str) -> float:
        """Return how many seconds the next check of an account has to wait; 0 unless the account is slow."""
        count = self._current((network, account))
        whole = self._current((network,))
        sprayed = whole is not None and whole.failures >= self._per_network
        if count is None or count.failures < (1 if sprayed else self._per_account):
            return 0.0
        return max(0.0, count.last + self.pace - self._clock())

    def failed(self, network: str, account: str) -> None:
        """Count a failure."""
        for key in ((network, account), (network,)):
            count = self._current(key)
            if count is None:
                count = self._counts[key] = _Count()
            count.failures += 1
            count.last = self._clock()
            self._counts.move_to_end(key)
        while len(self._counts) > self._capacity:
            self._counts.popitem(last=False)

    def _current(self, key: _Key) -> _Count | None:
        count = self._counts.get(key)
        if count is not None and self._clock() - count.last >= self._window:
            del self._counts[key]
            return None
        return count
