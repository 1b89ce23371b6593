"""Sharing syncs of the disk: one sync serves everybody whose writes came before it.

Theory
======

The problem: a write that must survive a power cut costs milliseconds, nearly all of it waiting for the disk.
With one sync for each write, that is all a server does; and whoever holds a lock meanwhile makes others wait.

The idea: writing and reaching the disk are two steps. A write is a small transaction that is over once the
operating system has it: microseconds, and nothing that the end of the process can undo. Whoever
made a promise then waits at the barrier, without a transaction. One of those who wait syncs for all that came
before the sync began; those who come while it runs are served by the next one. So the cost of a
sync is shared by as many as happen to need one.

The invariants: :meth:`Barrier.wait` returns only after a sync that began after the call and succeeded. A sync
that fails is raised to everybody whom it should have served, since nobody can say what reached the disk.
Writes reach the disk in the order in which they were made, as all of them are in one log.

The barrier's lock guards its fields; nobody holds it during a sync. Callers should hold no lock that others
need, since they wait for milliseconds; those that change a context do hold its lock, which is rare.

Deliberately not handled: repeating a sync that failed. The operating system may have dropped what it could
not write. Callers treat the failure as an unknown outcome, as when a connection breaks during a commit.
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
    """Lets callers wait until ``sync`` has been called once more, for many at a time. Thread-safe."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._changed = threading.Condition(threading.Lock())
        self._running = False
        self._next = _Sync()
        self.count = 0
        """The number of syncs so far."""

    def wait(self) -> None:
        """Return after a sync that began after this call. Raises what the sync raised."""
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
        except BaseException as error:  # noqa: BLE001 - raised to everybody who waits
            mine.error = error
        finally:
            with self._changed:
                mine.over = True
                self._running = False
                self.count += 1
                self._changed.notify_all()
