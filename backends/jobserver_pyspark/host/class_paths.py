"""Class paths of Python jobs, on the driver and on executors, and the Python workers for each."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jobserver_pyspark import processes
from jobserver_pyspark.host.driver import Driver
from jobserver_pyspark.processes import WORKER_POOL_VARIABLE
from jobserver_pyspark.protocol.messages import HostSpec, Package


class TaskClassPath(NamedTuple):
    """A class path for tasks: the directories to import from, and the worker pool to run in."""

    includes: tuple[str, ...]
    worker_pool: str | None


class TaskClassPaths:
    """Provides each class path to tasks.

    In local mode tasks import from the same directories as the driver. On a cluster each directory is
    shipped once, as an archive that executors unpack, so that data files and compiled extensions work there
    too. Python workers keep their imported modules. So each class path has a worker pool of its own,
    except for the first one, which gets the workers that are warm already: its worker pool is None.
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
            archive = self._archives / f"{name}.zip"
            _pack(directory, archive)
            self._driver.add_archive(archive, name)
            self._shipped.add(name)
        return name


def _pack(directory: Path, archive: Path) -> None:
    """Write the files of a directory, also those behind links, to a ZIP file."""
    with zipfile.ZipFile(
        archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False
    ) as target:
        for parent, _, names in os.walk(directory, followlinks=True):
            for path in (Path(parent, name) for name in names):
                target.write(path, path.relative_to(directory))


_IDLE = 120.0
"""Seconds: twice the minute after which Spark ends idle workers."""


class WorkerPools:
    """Ends the daemons of idle worker pools if there are more than ``keep``.

    A worker pool is the Python workers of Spark that serve one class path, and the daemon that forks them.

    Spark ends workers that have been idle for a minute, but keeps the daemon that forks them forever. If the
    daemon has ended, Spark starts another one. A worker that Spark considers idle must not be killed, so a
    worker pool must have been idle for twice that time.
    """

    def __init__(
        self,
        driver: int,
        *,
        keep: int = 8,
        idle: float = _IDLE,
        now: Callable[[], float] = time.monotonic,
        kill: Callable[[int, str], None] | None = None,
    ) -> None:
        self._driver = driver
        self._keep = keep
        self._idle = idle
        self._now = now
        self._kill = kill or _kill_daemons
        self._lock = threading.Lock()
        self._users: dict[str, int] = {}
        self._used: dict[str, float] = {}

    def begin(self, worker_pool: str | None) -> None:
        """Record that a job uses a worker pool; None is the one that is never ended."""
        if worker_pool is not None:
            with self._lock:
                self._users[worker_pool] = self._users.get(worker_pool, 0) + 1
                self._used.pop(worker_pool, None)

    def end(self, worker_pool: str | None) -> None:
        """Record that a job no longer uses a worker pool, and end surplus ones that were idle for long."""
        if worker_pool is None:
            return
        with self._lock:
            self._users[worker_pool] -= 1
            if self._users[worker_pool] == 0:
                del self._users[worker_pool]
                self._used[worker_pool] = self._now()
            surplus = list(self._used)[: max(0, len(self._used) - self._keep)]
            ended = [idle for idle in surplus if self._now() - self._used[idle] > self._idle]
            for idle in ended:
                del self._used[idle]
        for idle in ended:
            self._kill(self._driver, idle)


def _kill_daemons(driver: int, worker_pool: str) -> None:
    """Kill the JVM's children that belong to a worker pool, and the processes that they forked."""
    for child in processes.children(driver):
        if f"{WORKER_POOL_VARIABLE}={worker_pool}" in processes.environment(child):
            processes.kill_group(child)
