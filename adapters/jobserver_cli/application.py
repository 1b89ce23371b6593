"""The application: the catalog of commands, and the options that need no command.

A command is imported when it runs, or when its help is shown, so that none of them pays for the others.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from jobserver_cli.exits import ExitCode


class Group(NamedTuple):
    """Commands that begin with the same word. ``default`` is the one for arguments that name none."""

    help: str
    commands: Mapping[str, str]
    default: str | None = None


_PANELS: Mapping[str, Mapping[str, str | Group]] = {
    "Server": {
        "serve": "serving_commands.serve",
        "demo": "serving_commands.demo",
        "servers": "serving_commands.servers",
        "storage": "serving_commands.storage",
        "prune": "serving_commands.prune",
        "login": "machine_commands.login",
        "logout": "machine_commands.logout",
    },
    "Jobs": {
        "run": "submissions.run",
        "submit": "submissions.submit",
        "jobs": "job_commands.jobs",
        "result": "job_commands.result",
        "kill": "job_commands.kill",
        "logs": "job_commands.logs",
        "job": Group(
            "Show a job: jobserver job JOB. Or list, submit and kill jobs.",
            {
                "show": "job_commands.job",
                "list": "job_commands.jobs",
                "submit": "submissions.submit",
                "run": "submissions.run",
                "result": "job_commands.result",
                "logs": "job_commands.logs",
                "kill": "job_commands.kill",
            },
            default="show",
        ),
    },
    "Code and data": {
        "upload": "file_commands.upload",
        "binaries": "file_commands.binaries",
        "binary": Group(
            "List, upload and delete binaries.",
            {
                "list": "file_commands.binaries",
                "upload": "file_commands.upload",
                "versions": "file_commands.versions",
                "delete": "file_commands.delete",
            },
        ),
        "data": Group(
            "Data files: uploaded files on the server's machine that jobs can read.",
            {
                "list": "file_commands.data_list",
                "upload": "file_commands.data_upload",
                "delete": "file_commands.data_delete",
            },
        ),
    },
    "Contexts": {
        "contexts": "context_commands.contexts",
        "context": Group(
            "List, start, show and stop contexts.",
            {
                "list": "context_commands.contexts",
                "create": "context_commands.create",
                "show": "context_commands.show",
                "stop": "context_commands.stop",
            },
        ),
    },
    "This machine": {
        "doctor": "machine_commands.doctor",
        "prepare": "machine_commands.prepare",
        "config": Group("Show the configuration.", {"show": "machine_commands.config_show"}),
        "completion": "shells.completion",
        "jvm-api": "machine_commands.jvm_api",
        "credentials": Group(
            "Create entries for password and token files.",
            {"password": "machine_commands.password", "token": "machine_commands.token"},
        ),
    },
}
"""All commands, by the panel of the help that shows them and by their names: module and function."""
_NAMES_OF_SERVER = frozenset({"--url", "--uri", "--host", "--address", "--endpoint", "--base-url"})
"""The names that other programs give the option ``--server``."""
_FILES_OF_RUN = frozenset({"--wheel", "--egg", "--jar"})
"""The names that ``run`` gives the option ``--cp``, and that ``submit`` does not have."""
_FORMATS = frozenset({"--output", "-o", "--format", "--output-format"})
"""The names of options with which other programs choose the format of their output."""
_CONFIGURATIONS = frozenset({"--conf", "--config", "--properties-file"})
"""The names of options with which other programs take settings."""
_EXTRA_SETTING = re.compile(r"unexpected extra argument.*\(.*\w=")
"""Matches the error for an argument such as ``num-cpu-cores=2``, where none is expected."""


_SETTINGS_ADVICE = {
    True: "Give the job's configuration with -d @FILE or --set KEY=VALUE. Spark's settings belong to the "
    "context: jobserver context create NAME --set KEY=VALUE",
    False: "Give settings with --set KEY=VALUE or -d @FILE",
}
"""Where settings belong, for commands that run a job and for those that create its context."""


class _Commands(Mapping[str, Any]):
    """Commands by their names. Each is imported and built when somebody asks for it."""

    def __init__(self, panels: Mapping[str, Mapping[str, str | Group]]) -> None:
        self._entries = {
            name: (panel, entry) for panel, entries in panels.items() for name, entry in entries.items()
        }
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            panel, entry = self._entries[name]
            if isinstance(entry, Group):
                self._built[name] = _group(name, entry, panel)
            else:
                self._built[name] = _command(name, entry, panel)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class _AnyGroup(TyperGroup):
    """A group of commands. Nearly all options belong to the commands, and not to the group."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Say where an unknown option belongs. (The context's class depends on the release of typer.)"""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            mistake: Any = error  # its class, too
            option = getattr(error, "option_name", None)
            if option == "--server":
                mistake.message += f". Name the server after the command: {ctx.command_path} … --server URL"
            elif hasattr(error, "possibilities") and option and not mistake.possibilities:  # it is unknown
                mistake.message += f". Options belong after the command: {ctx.command_path} … {option}"
            raise


class _Root(_AnyGroup):
    """All commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": _Commands(_PANELS)})


class _Single(TyperCommand):
    """A command that is not a group."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Suggest the right option for names that other programs or commands give it.

        Typer compares only letters.
        """
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            mistake: Any = error  # its class depends on the release of typer
            known = {option for parameter in self.params for option in parameter.opts}
            unknown = getattr(error, "option_name", "")
            if unknown in _NAMES_OF_SERVER - known and "--server" in known:
                mistake.possibilities = ["--server"]
            elif unknown in _FILES_OF_RUN - known and "--cp" in known:
                mistake.possibilities = []
                mistake.message += f". Give {ctx.info_name} the code with --cp, or use: jobserver run"
            elif unknown in _FORMATS - known and "--json" in known:
                mistake.possibilities = []
                mistake.message += ". For JSON, use --json"
            elif unknown == "--table" and unknown not in known:
                mistake.possibilities = []
                mistake.message += ". For a table of a result: jobserver result JOB --table"
            elif unknown in _CONFIGURATIONS - known and "--set" in known:
                mistake.possibilities = []
                mistake.message += f". {_SETTINGS_ADVICE['--cp' in known]}"
            elif "--set" in known and _EXTRA_SETTING.search(getattr(error, "message", "")):
                mistake.message += ". For a setting, use --set KEY=VALUE"
            raise


class _Group(_AnyGroup):
    """The commands of one group. Arguments that name none of them are those of its default."""

    def __init__(self, *, default: str | None, **settings: Any) -> None:
        super().__init__(**settings)
        self._default = default

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the name of the default command."""
        if self._default and args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [self._default, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return the commands, and what the first argument of the default one can be."""
        found = super().shell_complete(ctx, incomplete)
        if self._default and not incomplete.startswith("-"):
            found += self.commands[self._default].params[0].shell_complete(ctx, incomplete)
        return found


def _group(name: str, group: Group, panel: str) -> TyperGroup:
    commands: Any = _Commands({"": group.commands})
    return _Group(
        name=name,
        commands=commands,
        help=group.help,
        default=group.default,
        no_args_is_help=True,
        rich_markup_mode="rich",
        rich_help_panel=panel,
    )


def _command(name: str, target: str, panel: str) -> Any:
    """Return the command. Its help is the function's docstring, with the examples at the end."""
    from jobserver_cli.parameters import runnable  # noqa: PLC0415 - the version does not need it

    module, _, attribute = target.partition(".")
    function = getattr(import_module(f"jobserver_cli.{module}"), attribute)
    text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\n\nExample")
    epilog = f"\nExample{examples}".replace("\n    ", "\n  ")  # the first line keeps the others indented
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    decorate = single.command(name, cls=_Single, help=text, epilog=epilog, rich_help_panel=panel or None)
    decorate(runnable(function))
    return get_command(single)


app = typer.Typer(
    name="jobserver",
    cls=_Root,
    add_completion=False,  # the command "completion" has better scripts
    help="Spark as a service: upload code once, keep contexts warm, run many small jobs.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - only one option needs it

        typer.echo(version("jobserver-core"))
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Show the help if there is no command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)
