"""Hadoop's configuration: the directories that describe the site's YARN and file systems."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobserver_core.errors import InvalidSetting

VARIABLES = ("HADOOP_CONF_DIR", "YARN_CONF_DIR")
"""The environment variables in which Hadoop and Spark look for these directories."""

_SITE_FILE = "yarn-site.xml"


def hadoop_directories(
    configured: Path | None = None, environment: Mapping[str, str] | None = None
) -> list[Path]:
    """Return the configured directory, or else those that the environment names; they may not exist."""
    if configured is not None:
        return [configured]
    environment = os.environ if environment is None else environment
    return [Path(environment[name]) for name in VARIABLES if environment.get(name)]


def check_yarn(directories: Sequence[Path]) -> None:
    """Check that one of the directories describes a YARN cluster.

    Raises:
        InvalidSetting: None has a ``yarn-site.xml``; without it, Spark looks for YARN on this machine for
            minutes.
    """
    if any((directory / _SITE_FILE).is_file() for directory in directories):
        return
    searched = " and ".join(map(str, directories))
    problem = (
        f"there is no {_SITE_FILE} in {searched}"
        if searched
        else f"it is not known where its {_SITE_FILE} is"
    )
    raise InvalidSetting(
        key="spark.master",
        message=f"cannot use yarn: {problem}; set hadoop-conf-dir of the context, "
        "jobserver.launcher.options.hadoop-conf-dir, or HADOOP_CONF_DIR in the server's environment to the "
        "directory of the cluster's configuration",
    )
