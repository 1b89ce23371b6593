"""The server's environment: the variables that contexts see, and the site's configuration of Hadoop.

That configuration describes the site's YARN and file systems.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jobserver_core.errors import InvalidSetting

ALLOWED_VARIABLES = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HADOOP_HOME",
    "HADOOP_CONF_DIR",
    "YARN_CONF_DIR",
    "HIVE_CONF_DIR",
    "KRB5_CONFIG",
    "KRB5CCNAME",
    "SPARK_CONF_DIR",
    "SPARK_LOCAL_IP",
)
"""The variables of the server's environment that contexts and jobs see."""

HADOOP_VARIABLES = ("HADOOP_CONF_DIR", "YARN_CONF_DIR")
"""The environment variables in which Hadoop and Spark look for these directories."""


def allowed_environment(more: Iterable[str] = ()) -> dict[str, str]:
    """Return the allowed variables of the server's environment, and those named ``more``."""
    return {name: os.environ[name] for name in (*ALLOWED_VARIABLES, *more) if name in os.environ}


def hadoop_directories(
    configured: Path | None = None, environment: Mapping[str, str] | None = None
) -> list[Path]:
    """Return the configured directory, or else those that the environment names; they may not exist."""
    if configured is not None:
        return [configured]
    environment = os.environ if environment is None else environment
    return [Path(environment[name]) for name in HADOOP_VARIABLES if environment.get(name)]


def check_yarn(directories: Sequence[Path]) -> None:
    """Check that one of the directories describes a YARN cluster.

    Raises:
        InvalidSetting: None has a ``yarn-site.xml``; without it, Spark looks for YARN on this machine for
            minutes.
    """
    if any((directory / "yarn-site.xml").is_file() for directory in directories):
        return
    searched = " and ".join(map(str, directories))
    missing = f"there is no yarn-site.xml in {searched}"
    problem = missing if searched else "it is not known where its yarn-site.xml is"
    raise InvalidSetting(
        key="spark.master",
        message=f"cannot use yarn: {problem}; set hadoop-conf-dir of the context, "
        "jobserver.launcher.options.hadoop-conf-dir, or HADOOP_CONF_DIR in the server's environment to the "
        "directory of the cluster's configuration",
    )
