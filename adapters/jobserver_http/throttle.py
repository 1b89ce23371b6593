"""Slowing down password guessing without locking out legitimate users.

Before it is checked, a guess looks the same as the right password. So if logins were refused after a number
of failures, the owner of the account would be refused too, and anyone who knows a user's name could lock that
user out. Here, failures never cause a login to be refused; they only delay it. An attacker gets fewer checks,
and the owner a short delay.

- A failure counts for its account *and* its network. Failures from other networks have no effect.
- Repeating the same wrong credentials is not a guess. A client with an old password does not count twice.
- After ``per_account`` failures, the account is *slow* for that network until a minute has passed without a
  failure: its logins are checked one after another, at least ``pace`` seconds after the last failure. They
  are checked in the order of their arrival, so the right password is accepted after those before it.
- At most ``max_waiting`` logins wait for one account and network. More are refused with 429. This response is
  delayed by ``pace`` seconds as well, so that one client cannot take every free place by retrying at once.
- The verifier checks the logins of one network one at a time, so their number does not delay other networks.
- A counter per network slows down attempts with one password on many accounts. Once it reaches
  ``per_network``, accounts become slow for that network after one failure.

Only failures and waiting logins use memory, and their number is bounded. A refused login is not stored.
Not prevented: an attacker who opens dozens of connections from a user's own address can delay the user's
first login from there for as long as the connections last.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

import attrs

_Key = tuple[str, ...]


@attrs.define
class _Count:
    failures: int = 0
    last: float = 0.0


@attrs.frozen(kw_only=True, eq=False)
class Throttle:
    """Counts failed logins by network and account. Counters expire ``window`` seconds after the last failure.

    Keeps at most ``capacity`` counters, and removes the oldest first. ``pace`` is in seconds.
    """

    _per_account: int = 5
    _per_network: int = 50
    _window: float = 60.0
    pace: float = 2.0
    max_waiting: int = 20
    _capacity: int = 10_000
    _clock: Callable[[], float] = time.monotonic
    _counts: OrderedDict[_Key, _Count] = attrs.field(factory=OrderedDict, init=False)

    def pause(self, network: str, account: str) -> float:
        """Return the delay in seconds before the next check of an account; 0 unless the account is slow."""
        count = self._current((network, account))
        whole = self._current((network,))
        sprayed = whole is not None and whole.failures >= self._per_network
        if count is None or count.failures < (1 if sprayed else self._per_account):
            return 0.0
        return max(0.0, count.last + self.pace - self._clock())

    def count_failure(self, network: str, account: str) -> None:
        """Count a failed login."""
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
