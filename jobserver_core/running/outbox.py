"""Effects of changes: in order, outside locks, and some only once the disk has the change.

Theory
======

The problem: the effects of a change (events, waiters, callbacks, calls to the launcher) must run in the order
of the changes, but not under the lock that decided it. Moreover, a job's end must not be announced before the
disk has it, and the disk takes milliseconds. The thread that stores the end cannot wait: while it does, no
other report of the launcher is read, so jobs would end one sync at a time; and it would hold the context's
lock.

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
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobserver_core.errors import StorageError
from jobserver_core.ports import MetadataStore

__all__ = ["Outbox", "Syncer"]

_log = logging.getLogger(__name__)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""The minimum and the maximum number of seconds between two attempts to sync."""


class Syncer:
    """Syncs the metadata store, for outboxes on a thread of its own. Thread-safe.

    With a store whose writes are on the disk when they return, there is nothing to wait for.
    """

    def __init__(self, metadata: MetadataStore) -> None:
        self._sync: Callable[[], None] | None = metadata.sync if metadata.defer_syncs() else None
        self._changed = threading.Condition(threading.Lock())
        self._waiting: list[Outbox] = []
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

    def put(self, outbox: Outbox) -> None:
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

    def _next(self) -> list[Outbox]:
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


class Outbox:
    """Runs calls one at a time, in order, on a thread that calls :meth:`drain`.

    A thread that finds another one draining leaves its calls to that one, so draining never blocks.
    With a ``syncer``, calls may have to wait for the disk: these and later calls run on its thread.
    """

    def __init__(self, syncer: Syncer | None = None) -> None:
        self._syncer = syncer if syncer is not None and syncer.needed else None
        self._calls: deque[tuple[Callable[[], object], bool]] = deque()
        self._gate = threading.Lock()

    def __len__(self) -> int:
        return len(self._calls)

    def put(self, call: Callable[[], object], *, after_sync: bool = False) -> None:
        """Add a call; it runs at the next :meth:`drain`, or once earlier writes are on the disk."""
        self._calls.append((call, after_sync))

    def drain(self) -> None:
        """Run the pending calls, unless another thread is doing so; log what they raise."""
        # The check after the release finds calls that other threads added while this one held the gate.
        while self._calls and self._gate.acquire(blocking=False):
            self._run(0)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Run no calls inside the block; calls that were added in it run at its end."""
        with self._gate:
            yield
        self.drain()

    def resume(self, synced: int) -> None:
        """Continue after a sync that the first ``synced`` calls waited for. For the syncer only."""
        self._run(synced)
        self.drain()

    def _run(self, synced: int) -> None:
        """Run the calls that may run, then release the gate, or leave it to the syncer if one has to wait."""
        handed_over = False
        try:
            while self._calls:
                call, after_sync = self._calls[0]
                if after_sync and synced <= 0 and self._syncer is not None:
                    handed_over = True
                    self._syncer.put(self)
                    return
                self._calls.popleft()
                synced -= 1
                try:
                    call()
                except Exception:  # noqa: BLE001 - one effect that fails must not swallow the others
                    _log.exception("an effect of a stored change failed")
        finally:
            if not handed_over:
                self._gate.release()
