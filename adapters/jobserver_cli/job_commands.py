"""The commands on jobs: submit them, look at them, end them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from jobserver_cli.client import Client, error_code, refusal, segment
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.following import FINAL, follow_job
from jobserver_cli.parameters import command
from jobserver_cli.reports import (
    class_shown,
    duration_shown,
    error_text,
    progress_shown,
    state_shown,
    time_shown,
)
from jobserver_cli.terminal import Terminal

__all__ = ["JobStatus", "config_text", "register"]

PANEL = "Jobs"
SHOWN = 4 * 1024 * 1024
"""Bytes of a result that are shown to people; programs get all of it with ``--json``."""
SYNC_TIMEOUT = 300
_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S"]
MARGIN = 30.0
"""Seconds that an answer may take beyond the time-out that the server was given."""


class JobStatus(str, Enum):
    """The states of a job, as the option ``--status`` takes them."""

    STARTED = "STARTED"
    RUNNING = "RUNNING"
    RESTARTING = "RESTARTING"
    FINISHED = "FINISHED"
    ERROR = "ERROR"
    KILLED = "KILLED"


JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's ID.", show_default=False)]
ConfigTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "-d",
        metavar="HOCON",
        help="Configuration as HOCON or JSON text; @FILE reads a file, @- reads stdin. May be repeated.",
    ),
]


def config_text(texts: list[str] | None) -> str:
    """Return what ``--data`` gave, joined by line ends. Raises CommandFailed for an unreadable file."""
    return "\n".join(_text_of(text) for text in texts or [])


def _text_of(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return sys.stdin.read() if given == "@-" else Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise CommandFailed(f"cannot read {given[1:]}: {reason}", ExitCode.USAGE) from error


def register(app: typer.Typer) -> None:
    """Add the commands on jobs."""
    command(app, "submit", rich_help_panel=PANEL)(submit)
    command(app, "jobs", rich_help_panel=PANEL)(jobs)
    command(app, "job", rich_help_panel=PANEL)(job)
    command(app, "kill", rich_help_panel=PANEL)(kill)


def submit(
    client: Client,
    terminal: Terminal,
    main_class: Annotated[
        str,
        typer.Argument(metavar="CLASS", help="The job's class, as package.module.Class.", show_default=False),
    ],
    cp: Annotated[
        list[str],
        typer.Option(
            "--cp",
            metavar="NAME|URI",
            help="An uploaded binary or a URI of code. May be repeated.",
            show_default=False,
        ),
    ],
    *,
    data: ConfigTexts = None,
    context: Annotated[
        str | None,
        typer.Option(
            "--context", "-c", metavar="NAME", help="The context to run in; without it one is made."
        ),
    ] = None,
    sync: Annotated[bool, typer.Option("--sync", help="Wait, and print the result.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show state, progress and output, then print the result.")
    ] = False,
    timeout: Annotated[
        int, typer.Option("--timeout", min=1, max=86400, help="How many seconds --sync waits.")
    ] = SYNC_TIMEOUT,
    callback: Annotated[
        str | None, typer.Option("--callback", metavar="URL", help="Where the server posts the result to.")
    ] = None,
    proxy_user: Annotated[
        str | None,
        typer.Option("--proxy-user", metavar="NAME", help="Run as this user, in a context of its own."),
    ] = None,
) -> None:
    """Submit a job; print its ID, or with --sync or --follow its result."""
    if sync and follow:
        raise CommandFailed("--sync and --follow exclude each other", ExitCode.USAGE)
    params = {
        "cp": ",".join(cp),
        "mainClass": main_class,
        "context": context,
        "callbackUrl": callback,
        "spark.proxy.user": proxy_user,
    }
    request = _Submission(client, params, config_text(data))
    terminal.parting = "interrupted; the job goes on if it was accepted: see jobserver jobs"
    with terminal.status(_waiting(context, sync)):
        answer = request.wait(timeout) if sync else request.send()
    if sync:
        _print_sync(terminal, answer)
        return
    job_id = str(answer["jobId"])
    if follow:
        _follow(client, terminal, job_id)
    elif terminal.as_json:
        terminal.json(answer)
    else:
        terminal.line(job_id)


def _waiting(context: str | None, sync: bool) -> str:
    what = "waiting for the result" if sync else "waiting until the job starts"
    return what if context else f"{what} (its context needs some seconds to start)"


class _Submission:
    """One submit, which can be repeated without running the job twice."""

    def __init__(self, client: Client, params: dict[str, str | None], config: str) -> None:
        self._client = client
        self._params = params
        self._config = config.encode()
        self._headers = {"Idempotency-Key": os.urandom(16).hex(), "Content-Type": "text/plain"}

    def send(self) -> dict[str, Any]:
        """Submit, and return the job's report."""
        answer = self._client.call(
            "POST", "/jobs", params=self._params, content=self._config, headers=self._headers
        )
        return dict(answer)

    def wait(self, seconds: int) -> dict[str, Any]:
        """Submit and wait for the end. Raises CommandFailed (TIMED_OUT) with the job's ID."""
        response = self._client.send(
            "POST",
            "/jobs",
            params={**self._params, "sync": "true", "timeout": str(seconds)},
            content=self._config,
            headers=self._headers,
            timeout=seconds + MARGIN,
            accept_errors=True,
        )
        if error_code(response) == "result_timeout":
            job_id = self.send()["jobId"]
            raise CommandFailed(
                f"the job was not done after {seconds} seconds, and goes on",
                ExitCode.TIMED_OUT,
                f"Look at it with: jobserver job {job_id}. End it with: jobserver kill {job_id}",
            )
        if response.is_error:
            raise refusal(response, self._client.url)
        return dict(response.json())


def _print_sync(terminal: Terminal, answer: dict[str, Any]) -> None:
    if terminal.as_json:
        terminal.json(answer)
    if answer.get("status") in ("ERROR", "KILLED"):
        raise _failed(answer, str(answer["jobId"]))
    if not terminal.as_json:
        terminal.json(answer["result"])


def _failed(report: dict[str, Any], job_id: str) -> CommandFailed:
    return CommandFailed(
        f"the job ended {report.get('status')}: {error_text(report.get('result'))}",
        ExitCode.JOB_FAILED,
        f"Its output: jobserver logs {job_id}",
    )


def _follow(client: Client, terminal: Terminal, job_id: str) -> None:
    terminal.note(f"job {job_id}")
    terminal.parting = f"the job goes on; to end it: jobserver kill {job_id}"
    report = follow_job(client, job_id, terminal)
    if report.get("status") != "FINISHED":
        if terminal.as_json:
            terminal.json(report)
        raise _failed(report, job_id)
    terminal.done(f"FINISHED in {duration_shown(report.get('duration'))}")
    if terminal.as_json:
        _copy(client, terminal, job_id)
    else:
        _print_result(client, terminal, job_id)


def _copy(client: Client, terminal: Terminal, job_id: str) -> None:
    with client.stream(f"/jobs/{segment(job_id)}") as response:
        terminal.bytes(response.iter_bytes())
    terminal.line("")


def _print_result(client: Client, terminal: Terminal, job_id: str) -> None:
    report = _report(client, job_id)
    if report is None:
        _too_large(terminal, job_id)
    else:
        terminal.json(report.get("result"))


def _report(client: Client, job_id: str) -> dict[str, Any] | None:
    """Return a job's report with its result, or None when that is too large to be shown."""
    gathered = bytearray()
    with client.stream(f"/jobs/{segment(job_id)}") as response:
        for piece in response.iter_bytes():
            gathered += piece
            if len(gathered) > SHOWN:
                return None
    try:
        return dict(json.loads(gathered))
    except ValueError:  # a streamed result need not be JSON
        return None


def _too_large(terminal: Terminal, job_id: str) -> None:
    terminal.note(f"The result is large or no JSON; get it with: jobserver job {job_id} --json > FILE")


def jobs(
    client: Client,
    terminal: Terminal,
    *,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many to show at most.")
    ] = 50,
    status: Annotated[
        JobStatus | None, typer.Option("--status", case_sensitive=False, help="Only those in this state.")
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", "-c", metavar="NAME", help="Only those of this context.")
    ] = None,
    main_class: Annotated[
        str | None, typer.Option("--class", metavar="CLASS", help="Only those of this class.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option("--since", help="Only those submitted since then, in local time.", formats=_TIMES),
    ] = None,
) -> None:
    """List jobs, newest first."""
    reports = client.get(
        "/jobs",
        limit=limit,
        status=status.value if status else None,
        context=context,
        classPath=main_class,
        since=since.astimezone().isoformat() if since else None,
    )
    if terminal.as_json:
        terminal.json(reports)
    elif not reports:
        terminal.note("no jobs")
    else:
        columns = ["Job", "State", "Started", "Took", "Class"] + (["Context"] if terminal.wide else [])
        terminal.table(columns, [_row(report, terminal.wide) for report in reports])


def _row(report: dict[str, Any], wide: bool) -> list[object]:
    row: list[object] = [
        report.get("jobId"),
        "WAITING" if report.get("waiting") else report.get("status"),
        time_shown(report.get("startTime")),
        duration_shown(report.get("duration")),
        class_shown(report.get("classPath"), wide=wide),
    ]
    return [*row, report.get("context")] if wide else row


def job(
    client: Client,
    terminal: Terminal,
    job_id: JobId,
    config: Annotated[
        bool, typer.Option("--config", help="Print the configuration that it was submitted with.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show state, progress and output until it has ended.")
    ] = False,
) -> None:
    """Show a job, and its result when it has finished; --json copies a result of any size."""
    if config:
        terminal.json(client.get(f"/jobs/{segment(job_id)}/config"))
    elif follow:
        client.get(f"/jobs/{segment(job_id)}/config")  # says at once that there is no such job
        _follow(client, terminal, job_id)
    elif terminal.as_json:
        _copy(client, terminal, job_id)
    else:
        _show(client, terminal, job_id)


def _show(client: Client, terminal: Terminal, job_id: str) -> None:
    report = _report(client, job_id)
    if report is None:
        _too_large(terminal, job_id)
        return
    failed = report.get("status") in ("ERROR", "KILLED")
    terminal.record(
        {
            "Job": report.get("jobId"),
            "State": state_shown(report),
            "Class": report.get("classPath"),
            "Context": report.get("context"),
            "Started": time_shown(report.get("startTime")),
            "Took": duration_shown(report.get("duration")) or None,
            "Progress": progress_shown(report) if report.get("status") not in FINAL else None,
            "Error": error_text(report.get("result")) if failed else None,
        }
    )
    if report.get("status") == "FINISHED":
        terminal.json(report.get("result"))
    elif failed and isinstance(report.get("result"), dict) and report["result"].get("stack"):
        terminal.line(f"\n{report['result']['stack']}")


def kill(
    client: Client,
    terminal: Terminal,
    job_ids: Annotated[
        list[str], typer.Argument(metavar="JOB…", help="The IDs of the jobs.", show_default=False)
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Where a job cannot be ended alone, end its context too.")
    ] = False,
) -> None:
    """End jobs, and wait until they have ended."""
    answers = dict(_killed(client, terminal, job_ids, force))
    if terminal.as_json:
        terminal.json(answers)
    going = [job_id for job_id, answer in answers.items() if "jobId" in answer]
    if going:
        advice = None if force else "End them with their context: jobserver kill --force"
        raise CommandFailed(f"not ended yet: {', '.join(going)}", ExitCode.TIMED_OUT, advice)


def _killed(
    client: Client, terminal: Terminal, job_ids: list[str], force: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    for job_id in job_ids:
        with terminal.status(f"ending {job_id}"):
            answer = client.call(
                "DELETE", f"/jobs/{segment(job_id)}", params={"force": "true" if force else None}
            )
        if "jobId" not in answer:
            terminal.done(f"{job_id} {answer.get('status')}")
        yield job_id, answer
