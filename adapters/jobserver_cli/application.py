"""The application: the commands of the catalog, and the options that need no command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from jobserver_cli.commands import PANELS, Command, Group
from jobserver_cli.exits import ExitCode

_NAMES_OF_SERVER = frozenset({"--url", "--uri", "--host", "--address", "--endpoint", "--base-url"})
"""The names that other programs give the option ``--server``."""
_FILES_OF_RUN = frozenset({"--wheel", "--egg", "--jar"})
"""The names that ``run`` gives the option ``--cp``, and that ``submit`` does not have."""
_FORMATS = frozenset({"--output", "-o", "--format", "--output-format"})
"""The names of options with which other programs choose the format of their output."""


class _Commands(Mapping[str, Any]):
    """Commands by their names. Each is imported and built when somebody asks for it."""

    def __init__(self, panels: Mapping[str, Mapping[str, Command | Group]]) -> None:
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
        super().__init__(**{**settings, "commands": _Commands(PANELS)})


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


def _command(name: str, command: Command, panel: str) -> Any:
    from jobserver_cli.parameters import runnable  # noqa: PLC0415 - the version does not need it

    function = getattr(import_module(f"jobserver_cli.{command.module}"), command.function)
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    single.command(name, cls=_Single, epilog=_shown(command.examples), rich_help_panel=panel or None)(
        runnable(function)
    )
    return get_command(single)


def _shown(examples: Sequence[str]) -> str:
    """Return the examples as they are shown below the help. The first line keeps the others indented."""
    title = "Example:" if len(examples) == 1 else "Examples:"
    return "\n".join(["", title, *(f"  {example}" for example in examples)])


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
