"""Commands for operators: what uses how much storage, and removing what is beyond the limits."""

from __future__ import annotations

import typer

from jobserver_cli.client import Client
from jobserver_cli.parameters import command
from jobserver_cli.terminal import Terminal

__all__ = ["register"]

PANEL = "Server"
TIMEOUT = 600.0
"""Seconds to wait for a server that looks at all its records and files."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "storage", rich_help_panel=PANEL)(storage)
    command(app, "prune", rich_help_panel=PANEL)(prune)


def storage(client: Client, terminal: Terminal) -> None:
    """Show what uses how much storage on the server, and the settings that limit it."""
    found = client.call("GET", "/storage", timeout=TIMEOUT)
    if terminal.as_json:
        terminal.json(found)
        return
    rows = [
        (
            kind["kind"],
            kind["count"],
            "" if kind["bytes"] is None else _size(kind["bytes"]),
            ", ".join(_limit(key, value) for key, value in kind["limits"].items()),
        )
        for kind in found
    ]
    terminal.table(["Kind", "Number", "Size", "Limits"], rows)


def prune(client: Client, terminal: Terminal) -> None:
    """Remove jobs, logs and files beyond the limits now, instead of within the hour."""
    with terminal.status("removing what is beyond the limits"):
        answer = client.call("POST", "/storage/prune", timeout=TIMEOUT)
    if terminal.as_json:
        terminal.json(answer)
    elif not answer["removed"]:
        terminal.note("nothing is beyond the limits")
    else:
        terminal.table(["Removed", "Number"], list(answer["removed"].items()))


def _limit(key: str, value: object) -> str:
    return f"{key.rpartition('.')[2]} {'none' if value is None else value}"


def _size(size: int) -> str:
    """Format a size with three digits: ``1.46 MiB``."""
    number, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1000:
            break
        number, unit = number / 1024, larger
    return f"{number:.3g} {unit}"
