"""What becomes of each key of a configuration file, for users who bring one from the old server.

The rules are those of :mod:`jobserver_core.config.loading`, which loads such a file: each key is loaded
alone, so that one error does not hide the next. Then the whole file is loaded, for what only shows together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path

import attrs

from jobserver_core.config import hocon
from jobserver_core.config.loading import Collected, GivenSettings
from jobserver_core.config.old_settings import (
    NoEffect,
    check_ignored,
    lost_factory,
    no_effect,
    no_effect_in_context,
)
from jobserver_core.config.settings import Settings
from jobserver_core.config.trees import flatten, nested, without
from jobserver_core.errors import InvalidInput, InvalidName, InvalidSetting
from jobserver_core.models.json_values import Json, JsonMapping
from jobserver_core.models.validation import check_binary_name, check_context_name

_DEFAULTS = "spark.context-settings"
_CONTEXTS = "spark.contexts"


class Outcome(str, Enum):
    """What becomes of a key."""

    SAME = "same"
    RENAMED = "renamed"
    IGNORED = "ignored"
    GONE = "gone"
    UNKNOWN = "unknown"
    INVALID = "invalid"

    @property
    def refused(self) -> bool:
        """Whether a server with this key does not start, or a context that has it."""
        return self in (Outcome.UNKNOWN, Outcome.INVALID)


@attrs.frozen(kw_only=True)
class KeyMigration:
    """What becomes of one key of a file.

    ``key`` is written as in the file, and ``setting`` is its name here, or None. ``explanation`` is why a key
    is ignored, gone or refused, and what to do instead; it never contains a secret.
    """

    key: str
    outcome: Outcome
    setting: str | None = None
    explanation: str = ""


def migrate(
    path: str | os.PathLike[str],
    *,
    check: Callable[[Settings], None] = lambda _settings: None,
    check_context: Callable[[Settings, JsonMapping], None] = lambda _settings, _context: None,
    env: Mapping[str, str] | None = None,
) -> tuple[KeyMigration, ...]:
    """Return what becomes of each key of a file: groups of settings that have no effect count as one key.

    The keys are in the order of the file; at the end is what only the whole file shows.

    ``check`` and ``check_context`` raise InvalidInput for what the server, or a context with these settings,
    would refuse. It is reported at the key of an InvalidSetting, otherwise at the key that causes it.

    Raises:
        InvalidConfig: The file is not valid HOCON.
    """
    return tuple(_Migration(Path(path), hocon.parse_file(path, env=env), check, check_context).keys())


@attrs.frozen
class _Migration:
    path: Path
    tree: JsonMapping
    check: Callable[[Settings], None]
    check_context: Callable[[Settings, JsonMapping], None]

    def keys(self) -> Iterator[KeyMigration]:
        source = Collected().classify(self.tree)
        found = [*self._given(source), *self._ignored(source)]
        found += [_refused(Outcome.UNKNOWN, error) for error in source.unknown]
        found += [_refused(Outcome.INVALID, error) for error in source.invalid]
        problems = list(self._of_the_whole(source, {one.key for one in found if one.outcome.refused}))
        hidden = {problem.key for problem in problems}
        places = _places(self.tree)
        found.sort(key=lambda one: _place_of(one.key, places))
        yield from (one for one in found if one.key not in hidden)
        yield from problems

    def _of_the_whole(self, source: GivenSettings, refused: set[str]) -> Iterator[KeyMigration]:
        """Yield what a server refuses although each key is right alone.

        The check runs without the refused keys, and again without each that it refuses. If one of them is in
        the section of the error, or configures the access control, it may be the cause, and the error is not
        reported. Contexts depend on their common settings: if one of their keys is refused, all are left out.
        """
        given = {
            written: value
            for written, value in [*source.given.values(), *source.yarn.values()]
            if written not in refused
        }
        if any(key.startswith((_DEFAULTS, _CONTEXTS)) for key in refused):
            given = {key: value for key, value in given.items() if not key.startswith((_DEFAULTS, _CONTEXTS))}
        names = {written: key for key, (written, _) in source.given.items()}
        if any(key.startswith("jobserver") for key in refused - names.keys()):
            return  # it is misspelled, and may be the cause of anything
        while error := self._problem(given):
            sections = {_section(names.get(key, key)) for key in refused}
            if sections & {"jobserver.auth", _section(error.key)}:
                return
            written, _ = source.given.get(error.key, (error.key, None))
            yield _refused(Outcome.INVALID, error, key=written)
            if written not in given:
                return
            del given[written]
            refused = {*refused, written}

    def _problem(self, given: JsonMapping) -> InvalidSetting | None:
        try:
            self.check(self._load(given).settings())
        except InvalidInput as error:
            return _setting_error(error, key="spark")
        return None

    def _load(self, tree: JsonMapping) -> Collected:
        collected = Collected()
        directory = self.path.absolute().parent
        collected.add(tree, origin=lambda _key: str(self.path), directory=directory, bare_duration="ms")
        return collected

    def _given(self, source: GivenSettings) -> Iterator[KeyMigration]:
        for key, (written, value) in source.given.items():
            if key == _DEFAULTS:
                yield from self._context(source, written, value)
            elif key == _CONTEXTS and isinstance(value, Mapping):
                for name, settings in value.items():
                    yield from self._configured_context(source, written, name, settings)
            else:
                yield self._setting(key, written, {written: value})
        for key, (written, value) in source.yarn.items():
            master = {one: each for one, each in source.given.values() if one == "spark.master"}
            yield self._setting(key, written, {**master, written: value})

    def _setting(self, key: str, written: str, tree: JsonMapping) -> KeyMigration:
        try:
            collected = self._load(tree)
        except InvalidSetting as error:
            return _refused(Outcome.INVALID, error)
        warnings = [text for text in collected.warnings if text.startswith(f"{written}: ")]
        text = "; ".join(warning.removeprefix(f"{written}: ") for warning in warnings)
        if key not in collected.values:
            return KeyMigration(key=written, outcome=Outcome.IGNORED, explanation=text)
        if key == "jobserver.job-binary-paths":
            text = "; ".join(_not_uploaded(collected.settings().job_binary_paths))
        outcome = Outcome.SAME if written == key else Outcome.RENAMED
        return KeyMigration(key=written, outcome=outcome, setting=key, explanation=text)

    def _ignored(self, source: GivenSettings) -> Iterator[KeyMigration]:
        for key, value in source.ignored.items():
            try:
                check_ignored(key, value)
            except InvalidSetting as error:
                yield _refused(Outcome.INVALID, error)
                if error.key == key:
                    continue
                rest = without(value, error.key.removeprefix(f"{key}.").split("."))
            else:
                rest = value
            if rest != {}:
                yield _without_effect(key, no_effect(key, rest))

    def _configured_context(
        self, source: GivenSettings, group: str, name: str, settings: Json
    ) -> Iterator[KeyMigration]:
        """Yield what becomes of a context's settings: only what is refused, if it cannot have its name."""
        found = self._context(source, f"{group}.{name}", settings)
        try:
            check_context_name(name)
        except InvalidName as error:
            quoted = json.dumps(name, ensure_ascii=False)
            yield _refused(Outcome.INVALID, _setting_error(error, key=f"{group}.{quoted}"))
            found = (one for one in found if one.outcome.refused)
        yield from found

    def _context(self, source: GivenSettings, written: str, settings: Json) -> Iterator[KeyMigration]:
        """Yield what becomes of the settings of one context, or of those of all contexts."""
        if not isinstance(settings, Mapping):
            message = "is a group of settings; expected an object"
            yield _refused(Outcome.INVALID, InvalidSetting(key=written, message=message))
            return
        server = self._server_of_contexts(source)
        problem = self._context_problem(server, settings)
        refused = False
        for key, value in flatten(settings).items():
            place = f"{written}.{key}"
            reason = no_effect_in_context(key) or lost_factory(key, value)
            if problem and (alone := self._context_problem(server, nested({key: value}))):
                refused = True
                yield _refused(Outcome.INVALID, alone, key=place)
            elif reason is not None:
                yield _without_effect(place, reason)
            else:
                yield KeyMigration(key=place, outcome=Outcome.SAME, setting=place)
        if problem and not refused:
            place = f"{written}.{problem.key}" if problem.key else written
            yield _refused(Outcome.INVALID, problem, key=place)

    def _context_problem(self, server: Settings, settings: JsonMapping) -> InvalidSetting | None:
        try:
            self.check_context(server, settings)
        except InvalidSetting as error:
            # A wrong master of the server is not the fault of a context. It shows with the whole file.
            return None if error.key == "spark.master" and "spark.master" not in flatten(settings) else error
        except InvalidInput as error:
            return _setting_error(error, key="")
        return None

    def _server_of_contexts(self, source: GivenSettings) -> Settings:
        """Return the settings of the server that its contexts depend on."""
        tree = {
            written: value
            for key, (written, value) in source.given.items()
            if key == "spark.master" or key.startswith("jobserver.launcher.")
        }
        try:
            return self._load(tree).settings()
        except InvalidSetting:  # reported with its key
            return Settings()


def _not_uploaded(paths: Mapping[str, str]) -> Iterator[str]:
    """Yield why the server could not upload configured binaries, which it logs as errors when it starts."""
    for name, path in paths.items():
        try:
            check_binary_name(name)
            open(path, "rb").close()
        except (InvalidName, OSError) as error:
            yield f"the server cannot upload {name}: {error}"


def _places(tree: JsonMapping) -> dict[str, int]:
    """Return the places of keys and sections in a tree."""
    found: dict[str, int] = {}
    for place, leaf in enumerate(flatten(tree)):
        parts = leaf.split(".")
        for end in range(1, len(parts) + 1):
            found.setdefault(".".join(parts[:end]), place)
    return found


def _place_of(key: str, places: Mapping[str, int]) -> int:
    """Return the place of a key, or of the section that it is missing in."""
    key = key.replace('"', "")
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, len(places))


def _section(key: str) -> str:
    """Return the first two parts of a setting's key."""
    return ".".join(key.split(".")[:2])


def _setting_error(error: InvalidInput, *, key: str) -> InvalidSetting:
    """Return an error that names a setting: ``key``, unless it names one already."""
    return error if isinstance(error, InvalidSetting) else InvalidSetting(key=key, message=str(error))


def _without_effect(key: str, reason: NoEffect) -> KeyMigration:
    outcome = Outcome.IGNORED if reason.instead is None else Outcome.GONE
    return KeyMigration(key=key, outcome=outcome, explanation=str(reason))


def _refused(outcome: Outcome, error: InvalidSetting, *, key: str | None = None) -> KeyMigration:
    near = f"; did you mean '{error.nearest}'?" if error.nearest else ""
    return KeyMigration(key=key or error.key, outcome=outcome, explanation=f"{error.message}{near}")
