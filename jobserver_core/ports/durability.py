"""Share syncs of the disk: one sync serves all callers whose writes came before it.

Theory
======

The problem: a write that must survive a power cut takes milliseconds, nearly all of them waiting for the
disk. With one sync per write, a server does little else, and a caller that holds a lock blocks the others.

The idea: a write is complete once the operating system has it. This takes microseconds, and the write
survives the end of the process. A caller that must guarantee durability then waits at the barrier, outside a
transaction. Syncs are numbered and run one after the other. The *next* sync covers every write that was made
before it begins, so all waiters for the same number share its cost. One of them runs it; when it is over, one
of the waiters for the following number runs the next one. A caller that cannot wait remembers the number of
the next sync, and checks later whether that sync succeeded.

The invariants: :meth:`Barrier.wait` returns only after a sync that began after the call, or after the given
number was returned by :attr:`Barrier.next`, and succeeded. The error of a failed sync is raised to all
callers that it should have served, because it is unknown which writes reached the disk. Writes reach the disk
in the order in which they were made, because they share one log.

The barrier's lock is released during a sync. Callers wait for milliseconds, so they should hold no lock that
others need. Callers that change a context do hold its lock, but such changes are rare.

Deliberately not handled: repeating a sync that failed, because the operating system may have dropped the
data. Callers treat the failure as an unknown outcome, as if a connection had broken during a commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class _Sync:
    """One sync, from the moment the first caller waits for it until it ends."""

    def __init__(self, number: int, lock: threading.Lock) -> None:
        self.number = number
        self.changed = threading.Condition(lock)
        """Notified when this sync is over, or may begin."""
        self.over = False
        self.error: BaseException | None = None


class Barrier:
    """Lets callers wait for a shared call to ``sync``. Thread-safe."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._lock = threading.Lock()
        self._running: _Sync | None = None
        self._next = _Sync(1, self._lock)
        self.succeeded = 0
        """The number of the last successful sync. It covers all that earlier syncs should have covered."""
        self.count = 0
        """The number of syncs so far."""

    @property
    def next(self) -> int:
        """The number of the next sync to begin. It covers all writes made so far."""
        return self._next.number

    def wait(self, number: int | None = None) -> None:
        """Return after a sync that began after this call, or after ``number`` was :attr:`next`.

        Errors of the sync propagate. If the sync with this number has already failed, wait for another one.
        """
        with self._lock:
            mine = self._next if number is None else self._covering(number)
            if mine is None:
                return
            while self._running is not None and not mine.over:
                mine.changed.wait()
            begins = not mine.over
            if begins:
                self._running, self._next = mine, _Sync(mine.number + 1, self._lock)
        if begins:
            self._run(mine)
        if mine.error is not None:
            raise mine.error

    def _covering(self, number: int) -> _Sync | None:
        """Return a sync that covers the same writes as this number; None if one has already succeeded."""
        if number <= self.succeeded:
            return None
        running = self._running
        return running if running is not None and number <= running.number else self._next

    def _run(self, mine: _Sync) -> None:
        try:
            self._sync()
        except BaseException as error:  # noqa: BLE001 - raised to all waiting callers
            mine.error = error
        finally:
            with self._lock:
                mine.over = True
                self._running = None
                self.count += 1
                if mine.error is None:
                    self.succeeded = mine.number
                mine.changed.notify_all()
                self._next.changed.notify()
