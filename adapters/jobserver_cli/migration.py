"""``doctor --migrate``: what becomes of each key of an old configuration file."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import attrs

from jobserver_cli.exits import CommandFailed, ExitCode, reading
from jobserver_cli.server_process import front_end
from jobserver_cli.terminal import Terminal
from jobserver_core import plugins
from jobserver_core.config.migration import KeyMigration, Outcome, migrate
from jobserver_core.config.settings import Settings
from jobserver_core.config.trees import flatten
from jobserver_core.errors import InvalidSetting, PluginNotFound
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports import Launcher
from jobserver_core.ports.checked import checked
from jobserver_core.running.context_settings import (
    check_common_settings,
    check_settings,
    configuration_problems,
    effective_settings,
)

_SHORT = 60
"""How long an explanation can be that is printed again for each key."""
_LABELS = {Outcome.IGNORED: "no effect: ", Outcome.GONE: "gone: "}


def report(terminal: Terminal, file: Path) -> None:
    """Print what becomes of each key of a file.

    Raises:
        CommandFailed: The file cannot be read, or a server would refuse it.
    """
    with reading(file), ExitStack() as stack:
        checks = _Checks(stack)
        found = migrate(file, check=checks.server, check_context=checks.context)
    if terminal.as_json:
        terminal.json([{**attrs.asdict(one), "outcome": one.outcome.value} for one in found])
    else:
        first: dict[str, str] = {}
        for one in found:
            same = first.setdefault(one.explanation, one.key)
            repeated = same != one.key and len(one.explanation) > _SHORT and not one.outcome.refused
            _print(terminal, attrs.evolve(one, explanation=f"as {same} above") if repeated else one)
        counts = Counter(one.outcome for one in found)
        listed = ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in Outcome if counts[outcome])
        keys = "1 key" if len(found) == 1 else f"{len(found)} keys"
        terminal.note(f"{keys}: {listed}" if listed else keys)
    refused = [one.key for one in found if one.outcome.refused]
    if refused:
        raise CommandFailed(f"a server refuses this file: {', '.join(refused)}", ExitCode.USAGE)


def _print(terminal: Terminal, one: KeyMigration) -> None:
    line = f"{one.key} → {one.setting}" if one.outcome is Outcome.RENAMED else one.key
    if one.explanation:
        line += f": {_LABELS.get(one.outcome, '')}{one.explanation}"
    if one.outcome.refused:
        terminal.print_marked("✗", "red", line)
    elif one.outcome is Outcome.IGNORED:
        terminal.print_marked("-", "dim", line)
    elif one.explanation:
        terminal.print_marked("!", "yellow", line)
    else:
        terminal.print_marked("✓", "green", line)


class _Checks:
    """What a server does with settings at its start. The stack closes the launcher that this needs."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._launcher: Launcher | None = None

    def context(self, settings: Settings, context: JsonMapping) -> None:
        """Check the settings of a context.

        Raises:
            InvalidInput: No context can start with them.
        """
        check_settings(effective_settings(settings.spark, context), self._launcher_of(settings))

    def server(self, settings: Settings) -> None:
        """Check the settings of a whole file.

        Raises:
            InvalidInput: No server, or no context, can start with them.
        """
        front_end()
        from jobserver_http.addresses import check_exposure  # noqa: PLC0415 - the extra may be missing

        check_exposure(settings.http, authenticated=settings.auth.backend != "none")
        launcher = self._launcher_of(settings)
        check_common_settings(settings.spark, launcher)
        for name, context in settings.spark.contexts.items():
            self._together(settings, name, context)
        for problem in configuration_problems(settings.spark, launcher):
            raise InvalidSetting(key="spark", message=problem)

    def _together(self, settings: Settings, name: str, context: JsonMapping) -> None:
        """Check the settings of a configured context together with those of all contexts."""
        try:
            self.context(settings, context)
        except InvalidSetting as error:
            own = f".{error.key}" if error.key in flatten(context) else ""
            place = f"spark.contexts.{name}{own}"
            message = error.message if own else f"{error.key}: {error.message}"
            raise InvalidSetting(key=place, message=message, nearest=error.nearest) from error

    def _launcher_of(self, settings: Settings) -> Launcher:
        if self._launcher is None:
            try:
                loaded = plugins.load(Launcher, settings.launcher.backend, settings, settings.data_dir)
            except PluginNotFound as error:
                raise CommandFailed(str(error), ExitCode.NOT_READY) from error
            self._launcher = self._stack.enter_context(closing(checked(Launcher, loaded)))
        return self._launcher
