"""Commands for jobs: list, show and kill them, and get their results and logs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jobserver_cli.client import Client, segment
from jobserver_cli.completion import job_ids
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.following import FINAL, opened_log, show_again, wait_for_end, while_taken_over
from jobserver_cli.lookups import LAST, explained, resolved_job
from jobserver_cli.parameters import JOB_HELP, JobId, command, context_option
from jobserver_cli.reports import (
    CONTEXT_TERMINATED,
    JobReport,
    class_shown,
    duration_shown,
    error_text,
    progress_shown,
    state_shown,
    time_shown,
)
from jobserver_cli.results import copy_report, failed, print_result
from jobserver_cli.submissions import follow_to_result, run, submit
from jobserver_cli.terminal import Terminal

PANEL = "Jobs"
JOBS_EXAMPLES = "Examples: jobserver jobs --since 1h --status ERROR · jobserver jobs -c warm --watch"
RESULT_EXAMPLES = "Examples: jobserver result @last · jobserver result 5453779a --wait > result.json"
LOGS_EXAMPLES = "Examples: jobserver logs @last -f · jobserver logs --context warm"


def moment(text: str) -> datetime:
    """Parse a time (local unless it has an offset) or a duration, which is counted back from now."""
    from jobserver_core.config.units import parse_duration  # noqa: PLC0415 - few commands need it

    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone()
    except ValueError:
        pass
    try:
        if text.strip()[-1:].isdigit() or text.strip().startswith("-"):
            raise ValueError(text)
        return datetime.now().astimezone() - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError) as error:
        expected = "a time such as 2026-01-31 or 2026-01-31T08:30, or a duration such as 30m, 2h or 7d"
        raise typer.BadParameter(f"{text!r} is invalid; expected {expected}") from error


class JobStatus(str, Enum):
    """The values of the option ``--status``."""

    STARTED = "STARTED"
    RUNNING = "RUNNING"
    RESTARTING = "RESTARTING"
    FINISHED = "FINISHED"
    ERROR = "ERROR"
    KILLED = "KILLED"


def register(app: typer.Typer) -> None:
    """Add the commands for jobs."""
    command(app, "jobs", rich_help_panel=PANEL, epilog=JOBS_EXAMPLES)(jobs)
    command(app, "result", rich_help_panel=PANEL, epilog=RESULT_EXAMPLES)(result)
    command(app, "kill", rich_help_panel=PANEL)(kill)
    command(app, "logs", rich_help_panel=PANEL, epilog=LOGS_EXAMPLES)(logs)
    group = typer.Typer(
        cls=_ShowByDefault,
        help="Show a job: jobserver job JOB. Or list, submit and kill jobs.",
        no_args_is_help=True,
    )
    command(group, "show")(job)
    command(group, "list")(jobs)
    command(group, "submit")(submit)
    command(group, "run")(run)
    command(group, "result")(result)
    command(group, "logs")(logs)
    command(group, "kill")(kill)
    app.add_typer(group, name="job", rich_help_panel=PANEL)


class _ShowByDefault(TyperGroup):
    """Commands for jobs; arguments that name none of them are those of ``show``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the command that was left out. (The context's class depends on the release of typer.)"""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["show", *args]
        return super().parse_args(ctx, args)


def jobs(
    client: Client,
    terminal: Terminal,
    *,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=10_000, help="The maximum number of jobs to show.")
    ] = 50,
    status: Annotated[
        JobStatus | None, typer.Option("--status", case_sensitive=False, help="Only jobs in this state.")
    ] = None,
    context: Annotated[str | None, context_option("Only jobs of this context.")] = None,
    main_class: Annotated[
        str | None, typer.Option("--class", metavar="CLASS", help="Only jobs of this class.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            "--since",
            metavar="TIME|DURATION",
            help="Only jobs submitted since a local time, or within a duration such as 30m, 2h or 7d.",
            parser=moment,
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show the list again after each change, until Ctrl-C.")
    ] = False,
) -> None:
    """List jobs, newest first."""

    def show() -> None:
        reports = client.get(
            "/jobs",
            limit=limit,
            status=status.value if status else None,
            context=context,
            classPath=main_class,
            since=since.isoformat() if since else None,
        )
        _list(terminal, reports)

    if watch:
        show_again(client, terminal, show)
    else:
        show()


def _list(terminal: Terminal, reports: list[JobReport]) -> None:
    if terminal.as_json:
        terminal.json(reports)
    elif not reports:
        terminal.note("no jobs")
    else:
        columns = ["Job", "State", "Started", "Took", "Class"] + (["Context"] if terminal.wide else [])
        terminal.table(columns, [_row(report, terminal) for report in reports])


def _row(report: JobReport, terminal: Terminal) -> list[object]:
    row: list[object] = [
        terminal.id_shown(report.get("jobId")),
        "WAITING" if report.get("waiting") else report.get("status"),
        time_shown(report.get("startTime")),
        duration_shown(report.get("duration")),
        class_shown(report.get("classPath"), wide=terminal.wide),
    ]
    return [*row, report.get("context")] if terminal.wide else row


def job(
    client: Client,
    terminal: Terminal,
    job_id: JobId,
    config: Annotated[
        bool, typer.Option("--config", help="Print the configuration that the job was submitted with.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show state, progress and output until the job has ended.")
    ] = False,
) -> None:
    """Show a job, and its result if it has finished. With --json, a result of any size is printed."""
    job_id = resolved_job(client, job_id)
    with explained(client, job=job_id):
        if config:
            terminal.json(client.get(f"/jobs/{segment(job_id)}/config"))
        elif follow:
            # Fails at once for an unknown job.
            while_taken_over(lambda: client.get(f"/jobs/{segment(job_id)}", result="false"))
            follow_to_result(client, terminal, job_id)
        elif terminal.as_json:
            copy_report(client, terminal, job_id)
        else:
            _show(client, terminal, job_id)


def _show(client: Client, terminal: Terminal, job_id: str) -> None:
    report = client.get(f"/jobs/{segment(job_id)}", result="false")
    unsuccessful = report.get("status") in ("ERROR", "KILLED")
    terminal.record(
        {
            "Job": report.get("jobId"),
            "State": state_shown(report),
            "Class": report.get("classPath"),
            "Context": report.get("context"),
            "Started": time_shown(report.get("startTime")),
            "Took": duration_shown(report.get("duration")) or None,
            "Restarts": report.get("restarts") or None,
            "Progress": progress_shown(report) if report.get("status") not in FINAL else None,
            "Error": error_text(report.get("result")) if unsuccessful else None,
        }
    )
    if report.get("status") == "FINISHED":
        print_result(client, terminal, job_id, brief=True)
    elif unsuccessful and _has_stack(report.get("result")):
        terminal.line(f"\n{report['result']['stack']}")


def _has_stack(error: object) -> bool:
    if not isinstance(error, dict) or error.get("errorClass") == CONTEXT_TERMINATED:
        return False  # what stands for the stack of that error is shown with its message
    return bool(error.get("stack"))


def result(
    client: Client,
    terminal: Terminal,
    job_id: JobId,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait until the job has ended.")] = False,
) -> None:
    """Write a job's result to stdout: JSON, or the bytes of a streamed result.

    Results of any size can be saved with: jobserver result JOB > FILE
    """
    job_id = resolved_job(client, job_id)
    with explained(client, job=job_id):
        report = client.get(f"/jobs/{segment(job_id)}", result="false")
        if wait and report.get("status") not in FINAL:
            report = wait_for_end(client, job_id, terminal)
        if report.get("status") not in FINAL:
            message = f"job {job_id} has no result yet; its state is {state_shown(report)}"
            advice = f"Wait for it with: jobserver result {job_id} --wait"
            raise CommandFailed(message, ExitCode.TIMED_OUT, advice)
        if report.get("status") != "FINISHED":
            raise failed(client, report)
        print_result(client, terminal, job_id)


def kill(
    client: Client,
    terminal: Terminal,
    job_ids: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB…", help="The IDs of the jobs.", show_default=False, autocompletion=job_ids
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="If a job cannot be killed alone, kill its context too.")
    ] = False,
) -> None:
    """Kill jobs, and wait until they have ended."""
    if LAST in job_ids:
        raise CommandFailed(
            f"kill does not accept {LAST}, because the newest job may be somebody else's", ExitCode.USAGE
        )
    job_ids = [resolved_job(client, given) for given in job_ids]
    answers = dict(_killed(client, terminal, job_ids, force))
    if terminal.as_json:
        terminal.json(answers)
    running = [job_id for job_id, answer in answers.items() if "jobId" in answer]
    if running:
        advice = None if force else "To kill them together with their context: jobserver kill --force"
        raise CommandFailed(f"still running: {', '.join(running)}", ExitCode.TIMED_OUT, advice)


def _killed(
    client: Client, terminal: Terminal, job_ids: list[str], force: bool
) -> Iterator[tuple[str, JobReport]]:
    for job_id in job_ids:
        with _explained_kill(client, job_id), terminal.status(f"killing {job_id}"):
            answer = client.call(
                "DELETE", f"/jobs/{segment(job_id)}", params={"force": "true" if force else None}
            )
        if "jobId" not in answer:
            terminal.done(f"{job_id} {answer.get('status')}")
        yield job_id, answer


@contextmanager
def _explained_kill(client: Client, job_id: str) -> Iterator[None]:
    try:
        with explained(client, job=job_id):
            yield
    except CommandFailed as refused:
        if refused.reason != "job_already_final":
            raise
        advice = f"Show it with: jobserver job {job_id}"
        raise CommandFailed(f"job {job_id} has already ended", refused.code, advice) from None


def logs(
    client: Client,
    terminal: Terminal,
    job_id: Annotated[
        str | None,
        typer.Argument(metavar="JOB", help=JOB_HELP, show_default=False, autocompletion=job_ids),
    ] = None,
    context: Annotated[str | None, context_option("Print the log of this context's driver.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the job or context has ended.")
    ] = False,
) -> None:
    """Print the output of a job, or the log of a context's driver; with --json, as one string per line."""
    if (job_id is None) == (context is None):
        raise CommandFailed("expected either a job, or a context with --context", ExitCode.USAGE)
    if job_id is not None:
        job_id = resolved_job(client, job_id)
        path = f"/jobs/{segment(job_id)}/logs"
    else:
        path = f"/contexts/{segment(context or '')}/logs"
    with explained(client, job=job_id, context=context), opened_log(client, path, follow=follow) as response:
        if terminal.as_json:
            for line in response.iter_lines():
                terminal.json(line)
        else:
            terminal.copy(response.iter_bytes())
