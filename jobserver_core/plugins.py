"""Backends by name, found through the entry points of installed distributions.

This is the only loader: for every port, and for the authenticators of the HTTP front-end.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jobserver_core.errors import PluginNotFound
from jobserver_core.ports import Backend

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["find", "load", "registered"]

_EXTRAS = {"sql": "sql", "fsspec": "fsspec", "pyspark": "pyspark", "httpx": "httpx"}
"""Which extra brings which backend of this distribution."""

B = TypeVar("B", bound=Backend)


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
