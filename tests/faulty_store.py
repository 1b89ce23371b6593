"""A metadata store in memory that fails as often as a test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from jobserver_core.errors import StorageError
from jobserver_core.memory import MemoryMetadataStore

WRITES = (
    "add_binary",
    "add_context",
    "add_job",
    "advance_context",
    "advance_job",
    "record_progress",
)


class FaultyStore(MemoryMetadataStore):
    """Fails the next writes: before they change anything or, as a broken connection may, after.

    ``attempts`` are the names of the writes that were tried, failed ones included.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fault_lock = threading.Lock()
        self._faults = 0
        self._stores_first = False
        self._only: tuple[str, ...] = WRITES
        self.attempts: list[str] = []
        for name in WRITES:
            setattr(self, name, self._faulty(name, getattr(self, name)))

    def fail(
        self, times: float = float("inf"), *, only: tuple[str, ...] = WRITES, stores_first: bool = False
    ) -> None:
        """Let this many writes fail; with ``stores_first``, they store their data before they fail."""
        with self._fault_lock:
            self._faults, self._only, self._stores_first = times, only, stores_first

    def recover(self) -> None:
        """Let every write work again."""
        self.fail(0)

    def _faulty(self, name: str, write: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **named: Any) -> None:
            with self._fault_lock:
                self.attempts.append(name)
                fails = self._faults > 0 and name in self._only
                self._faults -= fails
            if not fails or self._stores_first:
                write(*arguments, **named)
            if fails:
                raise StorageError(message="disk full")

        return call
