"""Whether the class of a context factory of the user's own can exist, before a JVM starts.

A misspelled name would cost the start of a JVM. Where anything but the jars of the context, the jars of Spark
and the directories of the configuration can have classes, only the JVM knows: its host checks it.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from jobserver_pyspark.launcher.context_settings import PREPARED, missing_factory

_MORE_CLASSES = frozenset(
    {"spark.driver.extraClassPath", "spark.driver.extraJavaOptions", "spark.driver.defaultJavaOptions"}
)
"""Settings that may add to the classes of a driver, beside those that Spark's own submission processes."""


def check_factory(name: str, entries: Iterable[Path], conf: Mapping[str, str]) -> None:
    """Check that a class is in the jars and directories of the Java class path of a driver.

    ``conf`` has the settings of the site and of the context.

    Raises:
        UnknownContextFactory: It is in none of them, and nothing else can have it.
    """
    more = {*_MORE_CLASSES, *PREPARED} & {key for key, value in conf.items() if value}
    if more or os.environ.get("SPARK_DIST_CLASSPATH"):
        return
    file = f"{name.replace('.', '/')}.class"
    if not any((entry / file).is_file() if entry.is_dir() else _in_jar(entry, file) for entry in entries):
        raise missing_factory(name)


def _in_jar(jar: Path, file: str) -> bool:
    try:
        return _listed(jar, jar.stat().st_mtime_ns, file)
    except (OSError, zipfile.BadZipFile):  # the JVM ignores it as well
        return False


@lru_cache(maxsize=2048)
def _listed(jar: Path, _changed_ns: int, file: str) -> bool:
    """Return whether a jar has a file. Spark has some 300 jars, which take a second to read."""
    with zipfile.ZipFile(jar) as archive:
        return file in archive.NameToInfo
