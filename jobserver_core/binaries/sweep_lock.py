"""The lock that keeps the sweep of unused blobs apart from those who are about to refer to one.

Theory
======

The problem: a blob is committed first, and the record that refers to it is stored later. In between, nothing
refers to the blob, so a sweep would delete it. Neither write can include the other: they are in two stores.

The idea is a shared and exclusive lock. Everybody who commits a blob, or finds one that is there already,
holds the lock in *shared* mode until the record is stored. The sweep takes it in *exclusive* mode, looks once
more for references, and deletes.

The invariants: no blob is deleted between its commit and its record. A sweep never holds up others for long:
it waits for the shared holders only for a fraction of a second, because one may download a blob from an
object store, and then gives up. While it waits nobody else gets the lock, or a busy server would never be
swept.

The lock is taken before the lock of a context, never under it: the sweep takes the locks of contexts while
it holds this one exclusively. A shared holder may run effects, such as calls of subscribers, before it
releases the lock; at worst a sweep gives up because of them. Deliberately not handled: other servers on
the same blob store; the sweep leaves young blobs alone for their sake.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SweepLock"]


class SweepLock:
    """A shared and exclusive lock; shared mode is reentrant for each thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._exclusive = False
        self._this_thread = threading.local()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold off sweeps inside the block."""
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
        """Let nobody hold the lock in shared mode inside the block.

        Yields False, and excludes nobody, when somebody still holds it after ``timeout`` seconds.
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
