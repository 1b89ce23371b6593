"""Turning functions into commands, with the options that most commands have.

A command is a function whose parameters are its options. Two kinds of parameters are created here, so that
they are the same everywhere: a :class:`~jobserver_cli.terminal.Terminal` gives the command the option
``--json``, and a :class:`~jobserver_cli.client.Client` gives it the options for the server and credentials.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.models import OptionInfo

from jobserver_cli import saved_servers
from jobserver_cli.client import DEFAULT_URL, UNAUTHENTICATED, CommandClient, ServerOptions, login_advice
from jobserver_cli.completion import context_names, job_ids, server_names
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.interruption import run_on_thread
from jobserver_cli.options import argument
from jobserver_cli.terminal import Terminal, writing

if TYPE_CHECKING:
    from jobserver_core.errors import JobServerError

JOB_HELP = "The job's ID, a unique prefix of it, or @last for the newest job."
JobId = Annotated[str, argument("JOB", JOB_HELP, job_ids)]

Function = Callable[..., None]


def context_option(help: str) -> OptionInfo:
    """Return the option that names a context."""
    option: OptionInfo = typer.Option(
        "--context", "-c", metavar="NAME", help=help, autocompletion=context_names
    )
    return option


def _json_option(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Define the option of commands that have a terminal."""


def _connection_option(
    name: str, metavar: str, variable: str, help: str, complete: Callable[..., object] | None = None
) -> OptionInfo:
    option: OptionInfo = typer.Option(
        name, metavar=metavar, envvar=variable, help=help, autocompletion=complete, rich_help_panel="Server"
    )
    return option


_SERVER_HELP = "The job server's address, or the name of a saved server."
_USER_HELP = "Log in as this user. The password is JOBSERVER_PASSWORD, or is prompted for."
_TOKEN_HELP = "Log in with a bearer token. Prefer the variable: process lists show options."  # noqa: S105 - no token
_CA_HELP = "Trust the certificate authorities in this file (PEM) for https."


def _connection_options(
    server: Annotated[
        str, _connection_option("--server", "URL|NAME", "JOBSERVER_URL", _SERVER_HELP, server_names)
    ] = DEFAULT_URL,
    user: Annotated[str | None, _connection_option("--user", "NAME", "JOBSERVER_USER", _USER_HELP)] = None,
    token: Annotated[
        str | None, _connection_option("--token", "TOKEN", "JOBSERVER_TOKEN", _TOKEN_HELP)
    ] = None,
    ca_file: Annotated[
        Path | None, _connection_option("--ca-file", "FILE", "JOBSERVER_CA_FILE", _CA_HELP)
    ] = None,
) -> None:
    """Define the options of commands that talk to a server."""


def _parameters(function: Function) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function, eval_str=True).parameters)


def runnable(function: Function) -> Function:
    """Return the function as a command: with its options, and as one that ends the process when it fails.

    Its errors are printed on stderr, and the process ends with their exit code.
    """
    own = _parameters(function)
    created = {
        kind: name for name, p in own.items() for kind in (CommandClient, Terminal) if p.annotation is kind
    }
    options = {name: p for name, p in own.items() if name not in created.values()}
    connection = _parameters(_connection_options) if CommandClient in created else {}
    output = _parameters(_json_option) if Terminal in created else {}
    options |= output | connection

    @functools.wraps(function)
    def run(**given: Any) -> None:
        terminal = Terminal(as_json=given.pop("as_json", False) if output else False)
        if Terminal in created:
            given[created[Terminal]] = terminal
        with failures_as_exits(terminal):
            if CommandClient not in created:
                function(**given)
                return
            options = ServerOptions(**{key: given.pop(key) for key in connection})
            client = CommandClient(saved_servers.completed(options))
            with _named_server(options.server, client.connection):
                _talk(terminal, client, lambda: function(**{**given, created[CommandClient]: client}))

    ordered = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in options.values()]
    run.__dict__["__signature__"] = inspect.Signature(ordered)
    run.__annotations__ = {name: p.annotation for name, p in options.items()}
    return run


@contextmanager
def _named_server(server: str, connection: ServerOptions) -> Iterator[None]:
    """Add hints about saved servers to errors about a name that is none, and about missing credentials."""
    try:
        yield
    except CommandFailed as error:
        if error.code is ExitCode.UNREACHABLE:
            error.advice = saved_servers.not_saved(server) or error.advice
        elif error.reason == UNAUTHENTICATED:
            advice = [login_advice(connection), saved_servers.login_hint(server)]
            error.advice = "\n".join(filter(None, advice))
        raise


def _talk(terminal: Terminal, client: CommandClient, call: Callable[[], None]) -> None:
    """Run a call that uses the client. Ctrl-C ends the process at once, as there is nothing to clean up."""

    def talking() -> None:
        with client:
            call()

    try:
        run_on_thread(talking)
    except KeyboardInterrupt:
        terminal.report_interruption()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ExitCode.INTERRUPTED)


@contextmanager
def failures_as_exits(terminal: Terminal) -> Iterator[None]:
    """Print the error that the block raises, and end the process with its exit code."""
    try:
        yield
        with writing(sys.stdout):
            sys.stdout.flush()
    except CommandFailed as error:
        terminal.error(error.message, error.advice)
        raise typer.Exit(error.code) from None
    except (KeyboardInterrupt, typer.Abort):
        terminal.report_interruption()
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001 - every error needs an exit code
        raise typer.Exit(_report(terminal, error)) from None


def _report(terminal: Terminal, error: Exception) -> ExitCode:
    from jobserver_core.errors import JobServerError  # noqa: PLC0415 - only a failure needs it

    if isinstance(error, JobServerError):
        terminal.error(str(error))
        return exit_code_of(error)
    if isinstance(error, OSError):
        terminal.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return ExitCode.NOT_READY
    traceback.print_exception(error, file=sys.stderr)
    terminal.error("this is a bug in jobserver; please report it with the traceback above")
    return ExitCode.BUG


def exit_code_of(error: JobServerError) -> ExitCode:
    """Return the exit code of a command that an error of the library ends."""
    from jobserver_core import errors  # noqa: PLC0415 - only a failure needs it

    codes = {
        errors.InvalidInput: ExitCode.USAGE,
        errors.JobUnsuccessful: ExitCode.JOB_FAILED,
        errors.ResultTimeout: ExitCode.TIMED_OUT,
        errors.StorageError: ExitCode.OUTAGE,
        errors.BackendError: ExitCode.NOT_READY,
        errors.ContextFailed: ExitCode.NOT_READY,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), ExitCode.REFUSED)
