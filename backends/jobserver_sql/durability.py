"""Share syncs of the disk: one sync serves all callers whose writes came before it.

Theory
======

The problem: a write that must survive a power cut costs milliseconds, nearly all of it waiting for the disk.
With one sync for each write, a server does little else, and a caller that holds a lock blocks the others.

The idea: writing and reaching the disk are two steps. A write is a small transaction that is complete once
the operating system has it: that takes microseconds, and survives the end of the process. A caller that must
guarantee durability then waits at the barrier, outside a transaction. One of the waiting callers syncs for
all that came before the sync began; the next sync serves those that come while it runs. So all callers that
need a sync at the time share its cost.

The invariants: :meth:`Barrier.wait` returns only after a sync that began after the call and succeeded. The
error of a failed sync is raised to all callers that it should have served, because it is unknown which writes
reached the disk.
Writes reach the disk in the order in which they were made, because they share one log.

The barrier's lock guards its fields and is free during a sync. Callers should hold no lock that others
need, because they wait for milliseconds; those that change a context do hold its lock, which is rare.

Deliberately not handled: repeating a sync that failed. The operating system may have dropped the data that it
could not write. Callers treat the failure as an unknown outcome, as when a connection breaks during a commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Barrier"]


class _Sync:
    """One sync, from the first caller that waits for it to its end."""

    def __init__(self) -> None:
        self.over = False
        self.error: BaseException | None = None


class Barrier:
    """Lets callers wait for the next call of ``sync``, which they share. Thread-safe."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._changed = threading.Condition(threading.Lock())
        self._running = False
        self._next = _Sync()
        self.count = 0
        """The number of syncs so far."""

    def wait(self) -> None:
        """Return after a sync that began after this call. Errors of the sync propagate."""
        with self._changed:
            mine = self._next
            while self._running and not mine.over:
                self._changed.wait()
            leader = not mine.over
            if leader:
                self._running, self._next = True, _Sync()
        if leader:
            self._lead(mine)
        if mine.error is not None:
            raise mine.error

    def _lead(self, mine: _Sync) -> None:
        try:
            self._sync()
        except BaseException as error:  # noqa: BLE001 - raised to all waiting callers
            mine.error = error
        finally:
            with self._changed:
                mine.over = True
                self._running = False
                self.count += 1
                self._changed.notify_all()
