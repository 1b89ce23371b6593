"""Commands that run a server: ``serve`` and ``demo``."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.front_end import front_end, url_of
from jobserver_cli.options import ConfigFile, DataDir, Host, Port, settings_of
from jobserver_cli.parameters import command
from jobserver_cli.server_process import (
    LogLevel,
    become_init,
    collect_garbage_rarely,
    configure_logging,
    keep_from_collector,
    raise_descriptor_limit,
)
from jobserver_cli.terminal import Terminal

if TYPE_CHECKING:
    from jobserver_core.errors import InvalidSetting

__all__ = ["register"]

PANEL = "Server"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "serve", rich_help_panel=PANEL)(serve)
    command(app, "demo", rich_help_panel=PANEL)(demo)


def serve(
    terminal: Terminal,
    *,
    config: ConfigFile = None,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(
            "--log-level",
            case_sensitive=False,
            help="The minimum level of messages that are logged on stderr.",
        ),
    ] = LogLevel.INFO,
) -> None:
    """Run a server until SIGTERM or Ctrl-C; then let running jobs finish, stop contexts, and exit with 0.

    A second signal skips waiting for jobs. The shutdown takes at most jobserver.http.drain-timeout plus
    jobserver.stop-timeout, 27 seconds by default. When the server is ready, its address is printed on stdout.
    """
    become_init()
    collect_garbage_rarely()
    configure_logging(log_level)
    raise_descriptor_limit()
    http = front_end()
    settings = settings_of(config, host, port, data_dir)
    from jobserver_core import JobServer  # noqa: PLC0415 - --help does not need it
    from jobserver_core.errors import InvalidSetting  # noqa: PLC0415

    def listening(host: str, port: int) -> None:
        url = url_of(host, port, tls=settings.http.tls_certificate is not None)
        terminal.json({"url": url}) if terminal.as_json else terminal.line(url)
        terminal.note(f"jobserver listens at {url} — API docs: {url}/docs — data: {settings.data_dir}")

    def draining() -> None:
        terminal.note("stopping: waiting for running jobs; send a second signal to stop at once")

    closed = threading.Event()

    def overdue() -> None:
        """End the process even if threads still hang; the exit code says whether the server was closed."""
        if not closed.is_set():
            terminal.note("the shutdown takes too long: exiting now; the next start will clean up")
        os._exit(ExitCode.OK if closed.is_set() else ExitCode.TIMED_OUT)

    server = JobServer.from_settings(settings)
    keep_from_collector()  # before the start, which may take over contexts and jobs that end some day
    try:
        http.serve(server, on_listening=listening, on_draining=draining, on_overdue=overdue)
    except InvalidSetting as error:
        raise CommandFailed(str(error), _code_of(error)) from error
    finally:
        server.close()
    closed.set()
    terminal.note("stopped")


def _code_of(error: InvalidSetting) -> ExitCode:
    # The port is valid in itself; it cannot be used on this machine at the moment.
    return ExitCode.NOT_READY if error.key == "jobserver.http.port" else ExitCode.USAGE


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the server running, and print commands to try next.")
    ] = False,
) -> None:
    """Count words on Spark: start a server, upload an example, run it, and clean up."""
    become_init()
    from jobserver_cli.demonstration import Demonstration  # noqa: PLC0415 - only this command needs it

    Demonstration(Terminal(), keep=keep).run()
