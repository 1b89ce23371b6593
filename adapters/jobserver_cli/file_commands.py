"""Commands for uploads: binaries and data files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobserver_cli.client import Client, segment
from jobserver_cli.completion import binary_names
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.lookups import explained
from jobserver_cli.parameters import command
from jobserver_cli.reports import time_shown
from jobserver_cli.terminal import Terminal
from jobserver_cli.uploads import BinaryKind, digest_of, has, kind_of, post_file, upload_binary

PANEL = "Code and data"

BinaryName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The binary's name.", show_default=False, autocompletion=binary_names
    ),
]
LocalFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="The file to upload.",
        exists=True,
        dir_okay=False,
        readable=True,
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands for binaries and data files."""
    command(app, "upload", rich_help_panel=PANEL)(upload)
    command(app, "binaries", rich_help_panel=PANEL)(binaries)
    group = typer.Typer(help="List, upload and delete binaries.", no_args_is_help=True)
    command(group, "list")(binaries)
    command(group, "upload")(upload)
    command(group, "versions")(versions)
    command(group, "delete")(delete)
    app.add_typer(group, name="binary", rich_help_panel=PANEL)
    data = typer.Typer(
        help="Data files: uploaded files on the server's machine that jobs can read.", no_args_is_help=True
    )
    command(data, "list")(data_list)
    command(data, "upload")(data_upload)
    command(data, "delete")(data_delete)
    app.add_typer(data, name="data", rich_help_panel=PANEL)


def upload(
    client: Client,
    terminal: Terminal,
    name: BinaryName,
    file: LocalFile,
    kind: Annotated[
        BinaryKind | None,
        typer.Option("--type", help="The kind of file, if it does not end in .jar, .egg, .zip or .whl."),
    ] = None,
) -> None:
    """Upload a jar, egg or wheel as a new version of a binary, unless the newest version has this content."""
    kind = kind or kind_of(file)
    if kind is None:
        raise CommandFailed(
            f"{file.name} does not end in .jar, .egg, .zip or .whl",
            ExitCode.USAGE,
            "Set its kind with --type.",
        )
    unchanged = has(client, name, digest_of(file), kind)
    if not unchanged:
        upload_binary(client, terminal, name, file, kind)
    if terminal.as_json:
        terminal.json(client.get(f"/binaries/{segment(name)}"))
    elif unchanged:
        terminal.done(f"{name} is up to date: its newest version has the same content as {file.name}")
    else:
        terminal.done(f"uploaded {file.name} as {name}")


def binaries(client: Client, terminal: Terminal) -> None:
    """List the binaries, each with its newest version."""
    found = client.get("/binaries")
    if terminal.as_json:
        terminal.json(found)
    elif not found:
        terminal.note("no binaries")
    else:
        rows = [
            (name, about.get("binary-type", ""), time_shown(about.get("upload-time")))
            for name, about in found.items()
        ]
        terminal.table(["Binary", "Type", "Uploaded"], rows)


def versions(client: Client, terminal: Terminal, name: BinaryName) -> None:
    """List all versions of a binary, newest first."""
    with explained(client, binary=name):
        found = client.get(f"/binaries/{segment(name)}/versions")
    if terminal.as_json:
        terminal.json(found)
        return
    rows = [
        (
            time_shown(version.get("upload-time")),
            version.get("binary-type", ""),
            version.get("size", ""),
            version.get("digest", ""),
        )
        for version in found
    ]
    terminal.table(["Uploaded", "Type", "Bytes", "SHA-256"], rows)


def delete(client: Client, terminal: Terminal, name: BinaryName) -> None:
    """Delete all versions of a binary."""
    with explained(client, binary=name):
        answer = client.call("DELETE", f"/binaries/{segment(name)}")
    if terminal.as_json:
        terminal.json(answer)
    else:
        terminal.done(f"deleted {name}")


def data_list(client: Client, terminal: Terminal) -> None:
    """List the data files, with their paths on the server's machine."""
    files = client.get("/data")
    if terminal.as_json:
        terminal.json(files)
    for file in [] if terminal.as_json else files:
        terminal.line(str(file))


def data_upload(
    client: Client,
    terminal: Terminal,
    prefix: Annotated[
        str,
        typer.Argument(
            metavar="PREFIX", help="The first part of the file's name on the server.", show_default=False
        ),
    ],
    file: LocalFile,
) -> None:
    """Upload a data file, and print its path on the server's machine, which jobs use to open it.

    The name on the server ends as that of the file does, for example with .csv.gz, so Spark decompresses it.
    """
    from jobserver_core.models.validation import split_ending  # noqa: PLC0415 - keeps the start light

    _, ending = split_ending(file.name)
    path = f"/data/{segment(prefix.removesuffix(ending) or prefix)}"
    answer = post_file(client, terminal, path, file, "application/octet-stream", ending=ending)
    stored = str(answer["result"]["filename"])
    if terminal.as_json:
        terminal.json(answer)
    else:
        terminal.line(stored)
    if not stored.endswith(ending):
        warning = f"warning: the server ignored the ending {ending}, from which Spark would know the format"
        terminal.note(warning, style="yellow")


def data_delete(
    client: Client,
    terminal: Terminal,
    name: Annotated[
        str, typer.Argument(metavar="FILE", help="The path that the upload printed.", show_default=False)
    ],
) -> None:
    """Delete a data file."""
    with explained(client, data_file=name):
        answer = client.call("DELETE", f"/data/{segment(name)}")
    if terminal.as_json:
        terminal.json(answer)
    else:
        terminal.done(f"deleted {name}")
