"""Shared options: a job's configuration, and the settings of a server on this machine."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobserver_cli.exits import CommandFailed, ExitCode, reading

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.models import ArgumentInfo, OptionInfo

    from jobserver_core.config.settings import Settings
    from jobserver_core.models.json_values import JsonObject


def argument(metavar: str, help: str, complete: Callable[..., object] | None = None) -> ArgumentInfo:
    """Return an argument, whose values a shell completes with this function."""
    found: ArgumentInfo = typer.Argument(
        metavar=metavar, help=help, show_default=False, autocompletion=complete
    )
    return found


def number_option(*names: str, help: str, metavar: str = "N", least: int = 0, most: int) -> OptionInfo:
    """Return an option that takes a whole number from ``least`` to ``most``."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = most + 1
        if not least <= value <= most:
            raise typer.BadParameter(f"expected a whole number from {least} to {most}, got {text!r}")
        return value

    option: OptionInfo = typer.Option(*names, metavar=metavar, help=help, parser=number)
    return option


_CONTEXT_SETTINGS = "spark.context-settings."
"""Where the settings of a context are in ``--data``."""
_PAIR = re.compile(r'\s*([\w.-]+)\s*[=:]\s*([^\s{\["].*?)\s*')
"""Matches one line with a key and a value that is not in quotes, nor begins an object or a list."""
_NEXT_PAIR = re.compile(r",(?=\s*[\w.-]+\s*=)")
"""Matches the comma between two pairs."""
_NEXT_SETTING = re.compile(r"(?:\s*;\s*|\s+)(?=[\w.-]+\s*[=:])")
"""Matches what stands between two settings where HOCON needs a comma."""

ConfigTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "-d",
        metavar="HOCON",
        help="Configuration in HOCON or JSON; @FILE reads a file, @- reads stdin. Can be repeated.",
    ),
]

ConfigStrings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="A string of the configuration, such as a path, taken as it is. Can be repeated.",
    ),
]

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", envvar="JOBSERVER_CONFIG", help="The configuration file (HOCON)."
    ),
]
Host = Annotated[
    str | None,
    typer.Option("--host", metavar="HOST", help="The address to listen on (127.0.0.1 unless configured)."),
]
Port = Annotated[
    int | None,
    number_option(
        "--port", metavar="PORT", most=65535, help="The port to listen on (8090 unless configured; 0: any)."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="The directory for everything that the server stores."),
]


def check_config_file(file: Path) -> None:
    """Check that a configuration file exists.

    Raises:
        CommandFailed: It does not, or is a directory.
    """
    if not file.is_file():
        fault = "is a directory" if file.is_dir() else "not found"
        raise CommandFailed(f"configuration file {file} {fault}", ExitCode.USAGE)


def settings_of(config: Path | None, host: str | None, port: int | None, data_dir: Path | None) -> Settings:
    """Load the settings of a file, overridden by the options.

    Raises:
        InvalidConfig: The file cannot be parsed.
        InvalidSetting: A setting is invalid.
        CommandFailed: The file is missing or cannot be read.
    """
    from jobserver_core.config.loading import load_settings  # noqa: PLC0415 - --help does not need it

    if config is not None:
        check_config_file(config)
    given = {"jobserver.http.host": host, "jobserver.http.port": port, "jobserver.data-dir": data_dir}
    overrides = {key: value for key, value in given.items() if value is not None}
    with reading(config):
        return load_settings(config, overrides=overrides)


def duration_option(name: str, help: str, *, most: int | None = None) -> OptionInfo:
    """Return an option that takes a duration, at least a second and at most ``most`` seconds.

    Its value is whole seconds: fractions are rounded up. A number without a unit is seconds.
    """

    def whole_seconds(text: str) -> int:
        from jobserver_core.config.units import parse_duration  # noqa: PLC0415 - few commands need it

        try:
            seconds = math.ceil(parse_duration(text))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        if seconds < 1:
            raise typer.BadParameter(f"must be at least one second, got {text!r}")
        if most is not None and seconds > most:
            raise typer.BadParameter(f"must be at most {most} s, got {text!r}")
        return seconds

    option: OptionInfo = typer.Option(
        name, metavar="DURATION", help=help, show_default=False, parser=whole_seconds
    )
    return option


def config_text(texts: list[str] | None, strings: list[str] | None = None) -> str:
    """Return the values of ``--data``, joined with newlines, and then those of ``--set``.

    Raises:
        CommandFailed: A file cannot be read, the result is not HOCON, or a string has no key.
    """
    parts = [_text_of(text) for text in texts or []]
    if len(parts) + bool(strings) > 1:
        from jobserver_core.models.json_values import dumps  # noqa: PLC0415 - few commands need it

        # Without the braces of an object, more members can follow.
        parts = [
            dumps(_parsed(part)).strip()[1:-1] if part.lstrip().startswith("{") else part for part in parts
        ]
    text = "\n".join([*parts, *map(_assignment, strings or [])])
    if text:
        try:
            _parsed(text)
        except CommandFailed as error:
            error.advice = _advice_for(texts or []) or error.advice
            raise
    return text


def context_settings_text(texts: list[str] | None) -> str:
    """Return the values of ``--data`` for a context, joined with newlines.

    Raises:
        CommandFailed: As :func:`config_text`, or there are settings that a context would not get.
    """
    from jobserver_core.config.trees import flatten  # noqa: PLC0415 - few commands need it

    text = config_text(texts)
    keys = flatten(_parsed(text)) if text else {}
    lost = [key for key, value in keys.items() if value != {} and not f"{key}.".startswith(_CONTEXT_SETTINGS)]
    if lost:
        message = f"--data has settings outside of spark.context-settings: {', '.join(lost)}"
        members = ", ".join(f"{key} = …" for key in lost)
        advice = f"Set each with --set KEY=VALUE, or write: -d 'spark.context-settings {{ {members} }}'"
        raise CommandFailed(message, ExitCode.USAGE, advice)
    return text


def has_context_settings(text: str) -> bool:
    """Whether a job's configuration has settings for a context of its own."""
    if "context-settings" not in text:
        return False
    spark = _parsed(text).get("spark")
    return isinstance(spark, dict) and bool(spark.get("context-settings"))


def _advice_for(texts: list[str]) -> str | None:
    """Return what was probably meant by texts that are not HOCON, or None."""
    if file := next(filter(os.path.isfile, texts), None):
        return f"Did you mean -d {shlex.quote(f'@{file}')}?"
    for text in texts:
        if _is_hocon(text):
            continue
        advice = []
        several = ", ".join(_NEXT_SETTING.split(text.strip()))
        if several != text.strip() and _is_hocon(several):
            advice.append(f"To set several, separate them with commas: -d {shlex.quote(several)}")
        if pairs := [pair for part in _NEXT_PAIR.split(text) if (pair := _PAIR.fullmatch(part))]:
            given = [f"{pair[1].removeprefix(_CONTEXT_SETTINGS)}={pair[2]}" for pair in pairs]
            what = "a string as it is" if len(given) == 1 else "strings as they are"
            advice.append(f"To set {what}, use: {' '.join(f'--set {shlex.quote(one)}' for one in given)}")
        if advice:
            return "\n".join(advice)
    return None


def single_quoted(texts: list[str] | None) -> list[str]:
    """Return the keys and strings in single quotes, which HOCON does not know.

    Texts of files are not searched, nor strings that have the quotes inside of double quotes. The texts must
    be valid.
    """
    from jobserver_core.config.trees import flatten  # noqa: PLC0415 - --help does not need it

    found: dict[str, None] = {}  # a key once, also if it has several below it
    for text in texts or []:
        if "'" not in text or text.startswith("@"):
            continue
        for key, value in flatten(_parsed(text)).items():
            for word in (*key.split("."), *(value if isinstance(value, list) else [value])):
                if isinstance(word, str) and re.fullmatch("'.*'", word) and f'"{word}' not in text:
                    found[word] = None
    return list(found)


def _is_hocon(text: str) -> bool:
    try:
        _parsed(text)
    except CommandFailed:
        return False
    return True


def _parsed(text: str) -> JsonObject:
    from jobserver_client.requests import MAX_CONFIG_BYTES  # noqa: PLC0415 - few commands need it
    from jobserver_core.config.hocon import parse_untrusted  # noqa: PLC0415
    from jobserver_core.errors import InvalidConfig  # noqa: PLC0415

    try:
        return parse_untrusted(text, max_bytes=MAX_CONFIG_BYTES)
    except InvalidConfig as error:
        raise CommandFailed(f"invalid --data: {error}", ExitCode.USAGE) from error


def _assignment(given: str) -> str:
    """Return ``KEY=VALUE`` as HOCON in which every character of the value stands for itself."""
    key, value = key_and_value(given)
    path = ".".join(json.dumps(name, ensure_ascii=False) for name in key.split("."))
    return f"{path} = {json.dumps(value, ensure_ascii=False)}"


def key_and_value(given: str) -> tuple[str, str]:
    """Return the parts of a value of ``--set``.

    Raises:
        CommandFailed: It has no key.
    """
    key, equals, value = given.partition("=")
    if not equals or not key.strip():
        raise CommandFailed(f"--set takes KEY=VALUE, got {given!r}", ExitCode.USAGE)
    return key.strip(), value


def _text_of(given: str) -> str:
    if not given.startswith("@"):
        return given
    if given == "@":
        raise CommandFailed("-d @ names no file; expected @FILE, or @- for stdin", ExitCode.USAGE)
    try:
        return sys.stdin.read() if given == "@-" else Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise CommandFailed(f"cannot read {given[1:]}: {reason}", ExitCode.USAGE) from error
