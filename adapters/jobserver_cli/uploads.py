"""Sending a local file to a server, with progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from jobserver_cli.client import Client
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.terminal import Terminal

__all__ = ["post_file"]

FOR_EVER = None
"""An upload takes as long as its bytes do."""


def post_file(client: Client, terminal: Terminal, path: str, file: Path, media_type: str) -> Any:
    """Send a file as the body of a POST, and return the server's JSON answer."""
    with _opened(terminal, file) as (content, size):
        headers = {"Content-Type": media_type, "Content-Length": str(size)}
        return client.call("POST", path, content=content, headers=headers, timeout=FOR_EVER)


@contextmanager
def _opened(terminal: Terminal, file: Path) -> Iterator[tuple[BinaryIO, int]]:
    try:
        size = file.stat().st_size
        with (
            terminal.progress() as progress,
            progress.open(file, "rb", total=size, description=file.name) as content,
        ):
            yield content, size
    except OSError as error:
        raise CommandFailed(f"cannot read {file}: {error.strerror or error}", ExitCode.USAGE) from error
