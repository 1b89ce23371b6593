"""The option ``--data``: configuration as text, from files or from stdin, checked before it is sent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobserver_cli.exits import CommandFailed, ExitCode

__all__ = ["ConfigTexts", "config_text"]

LIMIT = 64 * 1024 * 1024
"""Bytes that are checked here at most; how much a server takes is its own affair."""

ConfigTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "-d",
        metavar="HOCON",
        help="Configuration as HOCON or JSON text; @FILE reads a file, @- reads stdin. May be repeated.",
    ),
]


def config_text(texts: list[str] | None) -> str:
    """Return what ``--data`` gave, joined by line ends.

    Raises CommandFailed for a file that cannot be read, and for text that is no HOCON.
    """
    from jobserver_core.config.hocon import parse_untrusted  # noqa: PLC0415
    from jobserver_core.errors import InvalidConfig  # noqa: PLC0415 - asking for help needs no parser

    text = "\n".join(_text_of(text) for text in texts or [])
    try:
        parse_untrusted(text, max_bytes=LIMIT)
    except InvalidConfig as error:
        raise CommandFailed(f"--data cannot be read: {error}", ExitCode.USAGE) from error
    return text


def _text_of(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return sys.stdin.read() if given == "@-" else Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise CommandFailed(f"cannot read {given[1:]}: {reason}", ExitCode.USAGE) from error
