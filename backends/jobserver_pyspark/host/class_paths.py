"""Class paths of Python jobs: what the driver imports from, and how executors get the same."""

from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path
from typing import Any

from jobserver_pyspark.host.driver import Driver

__all__ = ["ClassPaths"]


class ClassPaths:
    """Hands out for each class path what its tasks need.

    In local mode tasks import from the very folders of the driver. On a cluster each folder is shipped
    once, as an archive that executors unpack, so that data files and compiled extensions work there too.
    Python workers keep the modules they have imported, so that every class path but the first, which
    gets the workers that are warm already, has workers of its own.
    """

    def __init__(self, driver: Driver, order: dict[str, Any]) -> None:
        self._driver = driver
        self._cluster: bool = order["cluster"]
        self._api = Path(order["api_path"])
        self._archives = Path(order["work_dir"], "archives")
        self._lock = threading.Lock()
        self._shipped: dict[str, str] = {}
        self._first: str | None = None

    def of(self, packages: list[dict[str, str]]) -> dict[str, Any]:
        """Return ``sys_path``, ``includes`` and ``pool`` for packages, each a ``digest`` and a ``folder``."""
        folders = [package["folder"] for package in packages]
        key = hashlib.sha256(" ".join(package["digest"] for package in packages).encode()).hexdigest()
        with self._lock:
            if self._first is None:
                self._first = key
            includes = [self._ship(p["digest"], Path(p["folder"])) for p in packages]
            if self._cluster:
                includes.append(self._ship("sparkjobserver-api", self._api))
        return {
            "sys_path": folders,
            "includes": includes,
            "pool": None if key == self._first else key,
        }

    def _ship(self, name: str, folder: Path) -> str:
        if not self._cluster:
            return str(folder)
        if name not in self._shipped:
            self._archives.mkdir(exist_ok=True)
            archive = shutil.make_archive(str(self._archives / name), "zip", folder)
            self._driver.add_archive(Path(archive), name)
            self._shipped[name] = name
        return self._shipped[name]
