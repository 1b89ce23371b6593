"""Removing what has been kept long enough, and what nothing refers to any more.

Ended jobs go when they are older than their retention, then the contexts that no job is left of, then the
logs of both; old versions of binaries and data files go by rules of their own; last the blobs that no record
refers to. Everything happens in small steps with a pause between them, so that a sweep of a million records
holds up nobody: a step is one short transaction, or a few files.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from jobserver_core.binaries.data_files import DataFileService
from jobserver_core.environment import Environment
from jobserver_core.errors import JobServerError
from jobserver_core.ports import Timer

__all__ = ["BATCH", "GRACE", "Sweeper"]

_log = logging.getLogger(__name__)

INTERVAL = 3600.0
"""Seconds between two sweeps."""
GRACE = timedelta(minutes=10)
"""How old a blob that nothing refers to must be before it is removed."""
BATCH = 100
"""How many records are removed in one transaction."""
_LISTED = 500
"""How many blobs are looked up in one transaction that only reads."""
_DELETED = 10
"""How many blobs are removed while no upload or submit may record a reference to one."""
_PAUSE = 0.02
"""Seconds between two steps, which leave others their turn at the database."""
_PATIENCE = 0.2
"""Seconds for which uploads and submits are held up so that those under way come to an end."""

T = TypeVar("T")


class Sweeper:
    """Sweeps at start and then every hour, on a thread that lives no longer than the sweep."""

    def __init__(
        self,
        environment: Environment,
        data_files: DataFileService,
        lent_digests: Callable[[], frozenset[str]],
    ) -> None:
        self._environment = environment
        self._data_files = data_files
        self._lent_digests = lent_digests
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._timer: Timer | None = None
        self._closed = threading.Event()

    def start(self) -> None:
        """Sweep in the background now, and again every hour."""
        with self._lock:
            if self._closed.is_set():
                return
            self._timer = self._environment.clock.call_later(INTERVAL, self.start)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self.sweep, name="jobserver-sweep", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Let the sweep that is under way end early, and start no other."""
        self._closed.set()
        with self._lock:
            thread = self._thread
            if self._timer is not None:
                self._timer.cancel()
        if thread is not None:
            thread.join()

    def sweep(self) -> None:
        """Remove everything that may go; what fails is logged, and tried again by the next sweep."""
        steps = (
            self._sweep_jobs_and_contexts,
            self._sweep_binaries,
            self._sweep_data_files,
            self._sweep_blobs,
        )
        for step in steps:
            try:
                step()
            except (JobServerError, OSError) as error:
                _log.warning("the sweep failed, the next one tries again: %s", error)

    # -- records and logs --------------------------------------------------------------------------

    def _sweep_jobs_and_contexts(self) -> None:
        env = self._environment
        retention = env.settings.jobs.retention
        if retention is None:
            return
        limit = env.clock.now() - timedelta(seconds=retention)
        self._repeat(lambda: range(env.metadata.delete_jobs(ended_before=limit, limit=BATCH)))
        self._repeat(lambda: env.metadata.delete_contexts(ended_before=limit, limit=BATCH))
        self._sweep_logs(env.folders.job_logs, retention, lambda name: env.metadata.job(name) is not None)
        known_context: Callable[[str], bool] = lambda name: env.metadata.context(name) is not None  # noqa: E731
        self._sweep_logs(env.folders.context_logs, retention, known_context)

    def _sweep_binaries(self) -> None:
        env = self._environment
        limits = env.settings.binaries
        if limits.retention is None:
            return
        before = env.clock.now() - timedelta(seconds=limits.retention)
        self._repeat(
            lambda: env.metadata.delete_old_binaries(
                uploaded_before=before, keep=limits.versions, limit=BATCH
            )
        )

    def _repeat(self, step: Callable[[], Sized]) -> None:
        """Take steps until one removes less than it might."""
        while not self._closed.is_set() and len(step()) >= BATCH:
            self._closed.wait(_PAUSE)

    def _sweep_logs(self, folder: Path, retention: float, known: Callable[[str], bool]) -> None:
        """Remove the logs that were not written to for so long and whose record is gone."""
        oldest = self._environment.clock.wall().timestamp() - retention
        for path in self._in_steps(folder.iterdir(), BATCH):
            try:
                if path.stat().st_mtime < oldest and not known(path.name.split(".")[0]):
                    path.unlink(missing_ok=True)
            except OSError as error:
                _log.warning("log %s: %s", path.name, error)

    def _sweep_data_files(self) -> None:
        retention = self._environment.settings.data_files.retention
        if retention is None:
            return
        before = self._environment.clock.wall() - timedelta(seconds=retention)
        for file in self._in_steps(self._data_files.all(), BATCH):
            if file.created_at < before:
                file.path.unlink(missing_ok=True)

    def _in_steps(self, items: Iterable[T], size: int) -> Iterator[T]:
        """Give the items, with a pause after every few of them, until the sweeper is closed."""
        for number, item in enumerate(items, 1):
            if self._closed.is_set():
                return
            yield item
            if number % size == 0:
                self._closed.wait(_PAUSE)

    # -- blobs -------------------------------------------------------------------------------------

    def _sweep_blobs(self) -> None:
        env = self._environment
        before = env.clock.wall() - GRACE
        env.folders.verify()
        env.blobs.sweep(modified_before=before)
        for listed in _batches(env.blobs.digests(modified_before=before), _LISTED):
            unused = env.metadata.unreferenced(listed)
            for some in _batches(iter(unused), _DELETED):
                if self._closed.wait(_PAUSE):
                    return
                self._delete_unused(some)

    def _delete_unused(self, digests: list[str]) -> None:
        """Remove those of the blobs that are still not referred to, if uploads and submits leave a gap."""
        env = self._environment
        with env.deposits.sweeping(_PATIENCE) as alone:
            if not alone:
                return  # a fetch that takes long, perhaps; the next sweep finds these again
            lent = self._lent_digests()
            for digest in env.metadata.unreferenced(digests):
                if digest not in lent:
                    env.blobs.delete(digest)


def _batches(items: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(itertools.islice(items, size)):
        yield batch
