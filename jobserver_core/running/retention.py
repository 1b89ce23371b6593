"""Removing what nothing refers to any more: blobs, old jobs, old logs."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from jobserver_core.environment import Environment
from jobserver_core.errors import JobServerError
from jobserver_core.ports import Timer

__all__ = ["Sweeper"]

_log = logging.getLogger(__name__)

INTERVAL = 3600.0
"""Seconds between two sweeps."""
GRACE = timedelta(minutes=10)
"""How old a blob that nothing refers to must be before it is removed."""
BATCH = 500
"""How many blobs or jobs are handled in one transaction."""


class Sweeper:
    """Sweeps at start and then every hour, on a thread that lives no longer than the sweep."""

    def __init__(self, environment: Environment, lent_digests: Callable[[], frozenset[str]]) -> None:
        self._environment = environment
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
                self._thread = threading.Thread(target=self._run, name="jobserver-sweep", daemon=True)
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
        """Remove old jobs where a retention is configured, then their logs, then unused blobs."""
        self._sweep_jobs()
        self._sweep_blobs()

    def _run(self) -> None:
        try:
            self.sweep()
        except JobServerError as error:
            _log.warning("the sweep failed, the next one tries again: %s", error)

    def _sweep_jobs(self) -> None:
        env = self._environment
        retention = env.settings.jobs.retention
        if retention is None:
            return
        limit = env.clock.now() - timedelta(seconds=retention)
        while not self._closed.is_set():
            if env.metadata.delete_jobs(ended_before=limit, limit=BATCH) < BATCH:
                break
        known_job: Callable[[str], bool] = lambda name: env.metadata.job(name) is not None  # noqa: E731
        self._sweep_logs(env.folders.job_logs.iterdir(), retention, known_job)

    def _sweep_logs(self, paths: Iterable[Path], retention: float, known: Callable[[str], bool]) -> None:
        oldest = self._environment.clock.now().timestamp() - retention
        for path in paths:
            try:
                if path.stat().st_mtime < oldest and not known(path.name.split(".")[0]):
                    path.unlink(missing_ok=True)
            except OSError as error:
                _log.warning("log %s: %s", path.name, error)

    def _sweep_blobs(self) -> None:
        env = self._environment
        before = env.clock.now() - GRACE
        env.blobs.sweep(modified_before=before)
        for batch in _batches(env.blobs.digests(modified_before=before)):
            if self._closed.is_set():
                return
            with env.deposits.sweeping():
                lent = self._lent_digests()
                for digest in env.metadata.unreferenced(batch):
                    if digest not in lent:
                        env.blobs.delete(digest)


def _batches(items: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(items, BATCH)):
        yield batch
