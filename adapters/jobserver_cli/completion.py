"""Completing names of jobs, contexts and binaries in a shell.

The shell runs the command for every press of the tab key, so these functions ask the server once, without
repeating, and complete nothing if it does not answer. They never prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

import typer

from jobserver_cli import saved_servers
from jobserver_cli.client import DEFAULT_URL, PASSWORD_VARIABLE, Client, Connection
from jobserver_cli.exits import CommandFailed

__all__ = ["binary_names", "context_names", "job_ids"]

RECENT = 50
"""How many of the newest jobs are completed."""
CONNECT_TIMEOUT, TIMEOUT = 1.0, 10.0
"""Seconds for opening a connection and for the response, while the shell is blocked."""


def _completed(
    context: typer.Context, incomplete: str, names: Callable[[Client], Iterable[str]]
) -> list[str]:
    try:
        connection = saved_servers.completed(_connection(context.params))
        with Client(connection, retries=0, connect_timeout=CONNECT_TIMEOUT, timeout=TIMEOUT) as client:
            return [name for name in names(client) if name.startswith(incomplete)]
    except CommandFailed:
        return []


def _connection(given: Mapping[str, str | None]) -> Connection:
    """Return the connection of the options that precede the cursor, or of the environment."""

    def value(option: str, variable: str) -> str | None:
        return given.get(option) or os.environ.get(variable) or None

    user = value("user", "JOBSERVER_USER")
    return Connection(
        server=value("server", "JOBSERVER_URL") or DEFAULT_URL,
        user=user if PASSWORD_VARIABLE in os.environ else None,
        token=value("token", "JOBSERVER_TOKEN"),
        ca_file=value("ca_file", "JOBSERVER_CA_FILE"),
    )


def job_ids(context: typer.Context, incomplete: str) -> list[str]:
    """Return the IDs of the newest jobs that begin like this."""

    def newest(client: Client) -> list[str]:
        return ["@last", *(report["jobId"] for report in client.get("/jobs", limit=RECENT))]

    return _completed(context, incomplete, newest)


def context_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of live contexts that begin like this."""
    return _completed(context, incomplete, lambda client: client.get("/contexts"))


def binary_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of binaries that begin like this."""
    return _completed(context, incomplete, lambda client: client.get("/binaries"))
