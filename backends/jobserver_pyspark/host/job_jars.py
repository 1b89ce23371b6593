"""Make jars in the class paths of Python jobs available to their JVM calls and to Spark's tasks."""

from __future__ import annotations

import shutil
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path

from jobserver_pyspark.host.driver import Driver
from jobserver_pyspark.protocol.messages import HostSpec, Jar


class JarConflict(Exception):
    """Two different jars have the same class; the message is for the job's author."""


class JobJars:
    """Adds each jar of a Python job to the context, once, and remembers those of JVM jobs.

    Tasks of RDDs have no class path of their own, so a jar of a Python job belongs to the whole context once
    added. JVM jobs are isolated. Two different jars that share a class are refused, so that a job never runs
    code of another job's jar. Copies of classes of Spark or of the job API are never loaded, and have no
    effect.
    """

    def __init__(self, driver: Driver, spec: HostSpec) -> None:
        self._driver = driver
        self._directory = spec.work_dir / "job-jars"
        self._spark_jars = spec.toolchain.jars
        self._lock = threading.Lock()
        self._added: dict[str, frozenset[str]] = {}
        self._of_jvm_jobs: dict[str, frozenset[str]] = {}
        self._spark_classes: frozenset[str] | None = None

    @property
    def paths(self) -> list[Path]:
        """The added jars."""
        with self._lock:
            return [self._path(digest) for digest in self._added]

    def add(self, jars: Sequence[Jar]) -> None:
        """Make jars usable by Python jobs.

        Raises:
            JarConflict: One shares a class with a jar of a JVM job.
        """
        with self._lock:
            for jar in jars:
                if jar.digest not in self._added:
                    self._add(jar)

    def check_jvm_job(self, jars: Sequence[Jar]) -> None:
        """Remember the jars of a JVM job.

        Raises:
            JarConflict: One shares a class with an added jar.
        """
        with self._lock:
            for jar in jars:
                if jar.digest not in self._of_jvm_jobs:
                    self._of_jvm_jobs[jar.digest] = _classes(jar.path)
                self._check(jar.digest, self._of_jvm_jobs[jar.digest], self._added)

    def _add(self, jar: Jar) -> None:
        classes = _classes(jar.path)
        self._check(jar.digest, classes, self._of_jvm_jobs | self._added)
        self._directory.mkdir(parents=True, exist_ok=True)
        # The server keeps the file for this job alone; executors may ask for it later.
        self._driver.add_jar(Path(shutil.copyfile(jar.path, self._path(jar.digest))))
        self._added[jar.digest] = classes

    def _path(self, digest: str) -> Path:
        return self._directory / f"{digest}.jar"

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
        """Return the classes that every job gets from Spark and the server, even if its jars have copies."""
        if self._spark_classes is None:
            self._spark_classes = frozenset().union(*map(_classes, self._spark_jars.glob("*.jar")))
        own = self._driver.job_classes.resolve()  # a link once the first JVM job has run
        return self._spark_classes.union(path.relative_to(own).as_posix() for path in own.rglob("*.class"))


def _classes(jar: Path) -> frozenset[str]:
    """Return the names of a jar's classes, without module descriptions and variants for newer Javas."""
    with zipfile.ZipFile(jar) as archive:
        names = archive.namelist()
    return frozenset(
        name
        for name in names
        if name.endswith(".class") and not name.startswith("META-INF/") and name != "module-info.class"
    )
