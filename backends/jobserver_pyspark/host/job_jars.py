"""Jars in the class paths of Python jobs: what their calls to the JVM, and Spark's tasks, can load."""

from __future__ import annotations

import shutil
import threading
import zipfile
from pathlib import Path

from jobserver_pyspark.host.driver import Driver

__all__ = ["JarConflict", "JobJars"]


class JarConflict(Exception):
    """A class that the context would have twice, in words for the job's author."""


class JobJars:
    """Adds the jars of Python jobs to the context, each once.

    They are the whole context's from then on, since tasks of RDDs know no class path of their own. So
    that no job ever runs the code of another one's jar, two jars that differ and share a class are refused.
    """

    def __init__(self, driver: Driver, folder: Path) -> None:
        self._driver = driver
        self._folder = folder
        self._lock = threading.Lock()
        self._added: dict[str, frozenset[str]] = {}
        self._of_jvm_jobs: dict[str, Path] = {}

    def add(self, jars: list[dict[str, str]]) -> None:
        """Make jars usable, each a ``digest`` and a ``path``. Raises JarConflict."""
        with self._lock:
            for jar in jars:
                if jar["digest"] not in self._added:
                    self._add(jar["digest"], Path(jar["path"]))

    def _add(self, digest: str, path: Path) -> None:
        classes = _classes(path)
        others = {key: _classes(jar) for key, jar in self._of_jvm_jobs.items()} | self._added
        _check(digest, classes, others)
        self._folder.mkdir(parents=True, exist_ok=True)
        # The server keeps the file for this job alone; executors may ask for it later.
        self._driver.add_jar(Path(shutil.copyfile(path, self._folder / f"{digest}.jar")))
        self._added[digest] = classes

    def check(self, jars: list[dict[str, str]]) -> None:
        """Note the jars of a JVM job, which are kept apart but from those added here. Raises JarConflict."""
        with self._lock:
            for jar in jars:
                if self._added:
                    _check(jar["digest"], _classes(Path(jar["path"])), self._added)
                self._of_jvm_jobs[jar["digest"]] = Path(jar["path"])


def _check(digest: str, classes: frozenset[str], others: dict[str, frozenset[str]]) -> None:
    for other, theirs in others.items():
        if other != digest and (shared := sorted(classes & theirs)):
            name = shared[0].removesuffix(".class").replace("/", ".")
            raise JarConflict(
                f"the class {name} is in two different jars, and jars of Python jobs belong to their "
                "whole context: run this job in another context"
            )


def _classes(jar: Path) -> frozenset[str]:
    """Return the names of a jar's classes, but for what describes modules and newer Javas."""
    with zipfile.ZipFile(jar) as archive:
        names = archive.namelist()
    return frozenset(
        name
        for name in names
        if name.endswith(".class") and not name.startswith("META-INF/") and name != "module-info.class"
    )
