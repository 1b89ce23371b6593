"""The libraries in the ``spark.jobserver`` API's signatures: from a directory or a repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import attrs

from jobserver_core.errors import LaunchError
from jobserver_pyspark.installation.java import run_java
from jobserver_pyspark.installation.spark import SparkInstall

CONFIG_VERSION = "1.4.3"
SCALACTIC_VERSION = "3.2.19"


class LibrariesUnavailable(LaunchError):
    """The libraries of the ``spark.jobserver`` API could not be resolved; the message says how to fix it."""


@attrs.frozen(kw_only=True)
class LibrarySource:
    """The source of ``com.typesafe:config`` and ``org.scalactic:scalactic``.

    ``directory`` is for sites without a repository: a directory with the two jars. Without it, Spark's own
    package resolution is used, with the same settings: ``spark.jars.repositories``,
    ``spark.jars.ivySettings`` and ``spark.jars.ivy``. ``timeout`` is in seconds.
    """

    directory: Path | None = None
    repositories: str | None = None
    ivy_settings: str | None = None
    ivy: str | None = None
    timeout: float = 120.0

    @classmethod
    def from_conf(cls, conf: dict[str, str], directory: Path | None = None) -> LibrarySource:
        """Read the ``spark.jars.*`` settings of a context."""
        return cls(
            directory=directory,
            repositories=conf.get("spark.jars.repositories"),
            ivy_settings=conf.get("spark.jars.ivySettings"),
            ivy=conf.get("spark.jars.ivy"),
        )


def resolve_libraries(
    source: LibrarySource, java: str, spark: SparkInstall, runner: Path, cache: Path
) -> tuple[Path, ...]:
    """Return the two jars for this Spark's Scala version; they are kept in ``cache``.

    Raises:
        LibrariesUnavailable: neither the configured directory nor a repository has them.

    """
    if (there := kept_libraries(source, spark, cache)) is not None:
        return there
    found = _resolve(source, java, spark, runner)
    jars = _kept_paths(spark, cache)
    _keep(found, tuple(jar.name for jar in jars), jars[0].parent)
    return jars


def kept_libraries(source: LibrarySource, spark: SparkInstall, cache: Path) -> tuple[Path, ...] | None:
    """Return the two jars if they are on this machine already, else None.

    Raises:
        LibrariesUnavailable: the configured directory does not have them.

    """
    if source.directory is not None:
        return tuple(
            _in_directory(source.directory, prefix) for prefix in ("config-", f"scalactic_{spark.scala}-")
        )
    jars = _kept_paths(spark, cache)
    return jars if all(jar.is_file() for jar in jars) else None


def _kept_paths(spark: SparkInstall, cache: Path) -> tuple[Path, ...]:
    names = (f"config-{CONFIG_VERSION}.jar", f"scalactic_{spark.scala}-{SCALACTIC_VERSION}.jar")
    return tuple(cache / "libraries" / name for name in names)


def _in_directory(directory: Path, prefix: str) -> Path:
    # Ivy names the jars after their group as well: org.scalactic_scalactic_2.13-3.2.19.jar
    found = sorted(jar for jar in directory.glob("*.jar") if prefix in jar.name)
    if not found:
        raise LibrariesUnavailable(
            message=f"no {prefix}<version>.jar in the configured directory {directory}: put it there"
        )
    return found[-1]


def _resolve(source: LibrarySource, java: str, spark: SparkInstall, runner: Path) -> list[Path]:
    coordinates = (
        f"com.typesafe:config:{CONFIG_VERSION}",
        f"org.scalactic:scalactic_{spark.scala}:{SCALACTIC_VERSION}",
    )
    arguments = ["-XX:TieredStopAtLevel=1", "-cp", os.pathsep.join([str(runner), spark.class_path])]
    arguments += ["org.apache.spark.sql.jobserver.ResolveLibraries", ",".join(coordinates)]
    arguments += [source.ivy_settings or "", source.repositories or "", source.ivy or ""]
    advice = (
        f"{' and '.join(coordinates)} are needed for jobs of the spark.jobserver API: "
        "make a repository reachable (spark.jars.repositories, spark.jars.ivySettings), "
        "or set the launcher option jvm-libraries to a directory that has the two jars"
    )
    try:
        done = run_java(java, arguments, timeout=source.timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LibrariesUnavailable(message=f"{advice} ({error})") from error
    found = [Path(line) for line in done.stdout.splitlines() if line.endswith(".jar")]
    if done.returncode != 0 or len(found) != len(coordinates):
        raise LibrariesUnavailable(message=f"{advice} ({_reason(done.stderr)})")
    return found


def _reason(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "unresolved dependency" in line or "Exception" in line]
    return "; ".join(dict.fromkeys(errors)) or "; ".join(lines[-3:])


def _keep(found: list[Path], names: tuple[str, ...], kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for name in names:
        jar = next(jar for jar in found if jar.name.endswith(name))
        with tempfile.NamedTemporaryFile(dir=kept, prefix=".", delete=False) as temporary:
            shutil.copyfile(jar, temporary.name)
        Path(temporary.name).chmod(0o644)
        Path(temporary.name).replace(kept / name)
