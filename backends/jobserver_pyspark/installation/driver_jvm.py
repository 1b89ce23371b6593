"""The driver JVM: its options, its Java class path, and the machine's configuration of Spark and Hadoop.

The configuration is read from the places where Spark's scripts search for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from jobserver_core.errors import InvalidSetting
from jobserver_pyspark.installation.environment import hadoop_directories
from jobserver_pyspark.installation.spark import Installation

_OPENED = (
    "java.base/java.lang",
    "java.base/java.lang.invoke",
    "java.base/java.lang.reflect",
    "java.base/java.io",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.base/sun.nio.cs",
    "java.base/sun.security.action",
    "java.base/sun.util.calendar",
    "java.security.jgss/sun.security.krb5",
)
JVM_OPTIONS = (
    "-XX:+IgnoreUnrecognizedVMOptions",
    *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENED),
    "-Djdk.reflect.useDirectMethodHandle=false",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-Dio.netty.allocator.type=pooled",
    "-Dio.netty.handler.ssl.defaultEndpointVerificationAlgorithm=NONE",
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
    "-Dderby.connection.requireAuthentication=false",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
)
"""The options that Spark's own launcher passes to a driver, without a module that it does not need and that
some JDKs lack. Two are ours: a JVM that runs out of memory exits instead of thrashing, and no JVM leaves a
file in ``/tmp``."""


def java_class_path(
    installation: Installation,
    *,
    before: str | None = None,
    after: Sequence[Path] = (),
    hadoop: Sequence[Path] | None = None,
) -> str:
    """Return the driver's Java class path: Spark's jars, the site's configuration, then the context's jars.

    ``hadoop`` are the directories of Hadoop's configuration, by default those that the environment names.

    The configuration and Hadoop's own jars come after Spark's jars, unlike in Spark's scripts: a JVM cannot
    archive its classes with a directory before its jars. The order makes no difference, because Spark's jars
    contain no configuration files.
    """
    entries = (
        before,
        *map(str, (*installation.jars, *_directories(installation, hadoop))),
        os.environ.get("SPARK_DIST_CLASSPATH"),
        *map(str, after),
    )
    return os.pathsep.join(filter(None, entries))


_NOT_FOR_CONTEXTS = {"spark.master", "spark.driver.userClassPathFirst", "spark.executor.userClassPathFirst"}
"""The server sets the master. A jar that may replace classes of Spark and the job API cannot hold a job."""

_SETTING = re.compile(r"\s*(spark\.[^\s:=]+)[\s:=]+(.*\S)\s*$")


def spark_defaults(installation: Installation) -> dict[str, str]:
    """Return the settings of ``spark-defaults.conf``, without those that are not for contexts.

    Raises:
        InvalidSetting: The file is not UTF-8.
    """
    path = _spark_directory(installation) / "spark-defaults.conf"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    except UnicodeDecodeError as error:
        raise InvalidSetting(key=str(path), message=f"is not UTF-8: {error}") from error
    found = {match[1]: match[2] for match in map(_SETTING.match, lines) if match}
    return {key: value for key, value in found.items() if key not in _NOT_FOR_CONTEXTS}


def has_hive(installation: Installation, hadoop: Sequence[Path] | None = None) -> bool:
    """Return whether the site has a metastore of its own."""
    return any((directory / "hive-site.xml").is_file() for directory in _directories(installation, hadoop))


def _directories(installation: Installation, hadoop: Sequence[Path] | None) -> list[Path]:
    given = [_spark_directory(installation), *(hadoop_directories() if hadoop is None else hadoop)]
    return [directory for directory in dict.fromkeys(given) if directory.is_dir()]


def _spark_directory(installation: Installation) -> Path:
    return Path(os.environ.get("SPARK_CONF_DIR") or installation.package / "conf")
