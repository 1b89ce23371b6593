"""The commands ``submit`` and ``run``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from jobserver_cli.client import CommandClient, quoted_segment
from jobserver_cli.completion import code_names
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.following import follow_job, interrupt_note, showing_start, wait_for_end
from jobserver_cli.lookups import similar_context, suggestions, unknown_binaries
from jobserver_cli.options import (
    ConfigStrings,
    ConfigTexts,
    argument,
    config_text,
    duration_option,
    has_context_settings,
    number_option,
    single_quoted,
)
from jobserver_cli.parameters import context_option
from jobserver_cli.records import ContextFields, JobFields, duration_shown, missing_code_advice
from jobserver_cli.results import copy_record, copy_response, failed, print_result
from jobserver_cli.terminal import REFUSAL_DELAY, Terminal
from jobserver_cli.uploads import Code, advice_instead_of, upload_code

SYNC_TIMEOUT = 300
"""Seconds to wait for a result by default; a longer job is better submitted without waiting."""
_STARTING = {"STARTED": "is still starting", "RESTARTING": "has died and is started again"}
"""What is said of contexts in the states in which jobs wait for them."""


def _idempotency_key(given: str) -> str:
    from jobserver_client.requests import checked_key  # noqa: PLC0415 - --help does not need it
    from jobserver_core.errors import InvalidRequest  # noqa: PLC0415

    try:
        return checked_key(given)
    except InvalidRequest as error:
        raise typer.BadParameter(str(error)) from error


Packages = Annotated[
    list[str] | None,
    typer.Option(
        "--package",
        metavar="NAME|URI|FILE",
        help="A further wheel, egg or ZIP file that a Python job imports from. Can be repeated.",
        autocompletion=code_names,
    ),
]

IdempotencyKey = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key",
        metavar="KEY",
        help="A repeated command with the same key gets the job of the first one, and starts none.",
        parser=_idempotency_key,
    ),
]

MainClass = Annotated[str, argument("CLASS", "The job's class, for example package.module.Class.")]


def submit(
    client: CommandClient,
    terminal: Terminal,
    main_class: MainClass,
    cp: Annotated[
        list[str],
        typer.Option(
            "--cp",
            metavar="NAME|URI|FILE",
            help="Code: the name of a binary, a URI, or a local file to upload. Can be repeated.",
            autocompletion=code_names,
        ),
    ],
    *,
    package: Packages = None,
    data: ConfigTexts = None,
    strings: ConfigStrings = None,
    context: Annotated[
        str | None, context_option("The context to run in. By default, one is created for the job.")
    ] = None,
    sync: Annotated[bool, typer.Option("--sync", help="Wait, and print the result.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show state, progress and output, then print the result.")
    ] = False,
    timeout: Annotated[
        int,
        duration_option(
            "--timeout",
            "How long --sync waits, for example 90s or 2h. A number without a unit is seconds.",
            most=86400,
        ),
    ] = SYNC_TIMEOUT,
    priority: Annotated[
        int | None,
        number_option(
            "--priority",
            least=-100,
            most=100,
            help="Waiting jobs with a higher priority start first: from -100 to 100, 0 by default.",
        ),
    ] = None,
    max_queue_time: Annotated[
        int | None,
        duration_option(
            "--max-queue-time", "The job fails if it waits longer for its start, for example 90s or 2h."
        ),
    ] = None,
    max_run_time: Annotated[
        int | None,
        duration_option(
            "--max-run-time",
            "The job is stopped, and ends as ERROR, if it runs longer, for example 90s or 2h.",
        ),
    ] = None,
    restartable: Annotated[
        bool,
        typer.Option(
            "--restartable", help="Run the job again from the beginning if its supervised context dies."
        ),
    ] = False,
    callback: Annotated[
        str | None,
        typer.Option("--callback", metavar="URL", help="The URL to which the server posts the outcome."),
    ] = None,
    proxy_user: Annotated[
        str | None,
        typer.Option(
            "--proxy-user",
            metavar="NAME",
            help="Run as this user, in a context created for the job; not with --context.",
        ),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Submit a job and print its ID; with --sync or --follow, wait for it and print its result.

    Examples:
        jobserver submit words.WordCount --cp words -c warm -d @words.conf
        jobserver submit words.WordCount --cp words -c warm --sync > result.json
        jobserver submit words.WordCount --cp words -f --max-run-time 2h
    """
    if sync and follow:
        raise CommandFailed("--sync and --follow cannot be combined", ExitCode.USAGE)
    if proxy_user is not None and context is not None:
        raise CommandFailed(
            f"--proxy-user cannot be combined with --context: jobs run as the user of context {context}",
            ExitCode.USAGE,
            f"Omit --context, or create a context for the user: jobserver context create NAME "
            f"-s {shlex.quote(f'spark.proxy.user={proxy_user}')}",
        )
    config = config_text(data, strings)
    _note_doubtful_settings(terminal, data, config, context)

    def check_context() -> None:
        if context is not None:
            _refuse_ended(client, context)

    code = upload_code(client, terminal, cp, package or [], before_upload=check_context)
    options = {
        "priority": priority,
        "maxQueueTime": max_queue_time,
        "maxRunTime": max_run_time,
        "restartable": "true" if restartable else None,
        "callbackUrl": callback,
        "spark.proxy.user": proxy_user,
    }
    record = _submit(
        client, terminal, main_class, code, context=context, config=config, key=idempotency_key, **options
    )
    job_id = str(record["jobId"])
    terminal.interrupt_note = interrupt_note(job_id)
    if sync or follow:
        _note_start(client, terminal, context)
    if sync:
        _print_awaited(client, terminal, job_id, timeout)
    elif follow:
        follow_to_result(client, terminal, job_id)
    elif terminal.as_json:
        terminal.json(record)
    else:
        terminal.line(job_id)


def run(
    client: CommandClient,
    terminal: Terminal,
    main_class: MainClass,
    cp: Annotated[
        list[str],
        typer.Option(
            "--wheel",
            "--egg",
            "--jar",
            "--cp",
            metavar="FILE|NAME|URI",
            help="Code: a local file, which is uploaded if its content is new, the name of a binary, or a "
            "URI. Can be repeated.",
            autocompletion=code_names,
        ),
    ],
    *,
    package: Packages = None,
    data: ConfigTexts = None,
    strings: ConfigStrings = None,
    context: Annotated[
        str | None,
        context_option(
            "The context to run in; it is created if it does not exist. By default, one is created for "
            "the job and ends with it."
        ),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Upload code, create the context, run a job, show its output, and print its result: in one step.

    Examples:
        jobserver run words.WordCount --wheel dist/words-1.0-py3-none-any.whl
        jobserver run words.WordCount --cp words -c warm -d 'input.string = "a b a"'
        jobserver run com.example.Words --jar target/words.jar -d @words.conf
    """
    config = config_text(data, strings)  # before anything changes on the server
    _note_doubtful_settings(terminal, data, config, context)
    code = upload_code(client, terminal, cp, package or [], option="code")
    denied = _ensure_context(client, terminal, context, code) if context is not None else None
    try:
        record = _submit(
            client, terminal, main_class, code, context=context, config=config, key=idempotency_key
        )
    except CommandFailed as missing:
        if denied is None or missing.reason != "context_not_found":
            raise
        raise CommandFailed(f"{missing}, and you may not start it: {denied}", denied.code) from None
    _note_start(client, terminal, context)
    follow_to_result(client, terminal, str(record["jobId"]))


def _ensure_context(client: CommandClient, terminal: Terminal, name: str, code: Code) -> CommandFailed | None:
    """Create a context for this code unless it is live; another client may create it at the same time.

    None is created if the server lacks a binary, since no job could use it. If the user may neither start
    contexts nor see whether this one is live, return the refusal: the submit finds out.
    """
    if _live_context(client, name) is not None:
        return None
    with _despite_denial():
        if missing := _missing_binary(client, code):
            raise missing
    similar = similar_context(client, name)
    question = f"did you mean {similar}, which is live?"
    remark = f"no context {name} is live, so it is started; {question}" if similar else ""
    try:
        with showing_start(client, terminal, name, remark):
            client.call("POST", f"/contexts/{quoted_segment(name)}", timeout=None)
        terminal.report_done(f"{name} is ready")
    except CommandFailed as refused:
        if refused.reason == "permission_denied":
            _refuse_missing(client, name, refused)
            return refused
        if refused.reason != "context_exists":
            if similar:
                refused.advice = "\n".join(filter(None, [question.replace("d", "D", 1), refused.advice]))
            raise
    return None


def _refuse_missing(client: CommandClient, name: str, refused: CommandFailed) -> None:
    """Raise the error for a context that the user may not start, unless the server does not show it."""
    try:
        _refuse_ended(client, name)
    except CommandFailed as missing:
        message = f"{missing}, and you may not start it: {refused}"
        raise CommandFailed(message, refused.code, missing.advice) from None


def _refuse_ended(client: CommandClient, name: str) -> None:
    """Raise the error for a context in which no job can run, unless the server does not show it."""
    with _despite_denial(), suggestions(client, for_job=True, context=name):
        record = client.context(name)
        if record.get("endTime") != "Empty":
            raise CommandFailed(f"context {name!r} has ended", ExitCode.REFUSED, reason="context_not_found")


def _live_context(client: CommandClient, name: str) -> ContextFields | None:
    """Return the record of a live context, or None if there is none, or it may not be read."""
    found = client.send("GET", f"/contexts/{quoted_segment(name)}", accept_errors=True)
    record: ContextFields | None = None if found.is_error else found.json()
    return record if record and record.get("endTime") == "Empty" else None


def _note_doubtful_settings(
    terminal: Terminal, data: list[str] | None, config: str, context: str | None
) -> None:
    """Warn of single quotes, and of settings for a context of its own that a job in a shared one ignores."""
    if quoted := single_quoted(data):
        double = ", ".join(f'"{word[1:-1]}"' for word in quoted)
        why = f"HOCON takes the single quotes in {', '.join(quoted)} as part of it; write {double}"
        terminal.note(f"warning: {why}", style="yellow")
    if context is not None and has_context_settings(config):
        why = f"the job runs in context {context}, which has its own"
        terminal.note(f"warning: spark.context-settings has no effect: {why}", style="yellow")


def _note_start(client: CommandClient, terminal: Terminal, context: str | None) -> None:
    """Say that a job, which was accepted, waits until its context has started, if it has to."""
    record = None
    if context is not None:
        with suppress(CommandFailed):  # the wait for the job says what is wrong
            record = _live_context(client, context)
    how = _STARTING.get(str(record.get("state"))) if record else None
    if record and how:
        doing = f" ({record['preparing']})" if record.get("preparing") else ""
        terminal.note(f"context {record.get('name')} {how}{doing}; the job waits until it is ready")


def _submit(
    client: CommandClient,
    terminal: Terminal,
    main_class: str,
    code: Code,
    *,
    context: str | None,
    config: str,
    key: str | None,
    **options: str | int | None,
) -> JobFields:
    from jobserver_client.options import SLOW_TIMEOUT  # noqa: PLC0415 - --help does not need it
    from jobserver_client.requests import checked_key  # noqa: PLC0415

    terminal.interrupt_note = (
        f"interrupted; if the job was accepted, it continues: jobserver jobs --class {main_class}"
    )
    doing = "submitting" if context else "submitting (the start of the job's context can take a minute)"
    submitting = terminal.status(doing, delay=REFUSAL_DELAY)
    with _rephrased_errors(client, main_class, code, context), submitting:
        record: JobFields = client.call(
            "POST",
            "/jobs",
            params={
                "cp": ",".join(code.class_path),
                "mainClass": main_class,
                "packages": ",".join(code.packages) or None,
                "context": context,
                **options,
            },
            content=config.encode(),
            headers={"Idempotency-Key": checked_key(key), "Content-Type": "text/plain"},
            timeout=SLOW_TIMEOUT,
        )
    return record


@contextmanager
def _despite_denial() -> Iterator[None]:
    """Check something in advance, but not what the user may not read: the server checks it anyway."""
    try:
        yield
    except CommandFailed as refused:
        if refused.code is not ExitCode.DENIED:
            raise


@contextmanager
def _rephrased_errors(
    client: CommandClient, main_class: str, code: Code, context: str | None
) -> Iterator[None]:
    """Rephrase errors of the server in terms of the command line."""
    try:
        with suggestions(client, for_job=True, context=context):
            yield
    except CommandFailed as refused:
        if refused.reason == "no_slots" and context is not None:
            refused.advice = f"To see the jobs that run and wait: jobserver jobs -c {shlex.quote(context)}"
        elif refused.reason == "capacity_reached" and context is None:
            refused.advice = (
                "Without -c, each job starts a context of its own. To run it in one that lives: -c NAME. "
                "To see them: jobserver contexts"
            )
        rephrased = _rephrased(client, refused, main_class, code)
        raise (rephrased or refused) from None


def _rephrased(
    client: CommandClient, refused: CommandFailed, main_class: str, code: Code
) -> CommandFailed | None:
    if refused.reason == "binary_not_found":
        with _despite_denial():
            return _missing_binary(client, code)
    if refused.reason == "class_not_found":
        advice = (
            "CLASS is a full name: package, module and class in Python (words.jobs.Count), package and class "
            "on the JVM (words.Count)."
        )
        found = f"class {main_class} not found in {', '.join(code.class_path)}"
        return CommandFailed(f"{found}: {refused.detail or 'is it misspelled?'}", refused.code, advice)
    if refused.reason == "job_loading_failed":
        hint = missing_code_advice(refused.message)
        return CommandFailed(refused.message, refused.code, hint) if hint else None
    if refused.reason == "invalid_request" and (code.packages or len(code.class_path) > 1):
        with _despite_denial():
            return _misplaced_code(client, code)
    return None


def _missing_binary(client: CommandClient, code: Code) -> CommandFailed | None:
    """Return the error for a binary that the server lacks, or None if there is none."""
    names = [*code.class_path, *code.packages]
    missing = unknown_binaries(client, [name for name in names if ":" not in name])
    directory = next(filter(os.path.isdir, names), None)
    if missing and directory is not None and unknown_binaries(client, [directory]):
        advice = f"{directory} is a directory here. {advice_instead_of(directory)}"
        return CommandFailed(f"binary {directory!r} not found", missing[0].code, advice)
    return missing[0] if missing else None


def _misplaced_code(client: CommandClient, code: Code) -> CommandFailed | None:
    """Return the error for code that belongs to another option, or None if all is where it belongs."""
    known = client.get("/binaries")

    def is_jar(name: str) -> bool:
        newest = known.get(name) or known.get(name.rpartition("@")[0], {})
        return newest.get("binary-type") == "Jar" or (":" in name and name.lower().endswith(".jar"))

    names, jars = code.class_path, list(filter(is_jar, code.packages))
    if all(map(is_jar, names)):
        options = " ".join(f"--cp {name}" for name in (*names, *jars))
        advice = f"Pass all jars of a JVM job with --cp: {options}"
        return (
            CommandFailed("--package is for Python jobs", ExitCode.USAGE, advice) if code.packages else None
        )
    if len(names) > 1:
        return CommandFailed(
            f"a Python job takes one package with --cp, got {len(names)}: {', '.join(names)}",
            ExitCode.USAGE,
            f"Pass the job's own package with --cp, and the others with --package:\n"
            f"  --cp {names[0]} {' '.join(f'--package {name}' for name in names[1:])}\n"
            "For packages of all jobs, use the context settings cp, python.executable, spark.archives and "
            "python.paths.",
        )
    if not jars:
        return None
    advice = f"Jars belong to the context: jobserver context create NAME -s cp={jars[0]}"
    message = f"--package takes wheels, eggs and ZIP files, but {jars[0]} is a jar"
    return CommandFailed(message, ExitCode.USAGE, advice)


def _print_awaited(client: CommandClient, terminal: Terminal, job_id: str, timeout: int) -> None:
    record = wait_for_end(client, job_id, terminal, timeout=timeout)
    if terminal.as_json:
        copy_response(client, terminal, record)
    if record.get("status") != "FINISHED":
        raise failed(client, record)
    if not terminal.as_json:
        print_result(client, terminal, job_id)


def follow_to_result(client: CommandClient, terminal: Terminal, job_id: str) -> None:
    """Show a job until it has ended, and print its result.

    Raises:
        CommandFailed: The job has failed or was killed.
    """
    terminal.interrupt_note = interrupt_note(job_id)
    terminal.note(f"job {job_id}")
    record = follow_job(client, job_id, terminal)
    if record.get("status") == "FINISHED":
        terminal.report_done(f"FINISHED in {duration_shown(record.get('duration'))}")
    if terminal.as_json:
        copy_record(client, terminal, job_id)
    if record.get("status") != "FINISHED":
        raise failed(client, record)
    if not terminal.as_json:
        print_result(client, terminal, job_id, brief=terminal.out.is_terminal)
