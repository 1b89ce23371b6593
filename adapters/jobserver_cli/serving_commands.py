"""Commands that run a server, and those for its peers and the storage that it uses."""

from __future__ import annotations

import os
import threading
from typing import Annotated

import typer

from jobserver_cli.client import CommandClient
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.options import ConfigFile, DataDir, Host, Port, settings_of
from jobserver_cli.records import time_shown
from jobserver_cli.server_process import (
    LogLevel,
    become_init,
    collect_garbage_rarely,
    configure_logging,
    front_end,
    keep_from_collector,
    raise_descriptor_limit,
    url_of,
)
from jobserver_cli.terminal import REFUSAL_DELAY, Terminal

STORAGE_TIMEOUT = 600.0
"""Seconds to wait for a server that reads all its records and files."""


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

    With jobserver.contexts.on-shutdown = detach, it leaves contexts and their jobs to the next server. A
    second signal skips waiting for jobs. The shutdown takes at most jobserver.http.drain-timeout plus
    jobserver.stop-timeout, 27 seconds by default. When the server is ready, its address is printed on stdout.

    Examples:
        jobserver serve
        jobserver serve --config server.conf --port 8091
        jobserver serve --data-dir /srv/jobserver --log-level warning
    """
    become_init()
    collect_garbage_rarely()
    configure_logging(log_level)
    raise_descriptor_limit()
    http = front_end()
    settings = settings_of(config, host, port, data_dir)
    from jobserver_cli.diagnosis import check_start  # noqa: PLC0415 - --help does not need it
    from jobserver_core import JobServer  # noqa: PLC0415
    from jobserver_core.errors import InvalidSetting  # noqa: PLC0415

    def listening(host: str, port: int) -> None:
        url = url_of(host, port, tls=settings.http.tls_certificate is not None)
        terminal.json({"url": url}) if terminal.as_json else terminal.line(url)
        terminal.note(f"jobserver listens at {url} — API docs: {url}/docs — data: {settings.data_dir}")

    def draining() -> None:
        if server.detaches:
            terminal.note("stopping: contexts and their jobs go on, and the next server takes them over")
        else:
            terminal.note("stopping: waiting for running jobs; send a second signal to stop at once")

    closed = threading.Event()

    def overdue() -> None:
        """End the process even if threads still hang; the exit code says whether the server was closed."""
        if not closed.is_set():
            terminal.note("the shutdown takes too long: exiting now; the next start will clean up")
        os._exit(ExitCode.OK if closed.is_set() else ExitCode.TIMED_OUT)

    authenticator = check_start(settings)
    server = JobServer.from_settings(settings)
    keep_from_collector()  # before the start, which may take over contexts and jobs that end some day
    try:
        http.serve(
            server,
            authenticator=authenticator,
            on_listening=listening,
            on_draining=draining,
            on_overdue=overdue,
        )
    except InvalidSetting as error:
        # The address was free a moment ago, and is valid in itself.
        in_use = error.key == "jobserver.http.port"
        raise CommandFailed(str(error), ExitCode.NOT_READY if in_use else ExitCode.USAGE) from error
    finally:
        server.close()
    closed.set()
    terminal.note("stopped")


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the server running, and print commands to try next.")
    ] = False,
) -> None:
    """Count words on Spark: start a server, upload an example, run it, and clean up.

    Examples:
        jobserver demo
        jobserver demo --keep
    """
    become_init()
    from jobserver_cli.demonstration import Demonstration  # noqa: PLC0415 - only this command needs it

    Demonstration(Terminal(), keep=keep).run()


def servers(client: CommandClient, terminal: Terminal) -> None:
    """List the servers that share the database, with the state of their leases.

    A server renews its lease as long as it lives. One that does not share its database has none ("-").

    Examples:
        jobserver servers
        jobserver servers --json
    """
    found = client.call("GET", "/servers")
    rows = (
        (
            server["address"],
            terminal.id_shown(server["id"]),
            server["state"],
            server["contexts"],
            server["version"],
            time_shown(server["startTime"]),
            time_shown(server["leaseUntil"]) if server.get("leased", True) else "-",
        )
        for server in found
    )
    columns = ["Address", "ID", "State", "Contexts", "Version", "Started", "Lease until"]
    terminal.records(found, columns, rows, optional=["Version", "ID", "Started", "Lease until"])


def storage(client: CommandClient, terminal: Terminal) -> None:
    """Show what uses how much storage on the server, and the settings that limit it.

    Example:
        jobserver storage
    """
    found = client.call("GET", "/storage", timeout=STORAGE_TIMEOUT)
    rows = (
        (
            kind["kind"],
            kind["count"],
            "" if kind["bytes"] is None else _size(kind["bytes"]),
            ", ".join(f"{key} = {'none' if most is None else most}" for key, most in kind["limits"].items()),
        )
        for kind in found
    )
    terminal.records(found, ["Kind", "Number", "Size", "Limits"], rows, fold=True)


def prune(client: CommandClient, terminal: Terminal) -> None:
    """Remove jobs, logs and files beyond the limits now, instead of within the hour.

    Examples:
        jobserver prune
        jobserver prune --json
    """
    with terminal.status("removing what is beyond the limits", delay=REFUSAL_DELAY):
        response = client.call("POST", "/storage/prune", timeout=STORAGE_TIMEOUT)
    if terminal.as_json:
        terminal.json(response)
    elif not response["removed"]:
        terminal.note("nothing is beyond the limits")
    else:
        terminal.table(["Removed", "Number"], list(response["removed"].items()))


def _size(size: int) -> str:
    """Format a size with three digits: ``1.46 MiB``."""
    number, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1000:
            break
        number, unit = number / 1024, larger
    return f"{number:.3g} {unit}"
