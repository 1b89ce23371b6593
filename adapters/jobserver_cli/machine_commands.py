"""Commands for this machine: checks, settings, the Java class path to compile with, servers, credentials."""

from __future__ import annotations

import functools
import getpass
import json
import logging
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from jobserver_cli import saved_servers
from jobserver_cli.client import UNAUTHENTICATED, CommandClient, login_advice
from jobserver_cli.completion import server_names
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.interruption import sigterm_as_interrupt
from jobserver_cli.options import ConfigFile, DataDir, Host, Port, argument, check_config_file, settings_of
from jobserver_cli.server_process import front_end
from jobserver_cli.terminal import Terminal

if TYPE_CHECKING:
    from jobserver_core.config.loading import Described

_MARKS = {"good": ("✓", "green"), "warning": ("!", "yellow"), "bad": ("✗", "red")}


def doctor(
    terminal: Terminal,
    *,
    config: ConfigFile = None,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    migrate: Annotated[
        Path | None,
        typer.Option(
            "--migrate",
            metavar="FILE",
            help="Instead, say what becomes of each key of this configuration file of spark-jobserver.",
        ),
    ] = None,
) -> None:
    """Check whether this machine can run a job server, and explain how to fix problems.

    Examples:
        jobserver doctor
        jobserver doctor --config server.conf
        jobserver doctor --migrate old-server.conf
    """
    if migrate is not None:
        from jobserver_cli.migration import report  # noqa: PLC0415 - --help does not need it

        check_config_file(migrate)
        report(terminal, migrate)
        return
    from jobserver_cli.diagnosis import Verdict, examine  # noqa: PLC0415 - --help does not need it

    findings = []
    _mute_logged_warnings()
    for finding in examine(settings_of(config, host, port, data_dir)):
        findings.append(finding)
        if not terminal.as_json:
            mark, style = _MARKS[finding.verdict.value]
            terminal.print_marked(mark, style, f"{finding.name}: {finding.text}")
            for line in (finding.advice or "").splitlines():
                terminal.line(f"  → {line}")
    if terminal.as_json:
        terminal.json([attrs.asdict(finding) for finding in findings])
    bad = dict.fromkeys(finding.name for finding in findings if finding.verdict is Verdict.BAD)
    if bad:
        raise CommandFailed(f"this machine is not ready: {', '.join(bad)}", ExitCode.NOT_READY)


def prepare(terminal: Terminal, *, config: ConfigFile = None) -> None:
    """Do slow one-time work now, so that the first contexts start faster. Useful when you build an image.

    With the PySpark launcher, this compiles its JVM part and creates an archive of JVM classes, both in the
    user's cache directory. It takes about a minute, or a moment if both exist.

    Examples:
        jobserver prepare
        jobserver prepare --config server.conf
    """
    from jobserver_core import plugins  # noqa: PLC0415 - --help needs no launcher
    from jobserver_core.errors import JobServerError  # noqa: PLC0415
    from jobserver_core.ports import Launcher  # noqa: PLC0415
    from jobserver_core.ports.checked import checked  # noqa: PLC0415

    settings = settings_of(config, None, None, None)
    name = settings.launcher.backend
    with (
        sigterm_as_interrupt(),
        tempfile.TemporaryDirectory(prefix="js", ignore_cleanup_errors=True) as directory,
    ):
        try:
            loaded = plugins.load(Launcher, name, settings, Path(directory))
            with closing(checked(Launcher, loaded)) as launcher:
                launcher.check()
                with terminal.status(f"preparing the launcher {name}"):
                    launcher.prepare()
        except JobServerError as error:
            raise CommandFailed(str(error), ExitCode.NOT_READY) from error
    if terminal.as_json:
        terminal.json({"prepared": name})
    else:
        terminal.print_marked("✓", "green", f"the launcher {name} is prepared")


def config_show(
    terminal: Terminal,
    *,
    config: ConfigFile = None,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only settings that differ from their defaults.")
    ] = False,
) -> None:
    """Print the effective settings, and where each comes from. Secrets are redacted.

    If `serve` would refuse this configuration, the exit code is the same: 2 for settings, 7 for backends,
    transports and drivers that are not installed. Files of users and certificates are not read: `doctor`
    checks them. It is also 2 if a configured context cannot start, although a server starts without that
    context.

    Examples:
        jobserver config show --changed
        jobserver config show --config server.conf --port 8091
    """
    from jobserver_cli.diagnosis import (  # noqa: PLC0415 - --help does not need it
        binary_problems,
        context_problems,
        exit_code_of_mistake,
        mistakes,
    )
    from jobserver_core.config.loading import describe  # noqa: PLC0415 - --help does not need it

    _mute_logged_warnings()
    settings = settings_of(config, host, port, data_dir)
    uncertain, certain = context_problems(settings)
    for warning in [*settings.warnings, *uncertain, *binary_problems(settings)]:
        terminal.note(f"warning: {warning}", style="yellow")
    described = [one for one in describe(settings) if not changed or one.changed]
    if terminal.as_json:
        terminal.json([attrs.asdict(one) for one in described])
    elif described:
        terminal.table(["Setting", "Value", "From"], map(_setting, described), fold=True)
    else:
        terminal.note("all settings have their defaults")
    if found := mistakes(settings):
        raise CommandFailed("; ".join(map(str, found)), exit_code_of_mistake(found[0]))
    if certain:
        raise CommandFailed("; ".join(certain), ExitCode.USAGE)


def _mute_logged_warnings() -> None:
    """Keep Python from printing logged warnings of settings: the commands print them."""
    logging.getLogger("jobserver_core").addHandler(logging.NullHandler())


def _setting(described: Described) -> tuple[str, str, str]:
    origin = "command line" if described.origin == "override" else described.origin
    value = described.value
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return described.key, shown, origin


def jvm_api(
    without_spark: Annotated[
        bool,
        typer.Option("--without-spark", help="Only the job API and its libraries, without Spark's own jars."),
    ] = False,
) -> None:
    """Print the Java class path for compiling JVM jobs.

    Example:
        javac -cp "$(jobserver jvm-api)" -d classes WordCount.java
    """
    try:
        from jobserver_pyspark.jvm import JvmToolchain  # noqa: PLC0415 - the extra may be missing
    except ImportError as error:
        raise CommandFailed(
            f"cannot load the PySpark backend: {error}",
            ExitCode.NOT_READY,
            "Install it with: pip install 'jobserver-core[pyspark,jdk]'",
        ) from error
    terminal = Terminal()
    with sigterm_as_interrupt(), ExitStack() as building:
        status = terminal.status(
            "building the job API (once per Spark version; a minute, or several on a slow machine)"
        )
        announce = functools.cache(lambda: building.enter_context(status))
        java_class_path = JvmToolchain(on_build=announce).java_class_path(with_spark=not without_spark)
    terminal.line(java_class_path)


ServerName = Annotated[str, argument("NAME", "The name of the saved server.", server_names)]


def login(client: CommandClient, terminal: Terminal, name: ServerName) -> None:
    """Check the credentials, and save them with the server's address; then use --server NAME.

    Examples:
        jobserver login prod --server https://jobs.example.com --user ann
        jobserver login lab --server http://10.1.2.3:8090
    """
    try:
        client.records("/jobs", limit=0)
    except CommandFailed as refused:
        if refused.reason == UNAUTHENTICATED:  # without the hint that recommends this very command
            raise CommandFailed(str(refused), refused.code, login_advice(client.connection)) from None
        if refused.reason != "permission_denied":  # who may do other things is logged in as well
            raise
    connection = attrs.evolve(client.connection, server=client.url, password=client.password)
    path = saved_servers.save(name, connection)
    terminal.report_done(f"saved {client.url} as {name} in {path}; use it with --server {name}")


def logout(terminal: Terminal, name: ServerName) -> None:
    """Forget a saved server and its credentials.

    Example:
        jobserver logout prod
    """
    saved_servers.remove(name)
    terminal.report_done(f"removed the saved server {name}")


Name = Annotated[str, argument("NAME", "The name to log in with.")]
Permissions = Annotated[str, argument("PERMISSIONS", "Such as jobs,contexts:read — or * for everything.")]


def password(name: Name, permissions: Permissions) -> None:
    """Prompt for a password, or read it from stdin, and print the line for the password file.

    Example:
        jobserver credentials password ann jobs,contexts:read >> passwords
    """
    files = _credential_files()
    _entry(name, "", permissions)
    if sys.stdin.isatty():
        given = getpass.getpass(f"Password of {name}: ")
        if given != getpass.getpass("Repeat it: "):
            raise CommandFailed("the passwords do not match", ExitCode.USAGE)
    else:
        given = sys.stdin.readline().rstrip("\n")
    if not given:
        raise CommandFailed("the password must not be empty", ExitCode.USAGE)
    sys.stdout.write(f"{_entry(name, files.hash_password(given), permissions)}\n")


def token(terminal: Terminal, name: Name, permissions: Permissions) -> None:
    """Create a random bearer token; print it on stderr, and the line for the token file on stdout.

    Example:
        jobserver credentials token ci '*' >> tokens
    """
    files = _credential_files()
    created = files.new_token()
    line = _entry(name, files.hash_token(created), permissions)
    if terminal.as_json:
        terminal.json({"token": created, "line": line})
        return
    terminal.note(f"token (shown only once): {created}")
    terminal.line(line)


def _credential_files() -> ModuleType:
    """Return the module for the format of the credential files."""
    front_end()
    from jobserver_http import credential_files  # noqa: PLC0415 - the extra may be missing

    return credential_files


def _entry(name: str, hashed: str, permissions: str) -> str:
    try:
        return str(_credential_files().entry_line(name, hashed, permissions))
    except ValueError as error:
        raise CommandFailed(str(error), ExitCode.USAGE) from error
