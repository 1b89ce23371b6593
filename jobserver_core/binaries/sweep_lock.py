"""The lock that keeps the sweep from deleting a blob that is about to be referenced.

Theory
======

The problem: a blob is committed first, and the record that refers to it is stored later. In between, nothing
refers to the blob, so a sweep would delete it. Neither write can include the other: they are in two stores.

The idea is a lock with a shared and an exclusive mode. A thread that commits a blob, or finds one stored,
holds the lock in *shared* mode until the record is stored. The sweep takes it in *exclusive* mode, checks the
references again, and deletes.

The invariants: no blob is deleted between its commit and its record. A sweep never blocks others for long:
it waits for the shared holders only for a fraction of a second, because one may be downloading a blob from
an object store, and then stops trying. While it waits, no other thread gets the lock; otherwise a busy server
would never be swept.

The lock is taken before the lock of a context, never under it: the sweep takes the locks of contexts while
it holds this one exclusively. A shared holder may run effects, such as calls of subscribers, before it
releases the lock; at worst they make a sweep time out. Deliberately not handled: other servers on
the same blob store; the sweep protects their new blobs by skipping young ones.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SweepLock:
    """A lock with a shared and an exclusive mode; each thread may reenter shared mode."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._exclusive = False
        self._this_thread = threading.local()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Block sweeps inside the block."""
        if getattr(self._this_thread, "sharing", False):
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._exclusive)
            self._sharing += 1
        self._this_thread.sharing = True
        try:
            yield
        finally:
            self._this_thread.sharing = False
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self, timeout: float) -> Iterator[bool]:
        """Hold the lock in exclusive mode inside the block.

        Yields False, without the lock, if a shared holder remains after ``timeout`` seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._exclusive)
            self._exclusive = True
            acquired = self._changed.wait_for(lambda: self._sharing == 0, timeout)
            if not acquired:
                self._release()
        try:
            yield acquired
        finally:
            if acquired:
                with self._changed:
                    self._release()

    def _release(self) -> None:
        self._exclusive = False
        self._changed.notify_all()
