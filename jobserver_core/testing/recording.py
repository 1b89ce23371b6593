"""A context listener that keeps every event, and checks the order in which they arrive."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobserver_core.errors import TooLarge
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import JobProgress
from jobserver_core.ports import ContextEnd, ContextListener, JobOutcome, ResultSink

PART_OF_LATER_TIMEOUTS = 0.25
"""How long a wait for a report takes that an earlier test has missed, as a part of its timeout."""


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
        assert isinstance(data, bytes), f"write was called with {data!r}; the result has to be bytes"
        self.data += data
        if self._limit is not None and len(self.data) > self._limit:
            raise TooLarge(what="the job's result", limit=self._limit)


_AFTER: dict[str | None, tuple[str, ...]] = {
    None: ("job_running", "job_ended"),
    "job_running": ("job_progress", "open_result", "job_ended"),
    "open_result": ("job_progress", "job_ended"),
    "job_ended": (),
}
"""Which reports about a job may follow which; None stands for no report. Progress may come at any time
between the start and the end of a job."""


class RecordingListener(ContextListener):
    """Keeps the reports about one context, and collects violations of the port in :attr:`faults`.

    An event in :attr:`events` is the name of a method, followed by its arguments. Violations are: reports
    that overlap; reports after ``context_ended``; reports about a job in a wrong order; values of other types
    in ``context_ready`` and ``job_progress``; and the end of a job or context that is reported while a
    watched lock file (see :meth:`watch`) is still locked.

    ``missed`` are the reports for which a wait of the same suite has timed out. Later waits for them are
    shorter, so that a launcher that never makes some report fails its whole suite within minutes.
    """

    def __init__(self, *, result_limit: int | None = None, missed: set[str] | None = None) -> None:
        self._result_limit = result_limit
        self._missed = set() if missed is None else missed
        self._inside = threading.Lock()
        self._overlap = threading.Event()
        self._changed = threading.Condition()
        self._watched: dict[str, Path] = {}
        self._actions: dict[str, Callable[[], object]] = {}
        self._last: dict[str, str] = {}
        self.linger = 0.0
        """The seconds that an event of a job takes to return, so that an overlapping event can arrive."""
        self.events: list[tuple[Any, ...]] = []
        self.faults: list[str] = []
        self.results: dict[str, tuple[bool, bytearray]] = {}
        self.progress: dict[str, list[JobProgress]] = {}

    def watch(self, job_id: str, lock: Path) -> None:
        """Expect a lock to be free when the job ends, and when its context does."""
        self._watched[job_id] = lock

    def during(self, report: str, action: Callable[[], object]) -> None:
        """Run an action inside the next call of the method ``report``, on its thread, before it returns."""
        self._actions[report] = action

    def context_ready(self, *, application_id: str | None, url: str | None) -> None:
        """Keep the event, and check the types of its values."""
        for name, value in (("application_id", application_id), ("url", url)):
            if not (value is None or isinstance(value, str)):
                self.faults.append(f"context_ready({name}={value!r}): it has to be a string or None")
        self._record("context_ready", application_id, url)

    def context_ended(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        """Keep the event, and check that no process of the context is left."""
        for job_id in list(self._watched):
            self._expect_free(job_id, "the context")
        self._record("context_ended", end, error)

    def job_running(self, job_id: str) -> None:
        self._record("job_running", job_id)

    def job_progress(self, job_id: str, progress: JobProgress) -> None:
        """Keep the event and the progress."""
        if not isinstance(progress, JobProgress):
            self.faults.append(f"job_progress({job_id!r}, {progress!r}): the second has to be a JobProgress")
        self.progress.setdefault(job_id, []).append(progress)
        self._record("job_progress", job_id)

    def open_result(self, job_id: str, *, stream: bool) -> ResultSink:
        """Keep the event, and return a sink that keeps the bytes."""
        sink = _RecordingSink(self._result_limit)
        self.results[job_id] = (stream, sink.data)
        self._record("open_result", job_id)
        return sink

    def job_ended(self, job_id: str, outcome: JobOutcome) -> None:
        """Keep the event, and check that no process of the job is left."""
        self._expect_free(job_id, "the job")
        self._record("job_ended", job_id, outcome)

    def wait_for(self, *start: object, timeout: float) -> tuple[Any, ...]:
        """Return the first event that begins with these values.

        Fails after ``timeout`` seconds, and at once if the context has ended without the event, or the job
        that the second value names. After a timeout, processes of the job that hold its watched lock are
        ended: the launcher may wait for them, even when it is closed.
        """
        report = str(start[0])
        wanted = " of job ".join(map(str, start[:2]))
        again = report in self._missed
        timeout = timeout * PART_OF_LATER_TIMEOUTS if again else timeout

        def found() -> tuple[Any, ...] | None:
            return next((event for event in self.events if event[: len(start)] == start), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._ended() or self.ended(*start[1:2]), timeout)
            event = found()
            if not event and not self._ended() and self.ended(*start[1:2]):
                raise AssertionError(f"job {start[1]} ended without {report}; reported: {self.events}")
            assert event or not self._ended(), f"the context ended without {wanted}; reported: {self.events}"
            if not event:
                self._missed.add(report)
                left = self._end_processes(start)
                shortened = " (shortened, because an earlier test missed it as well)" if again else ""
                raise AssertionError(
                    f"{wanted} was not reported within {timeout:g} s{shortened}; "
                    f"reported: {self.events or 'nothing'}{left}"
                )
        return event

    def _end_processes(self, missing: tuple[object, ...]) -> str:
        """End the processes that a launcher may wait for instead of reporting an event."""
        context = missing[0] == "context_ended"
        watched = [lock for job_id, lock in self._watched.items() if context or job_id in missing[1:2]]
        return "".join(end_holders(lock) for lock in watched)

    def of_job(self, job_id: str) -> list[str]:
        """Return the names of a job's events in order, without its progress."""
        return [e[0] for e in self.events if len(e) > 1 and e[1] == job_id and e[0] != "job_progress"]

    def outcome(self, job_id: str, *, timeout: float) -> JobOutcome:
        """Wait for a job's end."""
        outcome = self.wait_for("job_ended", job_id, timeout=timeout)[2]
        assert isinstance(outcome, JobOutcome), (
            f"job_ended was called with {outcome!r}; it has to be a JobOutcome"
        )
        return outcome

    def ended(self, job_id: object = None) -> JobOutcome | None:
        """Return how a job has ended, or None if it has not."""
        ends = (event[2] for event in self.events if event[:2] == ("job_ended", job_id))
        return next(ends, None)

    def _ended(self) -> bool:
        return any(event[0] == "context_ended" for event in self.events)

    def _expect_free(self, job_id: str, what: str) -> None:
        lock = self._watched.get(job_id)
        if lock is not None and is_locked(lock):
            self.faults.append(f"{what} was reported as ended while processes of job {job_id} still ran")

    def _expect_in_order(self, report: str, job_id: str) -> None:
        last = self._last.get(job_id)
        if report not in _AFTER[last]:
            when = f"after {last}" if last else "as the first report"
            allowed = " or ".join(_AFTER[last])
            expected = f"only {allowed} may come then" if allowed else "nothing may follow"
            self.faults.append(f"{report} of job {job_id} came {when}; {expected}")
        if report != "job_progress":
            self._last[job_id] = report

    def _record(self, *event: Any) -> None:
        if not self._inside.acquire(blocking=False):
            self.faults.append(f"{event} came while another event was being handled")
            self._overlap.set()
            self._inside.acquire()
        try:
            with self._changed:
                if self._ended():
                    self.faults.append(f"{event} came after the end of the context")
                if event[0].startswith(("job_", "open_result")):
                    self._expect_in_order(event[0], event[1])
                self.events.append(event)
                self._changed.notify_all()
            if event[0] in ("job_running", "open_result", "job_ended") and self.linger:
                self._overlap.wait(self.linger)
            action = self._actions.pop(event[0], None)
            if action is not None:
                action()
        finally:
            self._inside.release()
