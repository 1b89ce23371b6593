"""Wait for the disk without holding a lock and without delaying the launcher's reports.

Theory
======

The problem: a job's end must not be announced before the disk has it, and the disk takes milliseconds. The
thread that stores the end cannot wait: while it does, no other report of the launcher is read, so jobs
would end one sync at a time; and it would hold the context's lock.

The idea: the store writes the record at once. From then on it survives the end of this process, the order of
changes is settled, and the job's slot is free. Only the notifications (events, waiters, callbacks) stay in
the context's outbox until a sync. One thread syncs for all outboxes that wait, then resumes them.
Meanwhile others write; the next sync serves all of them.

The invariants: an entry of an outbox that is marked ``after_sync`` runs only after a sync that began after
the entry was added, hence after the record was written. Entries keep their order. A sync that fails is
repeated until the store works again, as a write is.

Deliberately not handled: the end of the process. A callback that was not sent yet is in the store, and the
next start sends it. A power cut may undo changes that were not announced yet.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from jobserver_core.errors import StorageError
from jobserver_core.ports import MetadataStore

__all__ = ["Syncer"]

_log = logging.getLogger(__name__)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""The minimum and the maximum number of seconds between two attempts to sync."""


class _Waiting(Protocol):
    """An outbox whose next entry waits for a sync."""

    def __len__(self) -> int: ...

    def resume(self, synced: int) -> None: ...


class Syncer:
    """Syncs the metadata store, for outboxes on a thread of its own. Thread-safe.

    With a store whose writes are on the disk when they return, there is nothing to wait for.
    """

    def __init__(self, metadata: MetadataStore) -> None:
        self._sync: Callable[[], None] | None = metadata.sync if metadata.defer_syncs() else None
        self._changed = threading.Condition(threading.Lock())
        self._waiting: list[_Waiting] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def needed(self) -> bool:
        """Whether writes still have to be synced."""
        return self._sync is not None

    def sync(self) -> None:
        """Return once everything written before is on the disk. Raises StorageError."""
        if self._sync is not None:
            self._sync()

    def put(self, outbox: _Waiting) -> None:
        """Let an outbox resume after the next sync, on the syncer's thread."""
        with self._changed:
            self._waiting.append(outbox)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="jobserver-sync", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Sync once more for the waiting outboxes, and end the thread. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while waiting := self._next():
            covered = [(outbox, len(outbox)) for outbox in waiting]
            if not self._synced():
                return
            for outbox, count in covered:
                outbox.resume(count)

    def _next(self) -> list[_Waiting]:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            waiting, self._waiting = self._waiting, []
            return waiting

    def _synced(self) -> bool:
        """Sync until that works; return False when the server closed before."""
        pause = FIRST_PAUSE
        while True:
            try:
                self.sync()
            except StorageError as error:
                if pause == FIRST_PAUSE:
                    _log.warning("cannot sync the metadata store, trying again until it works: %s", error)
                with self._changed:
                    if self._changed.wait_for(lambda: self._closed, pause):
                        return False
                pause = min(LONGEST_PAUSE, 2 * pause)
            else:
                return True
