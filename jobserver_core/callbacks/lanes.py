"""Fairness: how many callbacks may be under way at once, in all and to whom."""

from __future__ import annotations

from collections import Counter, OrderedDict
from enum import Enum

__all__ = ["Lanes", "Standing"]

REMEMBERED = 1024
"""How many receivers' standing is kept; the one that was used longest ago is forgotten first."""


class Standing(Enum):
    """What the latest attempt says about a receiver."""

    NEW = "new"
    """Nothing is known of it."""
    PROMPT = "prompt"
    """It took the callback, and quickly."""
    FAILING = "failing"
    """It quickly said no, or could not be reached."""
    SLOW = "slow"
    """It kept a worker busy for long, whatever came of it."""


class Lanes:
    """Counts what is under way and says who may be next. Whoever shares one holds a lock.

    A receiver has ``per_receiver`` places. Slow receivers together have a quarter of all places, and
    failing ones a quarter; both and the new ones together leave a quarter to those that are
    known to be prompt. So however many receivers are dead, the living are served.
    """

    def __init__(self, *, concurrency: int, per_receiver: int, remembered: int = REMEMBERED) -> None:
        self._concurrency = concurrency
        self._per_receiver = per_receiver
        quarter = (concurrency + 2) // 4
        self._limits = {Standing.SLOW: max(1, quarter), Standing.FAILING: max(1, quarter)}
        self._unproven_limit = concurrency - quarter
        self._remembered = remembered
        self._standing: OrderedDict[str, Standing] = OrderedDict()
        self._by_receiver: Counter[str] = Counter()
        self._by_standing: Counter[Standing] = Counter()

    @property
    def free(self) -> int:
        """How many places are free; not all receivers may have them."""
        return self._concurrency - self._by_standing.total()

    def standing(self, receiver: str) -> Standing:
        """Return what is known of a receiver."""
        return self._standing.get(receiver, Standing.NEW)

    def admits(self, receiver: str) -> bool:
        """Whether one more callback may go to this receiver now."""
        has_place = self._by_receiver[receiver] < self._per_receiver
        return has_place and self.free > 0 and self._has_share(self.standing(receiver))

    def _has_share(self, standing: Standing) -> bool:
        if standing is Standing.PROMPT:
            return True
        unproven = self._by_standing.total() - self._by_standing[Standing.PROMPT]
        limit = self._limits.get(standing, self._concurrency)
        return unproven < self._unproven_limit and self._by_standing[standing] < limit

    def shut(self) -> set[str]:
        """Return the receivers that are known and not admitted now."""
        full = {receiver for receiver, used in self._by_receiver.items() if used >= self._per_receiver}
        barred = {standing for standing in Standing if not self._has_share(standing)}
        return full | {receiver for receiver, standing in self._standing.items() if standing in barred}

    def enter(self, receiver: str) -> Standing:
        """Take a place, and return the share it was taken from, for :meth:`leave`."""
        standing = self.standing(receiver)
        self._by_receiver[receiver] += 1
        self._by_standing[standing] += 1
        return standing

    def leave(self, receiver: str, entered: Standing, became: Standing | None = None) -> None:
        """Give a place back, and remember how the receiver did; None is no news of it."""
        self._by_standing[entered] -= 1
        self._by_receiver[receiver] -= 1
        if not self._by_receiver[receiver]:
            del self._by_receiver[receiver]
        if became is None:
            return
        self._standing[receiver] = became
        self._standing.move_to_end(receiver)
        if len(self._standing) > self._remembered:
            self._standing.popitem(last=False)
