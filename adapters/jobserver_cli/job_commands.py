"""Commands for jobs: list, show and kill them, and get their results and logs."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated

import typer

from jobserver_cli.client import CommandClient, quoted_segment
from jobserver_cli.completion import job_ids, live_job_ids
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.following import followed_log, show_repeatedly, wait_for_end, while_taken_over
from jobserver_cli.lookups import LAST, resolve_context, resolve_job, suggestions, unknown_filters
from jobserver_cli.options import argument, number_option
from jobserver_cli.parameters import JOB_HELP, JobId, context_option
from jobserver_cli.records import (
    FINAL,
    JobFields,
    callbacks_shown,
    class_shown,
    error_text,
    job_duration,
    job_state,
    missing_code_advice,
    progress_shown,
    stack_of,
    state_shown,
    time_shown,
)
from jobserver_cli.results import copy_record, failed, print_result, print_result_table
from jobserver_cli.submissions import follow_to_result
from jobserver_cli.terminal import REFUSAL_DELAY, Terminal

MAX_LISTED = 10_000
"""How many jobs the server lists at most."""


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
    """The values of the option ``--status``: the states that the list shows."""

    WAITING = "WAITING"
    STARTED = "STARTED"
    RUNNING = "RUNNING"
    RESTARTING = "RESTARTING"
    FINISHED = "FINISHED"
    ERROR = "ERROR"
    KILLED = "KILLED"


def jobs(
    client: CommandClient,
    terminal: Terminal,
    *,
    limit: Annotated[
        int,
        number_option("--limit", "-n", least=1, most=MAX_LISTED, help="The maximum number of jobs to show."),
    ] = 50,
    status: Annotated[
        JobStatus | None,
        typer.Option(
            "--status",
            case_sensitive=False,
            help="Only jobs in this state. STARTED and RESTARTING include jobs that are shown as WAITING.",
        ),
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
    """List jobs, newest first. A duration counts from the submission, so it includes the wait for a slot.

    That of a job that has not ended is the time until now.

    Examples:
        jobserver jobs --since 1h --status ERROR
        jobserver jobs -c warm --watch
        jobserver jobs --limit 1000 --json | jq -r '.[].jobId'
    """

    def show() -> None:
        chosen = {
            "context": context,
            "classPath": main_class,
            "since": since.isoformat() if since else None,
        }
        records = client.records("/jobs", limit=limit, status=status.value if status else None, **chosen)
        columns = ["Job", "State", "Submitted", "Duration", "Class", "Context"]
        rows = (
            [
                terminal.id_shown(record.get("jobId")),
                job_state(record),
                time_shown(record.get("startTime")),
                job_duration(record),
                class_shown(record.get("classPath"), wide=terminal.wide),
                record.get("context"),
            ]
            for record in records
        )
        terminal.records(
            records, columns, rows, none="no jobs", optional=["Context", "Duration", "Submitted"]
        )
        if not records and not terminal.as_json:
            for hint in unknown_filters(client, context=context, main_class=main_class):
                terminal.note(hint)

    if watch:
        show_repeatedly(client, terminal, show)
    else:
        show()


def job(
    client: CommandClient,
    terminal: Terminal,
    job_id: JobId,
    config: Annotated[
        bool, typer.Option("--config", help="Print the configuration that the job was submitted with.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show state, progress and output until the job has ended.")
    ] = False,
) -> None:
    """Show a job, and its result if it has finished. With --json, a result of any size is printed.

    Examples:
        jobserver job 5453779a
        jobserver job @last --follow
        jobserver job 5453779a --config
    """
    job_id = resolve_job(client, job_id)
    with suggestions(client, job=job_id):
        if config:
            terminal.json(client.get(f"/jobs/{quoted_segment(job_id)}/config"))
        elif follow:
            # Fails at once for an unknown job.
            while_taken_over(lambda: client.job(job_id))
            follow_to_result(client, terminal, job_id)
        elif terminal.as_json:
            copy_record(client, terminal, job_id)
        else:
            _show(client, terminal, job_id)


def _show(client: CommandClient, terminal: Terminal, job_id: str) -> None:
    record = client.job(job_id)
    unsuccessful = record.get("status") in ("ERROR", "KILLED")
    terminal.record(
        {
            "Job": record.get("jobId"),
            "State": state_shown(record),
            "Class": record.get("classPath"),
            "Context": record.get("context"),
            "Submitted": time_shown(record.get("startTime")),
            "Started": time_shown(record.get("runningTime")) or None,
            "Duration": f"{job_duration(record)}{'' if record.get('status') in FINAL else ' so far'}",
            "Restarts": record.get("restarts") or None,
            "Progress": progress_shown(record) if record.get("status") not in FINAL else None,
            "Callback": callbacks_shown(record),
            "Error": error_text(record.get("result")) if unsuccessful else None,
        }
    )
    if record.get("status") == "FINISHED":
        print_result(client, terminal, job_id, brief=True)
        return
    if unsuccessful and (stack := stack_of(record.get("result"))):
        terminal.line(f"\n{stack}")
    if unsuccessful and (advice := missing_code_advice(record.get("result"))):
        terminal.note(advice)


def result(
    client: CommandClient,
    terminal: Terminal,
    job_id: JobId,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait until the job has ended.")] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Print a list of objects or lists, or an object, as a table.")
    ] = False,
) -> None:
    """Write a job's result to stdout: JSON, or the bytes of a streamed result.

    Results of any size can be saved with: jobserver result JOB > FILE

    Examples:
        jobserver result @last
        jobserver result @last --table
        jobserver result 5453779a --wait > result.json
    """
    if table and terminal.as_json:
        raise CommandFailed("--table and --json cannot be combined", ExitCode.USAGE)
    job_id = resolve_job(client, job_id)
    with suggestions(client, job=job_id):
        record = client.job(job_id)
        if wait and record.get("status") not in FINAL:
            record = wait_for_end(client, job_id, terminal)
        if record.get("status") not in FINAL:
            message = f"job {job_id} has no result yet; its state is {state_shown(record)}"
            advice = f"Wait for it with: jobserver result {job_id} --wait"
            raise CommandFailed(message, ExitCode.TIMED_OUT, advice)
        if record.get("status") != "FINISHED":
            raise failed(client, record)
        (print_result_table if table else print_result)(client, terminal, job_id)


def kill(
    client: CommandClient,
    terminal: Terminal,
    job_ids: Annotated[list[str], argument("JOB…", "The IDs of the jobs.", live_job_ids)],
    force: Annotated[
        bool, typer.Option("--force", help="If a job cannot be killed alone, kill its context too.")
    ] = False,
) -> None:
    """Kill jobs, and wait until they have ended. The exit code is 4 if one had ended already.

    Examples:
        jobserver kill 5453779a
        jobserver kill 5453779a 8fb30e51 --force
    """
    if LAST in job_ids:
        message = f"kill does not accept {LAST}, because the newest job may be somebody else's"
        raise CommandFailed(message, ExitCode.USAGE, _advice_for_last(client, job_ids, force))
    job_ids = [resolve_job(client, given) for given in job_ids]
    responses: dict[str, JobFields] = {}
    ended: list[str] = []
    for job_id in job_ids:
        params = {"force": "true" if force else None}
        killing = terminal.status(f"killing {job_id}", delay=REFUSAL_DELAY)
        try:
            with suggestions(client, job=job_id), killing:
                response = client.call("DELETE", f"/jobs/{quoted_segment(job_id)}", params=params)
        except CommandFailed as refused:
            if refused.reason != "job_already_final":
                raise
            ended.append(job_id)
            continue
        responses[job_id] = response
        if response.get("status") == "ERROR":  # it had failed; a job that still runs has another status
            ended.append(job_id)
        elif "jobId" not in response:
            terminal.report_done(f"{job_id} {response.get('status')}")
    if terminal.as_json:
        terminal.json(responses)
    too_late = "; ".join(f"job {job_id} has already ended" for job_id in ended)
    running = [job_id for job_id, response in responses.items() if "jobId" in response]
    if running:
        command = f"jobserver kill {' '.join(running)} --force"
        advice = None if force else f"To kill them together with their contexts: {command}"
        message = "; ".join(filter(None, [f"still running: {', '.join(running)}", too_late]))
        raise CommandFailed(message, ExitCode.TIMED_OUT, advice)
    if ended:
        raise CommandFailed(too_late, ExitCode.REFUSED, f"Show it with: jobserver job {ended[0]}")


def _advice_for_last(client: CommandClient, job_ids: list[str], force: bool) -> str | None:
    """Return which job is the newest, and how to kill it; None if there is none, or it cannot be listed."""
    try:
        [newest] = client.records("/jobs", limit=1)
    except (CommandFailed, ValueError):
        return None
    job_id, state = newest.get("jobId"), job_state(newest)
    about = f"The newest job is {job_id} ({newest.get('classPath')}, {state})."
    named = " ".join(str(job_id) if given == LAST else given for given in job_ids)
    command = f"jobserver kill {named}{' --force' if force else ''}"
    return about if state in FINAL else f"{about} Kill it with: {command}"


def logs(
    client: CommandClient,
    terminal: Terminal,
    job_id: Annotated[str | None, argument("JOB", JOB_HELP, job_ids)] = None,
    context: Annotated[str | None, context_option("Print the log of this context's driver.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the job or context has ended.")
    ] = False,
) -> None:
    """Print the output of a job, or the log of a context's driver; with --json, as one string per line.

    Examples:
        jobserver logs @last -f
        jobserver logs --context warm
    """
    if (job_id is None) == (context is None):
        raise CommandFailed("expected either a job, or a context with --context", ExitCode.USAGE)
    if job_id is not None:
        job_id = resolve_job(client, job_id)
        path = f"/jobs/{quoted_segment(job_id)}/logs"
    else:
        context = resolve_context(client, context or "")
        path = f"/contexts/{quoted_segment(context)}/logs"
    opened = followed_log(client, job_id=job_id, context=context) if follow else client.stream(path)
    with suggestions(client, job=job_id, context=context), opened as response:
        if terminal.as_json:
            for line in response.iter_lines():
                terminal.json(line)
        else:
            terminal.copy(response.iter_bytes())
    if job_id is not None and not follow:
        _note_waiting(client, terminal, job_id)


def _note_waiting(client: CommandClient, terminal: Terminal, job_id: str) -> None:
    """Say why a job has printed nothing if it has not started yet."""
    with suppress(CommandFailed):  # the log was printed
        record = client.job(job_id)
        if record.get("waiting"):
            awaited = f"context {record.get('context')} or for a slot in it"
            follow = f"jobserver logs {job_id} --follow"
            terminal.note(f"the job has not started: it waits for {awaited}; to see its output: {follow}")
