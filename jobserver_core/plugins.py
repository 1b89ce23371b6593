"""Backends by name: found through entry points, made from the settings.

A backend is a class with a classmethod ``from_settings(settings, data_dir)``, registered in
the entry point group of its port:

- ``jobserver.metadata``, ``jobserver.blobs``, ``jobserver.fetcher``, ``jobserver.launcher``: the one
  that the settings name
- ``jobserver.transport``: those that the settings list; each serves the URL schemes that it names
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jobserver_core.errors import DataDirLocked, PluginNotFound, StorageError

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings
    from jobserver_core.server import JobServer

__all__ = ["build", "build_server", "lock_data_dir", "registered"]

EXTRAS = {"sql": "sql", "fsspec": "fsspec", "pyspark": "pyspark", "httpx": "httpx"}
"""Which extra brings which backend of this distribution."""

Server = TypeVar("Server", bound="JobServer")


def registered(kind: str) -> dict[str, EntryPoint]:
    """Return the backends of a kind (``metadata``, ``blobs``, …) that are registered, by name."""
    return {point.name: point for point in entry_points(group=f"jobserver.{kind}")}


def build(kind: str, name: str, settings: Settings, data_dir: Path) -> Any:
    """Make the backend of a kind that has this name.

    Raises PluginNotFound, with the extra that brings it, when it or what it needs is not installed.
    """
    points = registered(kind)
    extra = EXTRAS.get(name)
    if name not in points:
        raise PluginNotFound(kind=kind, name=name, available=tuple(sorted(points)), extra=extra)
    try:
        backend = points[name].load()
    except ImportError as error:
        available = tuple(sorted(other for other in points if other != name))
        raise PluginNotFound(kind=kind, name=name, available=available, extra=extra) from error
    return backend.from_settings(settings, data_dir)


def build_server(cls: type[Server], settings: Settings) -> Server:
    """Make a server of the backends that the settings name, with the data folder for itself."""
    with ExitStack() as resources:
        data_dir = lock_data_dir(settings.data_dir, resources)
        parts: dict[str, Any] = {}
        for kind in ("metadata", "blobs", "fetcher", "launcher"):
            parts[kind] = build(kind, getattr(settings, kind).backend, settings, data_dir)
            resources.callback(parts[kind].close)
        transports = [build("transport", name, settings, data_dir) for name in settings.callbacks.transports]
        return cls(
            **parts,
            transports=transports,
            settings=settings,
            data_dir=data_dir,
            resources=resources.pop_all(),
        )


def lock_data_dir(path: Path, until: ExitStack) -> Path:
    """Make the data folder, private to this user, and keep other servers out of it.

    The lock is the operating system's, so it ends with the process whatever ends that.
    Raises DataDirLocked with the other server's process id, StorageError when it cannot be written to.
    """
    import fcntl  # noqa: PLC0415 - not on every platform that can embed the in-memory server

    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = until.enter_context((path / "server.lock").open("a+"))
    except OSError as error:
        raise StorageError(message=f"data folder {path}: {error.strerror or error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        raise DataDirLocked(path=str(path), holder=f" (process {holder})" if holder else "") from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return path.resolve()
