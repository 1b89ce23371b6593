"""A context listener that keeps every event, and checks the order in which they arrive."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobserver_core.errors import TooLarge
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import JobProgress
from jobserver_core.ports import ContextEnd, ContextListener, JobOutcome, ResultSink


def is_locked(path: Path) -> bool:
    """Return whether a process holds an exclusive ``flock`` on a file.

    The lock belongs to the open file, which is shared by every process that inherited it. So it is free only
    when the last of them has ended, for any reason.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _holders(path: Path) -> Iterator[Path]:
    """Yield the directory in ``/proc`` of every process that has a file open."""
    target = os.path.realpath(path)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or belongs to another user
            if any(_is_link_to(process / "fd" / name, target) for name in os.listdir(process / "fd")):
                yield process


def _is_link_to(link: Path, target: str) -> bool:
    try:
        return os.readlink(link) == target
    except OSError:  # the file has been closed meanwhile
        return False


def is_held_in_one_session(path: Path) -> bool:
    """Return whether other processes of only one session have a file open, and this process has not."""
    holders = [int(process.name) for process in _holders(path)]
    sessions = set()
    for holder in holders:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            sessions.add(os.getsid(holder))
    return len(sessions) == 1 and os.getpid() not in holders


def end_holders(path: Path) -> str:
    """End every other process that has a file open, and return what to add to the message of a failure."""
    ended = []
    for process in _holders(path):
        with suppress(OSError):  # it has ended meanwhile
            if int(process.name) == os.getpid():
                continue
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            os.kill(int(process.name), signal.SIGKILL)
            ended.append(f"{command.strip()} ({process.name})")
    return f"; processes of the job still ran: {', '.join(ended)}, which the suite has ended" if ended else ""


class _RecordingSink(ResultSink):
    def __init__(self, limit: int | None) -> None:
        self.data = bytearray()
        self._limit = limit

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        self.data += data
        if self._limit is not None and len(self.data) > self._limit:
            raise TooLarge(what="the job's result", limit=self._limit)


class RecordingListener(ContextListener):
    """Keeps the events of one context, and collects violations of the port in :attr:`faults`.

    Violations are: events that overlap, events after ``context_ended``, values of ``context_ready`` that are
    neither strings nor None, and the end of a job or context
    that is reported while a watched lock file (see :meth:`watch`) is still locked.
    """

    def __init__(self, *, result_limit: int | None = None) -> None:
        self._result_limit = result_limit
        self._inside = threading.Lock()
        self._overlap = threading.Event()
        self._changed = threading.Condition()
        self._watched: dict[str, Path] = {}
        self.linger = 0.0
        """The seconds that an event of a job takes to return, so that an overlapping event can arrive."""
        self.events: list[tuple[Any, ...]] = []
        self.faults: list[str] = []
        self.results: dict[str, tuple[bool, bytearray]] = {}
        self.progress: dict[str, list[JobProgress]] = {}

    def watch(self, job_id: str, lock: Path) -> None:
        """Expect a lock to be free when the job ends, and when its context does."""
        self._watched[job_id] = lock

    def context_ready(self, *, application_id: str | None, url: str | None) -> None:
        """Keep the event, and check the types of its values."""
        for name, value in (("application_id", application_id), ("url", url)):
            if not (value is None or isinstance(value, str)):
                self.faults.append(f"context_ready({name}={value!r}): it has to be a string or None")
        self._record("ready", application_id, url)

    def context_ended(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        """Keep the event, and check that no process of the context is left."""
        for job_id in list(self._watched):
            self._expect_free(job_id, "the context")
        self._record("context-ended", end, error)

    def job_running(self, job_id: str) -> None:
        self._record("running", job_id)

    def job_progress(self, job_id: str, progress: JobProgress) -> None:
        """Keep the event and the progress."""
        self.progress.setdefault(job_id, []).append(progress)
        self._record("progress", job_id)

    def open_result(self, job_id: str, *, stream: bool) -> ResultSink:
        """Keep the event, and return a sink that keeps the bytes."""
        sink = _RecordingSink(self._result_limit)
        self.results[job_id] = (stream, sink.data)
        self._record("result", job_id)
        return sink

    def job_ended(self, job_id: str, outcome: JobOutcome) -> None:
        """Keep the event, and check that no process of the job is left."""
        self._expect_free(job_id, "the job")
        self._record("job-ended", job_id, outcome)

    def wait_for(self, *start: object, timeout: float) -> tuple[Any, ...]:
        """Return the first event that begins with these values.

        Fails after ``timeout`` seconds, and at once if the context has ended without the event, or the job
        that the second value names. After a timeout, processes of the job that hold its watched lock are
        ended: the launcher may wait for them, even when it is closed.
        """

        def found() -> tuple[Any, ...] | None:
            return next((event for event in self.events if event[: len(start)] == start), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._ended() or self.ended(*start[1:2]), timeout)
            event = found()
            if not event and not self._ended() and self.ended(*start[1:2]):
                raise AssertionError(f"job {start[1]} ended without {start}: {self.events}")
            assert event or not self._ended(), f"the context ended without {start}: {self.events}"
            if not event:
                left = self._end_processes(start)
                raise AssertionError(f"no {start} within {timeout} s: {self.events}{left}")
        return event

    def _end_processes(self, missing: tuple[object, ...]) -> str:
        """End the processes that a launcher may wait for instead of reporting an event."""
        context = missing[0] == "context-ended"
        watched = [lock for job_id, lock in self._watched.items() if context or job_id in missing[1:2]]
        return "".join(end_holders(lock) for lock in watched)

    def of_job(self, job_id: str) -> list[str]:
        """Return the kinds of a job's events in order, without its progress."""
        return [e[0] for e in self.events if len(e) > 1 and e[1] == job_id and e[0] != "progress"]

    def outcome(self, job_id: str, *, timeout: float) -> JobOutcome:
        """Wait for a job's end."""
        outcome = self.wait_for("job-ended", job_id, timeout=timeout)[2]
        assert isinstance(outcome, JobOutcome)
        return outcome

    def ended(self, job_id: object = None) -> JobOutcome | None:
        """Return how a job has ended, or None if it has not."""
        ends = (event[2] for event in self.events if event[:2] == ("job-ended", job_id))
        return next(ends, None)

    def _ended(self) -> bool:
        return any(event[0] == "context-ended" for event in self.events)

    def _expect_free(self, job_id: str, what: str) -> None:
        lock = self._watched.get(job_id)
        if lock is not None and is_locked(lock):
            self.faults.append(f"{what} was reported as ended while processes of job {job_id} still ran")

    def _record(self, *event: Any) -> None:
        if not self._inside.acquire(blocking=False):
            self.faults.append(f"{event} came while another event was being handled")
            self._overlap.set()
            self._inside.acquire()
        try:
            with self._changed:
                if self._ended():
                    self.faults.append(f"{event} came after the end of the context")
                self.events.append(event)
                self._changed.notify_all()
            if event[0] in ("running", "result", "job-ended") and self.linger:
                self._overlap.wait(self.linger)
        finally:
            self._inside.release()
