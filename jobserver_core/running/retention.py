"""Remove records, logs and files that exceed the limits on age, number and size, and unreferenced blobs.

A sweep first removes ended jobs that are too old or too many, or whose results are too large in total. Then
it removes contexts without jobs, and the logs of both. Old versions of binaries and data files have their own
rules. Blobs that no record refers to come last. A sweep works in small steps with a pause between them, so
that sweeping a million records does not block other work: a step is one short transaction, or a few files.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs

from jobserver_core.binaries.data_files import DataFileService
from jobserver_core.binaries.pins import BlobPins
from jobserver_core.data_directory import DataDirectory
from jobserver_core.errors import JobServerError
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job
from jobserver_core.ports import BlobStore, MetadataStore, SteadyClock, Timer

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

_log = logging.getLogger(__name__)

INTERVAL = 3600.0
"""Seconds between two sweeps."""
GRACE = timedelta(minutes=10)
"""The minimum age of a blob since its last use, and of an ended job whose result is too large."""
BATCH = 100
"""The number of records to remove in one transaction."""
_ABANDONED = timedelta(days=1)
"""How much older a temporary file must be: a job may pause for a long time while it yields its result."""
_LISTED = 500
"""The number of blobs to look up in one read transaction."""
_DELETED = 10
"""The number of blobs to remove in one step."""
_PAUSE = 0.02
"""Seconds between two steps, so that other work can use the database."""
_NOTE = b"(removed: all logs together were larger than jobserver.jobs.max-log-storage)\n"
"""What takes the place of a log that is removed while its job or context is still recorded."""

T = TypeVar("T")


class Pace:
    """Runs a sweep in small steps, with a pause after each, until the sweeper is closed.

    ``removed`` counts what the steps have removed, by kind.
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
        """End a running sweep early, and start no more."""
        self._closed.set()
        with self._lock:
            thread = self._thread
            if self._timer is not None:
                self._timer.cancel()
        if thread is not None:
            thread.join()

    def sweep(self) -> dict[str, int]:
        """Remove everything beyond the limits, and return how many of each kind.

        Waits for a sweep that is already running. Failures are logged; the next sweep tries again.
        """
        pace = Pace(self._closed)
        with self._sweeping:
            for sweep in self._sweeps:
                try:
                    sweep(pace)
                except (JobServerError, OSError) as error:
                    _log.warning("the sweep failed; the next one tries again: %s", error)
        return {kind: count for kind, count in pace.removed.items() if count}


@attrs.frozen(kw_only=True, eq=False)
class RecordSweep:
    """Removes jobs, contexts, their logs, binaries and data files that exceed their limits."""

    _metadata: MetadataStore
    _clock: SteadyClock
    _settings: Settings
    _data_directory: DataDirectory
    _data_files: DataFileService

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
        if too_large is not None:  # perhaps the newest result alone, which its submitter has not read yet
            ends.append(min(too_large + after, now - GRACE))
        return max(ends, default=None)

    def _sweep_log_storage(self, pace: Pace) -> None:
        """Remove the oldest logs of ended jobs and contexts, until the remaining logs fit their limit."""
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
        limits = self._settings.binaries
        if limits.retention is None:
            return
        before = self._clock.now() - timedelta(seconds=limits.retention)
        delete = partial(self._metadata.delete_old_binaries, uploaded_before=before, keep=limits.versions)
        pace.repeat("binaries", lambda: delete(limit=BATCH))

    def _sweep_data_files(self, pace: Pace) -> None:
        """Remove old data files, then the oldest ones until the rest fits their limit."""
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
        record_id = log.name.split(".")[0]
        if log.parent == self._data_directory.job_logs:
            return self._metadata.job(record_id)
        return self._metadata.context(record_id)


@attrs.frozen(kw_only=True, eq=False)
class BlobSweep:
    """Removes the blobs that no record refers to and no server pins, also while other servers run."""

    _metadata: MetadataStore
    _blobs: BlobStore
    _clock: SteadyClock
    _data_directory: DataDirectory
    _pins: BlobPins

    def __call__(self, pace: Pace) -> None:
        """Sweep once."""
        before = self._clock.wall() - GRACE
        self._data_directory.verify()
        self._pins.drop_idle(GRACE.total_seconds())
        self._blobs.sweep(modified_before=before - _ABANDONED)
        for listed in _batches(self._blobs.digests(modified_before=before), _LISTED):
            unused = self._metadata.unreferenced(listed)
            for some in _batches(iter(unused), _DELETED):
                if not pace.pause():
                    return
                pace.removed["blobs"] += self._pins.remove(some, self._blobs.delete)


def _entries(directory: Path) -> Iterator[Path]:
    """Yield the paths in a directory. It may be missing, because only the next file creates it again."""
    with suppress(FileNotFoundError):
        yield from directory.iterdir()


def _files_in(pace: Pace, *directories: Path) -> list[tuple[float, int, Path]]:
    found = []
    for path in pace.over(itertools.chain.from_iterable(map(_entries, directories))):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    return found


def _batches(items: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(itertools.islice(items, size)):
        yield batch
