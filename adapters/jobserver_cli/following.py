"""Watching a job over HTTP: its states and progress as events, its output as it is written."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobserver_cli.client import Client, segment
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.reports import progress_shown, state_shown
from jobserver_cli.terminal import Terminal

__all__ = [
    "FINAL",
    "follow_job",
    "job_events",
    "lasting",
    "log_lines",
    "parting",
    "wait_for_end",
]

FINAL = ("FINISHED", "ERROR", "KILLED")
QUIET = 60.0
"""Seconds without a byte after which a stream of events is given up; servers give a sign of life before."""
SIGN_OF_LIFE = 10.0
"""Less than the 15 seconds after which a silent stream of events brings a sign of life."""
AGAIN = 1.0
"""Seconds until a stream of events that ended before the job did is opened anew."""
LAST_LINES = 10.0
"""Seconds that the log of a job which has ended may take to be complete."""


def job_events(client: Client, job_id: str, *, deadline: float | None = None) -> Iterator[dict[str, Any]]:
    """Yield the job's report now, and again whenever it changes, until it has ended.

    A stream that ends earlier is opened anew: each begins with the report as it is. ``deadline`` is a
    time of the monotonic clock. Raises StillRunning when it has passed.
    """
    while True:
        with _reopened_when_quiet(deadline):
            for report in _reports(client, job_id, _patience(deadline)):
                yield report
                if report.get("status") in FINAL:
                    return
                _patience(deadline)
            time.sleep(AGAIN)


class StillRunning(Exception):
    """The deadline has passed, and the job goes on."""


def _patience(deadline: float | None) -> float:
    """Return how many seconds the next byte may take. Raises StillRunning when no time is left.

    With a deadline it is less than the pause between two signs of life, so that these do not hide it.
    """
    if deadline is None:
        return QUIET
    left = deadline - time.monotonic()
    if left <= 0:
        raise StillRunning
    return min(left, SIGN_OF_LIFE)


@contextmanager
def _reopened_when_quiet(deadline: float | None) -> Iterator[None]:
    try:
        yield
    except CommandFailed as error:
        if deadline is None or error.code is not ExitCode.TIMED_OUT:
            raise


def _reports(client: Client, job_id: str, patience: float) -> Iterator[dict[str, Any]]:
    from httpx_sse import EventSource  # noqa: PLC0415 - asking for help needs no HTTP

    with client.stream(f"/jobs/{segment(job_id)}/events", patience=patience) as response:
        for event in EventSource(response).iter_sse():
            if event.event in ("job", "progress"):
                yield json.loads(event.data)


def wait_for_end(
    client: Client, job_id: str, terminal: Terminal, *, timeout: float | None = None
) -> dict[str, Any]:
    """Wait until a job has ended, and return its last report. Ctrl-C says how to go on without the wait.

    Raises CommandFailed (TIMED_OUT), which says the same, when that takes more than ``timeout`` seconds.
    """
    terminal.parting = parting(job_id)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        with lasting(job_id), terminal.status(f"waiting for job {job_id}"):
            [report] = deque(job_events(client, job_id, deadline=deadline), maxlen=1)
    except StillRunning:
        message = f"job {job_id} is not done after {timeout:g} seconds, and goes on"
        raise CommandFailed(message, ExitCode.TIMED_OUT, _how_to_go_on(job_id)) from None
    terminal.parting = None
    return report


def parting(job_id: str) -> str:
    """Return what Ctrl-C says when a job was waited for."""
    return f"interrupted; job {job_id} goes on\n{_how_to_go_on(job_id)}"


def _how_to_go_on(job_id: str) -> str:
    """Return the commands for a job that nobody waits for any longer."""
    return (
        f"  wait for its result:  jobserver result {job_id} --wait\n"
        f"  watch it:             jobserver job {job_id} --follow\n"
        f"  end it:               jobserver kill {job_id}"
    )


@contextmanager
def lasting(job_id: str) -> Iterator[None]:
    """Say of a lost connection which job was waited for."""
    try:
        yield
    except CommandFailed as error:
        if error.code not in (ExitCode.UNREACHABLE, ExitCode.TIMED_OUT):
            raise
        advice = f"Once the server answers, look at the job with: jobserver job {job_id}"
        raise CommandFailed(error.message, error.code, advice, reason=error.reason) from None


def log_lines(client: Client, path: str, *, follow: bool) -> Iterator[str]:
    """Yield the lines of a log; with ``follow`` until what writes it has ended."""
    with client.stream(path, follow="true" if follow else None) as response:
        yield from response.iter_lines()


class _LogPrinter(threading.Thread):
    """Prints a job's output on stderr while somebody else watches its state."""

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
            self._terminal.note(f"the log is not shown: {error.message}", style="yellow")


def follow_job(client: Client, job_id: str, terminal: Terminal) -> dict[str, Any]:
    """Show a job's state, progress and output on stderr until it has ended; return its last report."""
    log = _LogPrinter(client, job_id, terminal)
    report: dict[str, Any] = {}
    terminal.parting = parting(job_id)
    with lasting(job_id), terminal.status("submitted") as show:
        log.start()
        for report in job_events(client, job_id):
            show(_shown(report))
        log.join(LAST_LINES)
    terminal.parting = None
    return report


def _shown(report: dict[str, Any]) -> str:
    progress = progress_shown(report) if report.get("status") not in FINAL else None
    return f"{state_shown(report)} ({progress})" if progress else state_shown(report)
