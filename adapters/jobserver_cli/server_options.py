"""The options of commands that run or examine a server of this machine, and the settings they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobserver_cli.exits import CommandFailed, ExitCode

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["ConfigFile", "DataDir", "Host", "Port", "settings_of"]

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
    typer.Option(
        "--port",
        metavar="PORT",
        min=0,
        max=65535,
        help="The port to listen on (8090 unless configured; 0: any).",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="The folder of everything that the server keeps."),
]


def settings_of(config: Path | None, host: str | None, port: int | None, data_dir: Path | None) -> Settings:
    """Return the settings of a file with the options over them.

    Raises InvalidConfig and InvalidSetting for what is wrong in them, CommandFailed for a missing file.
    """
    from jobserver_core.config.loading import load_settings  # noqa: PLC0415 - asking for help needs no settings

    if config is not None and not config.is_file():
        raise CommandFailed(f"there is no configuration file {config}", ExitCode.USAGE)
    given = {"jobserver.http.host": host, "jobserver.http.port": port, "jobserver.data-dir": data_dir}
    overrides = {key: value for key, value in given.items() if value is not None}
    try:
        return load_settings(config, overrides=overrides)
    except OSError as error:
        raise CommandFailed(f"cannot read {config}: {error.strerror or error}", ExitCode.USAGE) from error
