"""Watching a job over HTTP: its state and progress as events, and its output as it is written."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from jobserver_cli.client import Client, segment
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.reports import JobReport, progress_shown, state_shown
from jobserver_cli.terminal import Terminal

__all__ = [
    "FINAL",
    "follow_job",
    "job_events",
    "interrupt_note",
    "naming_job_in_errors",
    "log_lines",
    "wait_for_end",
]

FINAL = ("FINISHED", "ERROR", "KILLED")
READ_TIMEOUT = 60.0
"""Seconds without a byte after which a stream of events is abandoned. Servers send keep-alives more often."""
READ_TIMEOUT_WITH_DEADLINE = 10.0
"""The same for waits with a deadline: below the 15 seconds between two keep-alives, see _read_timeout."""
REOPEN_DELAY = 1.0
"""Seconds until a stream of events that ended before the job did is opened again."""
LOG_TIMEOUT = 10.0
"""How many seconds to wait for the rest of the log after a job has ended."""


def job_events(client: Client, job_id: str, *, deadline: float | None = None) -> Iterator[JobReport]:
    """Yield the job's report now, and again after each change, until the job has ended.

    A stream that ends before the job does is reopened; each stream starts with the current report.
    ``deadline`` is a time of the monotonic clock.

    Raises:
        StillRunning: The deadline has passed.
    """
    while True:
        with _ignoring_read_timeouts(deadline):
            for report in _reports(client, job_id, _read_timeout(deadline)):
                yield report
                if report.get("status") in FINAL:
                    return
                _read_timeout(deadline)
            time.sleep(REOPEN_DELAY)


class StillRunning(Exception):
    """The deadline has passed, but the job is still running."""


def _read_timeout(deadline: float | None) -> float:
    """Return how many seconds to wait for the next byte. Raise StillRunning if the deadline has passed.

    With a deadline, it is shorter than the pause between two keep-alives: they would restart it again and
    again, and the deadline would never be checked.
    """
    if deadline is None:
        return READ_TIMEOUT
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise StillRunning
    return min(remaining, READ_TIMEOUT_WITH_DEADLINE)


@contextmanager
def _ignoring_read_timeouts(deadline: float | None) -> Iterator[None]:
    try:
        yield
    except CommandFailed as error:
        if deadline is None or error.code is not ExitCode.TIMED_OUT:
            raise


def _reports(client: Client, job_id: str, read_timeout: float) -> Iterator[JobReport]:
    from httpx_sse import EventSource  # noqa: PLC0415 - --help does not need it

    with client.stream(f"/jobs/{segment(job_id)}/events", read_timeout=read_timeout) as response:
        for event in EventSource(response).iter_sse():
            if event.event in ("job", "progress"):
                yield json.loads(event.data)


def wait_for_end(
    client: Client, job_id: str, terminal: Terminal, *, timeout: float | None = None
) -> JobReport:
    """Wait until a job has ended, and return its last report.

    After Ctrl-C or a timeout, the message lists the commands to continue with.

    Raises:
        CommandFailed: The job has not ended within ``timeout`` seconds (TIMED_OUT).
    """
    terminal.interrupt_note = interrupt_note(job_id)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        with naming_job_in_errors(job_id), terminal.status(f"waiting for job {job_id}"):
            [report] = deque(job_events(client, job_id, deadline=deadline), maxlen=1)
    except StillRunning:
        message = f"job {job_id} is still running after {timeout:g} seconds"
        raise CommandFailed(message, ExitCode.TIMED_OUT, _next_commands(job_id)) from None
    terminal.interrupt_note = None
    return report


def interrupt_note(job_id: str) -> str:
    """Return the message to print when Ctrl-C ends the wait for a job."""
    return f"interrupted; job {job_id} continues\n{_next_commands(job_id)}"


def _next_commands(job_id: str) -> str:
    return (
        f"  wait for its result:  jobserver result {job_id} --wait\n"
        f"  watch it:             jobserver job {job_id} --follow\n"
        f"  kill it:              jobserver kill {job_id}"
    )


@contextmanager
def naming_job_in_errors(job_id: str) -> Iterator[None]:
    """Add the command for looking at the job to errors about a lost connection."""
    try:
        yield
    except CommandFailed as error:
        if error.code not in (ExitCode.UNREACHABLE, ExitCode.TIMED_OUT):
            raise
        advice = f"Once the server is reachable again: jobserver job {job_id}"
        raise CommandFailed(error.message, error.code, advice, reason=error.reason) from None


def log_lines(client: Client, path: str, *, follow: bool) -> Iterator[str]:
    """Yield the lines of a log. With ``follow``, yield new lines until the job or context has ended."""
    with client.stream(path, follow="true" if follow else None) as response:
        yield from response.iter_lines()


class _LogPrinter(threading.Thread):
    """A thread that prints a job's output on stderr while another thread watches its state."""

    def __init__(self, client: Client, job_id: str, terminal: Terminal) -> None:
        super().__init__(name="job-log", daemon=True)
        self._client = client
        self._path = f"/jobs/{segment(job_id)}/logs"
        self._terminal = terminal

    def run(self) -> None:
        """Print until the log has ended."""
        try:
            for line in log_lines(self._client, self._path, follow=True):
                self._terminal.note(f"│ {line}")
        except CommandFailed as error:
            self._terminal.note(f"cannot show the log: {error.message}", style="yellow")


def follow_job(client: Client, job_id: str, terminal: Terminal) -> JobReport:
    """Show a job's state, progress and output on stderr until it has ended. Return its last report."""
    log = _LogPrinter(client, job_id, terminal)
    report: JobReport = {}
    terminal.interrupt_note = interrupt_note(job_id)
    with naming_job_in_errors(job_id), terminal.status("submitted") as show:
        log.start()
        for report in job_events(client, job_id):
            show(_shown(report))
        log.join(LOG_TIMEOUT)
    terminal.interrupt_note = None
    return report


def _shown(report: JobReport) -> str:
    progress = progress_shown(report) if report.get("status") not in FINAL else None
    return f"{state_shown(report)} ({progress})" if progress else state_shown(report)
