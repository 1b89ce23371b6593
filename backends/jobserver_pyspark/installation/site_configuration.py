"""The machine's configuration of Spark and Hadoop, found in the same places as by Spark's scripts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jobserver_pyspark.installation.spark import Installation

__all__ = ["class_path", "defaults", "has_hive"]

_NOT_FOR_CONTEXTS = {"spark.master", "spark.driver.userClassPathFirst", "spark.executor.userClassPathFirst"}
"""The server sets the master. A jar that may replace classes of Spark and the job API cannot hold a job."""

_SETTING = re.compile(r"\s*(spark\.[^\s:=]+)[\s:=]+(.*\S)\s*$")


def defaults(installation: Installation) -> dict[str, str]:
    """Return the settings of ``spark-defaults.conf``, without those that are not for contexts."""
    try:
        lines = (
            (_spark_directory(installation) / "spark-defaults.conf").read_text(encoding="utf-8").splitlines()
        )
    except OSError:
        return {}
    found = {match[1]: match[2] for match in map(_SETTING.match, lines) if match}
    return {key: value for key, value in found.items() if key not in _NOT_FOR_CONTEXTS}


def class_path(installation: Installation) -> list[str]:
    """Return the additions to Spark's jars on a driver's class path: configuration, and Hadoop's own jars.

    They come after the jars, unlike in Spark's scripts: a JVM cannot archive its classes with a directory
    before its jars. The order makes no difference, because Spark's jars contain no configuration files.
    """
    hadoop = os.environ.get("SPARK_DIST_CLASSPATH")
    return [*map(str, _directories(installation)), *([hadoop] if hadoop else [])]


def has_hive(installation: Installation) -> bool:
    """Return whether the site has a metastore of its own."""
    return any((directory / "hive-site.xml").is_file() for directory in _directories(installation))


def _directories(installation: Installation) -> list[Path]:
    hadoop = (os.environ.get(name) for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR"))
    given = [_spark_directory(installation), *(Path(directory) for directory in hadoop if directory)]
    return [directory for directory in dict.fromkeys(given) if directory.is_dir()]


def _spark_directory(installation: Installation) -> Path:
    return Path(os.environ.get("SPARK_CONF_DIR") or installation.package / "conf")
