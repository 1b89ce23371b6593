"""Class paths of Python jobs, on the driver and on executors."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jobserver_pyspark.host.driver import Driver
from jobserver_pyspark.protocol.messages import HostSpec, Package

__all__ = ["TaskClassPath", "TaskClassPaths"]


class TaskClassPath(NamedTuple):
    """A class path for tasks: the directories to import from, and the Python workers to run in."""

    includes: tuple[str, ...]
    pool: str | None


class TaskClassPaths:
    """Provides each class path to tasks.

    In local mode tasks import from the same directories as the driver. On a cluster each directory is
    shipped once, as an archive that executors unpack, so that data files and compiled extensions work there
    too. Python workers keep their imported modules. So each class path has workers of its own,
    except for the first one, which gets the workers that are warm already: its pool is None.
    """

    def __init__(self, driver: Driver, spec: HostSpec) -> None:
        self._driver = driver
        self._cluster = spec.cluster
        self._api = spec.api_path
        self._archives = spec.work_dir / "archives"
        self._lock = threading.Lock()
        self._shipped: set[str] = set()
        self._first: str | None = None

    def provide(self, packages: Sequence[Package]) -> TaskClassPath:
        """Return the class path for the tasks of a job; ship packages that were not shipped yet."""
        key = hashlib.sha256(" ".join(package.digest for package in packages).encode()).hexdigest()
        with self._lock:
            if self._first is None:
                self._first = key
            includes = [self._ship(package.digest, Path(package.directory)) for package in packages]
            if self._cluster:
                includes.append(self._ship("sparkjobserver-api", self._api))
        return TaskClassPath(tuple(includes), None if key == self._first else key)

    def _ship(self, name: str, directory: Path) -> str:
        if not self._cluster:
            return str(directory)
        if name not in self._shipped:
            self._archives.mkdir(exist_ok=True)
            archive = shutil.make_archive(str(self._archives / name), "zip", directory)
            self._driver.add_archive(Path(archive), name)
            self._shipped.add(name)
        return name
