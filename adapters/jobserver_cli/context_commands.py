"""Commands for contexts: the live Spark applications that jobs run in."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from jobserver_cli.client import CommandClient, quoted_segment
from jobserver_cli.completion import context_names
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.following import showing_start
from jobserver_cli.lookups import resolve_context, suggestions, unknown_binaries
from jobserver_cli.options import argument, context_settings_text, key_and_value
from jobserver_cli.records import (
    ContextFields,
    context_state,
    error_text,
    last_restart_shown,
    load_shown,
    settings_shown,
    time_shown,
)
from jobserver_cli.terminal import REFUSAL_DELAY, Terminal

ContextName = Annotated[str, argument("NAME", "The context's name.", context_names)]


def contexts(
    client: CommandClient,
    terminal: Terminal,
    spares: Annotated[
        bool, typer.Option("--spares", help="List the pools of spare contexts, not the live contexts.")
    ] = False,
    ended: Annotated[
        bool,
        typer.Option("--ended", help="List the newest ended contexts, with their IDs, not the live ones."),
    ] = False,
) -> None:
    """List the live contexts.

    Examples:
        jobserver contexts
        jobserver contexts --ended
        jobserver contexts --spares
    """
    if spares and ended:
        raise CommandFailed("--spares and --ended cannot be combined", ExitCode.USAGE)
    if spares:
        _list_pools(client, terminal)
    elif ended:
        columns = ["Context", "State", "Started", "Ended", "ID"]
        _list(terminal, client.records("/contexts", ended="true"), columns, "no ended contexts")
    else:
        columns = ["Context", "State", "Started", "Application", "Spark UI"]
        _list(terminal, client.records("/contexts", details="true"), columns, "no contexts")


_CELLS: Mapping[str, Callable[[ContextFields], object]] = {
    "Context": lambda record: record.get("name"),
    "State": context_state,
    "Started": lambda record: time_shown(record.get("startTime")),
    "Ended": lambda record: time_shown(record.get("endTime")),
    "ID": lambda record: record.get("id"),
    "Application": lambda record: record.get("applicationId", ""),
    "Spark UI": lambda record: record.get("url", ""),
}


def _list(terminal: Terminal, records: list[ContextFields], columns: list[str], none: str) -> None:
    """Print contexts as a table with these columns, or the note ``none`` if there are none."""
    rows = ([_CELLS[column](record) for column in columns] for record in records)
    terminal.records(records, columns, rows, none=none, optional=["Application", "Spark UI", "Started"])


def _list_pools(client: CommandClient, terminal: Terminal) -> None:
    pools = client.records("/contexts", spares="true")
    rows = ([pool["pool"], pool["size"], pool["ready"], pool["starting"]] for pool in pools)
    none = "no pools of spare contexts; set jobserver.contexts.pools"
    terminal.records(pools, ["Pool", "Size", "Ready", "Starting"], rows, none=none)


def show(client: CommandClient, terminal: Terminal, name: ContextName) -> None:
    """Show the newest context with a name, or the context with an ID, even after it has ended.

    Example:
        jobserver context show warm
    """
    name = resolve_context(client, name)
    with suggestions(client, context=name):
        record = client.context(name)
    if terminal.as_json:
        terminal.json(record)
        return
    ended = record.get("endTime")
    terminal.record(
        {
            "Context": record.get("name"),
            "State": context_state(record),
            "Preparing": record.get("preparing"),
            "Started": time_shown(record.get("startTime")),
            "Ended": time_shown(ended) if ended != "Empty" else None,
            "Ended because": record.get("endReason"),
            "ID": record.get("id"),
            "Server": record.get("server"),
            "Application": record.get("applicationId"),
            "Spark UI": record.get("url"),
            "Load": load_shown(record),
            "Restarts": record.get("restarts"),
            "Last restart": last_restart_shown(record),
            "Error": error_text(record["error"]) if record.get("error") else None,
            "Settings": settings_shown(record),
        }
    )


def create(
    client: CommandClient,
    terminal: Terminal,
    name: ContextName,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="A setting, such as num-cpu-cores=2 or any spark.* key. Can be repeated.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            metavar="HOCON",
            help="Settings in HOCON, as spark { context-settings { … } }; @FILE reads a file.",
        ),
    ] = None,
) -> None:
    """Start a context, and wait until jobs can run in it.

    Examples:
        jobserver context create warm
        jobserver context create big -s num-cpu-cores=8 -s memory-per-node=4g
        jobserver context create etl -d @etl.conf
    """
    given = dict(map(key_and_value, settings or []))
    text = context_settings_text(data)
    with _rephrased_errors(client, name, given), showing_start(client, terminal, name):
        client.call(
            "POST",
            f"/contexts/{quoted_segment(name)}",
            params=given,
            content=text.encode(),
            headers={"Content-Type": "text/plain"},
            timeout=None,  # the server has its own
        )
    if terminal.as_json:
        terminal.json(client.context(name))
    else:
        terminal.report_done(f"{name} is ready")


@contextmanager
def _rephrased_errors(client: CommandClient, name: str, settings: Mapping[str, str]) -> Iterator[None]:
    """Say which setting names a binary that the server lacks, and what to do about a context that exists."""
    try:
        yield
    except CommandFailed as refused:
        if refused.reason == "context_exists":
            shown = shlex.quote(name)
            refused.advice = (
                f"Jobs can run in it: --context {shown}. For other settings, stop it first "
                f"(jobserver context stop {shown}), or choose another name."
            )
        if refused.reason == "binary_not_found":
            missing = None
            with suppress(CommandFailed):  # such as no permission to list binaries
                missing = _missing_binary(client, settings)
            raise (missing or refused) from None
        raise


def _missing_binary(client: CommandClient, settings: Mapping[str, str]) -> CommandFailed | None:
    """Return the error for a binary that the server lacks and a setting names, or None if none does."""
    for key in ("cp", "dependent-jar-uris"):
        names = [name.strip() for name in settings.get(key, "").split(",")]
        for missing in unknown_binaries(client, [name for name in names if name and ":" not in name]):
            return CommandFailed(f"setting {key}: {missing}", missing.code, missing.advice)
    return None


def stop(
    client: CommandClient,
    terminal: Terminal,
    name: ContextName,
    force: Annotated[
        bool, typer.Option("--force", help="Kill it instead of stopping it gracefully.")
    ] = False,
) -> None:
    """Stop a context and its jobs, and wait until it has ended.

    Examples:
        jobserver context stop warm
        jobserver context stop warm --force
    """
    name = resolve_context(client, name)
    with suggestions(client, context=name), terminal.status(f"stopping {name}", delay=REFUSAL_DELAY):
        response = client.send(
            "DELETE",
            f"/contexts/{quoted_segment(name)}",
            params={"force": "true" if force else None},
            timeout=None,  # the server has its own
        )
    if response.status_code == 202:
        advice = None if force else f"Kill it with: jobserver context stop {name} --force"
        raise CommandFailed(f"{name} has not stopped yet", ExitCode.TIMED_OUT, advice)
    if terminal.as_json:
        terminal.json(client.context(name))
    else:
        terminal.report_done(f"{name} has stopped")
