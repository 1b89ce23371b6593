"""Run the effects of changes: in order, outside locks, and some only once the change is on disk.

Theory
======

The problem: the effects of a change (events, waiters, callbacks, calls to the launcher) must run in the order
of the changes, but not under the lock that decided it. Moreover, a job's end must not be announced before it
is on disk, and the disk takes milliseconds. The thread that stores the end must not wait for that: it would
hold the context's lock and could not read the launcher's next report, so jobs would end one sync at a time.

The idea: the store writes the record at once. From then on, it survives the end of this process, the order of
changes is fixed, and the job's slot is free. Only the notifications (events, waiters, callbacks) stay in
the context's outbox until a sync. Each of them remembers the number of the next sync
(:mod:`~jobserver_core.ports.durability`). Any sync serves all of them, including one by a caller that waits
for its own write. One thread waits for the syncs on behalf of the outboxes, and then resumes them.

The invariants: an entry of an outbox that is marked ``after_sync`` runs only after a sync that began after
the entry was added, hence after the record was written. Entries keep their order. A failed sync is repeated
until the store works again, just like a failed write.

Deliberately not handled: the end of the process. A callback that has not been sent yet is in the store, and
is sent after the next start. A power cut may undo changes that have not been announced yet.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobserver_core.errors import StorageError
from jobserver_core.ports import MetadataStore
from jobserver_core.ports.durability import Barrier
from jobserver_core.running.retries import FIRST_PAUSE, LONGEST_PAUSE

_log = logging.getLogger(__name__)


class Syncer:
    """Syncs the metadata store for callers, and on a separate thread for outboxes. Thread-safe.

    If the store's writes are on disk when they return, there is nothing to wait for.
    """

    def __init__(self, metadata: MetadataStore) -> None:
        self._barrier = Barrier(metadata.sync) if metadata.defer_syncs() else None
        self._changed = threading.Condition(threading.Lock())
        self._waiting: list[tuple[int, Outbox]] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def next(self) -> int:
        """The number of the sync that covers everything written so far; 0 if no syncs are needed."""
        return 0 if self._barrier is None else self._barrier.next

    def covered(self, number: int) -> bool:
        """Whether everything that the sync with this number covers is on disk."""
        return self._barrier is None or number <= self._barrier.succeeded

    def sync(self) -> None:
        """Return once everything written so far is on disk.

        Raises:
            StorageError: That cannot be guaranteed.
        """
        if self._barrier is not None:
            self._barrier.wait()

    def put(self, outbox: Outbox, number: int) -> None:
        """Resume an outbox after the sync with this number, on the syncer's thread."""
        with self._changed:
            self._waiting.append((number, outbox))
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
        while waiting := self._next_waiting():
            if not self._wait_for_sync(min(number for number, _ in waiting)):
                return
            for _, outbox in waiting:
                outbox.resume()

    def _next_waiting(self) -> list[tuple[int, Outbox]]:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            waiting, self._waiting = self._waiting, []
            return waiting

    def _wait_for_sync(self, number: int) -> bool:
        """Wait for a sync, and repeat it until it succeeds; return False if the server closes first."""
        assert self._barrier is not None  # otherwise no outbox waits
        pause = FIRST_PAUSE
        while True:
            try:
                self._barrier.wait(number)
            except StorageError as error:
                if pause == FIRST_PAUSE:
                    _log.warning("cannot sync the metadata store, retrying until it works: %s", error)
                with self._changed:
                    if self._changed.wait_for(lambda: self._closed, pause):
                        return False
                pause = min(LONGEST_PAUSE, 2 * pause)
            else:
                return True


class Outbox:
    """Runs calls one at a time, in order, on a thread that calls :meth:`drain`.

    If another thread is already draining, it also runs the calls of this one, so draining never blocks. With
    a ``syncer``, calls may have to wait for the disk; these and later calls run on its thread.
    """

    def __init__(self, syncer: Syncer | None = None) -> None:
        self._syncer = syncer
        self._calls: deque[tuple[Callable[[], object], int]] = deque()
        """The calls, each with the number of the sync that it waits for, or 0."""
        self._gate = threading.Lock()

    def put(self, call: Callable[[], object], *, after_sync: bool = False) -> None:
        """Add a call. It runs at the next :meth:`drain`, or once earlier writes are on disk."""
        number = self._syncer.next if after_sync and self._syncer is not None else 0
        self._calls.append((call, number))

    def drain(self) -> None:
        """Run the pending calls, unless another thread is doing so; log what they raise."""
        # The check after the release finds calls that other threads added while this one held the gate.
        while self._calls and self._gate.acquire(blocking=False):
            self._run()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Run no calls inside the block. Calls that were added meanwhile run after it."""
        with self._gate:
            yield
        self.drain()

    def resume(self) -> None:
        """Continue after a sync. For the syncer only."""
        self._run()
        self.drain()

    def _run(self) -> None:
        """Run the calls that may run, then release the gate; if a call has to wait, the syncer does both."""
        handed_over = False
        try:
            while self._calls:
                call, number = self._calls[0]
                if number and self._syncer is not None and not self._syncer.covered(number):
                    handed_over = True
                    self._syncer.put(self, number)
                    return
                self._calls.popleft()
                try:
                    call()
                except KeyboardInterrupt:
                    raise
                except BaseException:  # noqa: BLE001 - a failing effect must not prevent the others
                    _log.exception("an effect of a stored change failed")
        finally:
            if not handed_over:
                self._gate.release()
