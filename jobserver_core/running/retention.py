"""Remove records, logs and files beyond the limits of age, number and size, and unreferenced blobs.

A sweep removes ended jobs that are too old, too many, or whose results are too large together; then contexts
without jobs, then the logs of both. Old versions of binaries and data files have rules of their own. Blobs
that no record refers to come last. A sweep works in small steps with a pause between them, so that sweeping a
million records does not block other work: a step is one short transaction, or a few files.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jobserver_core.binaries.data_files import DataFileService
from jobserver_core.binaries.sweep_lock import SweepLock
from jobserver_core.data_directory import DataDirectory
from jobserver_core.errors import JobServerError
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job
from jobserver_core.ports import BlobStore, MetadataStore, SteadyClock, Timer

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["BATCH", "GRACE", "BlobSweep", "RecordSweep", "Pace", "Sweeper"]

_log = logging.getLogger(__name__)

INTERVAL = 3600.0
"""Seconds between two sweeps."""
GRACE = timedelta(minutes=10)
"""The minimum age of an unreferenced blob, and of an ended job whose result is too large."""
BATCH = 100
"""The number of records to remove in one transaction."""
_LISTED = 500
"""The number of blobs to look up in one read transaction."""
_DELETED = 10
"""The number of blobs to remove while uploads and submits cannot record references."""
_PAUSE = 0.02
"""Seconds between two steps, so that others can use the database."""
_NOTE = b"(removed: all logs together were larger than jobserver.jobs.max-log-storage)\n"
"""What takes the place of a log that is removed while its job or context is still recorded."""
_LOCK_TIMEOUT = 0.2
"""Seconds for which new uploads and submits wait while those in progress finish."""

T = TypeVar("T")


class Pace:
    """The small steps of a sweep, with a pause after each, until the sweeper is closed.

    ``removed`` counts what they have removed, by kind.
    """

    def __init__(self, closed: threading.Event) -> None:
        self._closed = closed
        self.removed: Counter[str] = Counter()

    def pause(self) -> bool:
        """Wait before the next step; return False if the sweeper is closed."""
        return not self._closed.wait(_PAUSE)

    def repeat(self, kind: str, step: Callable[[], Sized]) -> None:
        """Take steps until one removes fewer than its limit."""
        while not self._closed.is_set():
            removed = len(step())
            self.removed[kind] += removed
            if removed < BATCH:
                return
            self.pause()

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, with a pause after every few of them."""
        for number, item in enumerate(items, 1):
            if self._closed.is_set():
                return
            yield item
            if number % BATCH == 0:
                self.pause()


Sweep = Callable[[Pace], None]


class Sweeper:
    """Sweeps at start and then every hour, on a thread that ends with the sweep."""

    def __init__(self, clock: SteadyClock, sweeps: Sequence[Sweep]) -> None:
        self._clock = clock
        self._sweeps = sweeps
        self._lock = threading.Lock()
        self._sweeping = threading.Lock()
        self._thread: threading.Thread | None = None
        self._timer: Timer | None = None
        self._closed = threading.Event()

    def start(self) -> None:
        """Sweep in the background now, and again every hour."""
        with self._lock:
            if self._closed.is_set():
                return
            self._timer = self._clock.call_later(INTERVAL, self.start)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self.sweep, name="jobserver-sweep", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End a running sweep early, and start no other."""
        self._closed.set()
        with self._lock:
            thread = self._thread
            if self._timer is not None:
                self._timer.cancel()
        if thread is not None:
            thread.join()

    def sweep(self) -> dict[str, int]:
        """Remove everything beyond the limits, and return how many of each kind.

        Waits for a sweep that runs already. Failures are logged; the next sweep tries again.
        """
        pace = Pace(self._closed)
        with self._sweeping:
            for sweep in self._sweeps:
                try:
                    sweep(pace)
                except (JobServerError, OSError) as error:
                    _log.warning("the sweep failed, the next one tries again: %s", error)
        return {kind: count for kind, count in pace.removed.items() if count}


class RecordSweep:
    """Removes jobs, contexts, their logs, binaries and data files whose retention is over."""

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        clock: SteadyClock,
        settings: Settings,
        data_directory: DataDirectory,
        data_files: DataFileService,
    ) -> None:
        self._metadata = metadata
        self._clock = clock
        self._settings = settings
        self._data_directory = data_directory
        self._data_files = data_files

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """The parts of one sweep; if one fails, the others still run."""
        return (
            self._sweep_jobs_and_contexts,
            self._sweep_log_storage,
            self._sweep_binaries,
            self._sweep_data_files,
        )

    def _sweep_jobs_and_contexts(self, pace: Pace) -> None:
        """Remove jobs beyond the limits, then contexts without jobs, then the logs of both."""
        metadata = self._metadata
        before = self._newest_to_remove()
        if before is None:
            return
        pace.repeat("jobs", lambda: range(metadata.delete_jobs(ended_before=before, limit=BATCH)))
        pace.repeat("contexts", lambda: metadata.delete_contexts(ended_before=before, limit=BATCH))
        directory = self._data_directory
        for logs in (directory.job_logs, directory.context_logs):
            self._sweep_logs(pace, logs, before)

    def _newest_to_remove(self) -> datetime | None:
        """Return the time before which jobs must have ended to be removed, or None if no job is."""
        limits, now, after = self._settings.jobs, self._clock.now(), timedelta(microseconds=1)
        ends = []
        if limits.retention is not None:
            ends.append(now - timedelta(seconds=limits.retention))
        too_many = self._metadata.newest_excess_job(jobs=limits.max_kept, result_bytes=None)
        if too_many is not None:
            ends.append(too_many + after)
        too_large = self._metadata.newest_excess_job(jobs=None, result_bytes=limits.max_result_storage)
        if too_large is not None:  # perhaps the newest alone, which its submitter has yet to read
            ends.append(min(too_large + after, now - GRACE))
        return max(ends, default=None)

    def _sweep_log_storage(self, pace: Pace) -> None:
        """Remove the oldest logs of what has ended, until the others fit into their limit."""
        limit = self._settings.jobs.max_log_storage
        if limit is None:
            return
        directory = self._data_directory
        logs = _files_in(pace, directory.job_logs, directory.context_logs)
        excess = sum(size for _, size, _ in logs) - limit
        for _, size, path in pace.over(sorted(logs)):
            if excess <= 0:
                return
            if size <= len(_NOTE):
                continue
            record = self._record_of(path)
            if record is not None and record.state.final:
                path.write_bytes(_NOTE)  # without it, the job would seem to have written nothing
                pace.removed["logs"] += 1
                excess -= size - len(_NOTE)

    def _sweep_binaries(self, pace: Pace) -> None:
        """Remove old versions of binaries."""
        limits = self._settings.binaries
        if limits.retention is None:
            return
        before = self._clock.now() - timedelta(seconds=limits.retention)
        pace.repeat(
            "binaries",
            lambda: self._metadata.delete_old_binaries(
                uploaded_before=before, keep=limits.versions, limit=BATCH
            ),
        )

    def _sweep_data_files(self, pace: Pace) -> None:
        """Remove old data files, and the oldest ones until the others fit into their limit."""
        limits = self._settings.data_files
        files = sorted(self._data_files.all(), key=lambda file: file.created_at)
        excess = 0 if limits.max_storage is None else sum(f.size for f in files) - limits.max_storage
        age = timedelta.max if limits.retention is None else timedelta(seconds=limits.retention)
        now = self._clock.wall()
        for file in pace.over(files):
            if excess <= 0 and now - file.created_at <= age:
                return
            file.path.unlink(missing_ok=True)
            pace.removed["data-files"] += 1
            excess -= file.size

    def _sweep_logs(self, pace: Pace, directory: Path, before: datetime) -> None:
        """Remove logs that were last written to before this time and have no record."""
        oldest = before.timestamp()
        for path in pace.over(_entries(directory)):
            try:
                if path.stat().st_mtime < oldest and self._record_of(path) is None:
                    path.unlink(missing_ok=True)
                    pace.removed["logs"] += 1
            except OSError as error:
                _log.warning("log %s: %s", path.name, error)

    def _record_of(self, log: Path) -> Job | Context | None:
        """Return the job or context that a log belongs to, if it is recorded."""
        record_id = log.name.split(".")[0]
        if log.parent == self._data_directory.job_logs:
            return self._metadata.job(record_id)
        return self._metadata.context(record_id)


class BlobSweep:
    """Removes the blobs that no record refers to, except those that ``pinned`` lists.

    Stops as soon as ``others`` returns ids of other servers: their pins and their uploads are unknown here.
    """

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        blobs: BlobStore,
        clock: SteadyClock,
        data_directory: DataDirectory,
        sweep_lock: SweepLock,
        pinned: Callable[[], frozenset[str]],
        others: Callable[[], frozenset[str]],
    ) -> None:
        self._others = others
        self._metadata = metadata
        self._blobs = blobs
        self._clock = clock
        self._data_directory = data_directory
        self._sweep_lock = sweep_lock
        self._pinned = pinned

    def __call__(self, pace: Pace) -> None:
        """Sweep once. Raises StorageError."""
        if self._others():
            return
        before = self._clock.wall() - GRACE
        self._data_directory.verify()
        self._blobs.sweep(modified_before=before)
        for listed in _batches(self._blobs.digests(modified_before=before), _LISTED):
            unused = self._metadata.unreferenced(listed)
            for some in _batches(iter(unused), _DELETED):
                if not pace.pause() or self._others():
                    return
                self._delete_unused(pace, some)

    def _delete_unused(self, pace: Pace, digests: list[str]) -> None:
        """Remove those of the blobs that are still unreferenced, if the sweep gets the lock in time."""
        with self._sweep_lock.exclusive(_LOCK_TIMEOUT) as acquired:
            if not acquired:
                return  # perhaps a blob is being downloaded; the next sweep finds these again
            pinned = self._pinned()
            for digest in self._metadata.unreferenced(digests):
                if digest not in pinned:
                    self._blobs.delete(digest)
                    pace.removed["blobs"] += 1


def _entries(directory: Path) -> Iterator[Path]:
    """Yield the paths in a directory, none if it was removed; the next file creates it again."""
    with suppress(FileNotFoundError):
        yield from directory.iterdir()


def _files_in(pace: Pace, *directories: Path) -> list[tuple[float, int, Path]]:
    """Return the time, the size and the path of each file."""
    found = []
    for path in pace.over(itertools.chain.from_iterable(map(_entries, directories))):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    return found


def _batches(items: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(itertools.islice(items, size)):
        yield batch
