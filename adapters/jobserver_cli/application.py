"""The application: all commands together, and the options that need no command."""

from __future__ import annotations

from typing import Annotated

import typer

from jobserver_cli import (
    context_commands,
    file_commands,
    job_commands,
    login_commands,
    machine_commands,
    serving_commands,
    submissions,
)
from jobserver_cli.exits import ExitCode

app = typer.Typer(
    name="jobserver",
    help="Spark as a service: upload code once, keep contexts warm, run many small jobs.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - only one option needs it

        typer.echo(version("jobserver-core"))
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Spark as a service: upload code once, keep contexts warm, run many small jobs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)


for _commands in (
    serving_commands,
    submissions,
    job_commands,
    file_commands,
    context_commands,
    login_commands,
    machine_commands,
):
    _commands.register(app)
