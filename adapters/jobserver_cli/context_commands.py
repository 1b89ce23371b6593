"""Commands for contexts: the live Spark applications that jobs run in."""

from __future__ import annotations

from typing import Annotated

import typer

from jobserver_cli.client import Client, segment
from jobserver_cli.completion import context_names
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.lookups import explained
from jobserver_cli.options import config_text
from jobserver_cli.parameters import command
from jobserver_cli.reports import ContextReport, error_text, load_shown, settings_shown, time_shown
from jobserver_cli.terminal import Terminal

PANEL = "Contexts"
NO_TIMEOUT = None
"""For starting and stopping contexts, which the server limits with its own settings."""

ContextName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The context's name.", show_default=False, autocompletion=context_names
    ),
]

Spares = Annotated[
    bool, typer.Option("--spares", help="List the pools of contexts that are kept started instead.")
]


def register(app: typer.Typer) -> None:
    """Add the commands for contexts."""
    command(app, "contexts", rich_help_panel=PANEL)(contexts)
    group = typer.Typer(help="List, start, show and stop contexts.", no_args_is_help=True)
    command(group, "list")(contexts)
    command(group, "create")(create)
    command(group, "show")(show)
    command(group, "stop")(stop)
    app.add_typer(group, name="context", rich_help_panel=PANEL)


def contexts(client: Client, terminal: Terminal, spares: Spares = False) -> None:
    """List the live contexts."""
    if spares:
        _list_pools(client, terminal)
        return
    reports: list[ContextReport] = client.get("/contexts", details="true")
    if terminal.as_json:
        terminal.json(reports)
    elif not reports:
        terminal.note("no contexts")
    else:
        columns = ["Context", "State", "Started"] + (
            ["Application", "Spark UI"] if terminal.wide else ["Spark UI"]
        )
        terminal.table(columns, [_row(report, terminal.wide) for report in reports])


def _list_pools(client: Client, terminal: Terminal) -> None:
    pools = client.get("/contexts", spares="true")
    if terminal.as_json:
        terminal.json(pools)
    elif not pools:
        terminal.note("no pools of spare contexts; set jobserver.contexts.pools")
    else:
        rows = [[pool["pool"], pool["size"], pool["ready"], pool["starting"]] for pool in pools]
        terminal.table(["Pool", "Size", "Ready", "Starting"], rows)


def _row(report: ContextReport, wide: bool) -> list[object]:
    row: list[object] = [report.get("name"), _state(report), time_shown(report.get("startTime"))]
    return [*row, *([report.get("applicationId", "")] if wide else []), report.get("url", "")]


def _state(report: ContextReport) -> str | None:
    return "WAITING" if report.get("waiting") else report.get("state")


def show(client: Client, terminal: Terminal, name: ContextName) -> None:
    """Show the newest context with a name, even after it has ended."""
    with explained(client, context=name):
        report = client.get(f"/contexts/{segment(name)}")
    if terminal.as_json:
        terminal.json(report)
        return
    ended = report.get("endTime")
    terminal.record(
        {
            "Context": report.get("name"),
            "State": _state(report),
            "Started": time_shown(report.get("startTime")),
            "Ended": time_shown(ended) if ended != "Empty" else None,
            "Application": report.get("applicationId"),
            "Spark UI": report.get("url"),
            "Load": load_shown(report),
            "Restarts": report.get("restarts"),
            "Error": error_text(report["error"]) if report.get("error") else None,
            "Settings": settings_shown(report),
        }
    )


def create(
    client: Client,
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
    """Start a context, and wait until jobs can run in it."""
    with terminal.status(f"starting {name} (takes a few seconds)"):
        client.call(
            "POST",
            f"/contexts/{segment(name)}",
            params=dict(_pair(setting) for setting in settings or []),
            content=config_text(data).encode(),
            headers={"Content-Type": "text/plain"},
            timeout=NO_TIMEOUT,
        )
    if terminal.as_json:
        terminal.json(client.get(f"/contexts/{segment(name)}"))
    else:
        terminal.done(f"{name} is ready")


def _pair(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals or not key.strip():
        raise CommandFailed(f"--set takes KEY=VALUE, got {setting!r}", ExitCode.USAGE)
    return key.strip(), value


def stop(
    client: Client,
    terminal: Terminal,
    name: ContextName,
    force: Annotated[
        bool, typer.Option("--force", help="Kill it instead of stopping it gracefully.")
    ] = False,
) -> None:
    """Stop a context and its jobs, and wait until it has ended."""
    with explained(client, context=name), terminal.status(f"stopping {name}"):
        response = client.send(
            "DELETE",
            f"/contexts/{segment(name)}",
            params={"force": "true" if force else None},
            timeout=NO_TIMEOUT,
        )
    if response.status_code == 202:
        advice = None if force else f"Kill it with: jobserver context stop {name} --force"
        raise CommandFailed(f"{name} has not stopped yet", ExitCode.TIMED_OUT, advice)
    if terminal.as_json:
        terminal.json(client.get(f"/contexts/{segment(name)}"))
    else:
        terminal.done(f"{name} has stopped")
