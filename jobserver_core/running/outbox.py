"""Effects that must happen outside a lock, in the order in which they were decided."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobserver_core.running.syncer import Syncer

__all__ = ["Outbox"]

_log = logging.getLogger(__name__)


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
