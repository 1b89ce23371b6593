"""Completing names of jobs, contexts, binaries, data files and saved servers in a shell.

The shell runs the command for every press of the tab key, so these functions ask the server once, without
repeating, and complete nothing if it does not answer. They never prompt. Each name comes with a short
description, which shells show beside it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import typer

from jobserver_cli import saved_servers
from jobserver_cli.client import DEFAULT_URL, PASSWORD_VARIABLE, CommandClient, ServerOptions
from jobserver_cli.exits import CommandFailed
from jobserver_cli.records import FINAL, class_shown, context_state, job_state, time_shown
from jobserver_cli.terminal import visible

RECENT = 50
"""How many of the newest jobs are completed."""
CONNECT_TIMEOUT, TIMEOUT = 1.0, 10.0
"""Seconds for opening a connection and for the response, while the shell is blocked."""

NO_FILES = "\t"
"""The line, an empty candidate, for the scripts of :mod:`jobserver_cli.shells` that no file can be meant."""
_CURSOR = "\0"
"""Marks the end of a line while it is split: no line that a shell passes contains it."""

Described = tuple[str, str]
"""A name and its description."""


Completion = Callable[[typer.Context, str], list[Described]]


def register_shell() -> None:
    """Let typer answer the scripts of :mod:`jobserver_cli.shells`, which ask as that of typer for fish."""
    from typer import _completion_classes  # noqa: PLC0415 - only shells need it

    def arguments(self: object) -> tuple[list[str], str]:
        return words_before_cursor(os.environ.get("_TYPER_COMPLETE_ARGS", ""))

    # Typer's own splitting ends a word at a blank, even if it is quoted.
    _completion_classes.FishComplete.get_completion_args = arguments  # type: ignore[method-assign]
    # Descriptions have no markup to remove. Rich would wrap the long ones, and is half of the time.
    _completion_classes._sanitize_help_text = lambda text: text
    _completion_classes.completion_init()


def words_before_cursor(line: str) -> tuple[list[str], str]:
    """Return the arguments of a line as it was typed, and the last word, whose quote may be open."""
    for closing in ("", "'", '"'):
        try:
            words = shlex.split(f"{line}{_CURSOR}{closing}")
        except ValueError:  # another quote is open
            continue
        return words[1:-1], words[-1].removesuffix(_CURSOR)
    return [], ""


def _completing(
    names: Callable[[CommandClient, str], Iterable[Described]], *, or_files: bool = False
) -> Completion:
    """Return a completion: of the names that the function yields, those that begin with what was typed.

    If there are none, shells complete names of files only with ``or_files``.
    """

    def complete(context: typer.Context, incomplete: str) -> list[Described]:
        found = matching(context, incomplete)
        return found if or_files else _without_files(found)

    def matching(context: typer.Context, incomplete: str) -> list[Described]:
        try:
            options = saved_servers.completed(_connection(context.params))
            with CommandClient(
                options, retries=0, connect_timeout=CONNECT_TIMEOUT, timeout=TIMEOUT
            ) as client:
                found = [one for one in names(client, incomplete) if one[0].startswith(incomplete)]
        except CommandFailed:
            return []
        # A hostile server must not steer the terminal.
        return [(name, visible(about)) for name, about in found if visible(name) == name]

    return complete


def _without_files(found: list[Described]) -> list[Described]:
    """Tell the script that no file can be meant if nothing was found; typer prints only what was."""
    if not found:
        typer.echo(NO_FILES)
    return found


def _connection(given: Mapping[str, Any]) -> ServerOptions:
    """Return the connection of the options that precede the cursor, or of the environment."""

    def value(option: str, variable: str) -> str | None:
        return given.get(option) or os.environ.get(variable) or None

    user = value("user", "JOBSERVER_USER")
    return ServerOptions(
        server=value("server", "JOBSERVER_URL") or DEFAULT_URL,
        user=user if PASSWORD_VARIABLE in os.environ else None,
        token=value("token", "JOBSERVER_TOKEN"),
        ca_file=value("ca_file", "JOBSERVER_CA_FILE"),
    )


def _recent_jobs(client: CommandClient, *, live: bool) -> Iterable[Described]:
    for record in client.records("/jobs", limit=RECENT):
        if not live or record.get("status") not in FINAL:
            about = [job_state(record), class_shown(record.get("classPath"), wide=False)]
            yield record["jobId"], " ".join([*about, time_shown(record.get("startTime"))])


@_completing
def job_ids(client: CommandClient, _typed: str) -> Iterable[Described]:
    """Return the IDs of recent jobs."""
    return [("@last", "the newest job"), *_recent_jobs(client, live=False)]


@_completing
def live_job_ids(client: CommandClient, _typed: str) -> Iterable[Described]:
    """Return the IDs of recent jobs that have not ended."""
    return _recent_jobs(client, live=True)


@_completing
def context_names(client: CommandClient, _typed: str) -> Iterable[Described]:
    """Yield the names of live contexts."""
    for record in client.records("/contexts", details="true"):
        yield record["name"], f"{context_state(record)} since {time_shown(record.get('startTime'))}"


def _binary_names(client: CommandClient, _typed: str) -> Iterable[Described]:
    for name, about in client.get("/binaries").items():
        yield name, f"{about.get('binary-type')} of {time_shown(about.get('upload-time'))}"


binary_names = _completing(_binary_names)
"""Completes the names of binaries."""
code_names = _completing(_binary_names, or_files=True)
"""Completes the names of binaries where a file can be given as well."""


@_completing
def data_files(client: CommandClient, typed: str) -> Iterable[Described]:
    """Yield the names of data files, or their paths if what was typed is a path."""
    for path in client.get("/data"):
        yield (path if typed.startswith("/") else PurePosixPath(path).name), ""


def server_names(incomplete: str) -> list[Described]:
    """Return the names of saved servers that start with what was typed."""
    try:
        saved = saved_servers.addresses()
    except CommandFailed:
        saved = {}
    return _without_files(
        [(name, address.replace("[", "(")) for name, address in saved.items() if name.startswith(incomplete)]
    )
