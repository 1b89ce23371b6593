"""Backends by name, found through the entry points of installed distributions.

:class:`Backend` is what all ports have in common: the configuration can select an implementation by its name.
The loader below is the only one: for every port, and for the authenticators of the HTTP front-end.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from jobserver_core.errors import JobServerError, PluginFailed, PluginNotFound

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from jobserver_core.config.settings import Settings

_DISTRIBUTION = "jobserver-core"
_EXTRAS = {"sql": "sql", "fsspec": "fsspec", "pyspark": "pyspark", "httpx": "httpx"}
"""Which extra brings which backend of this distribution."""

_CALLS = {"check_options": ("settings",), "from_settings": ("settings", "data_dir")}
"""The class methods that are called here, with their parameters."""

B = TypeVar("B", bound="Backend")


class Backend(ABC):
    """An implementation of a port.

    A distribution registers its class as an entry point in the group ``jobserver.<kind>``, under the name
    that the configuration selects it by.
    """

    kind: ClassVar[str]
    """Which port this is, as in the name of the group: ``metadata``, ``launcher``, …"""

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        """Refuse options that you do not know, or whose values can never work; open and create nothing.

        It is called before :meth:`from_settings`, and by commands that only check a configuration. The
        default accepts everything.

        Raises:
            InvalidSetting: Names the option.
        """
        return

    @classmethod
    def from_settings(cls: type[B], settings: Settings, data_dir: Path) -> B:
        """Create the backend that the settings describe, with its files below ``data_dir``.

        The default is for backends without options: it calls the class without arguments.

        Raises:
            InvalidSetting: A setting can never work.
            StorageError: A store cannot be opened.
        """
        return cls()


def registered(port: type[Backend]) -> dict[str, EntryPoint]:
    """Return the backends of a port that are installed, by name."""
    points = _points_by_group(tuple(sys.path)).get(f"jobserver.{port.kind}", ())
    return {point.name: point for point in points}


@lru_cache(maxsize=1)
def _points_by_group(path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """Return our entry points of all distributions on ``path``, the path of imports, by group.

    Reading them is slow, and each port of a server would do it again.
    """
    from importlib.metadata import entry_points  # noqa: PLC0415 - clients import ports, but load none

    points = entry_points()
    groups = [group for group in points.groups if group.startswith("jobserver.")]
    return {group: tuple(points.select(group=group)) for group in groups}


def find(port: type[B], name: str) -> type[B]:
    """Return the class of the backend of a port that has this name.

    Raises:
        PluginNotFound: It is not installed, or an extra that brings what it imports; says which.
        PluginFailed: It cannot be imported, is not a subclass of the port, lacks methods of it, or cannot be
            created from settings.
    """
    return _found(port, name)[0]


def _found(port: type[B], name: str) -> tuple[type[B], EntryPoint]:
    points = registered(port)
    if name not in points:  # it may have been installed since
        _points_by_group.cache_clear()
        points = registered(port)
    extra = _EXTRAS.get(name)
    others = tuple(sorted(other for other in points if other != name))
    if name not in points:
        raise PluginNotFound(kind=port.kind, name=name, available=others, extra=extra)
    point = points[name]
    try:
        backend = point.load()
    except Exception as error:
        if isinstance(error, ImportError) and (extra or _is_ours(point)):
            raise PluginNotFound(kind=port.kind, name=name, available=others, extra=extra) from error
        raise _failed(port, point, _described(error, point)) from error
    if not (isinstance(backend, type) and issubclass(backend, port)):
        raise _failed(port, point, f"it must be a subclass of {port.__module__}.{port.__name__}")
    if problem := _problem(backend):
        raise _failed(port, point, problem)
    return backend, point


def load(port: type[B], name: str, settings: Settings, data_dir: Path) -> B:
    """Create the backend of a port that has this name.

    Raises:
        JobServerError: As :func:`find`, ``check_options`` and ``from_settings`` do.
        PluginFailed: One of the latter two, of another package, raised any other exception.
    """
    backend, point = _found(port, name)
    with _failures_named(port, point):
        backend.check_options(settings)
        created = backend.from_settings(settings, data_dir)
    if not isinstance(created, port):
        raise _failed(port, point, f"from_settings returned {created!r} instead of a {port.__name__}")
    return created


def check_options(port: type[B], name: str, settings: Settings) -> None:
    """Check the options of the backend of a port that has this name, without creating it.

    Raises:
        JobServerError: As :func:`find` and ``check_options`` do.
        PluginFailed: The latter, of another package, raised any other exception.
    """
    backend, point = _found(port, name)
    with _failures_named(port, point):
        backend.check_options(settings)


def checks_options(port: type[B], name: str) -> bool:
    """Whether the backend of a port that has this name refuses options that it does not know.

    Raises:
        JobServerError: As :func:`find` does.
    """
    return not _inherits(_found(port, name)[0], "check_options")


@contextmanager
def _failures_named(port: type[Backend], point: EntryPoint) -> Iterator[None]:
    """Name the backend of another package in which an unexpected exception is raised."""
    try:
        yield
    except JobServerError:
        raise
    except Exception as error:
        if _is_ours(point):
            raise
        raise _failed(port, point, _described(error, point)) from error


def _problem(backend: type[Backend]) -> str | None:
    """Return why no object of a class can be created from settings, as far as the class itself shows it."""
    # A factory of the plug-in may return another class.
    default = _inherits(backend, "from_settings")
    missing = ", ".join(sorted(backend.__abstractmethods__)) if default else ""
    if missing:
        return f"the class {backend.__name__} lacks methods of the port: {missing}"
    if default and (problem := _refused(backend)):
        return f"without from_settings, {backend.__name__} is created without arguments: {problem}"
    for name, parameters in _CALLS.items():
        if problem := _refused(getattr(backend, name), *parameters):
            return f"{name} must be a class method that takes {' and '.join(parameters)}: {problem}"
    return None


def _refused(function: Callable[..., object], *arguments: object) -> str | None:
    """Return why a function cannot be called with these positional arguments, as far as that is known."""
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:  # a function written in C
        return None
    except TypeError as error:
        return str(error)
    return None


def _inherits(backend: type[Backend], name: str) -> bool:
    """Whether a backend has the default of a class method."""
    return getattr(getattr(backend, name), "__func__", None) is getattr(Backend, name).__func__


def _is_ours(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == _DISTRIBUTION


def _failed(port: type[Backend], point: EntryPoint, reason: str) -> PluginFailed:
    package = "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    return PluginFailed(kind=port.kind, name=point.name, package=package, plugin=point.value, reason=reason)


def _described(error: Exception, point: EntryPoint) -> str:
    """Return an exception's type and message, and the last line of the plug-in that has run, if any."""
    kind = type(error).__name__
    text = f"{kind}: {error}" if str(error) else kind
    package = f"{point.module.partition('.')[0]}."
    for frame, number in reversed(list(traceback.walk_tb(error.__traceback__))):
        if f"{frame.f_globals.get('__name__')}.".startswith(package):
            return f"{text} ({frame.f_code.co_filename}, line {number})"
    return text
