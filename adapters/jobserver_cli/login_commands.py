"""The commands ``login`` and ``logout``, which save servers with credentials."""

from __future__ import annotations

from typing import Annotated

import attrs

from jobserver_cli import saved_servers
from jobserver_cli.client import UNAUTHENTICATED, CommandClient, login_advice
from jobserver_cli.completion import server_names
from jobserver_cli.exits import CommandFailed
from jobserver_cli.options import argument
from jobserver_cli.terminal import Terminal

ServerName = Annotated[str, argument("NAME", "The name of the saved server.", server_names)]


def login(client: CommandClient, terminal: Terminal, name: ServerName) -> None:
    """Check the credentials, and save them with the server's address; then use --server NAME.

    Examples:
        jobserver login prod --server https://jobs.example.com --user ann
        jobserver login lab --server http://10.1.2.3:8090
    """
    try:
        client.get("/jobs", limit=0)
    except CommandFailed as refused:
        if refused.reason == UNAUTHENTICATED:  # without the hint that recommends this very command
            raise CommandFailed(str(refused), refused.code, login_advice(client.connection)) from None
        if refused.reason != "permission_denied":  # who may do other things is logged in as well
            raise
    connection = attrs.evolve(client.connection, server=client.url, password=client.password)
    path = saved_servers.save(name, connection)
    terminal.report_done(f"saved {client.url} as {name} in {path}; use it with --server {name}")


def logout(terminal: Terminal, name: ServerName) -> None:
    """Forget a saved server and its credentials.

    Example:
        jobserver logout prod
    """
    saved_servers.remove(name)
    terminal.report_done(f"{name} is forgotten")
