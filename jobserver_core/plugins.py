"""Backends by name, found through the entry points of installed distributions.

:class:`Backend` is what all ports have in common: the configuration can select an implementation by its name.
The loader below is the only one: for every port, and for the authenticators of the HTTP front-end.
"""

from __future__ import annotations

from abc import ABC
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from jobserver_core.errors import PluginNotFound

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["Backend", "find", "load", "registered"]

_EXTRAS = {"sql": "sql", "fsspec": "fsspec", "pyspark": "pyspark", "httpx": "httpx"}
"""Which extra brings which backend of this distribution."""

B = TypeVar("B", bound="Backend")


class Backend(ABC):
    """An implementation of a port.

    A distribution registers its class as an entry point in the group ``jobserver.<kind>``, under the name
    that the configuration selects it by.
    """

    kind: ClassVar[str]
    """Which port this is, as in the name of the group: ``metadata``, ``launcher``, …"""

    @classmethod
    def from_settings(cls: type[B], settings: Settings, data_dir: Path) -> B:
        """Create the backend that the settings describe, with its files below ``data_dir``.

        Refuse options that you do not know. The default is for backends without options: it calls the class
        without arguments.

        Raises:
            InvalidSetting: A setting can never work.
            StorageError: A store cannot be opened.
        """
        return cls()


def registered(port: type[Backend]) -> dict[str, EntryPoint]:
    """Return the backends of a port that are installed, by name."""
    return {point.name: point for point in entry_points(group=f"jobserver.{port.kind}")}


def find(port: type[B], name: str) -> type[B]:
    """Return the class of the backend of a port that has this name.

    Raises:
        PluginNotFound: It, or what it imports, is not installed; says which extra brings it.
        TypeError: The entry point is not a subclass of the port.
    """
    points = registered(port)
    extra = _EXTRAS.get(name)
    others = tuple(sorted(other for other in points if other != name))
    if name not in points:
        raise PluginNotFound(kind=port.kind, name=name, available=others, extra=extra)
    try:
        backend = points[name].load()
    except ImportError as error:
        raise PluginNotFound(kind=port.kind, name=name, available=others, extra=extra) from error
    if not (isinstance(backend, type) and issubclass(backend, port)):
        raise TypeError(
            f"{points[name].value} in jobserver.{port.kind} must be a subclass of {port.__name__}"
        )
    return backend


def load(port: type[B], name: str, settings: Settings, data_dir: Path) -> B:
    """Create the backend of a port that has this name. Raises as :func:`find` and ``from_settings`` do."""
    return find(port, name).from_settings(settings, data_dir)
