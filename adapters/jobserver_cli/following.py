"""Watching a job over HTTP: its states and progress as events, its output as it is written."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from jobserver_cli.client import Client, segment
from jobserver_cli.exits import CommandFailed
from jobserver_cli.reports import progress_shown, state_shown
from jobserver_cli.terminal import Terminal

__all__ = ["FINAL", "follow_job", "job_events", "log_lines"]

FINAL = ("FINISHED", "ERROR", "KILLED")
QUIET = 60.0
"""Seconds without a byte after which a stream of events is given up; servers give a sign of life before."""
AGAIN = 1.0
"""Seconds until a stream of events that ended before the job did is opened anew."""
LAST_LINES = 10.0
"""Seconds that the log of a job which has ended may take to be complete."""


def job_events(client: Client, job_id: str) -> Iterator[dict[str, Any]]:
    """Yield the job's report now, and again whenever it changes, until it has ended.

    A stream that ends earlier is opened anew: each begins with the report as it is.
    """
    while True:
        for report in _reports(client, job_id):
            yield report
            if report.get("status") in FINAL:
                return
        time.sleep(AGAIN)


def _reports(client: Client, job_id: str) -> Iterator[dict[str, Any]]:
    from httpx_sse import EventSource  # noqa: PLC0415 - asking for help needs no HTTP

    with client.stream(f"/jobs/{segment(job_id)}/events", patience=QUIET) as response:
        for event in EventSource(response).iter_sse():
            if event.event in ("job", "progress"):
                yield json.loads(event.data)


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
    with terminal.status("submitted") as show:
        log.start()
        for report in job_events(client, job_id):
            show(_shown(report))
        log.join(LAST_LINES)
    return report


def _shown(report: dict[str, Any]) -> str:
    progress = progress_shown(report) if report.get("status") not in FINAL else None
    return f"{state_shown(report)} ({progress})" if progress else state_shown(report)
