"""Fairness: limit the callbacks that are in progress at once, in total and to each receiver.

Theory
======

The problem: an attempt that waits for a dead receiver occupies a worker thread for the whole timeout. With a
plain queue, a few receivers that hang soon occupy every worker, and callbacks to all others wait behind them.
It is known only afterwards which receivers hang.

The idea: the latest attempt to a receiver decides its *lane*. All slow receivers have one lane with a quarter
of the places, and all failing ones another. New receivers may use the rest, but a quarter is always reserved
for prompt receivers. No receiver ever has more than ``per_receiver`` places.

The invariants: a prompt receiver always finds a place soon, however many others hang. A receiver that
recovers leaves its lane with its first prompt answer. With one place only, each lane has that one, and all
receivers take turns.

Deliberately not handled: the status of receivers is not stored, and only :data:`REMEMBERED` of them are kept
in memory. A forgotten receiver costs one slow attempt. The dispatcher decides the order of deliveries to a
receiver.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from enum import Enum

REMEMBERED = 1024
"""The number of receivers whose status is kept; the least recently used one is forgotten first."""


class ReceiverStatus(Enum):
    """The status of a receiver after the latest attempt: its lane."""

    NEW = "new"
    """Nothing is known about it."""
    PROMPT = "prompt"
    """It accepted the callback quickly."""
    FAILING = "failing"
    """It quickly refused the callback, or could not be reached."""
    SLOW = "slow"
    """It occupied a worker for a long time, with any outcome."""


class Lanes:
    """Counts the attempts in progress, and decides which receivers may have another one.

    Not thread-safe: the dispatcher calls it with its lock held.
    """

    def __init__(self, *, concurrency: int, per_receiver: int, remembered: int = REMEMBERED) -> None:
        self._concurrency = concurrency
        self._per_receiver = per_receiver
        quarter = (concurrency + 2) // 4
        self._limits = {ReceiverStatus.SLOW: max(1, quarter), ReceiverStatus.FAILING: max(1, quarter)}
        self._unproven_limit = concurrency - quarter
        self._remembered = remembered
        self._status: OrderedDict[str, ReceiverStatus] = OrderedDict()
        self._by_receiver: Counter[str] = Counter()
        self._by_status: Counter[ReceiverStatus] = Counter()

    @property
    def free(self) -> int:
        """The number of free places; not every receiver may take them."""
        return self._concurrency - self._by_status.total()

    def status(self, receiver: str) -> ReceiverStatus:
        """Return the status of a receiver."""
        return self._status.get(receiver, ReceiverStatus.NEW)

    def admits(self, receiver: str) -> bool:
        """Whether one more callback may go to this receiver now."""
        below_limit = self._by_receiver[receiver] < self._per_receiver
        return below_limit and self.free > 0 and self._lane_has_place(self.status(receiver))

    def _lane_has_place(self, status: ReceiverStatus) -> bool:
        if status is ReceiverStatus.PROMPT:
            return True
        unproven = self._by_status.total() - self._by_status[ReceiverStatus.PROMPT]
        limit = self._limits.get(status, self._concurrency)
        return unproven < self._unproven_limit and self._by_status[status] < limit

    def full(self) -> set[str]:
        """Return the known receivers that may not have another attempt now."""
        full = {receiver for receiver, used in self._by_receiver.items() if used >= self._per_receiver}
        barred = {status for status in ReceiverStatus if not self._lane_has_place(status)}
        return full | {receiver for receiver, status in self._status.items() if status in barred}

    def enter(self, receiver: str) -> ReceiverStatus:
        """Take a place, and return the lane in which it is, for :meth:`leave`."""
        status = self.status(receiver)
        self._by_receiver[receiver] += 1
        self._by_status[status] += 1
        return status

    def leave(self, receiver: str, entered: ReceiverStatus, became: ReceiverStatus | None = None) -> None:
        """Give a place back, and remember the receiver's new status; None keeps the old one."""
        self._by_status[entered] -= 1
        self._by_receiver[receiver] -= 1
        if not self._by_receiver[receiver]:
            del self._by_receiver[receiver]
        if became is None:
            return
        self._status[receiver] = became
        self._status.move_to_end(receiver)
        if len(self._status) > self._remembered:
            self._status.popitem(last=False)
