"""The command on logs: what a job, or a context's driver, wrote."""

from __future__ import annotations

from typing import Annotated

import typer

from jobserver_cli.client import Client, segment
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.lookups import explained, resolved_job
from jobserver_cli.parameters import JOB_HELP, command
from jobserver_cli.terminal import Terminal

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "logs", rich_help_panel="Jobs")(logs)


def logs(
    client: Client,
    terminal: Terminal,
    job_id: Annotated[str | None, typer.Argument(metavar="JOB", help=JOB_HELP, show_default=False)] = None,
    context: Annotated[
        str | None, typer.Option("--context", "-c", metavar="NAME", help="The log of this context's driver.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until what writes the log has ended.")
    ] = False,
) -> None:
    """Print what a job wrote and logged, or a context's driver; with --json one JSON text a line."""
    if (job_id is None) == (context is None):
        raise CommandFailed("name either a job or, with --context, a context", ExitCode.USAGE)
    if job_id is not None:
        job_id = resolved_job(client, job_id)
        path = f"/jobs/{segment(job_id)}/logs"
    else:
        path = f"/contexts/{segment(context or '')}/logs"
    wanted = "true" if follow else None
    with explained(client, job=job_id, context=context), client.stream(path, follow=wanted) as response:
        if terminal.as_json:
            for line in response.iter_lines():
                terminal.json(line)
        else:
            terminal.copy(response.iter_bytes())
