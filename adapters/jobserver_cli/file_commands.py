"""Commands for uploads: binaries and data files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from jobserver_cli.client import CommandClient, quoted_segment
from jobserver_cli.completion import binary_names, data_files
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.lookups import suggestions
from jobserver_cli.options import argument
from jobserver_cli.records import time_shown
from jobserver_cli.terminal import Terminal
from jobserver_cli.uploads import BinaryKind, file_digest, has, kind_of, post_file, upload_binary

BinaryName = Annotated[str, argument("NAME", "The binary's name.", binary_names)]
LocalFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="The file to upload.", exists=True, dir_okay=False, readable=True),
]


def upload(
    client: CommandClient,
    terminal: Terminal,
    name: BinaryName,
    file: LocalFile,
    kind: Annotated[
        BinaryKind | None,
        typer.Option("--type", help="The kind of file, if it does not end in .jar, .egg, .zip or .whl."),
    ] = None,
) -> None:
    """Upload a jar, egg or wheel as a new version of a binary, unless the newest version has this content.

    Examples:
        jobserver upload words dist/words-1.0-py3-none-any.whl
        jobserver upload birds target/birds-assembly --type jar
    """
    kind = kind or kind_of(file)
    if kind is None:
        raise CommandFailed(
            f"{file.name} does not end in .jar, .egg, .zip or .whl",
            ExitCode.USAGE,
            "Set its kind with --type.",
        )
    unchanged = has(client, name, file_digest(file), kind)
    if not unchanged:
        upload_binary(client, terminal, name, file, kind)
    if terminal.as_json:
        terminal.json(client.get(f"/binaries/{quoted_segment(name)}"))
    elif unchanged:
        terminal.report_done(f"{name} is up to date: its newest version has the same content as {file.name}")
    else:
        terminal.report_done(f"uploaded {file.name} as {name}")


def binaries(client: CommandClient, terminal: Terminal) -> None:
    """List the binaries, each with its newest version.

    Examples:
        jobserver binaries
        jobserver binaries --json
    """
    found = client.get("/binaries")
    rows = (
        (name, about.get("binary-type", ""), about.get("package", "-"), time_shown(about.get("upload-time")))
        for name, about in found.items()
    )
    columns = ["Binary", "Type", "Package", "Uploaded"]
    terminal.records(found, columns, rows, none="no binaries", optional=["Uploaded", "Package"])


def versions(client: CommandClient, terminal: Terminal, name: BinaryName) -> None:
    """List all versions of a binary, newest first.

    The column Package has the name and version that the package carries in itself: in the metadata of a wheel
    or egg, or in the manifest of a jar. If it has none, compare the SHA-256 with the output of `sha256sum`.
    To run an old version, add eight or more digits of its SHA-256 to the name: `--cp words@4517bab2`.

    Example:
        jobserver binary versions words
    """
    with suggestions(client, binary=name):
        found = client.get(f"/binaries/{quoted_segment(name)}/versions")
    rows = (
        (
            time_shown(version.get("upload-time")),
            version.get("package", "-"),
            version.get("binary-type", ""),
            version.get("size", ""),
            version.get("digest", ""),
        )
        for version in found
    )
    terminal.records(found, ["Uploaded", "Package", "Type", "Bytes", "SHA-256"], rows, fold=True)


def delete(client: CommandClient, terminal: Terminal, name: BinaryName) -> None:
    """Delete all versions of a binary.

    Example:
        jobserver binary delete words
    """
    with suggestions(client, binary=name):
        response = client.call("DELETE", f"/binaries/{quoted_segment(name)}")
    terminal.report_deleted(name, response)


def data_list(client: CommandClient, terminal: Terminal) -> None:
    """List the data files, with their paths on the server's machine.

    Example:
        jobserver data list
    """
    files = client.get("/data")
    if terminal.as_json:
        terminal.json(files)
        return
    for file in files:
        terminal.line(str(file))
    if not files:
        terminal.note("no data files")


def data_upload(
    client: CommandClient,
    terminal: Terminal,
    prefix: Annotated[str, argument("PREFIX", "The first part of the file's name on the server.")],
    file: LocalFile,
) -> None:
    """Upload a data file, and print its path on the server's machine, which jobs use to open it.

    The name on the server ends as that of the file does, for example with .csv.gz, so Spark decompresses it.

    Examples:
        jobserver data upload birds birds.csv.gz
        jobserver run w.Count --cp w --set file="$(jobserver data upload a a.txt)"
    """
    from jobserver_core.models.validation import split_ending  # noqa: PLC0415 - keeps the start light

    _, ending = split_ending(file.name)
    path = f"/data/{quote(prefix.removesuffix(ending) or prefix, safe='')}"
    response = post_file(client, terminal, path, file, "application/octet-stream", ending=ending)
    stored = str(response["result"]["filename"])
    if terminal.as_json:
        terminal.json(response)
    else:
        terminal.line(stored)
    if not stored.endswith(ending):
        warning = f"warning: the server ignored the ending {ending}, from which Spark would know the format"
        terminal.note(warning, style="yellow")


def data_delete(
    client: CommandClient,
    terminal: Terminal,
    name: Annotated[
        str, argument("FILE", "The name of the file, or the path that the upload printed.", data_files)
    ],
) -> None:
    """Delete a data file.

    Example:
        jobserver data delete birds-2026-01-31T08_30_00.000+00_00.csv.gz
    """
    with suggestions(client, data_file=name):
        response = client.call("DELETE", f"/data/{quote(name, safe='')}")
    terminal.report_deleted(name, response)
