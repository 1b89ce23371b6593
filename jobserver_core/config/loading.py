"""Loading settings from configuration files and mappings.

A file is HOCON in the layout ``spark { … } jobserver { … }``, see :mod:`jobserver_core.config.settings`. Keys
of the old server (``spark.jobserver.port``) are accepted if there is an equivalent setting. Others are
ignored, each with a warning. Unknown keys are rejected.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import attrs

from jobserver_core.config import hocon
from jobserver_core.config.old_settings import (
    ALIASES,
    IGNORED,
    START_TIMEOUTS,
    check_ignored,
    inside,
    near_old_key,
    no_effect,
    no_effect_in_context,
)
from jobserver_core.config.setting_types import Section, SettingType, setting_key
from jobserver_core.config.settings import CONTEXT_KEYS, Settings, default_data_dir
from jobserver_core.config.trees import flatten, merged, overlaid, without
from jobserver_core.config.units import lacks_unit
from jobserver_core.errors import InvalidSetting
from jobserver_core.models.arguments import check_kind
from jobserver_core.models.json_values import Json, JsonMapping, JsonObject

__all__ = ["Described", "describe", "load_settings", "sections", "setting_types"]

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Described:
    """A setting for display: its value as JSON without secrets, its origin, and its meaning.

    ``changed`` is false for the default, also where a file or an option says it.
    """

    key: str
    value: Json
    origin: str
    changed: bool
    kind: str
    doc: str


def load_settings(
    path: str | os.PathLike[str] | None = None,
    *,
    overrides: JsonMapping | None = None,
    env: Mapping[str, str] | None = None,
) -> Settings:
    """Load settings from a file and from overrides, which take precedence.

    Keys of ``overrides`` can be nested or dotted (``{"jobserver.http.port": 0}``). Settings that are objects
    are merged. Relative paths are relative to the file's directory, or for overrides, to the working
    directory. ``env`` replaces the environment for ``${NAME}`` in the file and for the default data
    directory.

    Raises:
        InvalidRequest: An argument has the wrong type.
        InvalidConfig: The file is not valid HOCON.
        InvalidSetting: A key is unknown, or a value is invalid.
    """
    check_kind("path", path, (str, os.PathLike, type(None)), "the path of a configuration file")
    check_kind("overrides", overrides, (Mapping, type(None)), "a mapping of settings")
    check_kind("env", env, (Mapping, type(None)), "a mapping of environment variables")
    collected = Collected()
    if path is not None:
        origins: dict[str, str] = {}
        tree = hocon.parse_file(path, env=env, origins=origins, defaults=_default_lists())
        origin = partial(_files, origins, os.fspath(path))
        with _located(origin):
            collected.add(tree, origin=origin, directory=Path(path).absolute().parent, bare_duration="ms")
    if overrides is not None:
        collected.add(overrides, origin=lambda _written: "override", directory=Path.cwd())
    if env is not None and "jobserver.data-dir" not in collected.values:
        collected.values["jobserver.data-dir"] = default_data_dir(env)
        collected.origins["jobserver.data-dir"] = "default"
    for warning in collected.warnings:
        _log.warning("%s", warning)
    return collected.settings()


def _default_lists() -> dict[str, Json]:
    """Return the lists to which ``key += value`` in a file appends."""
    parts: list[Section] = [Settings(), *(section() for section in sections().values())]
    return {
        setting_key(part.prefix, name): kind.show(value)
        for part in parts
        for name, kind in part.setting_types().items()
        if (value := getattr(part, name)) and isinstance(value, tuple)
    }


def _files(origins: Mapping[str, str], main: str, written: str) -> str:
    """Return the file that a setting is from, or the files that the values in it are from."""
    found = dict.fromkeys(
        file for key, file in origins.items() if key == written or key.startswith(f"{written}.")
    )
    return ", ".join(found) or main


@contextlib.contextmanager
def _located(origin: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except InvalidSetting as error:
        message = f"{error.message} (in {origin(error.key)})"
        raise InvalidSetting(key=error.key, message=message, nearest=error.nearest) from None


def sections() -> dict[str, type[Section]]:
    """Return the classes of the sections by their attribute of :class:`Settings`."""
    found = {}
    for name, field in attrs.fields_dict(Settings).items():
        factory = getattr(field.default, "factory", None)
        if isinstance(factory, type) and issubclass(factory, Section):
            found[name] = factory
    return found


def setting_types() -> dict[str, SettingType]:
    """Return the types of all settings by their dotted keys."""
    classes: list[type[Section]] = [Settings, *sections().values()]
    return {
        setting_key(section.prefix, name): kind
        for section in classes
        for name, kind in section.setting_types().items()
    }


def describe(settings: Settings) -> Iterator[Described]:
    """Yield all settings with their effective values and origins, with secrets redacted."""
    parts: list[Section] = [settings, *(getattr(settings, name) for name in sections())]
    for part in parts:
        defaults = type(part)()
        for name, kind in part.setting_types().items():
            key, value = setting_key(part.prefix, name), getattr(part, name)
            differs = value != getattr(defaults, name)
            origin = settings.origins.get(key, "code" if differs else "default")
            yield Described(
                key=key,
                value=None if value is None else kind.show(value),
                origin=origin,
                changed=differs and origin != "default",
                kind=kind.name,
                doc=kind.doc,
            )


class Collected:
    """The values collected from files and overrides so far, by the dotted key of each setting."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.origins: dict[str, str] = {}
        self.directories: dict[str, Path] = {}
        self.warnings: list[str] = []
        self._types = setting_types()
        self._sections = _parents([*self._types, *ALIASES, *IGNORED])
        self._sections |= {f"spark.{key}" for key in self._sections if key.startswith("jobserver")}

    def settings(self) -> Settings:
        """Create the settings.

        Raises:
            InvalidSetting: Settings contradict each other.
        """
        arguments = self._arguments(Settings)
        arguments |= {name: section(**self._arguments(section)) for name, section in sections().items()}
        arguments |= {"origins": dict(self.origins), "directories": dict(self.directories)}
        return Settings(**arguments, warnings=tuple(self.warnings))

    def _arguments(self, section: type[Section]) -> JsonObject:
        keys = {name: setting_key(section.prefix, name) for name in section.setting_types()}
        return {name: self.values[key] for name, key in keys.items() if key in self.values}

    def add(
        self,
        tree: JsonMapping,
        *,
        origin: Callable[[str], str],
        directory: Path,
        bare_duration: str | None = None,
    ) -> None:
        """Add a tree of settings, which overrides earlier values.

        ``origin`` returns where a key is from. ``bare_duration`` is the unit of durations without one; the
        default is seconds.

        Raises:
            InvalidSetting: Keys are unknown (one error names all of them), or a value is invalid.
        """
        source = self.classify(tree)
        if source.invalid:
            raise source.invalid[0]
        if source.unknown:
            raise _all_unknown(source.unknown)
        for key, (written, value) in self._yarn(source).items():
            source.given[key] = (written, value)
        for key, (written, value) in source.given.items():
            kind = self._types[key]
            if bare_duration and kind.name == "duration" and lacks_unit(value) and float(value):
                whole = f"{value} {bare_duration}"
                self._warn(f"{written}: {value} without a unit means {whole}; write the unit")
                value = whole  # noqa: PLW2901 - the same, with its unit
            if key == "spark.master" and value == "yarn-client":
                self._warn(f"{written}: Spark calls yarn-client yarn; write yarn")
                value = "yarn"  # noqa: PLW2901 - the same, by the name of today
            typed = kind.convert(value, written)
            anchored = None if typed is None else kind.anchor(typed, directory)
            self.values[key] = _laid(key, self.values.get(key), anchored) if kind.free else anchored
            self.origins[key] = origin(written)
            self._warn_of_contexts(key, written, typed)
            if key.endswith(".options") and isinstance(typed, Mapping):
                self.directories |= {f"{key}.{name}": directory for name in typed}
        for key, value in source.ignored.items():
            check_ignored(key, value)
            about = f"{key}: this setting of the old server has no effect: "
            if not any(warning.startswith(about) for warning in self.warnings):
                self._warn(f"{about}{no_effect(key, value)}")

    def classify(self, tree: JsonMapping) -> GivenSettings:
        """Return which setting each key of a tree means. The values are not read."""
        source = GivenSettings()
        self._read(source, (), tree)
        return source

    def _read(self, source: GivenSettings, path: tuple[str, ...], tree: JsonMapping) -> None:
        for name, value in tree.items():
            self._place(source, len(path) + 1, (*path, *str(name).split(".")), value)

    def _place(self, source: GivenSettings, first: int, tokens: tuple[str, ...], value: Json) -> None:
        """Classify one dotted key of a source. It can consist of a section, a setting, and keys inside it."""
        for end in range(first, len(tokens) + 1):
            written = ".".join(tokens[:end])
            if written in IGNORED:
                self._ignore(source, written, _nested(tokens[end:], value))
                return
            key = self._canonical(written)
            if key is not None:
                if end < len(tokens) and not self._types[key].free:
                    source.unknown.append(self._unknown(".".join(tokens)))
                    return
                source.give(written, key, _nested(tokens[end:], value), free=self._types[key].free)
                return
            if written not in self._sections:
                source.unknown.append(self._unknown(".".join(tokens)))
                return
        if not isinstance(value, Mapping):
            message = "is a group of settings; expected an object"
            source.invalid.append(InvalidSetting(key=".".join(tokens), message=message))
            return
        self._read(source, tokens, value)

    def _canonical(self, written: str) -> str | None:
        """Return the setting that a key refers to, or None. The prefix ``spark.`` is optional."""
        for key in (written, ALIASES.get(written, ""), written.removeprefix("spark.")):
            if key in self._types:
                return key
        return None

    def _ignore(self, source: GivenSettings, written: str, value: Json) -> None:
        rest = value
        for alias, key in ALIASES.items():
            if alias.startswith(f"{written}."):
                path = alias.removeprefix(f"{written}.")
                inner = inside(value, path)
                if inner is not None:
                    source.give(alias, key, inner, free=False)
                    rest = without(rest, path.split("."))
        if rest != {}:
            source.ignored[written] = _laid(written, source.ignored.get(written), rest)

    def _yarn(self, source: GivenSettings) -> dict[str, tuple[str, Json]]:
        """Return the values of the ``yarn-…`` keys, which take precedence on a YARN master."""
        _, master = source.given.get("spark.master", ("", self.values.get("spark.master")))
        if str(master).startswith("yarn"):
            return source.yarn
        for written, _ in source.yarn.values():
            self._warn(f"{written}: this setting applies only to YARN masters")
        return {}

    def _warn_of_contexts(self, key: str, written: str, value: object) -> None:
        """Warn of the settings of contexts that have no effect."""
        named = value.items() if key == "spark.contexts" and isinstance(value, Mapping) else ()
        groups = {f"{written}.{name}": settings for name, settings in named}
        if key == "spark.context-settings":
            groups = {written: value}
        for place, settings in groups.items():
            found = flatten(settings) if isinstance(settings, Mapping) else {}
            for name in found:
                if reason := no_effect_in_context(name):
                    self._warn(f"{place}.{name}: this setting has no effect: {reason}")

    def _warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)

    def _unknown(self, written: str) -> InvalidSetting:
        message = "; ".join(["unknown setting", *_hints([written])])
        return InvalidSetting(key=written, message=message, nearest=self._nearest(written))

    def _nearest(self, written: str) -> str | None:
        leaf = written.rpartition(".")[2]
        if start_timeout := difflib.get_close_matches(leaf, START_TIMEOUTS, n=1, cutoff=0.9):
            return START_TIMEOUTS[start_timeout[0]]
        if old := near_old_key(written):
            return old
        by_leaf: dict[str, list[str]] = {}
        for key in [*self._types, *(f"spark.context-settings.{key}" for key in CONTEXT_KEYS)]:
            by_leaf.setdefault(key.rpartition(".")[2], []).append(key)
        [near_leaf] = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.85) or [""]
        if same := by_leaf.get(near_leaf):
            return max(
                same,
                key=lambda key: (
                    len(_words(written) & _words(key)),
                    difflib.SequenceMatcher(None, key, written).ratio(),
                ),
            )
        known = [*self._types, *_parents(self._types), *ALIASES]
        by_rest = {_without_prefix(key): ALIASES.get(key, key) for key in known}
        found = difflib.get_close_matches(_without_prefix(written), by_rest, n=1, cutoff=0.7)
        return by_rest[found[0]] if found else None


class GivenSettings:
    """The settings of one file or mapping, as ``(key as written, value)`` by their keys here; its other keys.

    ``yarn`` has the settings that apply only to YARN masters. ``invalid`` has the keys that cannot be read at
    all: a second spelling of a setting, and groups of settings without an object.
    """

    def __init__(self) -> None:
        self.given: dict[str, tuple[str, Json]] = {}
        self.yarn: dict[str, tuple[str, Json]] = {}
        self.ignored: JsonObject = {}
        self.unknown: list[InvalidSetting] = []
        self.invalid: list[InvalidSetting] = []

    def give(self, written: str, key: str, value: Json, *, free: bool) -> None:
        """Record one setting."""
        if ".yarn-" in written:
            self.yarn[key] = (written, value)
            return
        before, earlier = self.given.get(key, (written, None))
        if before != written:
            message = f"is the same setting as '{before}'; remove one of them"
            self.invalid.append(InvalidSetting(key=written, message=message))
            return
        self.given[key] = (written, _laid(key, earlier, value) if free else value)


def _all_unknown(errors: list[InvalidSetting]) -> InvalidSetting:
    """Return one error for all unknown keys, so that a file can be fixed in one go."""
    first = errors[0]
    if len(errors) == 1:
        return first
    others = [
        f"'{error.key}'" + (f" (did you mean '{error.nearest}'?)" if error.nearest else "")
        for error in errors[1:]
    ]
    near = f" (did you mean '{first.nearest}'?)" if first.nearest else ""
    hints = _hints(error.key for error in errors)
    message = "; ".join([f"unknown setting{near}, and so are {', '.join(others)}", *hints])
    return InvalidSetting(key=first.key, message=message)


def _hints(unknown: Iterable[str]) -> Iterable[str]:
    """Return where unknown settings belong, each hint once."""
    hints: dict[str, None] = {}
    for key in unknown:
        if key.rpartition(".")[2] in START_TIMEOUTS:
            continue
        if _without_prefix(key).partition(".")[0] == "python":
            hints["python.paths and python.executable belong in spark.context-settings"] = None
        elif key.startswith("spark.") and not key.startswith("spark.jobserver."):
            hints["Spark's own settings belong in spark.context-settings"] = None
        elif key.partition(".")[0] not in ("spark", "jobserver"):
            hints["configuration for jobs belongs in jobserver.jobs.default-config"] = None
    return hints


def _without_prefix(key: str) -> str:
    """Return the part of a key that tells keys apart, because most begin with the same words."""
    return key.removeprefix("spark.").removeprefix("jobserver.")


def _words(key: str) -> set[str]:
    """Return the words of the section of a key, in the singular: contexts are like context-settings."""
    section = _without_prefix(key).rpartition(".")[0]
    return {word.removesuffix("s") for word in section.replace("-", ".").split(".") if word}


def _parents(keys: Iterable[str]) -> set[str]:
    return {key[:index] for key in keys for index, char in enumerate(key) if char == "."}


def _nested(tokens: tuple[str, ...], value: Json) -> Json:
    for token in reversed(tokens):
        value = {token: value}
    return value


def _laid(key: str, below: Json, above: Json) -> Json:
    """Merge two values of a setting that is an object. Spark settings are merged key by key."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    if key == "spark.context-settings":
        return merged(below, above)
    if key == "spark.contexts":
        return {
            **below,
            **{name: _laid("spark.context-settings", below.get(name), tree) for name, tree in above.items()},
        }
    return overlaid(below, above)
