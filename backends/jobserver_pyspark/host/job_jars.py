"""Jars in the class paths of Python jobs: what their calls to the JVM, and Spark's tasks, can load."""

from __future__ import annotations

import shutil
import threading
import zipfile
from pathlib import Path
from typing import Any

from jobserver_pyspark.host.driver import Driver

__all__ = ["JarConflict", "JobJars"]


class JarConflict(Exception):
    """A class that the context would have twice, in words for the job's author."""


class JobJars:
    """Adds the jars of Python jobs to the context, each once; knows those of JVM jobs, which are kept apart.

    Jars of Python jobs are the whole context's from then on, since tasks of RDDs know no class path of their
    own. That no job ever runs the code of another one's jar, two that differ and share a class are refused;
    copies of Spark's own classes, or of the job API's, are never loaded and make no difference.
    """

    def __init__(self, driver: Driver, order: dict[str, Any]) -> None:
        self._driver = driver
        self._order = order
        self._lock = threading.Lock()
        self._added: dict[str, frozenset[str]] = {}
        self._noted: dict[str, frozenset[str]] = {}
        self._spark_classes: frozenset[str] | None = None

    def add(self, jars: list[dict[str, str]]) -> None:
        """Make jars usable, each a ``digest`` and a ``path``. Raises JarConflict."""
        with self._lock:
            for jar in jars:
                if jar["digest"] not in self._added:
                    self._add(jar["digest"], Path(jar["path"]))

    def note(self, jars: list[dict[str, str]]) -> None:
        """Take note of the jars of a JVM job. Raises JarConflict where they share a class with one added."""
        with self._lock:
            for jar in jars:
                if jar["digest"] not in self._noted:
                    self._noted[jar["digest"]] = _classes(Path(jar["path"]))
                self._check(jar["digest"], self._noted[jar["digest"]], self._added)

    def _add(self, digest: str, path: Path) -> None:
        classes = _classes(path)
        self._check(digest, classes, self._noted | self._added)
        folder = Path(self._order["work_dir"], "job-jars")
        folder.mkdir(parents=True, exist_ok=True)
        # The server keeps the file for this job alone; executors may ask for it later.
        self._driver.add_jar(Path(shutil.copyfile(path, folder / f"{digest}.jar")))
        self._added[digest] = classes

    def _check(self, digest: str, classes: frozenset[str], others: dict[str, frozenset[str]]) -> None:
        for other, theirs in others.items():
            shared = classes & theirs if other != digest else frozenset()
            if shared and (shared := shared - self._provided_classes()):
                name = min(shared).removesuffix(".class").replace("/", ".")
                raise JarConflict(
                    f"the class {name} is in two different jars, and jars of Python jobs belong to their "
                    "whole context: run this job in another context"
                )

    def _provided_classes(self) -> frozenset[str]:
        """The classes that every job gets from Spark and the server, whatever copies its jars hold."""
        if self._spark_classes is None:
            jars = Path(self._order["toolchain"]["jars"]).glob("*.jar")
            self._spark_classes = frozenset().union(*map(_classes, jars))
        own = self._driver.job_classes.resolve()  # a link once the first JVM job has run
        return self._spark_classes.union(path.relative_to(own).as_posix() for path in own.rglob("*.class"))


def _classes(jar: Path) -> frozenset[str]:
    """Return the names of a jar's classes, but for what describes modules and newer Javas."""
    with zipfile.ZipFile(jar) as archive:
        names = archive.namelist()
    return frozenset(
        name
        for name in names
        if name.endswith(".class") and not name.startswith("META-INF/") and name != "module-info.class"
    )
