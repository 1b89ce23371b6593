"""The libraries in the ``spark.jobserver`` API's signatures: from a directory or a repository.

What comes from a repository is kept for all contexts of all servers that share the cache, but each context
can name repositories of its own. So only the jars that were published are accepted, by their SHA-256. A
directory is the choice of the site, which may have patched the libraries. Nothing of it is kept.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs

from jobserver_core.errors import LaunchError
from jobserver_pyspark.installation.java import run_java
from jobserver_pyspark.installation.spark import SparkInstall, writing_to_cache

_CONFIG_VERSION = "1.4.3"
_CONFIG_DIGEST = "8ada4c185ce72416712d63e0b5afdc5f009c0cdf405e5f26efecdf156aa5dfb6"
_SCALACTIC_VERSION = "3.2.19"
_SCALACTIC_DIGESTS = {
    "2.12": "a50a3248208b25e9797c447709fe4276026510beae01e82366f405a66d9a8d57",
    "2.13": "c27c33de17d450e29e66c16c5af4cfa33e8ffcf03c124f0a3d249d848cccd4af",
}
"""By the version of Scala. Like the other digest, these are of the jars on Maven Central."""
_KEPT = "libraries"
_IVY = re.compile(r"FileNotFoundException: (/.+?)/(?:cache|jars)/\S+ \((.+)\)")
"""Matches what Ivy, which resolves packages for Spark, says if it cannot write below its directory."""


class LibrariesUnavailable(LaunchError):
    """The libraries of the ``spark.jobserver`` API could not be resolved; the message says how to fix it."""


@attrs.frozen(kw_only=True)
class LibrarySource:
    """The source of ``com.typesafe:config`` and ``org.scalactic:scalactic``.

    ``directory`` is for sites without a repository: a directory with the two jars. Without it, Spark's own
    package resolution is used, with the same settings: ``spark.jars.repositories``,
    ``spark.jars.ivySettings`` and ``spark.jars.ivy``.
    """

    directory: Path | None = None
    repositories: str | None = None
    ivy_settings: str | None = None
    ivy: str | None = None

    @classmethod
    def from_conf(cls, conf: dict[str, str], directory: Path | None = None) -> LibrarySource:
        """Read the ``spark.jars.*`` settings of a context."""
        return cls(
            directory=directory,
            repositories=conf.get("spark.jars.repositories"),
            ivy_settings=conf.get("spark.jars.ivySettings"),
            ivy=conf.get("spark.jars.ivy"),
        )


@attrs.frozen(kw_only=True)
class _Library:
    group: str
    artifact: str
    version: str
    digest: str

    @property
    def coordinates(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def jar(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def _libraries(scala: str) -> tuple[_Library, ...]:
    if scala not in _SCALACTIC_DIGESTS:
        raise LibrariesUnavailable(
            message=f"the libraries of the spark.jobserver API are not known for Scala {scala}: "
            "set the launcher option jvm-libraries to a directory that has them"
        )
    return (
        _Library(group="com.typesafe", artifact="config", version=_CONFIG_VERSION, digest=_CONFIG_DIGEST),
        _Library(
            group="org.scalactic",
            artifact=f"scalactic_{scala}",
            version=_SCALACTIC_VERSION,
            digest=_SCALACTIC_DIGESTS[scala],
        ),
    )


def jar_digest(jar: Path) -> str:
    """Return the SHA-256 of a jar in hexadecimal. A file that has not changed is read only once."""
    found = jar.stat()
    return _jar_digest(jar, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _jar_digest(jar: Path, *_stamp: int) -> str:
    return hashlib.sha256(jar.read_bytes()).hexdigest()


def resolve_libraries(
    source: LibrarySource, java: str, spark: SparkInstall, runner: Path, cache: Path
) -> tuple[Path, ...]:
    """Return the two jars for this Spark's Scala version; those of a repository are kept in ``cache``.

    Raises:
        LibrariesUnavailable: Neither the configured directory nor a repository has them, or the repository
            has other jars of these names.
    """
    if (there := kept_libraries(source, spark, cache)) is not None:
        return there
    libraries = _libraries(spark.scala)
    found = _resolve(source, java, spark, runner, libraries)
    with writing_to_cache(cache):
        return tuple(_keep(library, found, cache / _KEPT) for library in libraries)


def kept_libraries(source: LibrarySource, spark: SparkInstall, cache: Path) -> tuple[Path, ...] | None:
    """Return the two jars if they are on this machine already, else None. Kept ones that differ are not used.

    Raises:
        LibrariesUnavailable: The configured directory does not have them.
    """
    if source.directory is not None:
        return tuple(
            _in_directory(source.directory, prefix) for prefix in ("config-", f"scalactic_{spark.scala}-")
        )
    kept = [(cache / _KEPT / library.jar, library) for library in _libraries(spark.scala)]
    intact = all(jar.is_file() and jar_digest(jar) == library.digest for jar, library in kept)
    return tuple(jar for jar, _ in kept) if intact else None


def _in_directory(directory: Path, prefix: str) -> Path:
    # Ivy names the jars after their group as well: org.scalactic_scalactic_2.13-3.2.19.jar
    found = sorted(jar for jar in directory.glob("*.jar") if prefix in jar.name)
    if not found:
        raise LibrariesUnavailable(
            message=f"no {prefix}<version>.jar in the configured directory {directory}: put it there"
        )
    return found[-1]


def _resolve(
    source: LibrarySource, java: str, spark: SparkInstall, runner: Path, libraries: Sequence[_Library]
) -> list[Path]:
    coordinates = [library.coordinates for library in libraries]
    arguments = ["-XX:TieredStopAtLevel=1", "-cp", os.pathsep.join([str(runner), spark.java_class_path])]
    arguments += ["org.apache.spark.sql.jobserver.ResolveLibraries", ",".join(coordinates)]
    arguments += [source.ivy_settings or "", source.repositories or "", source.ivy or ""]
    advice = (
        f"{' and '.join(coordinates)} are needed for jobs of the spark.jobserver API: "
        "make a repository reachable (spark.jars.repositories, spark.jars.ivySettings), "
        "or set the launcher option jvm-libraries to a directory that has the two jars"
    )
    try:
        done = run_java(java, arguments, timeout=120.0)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LibrariesUnavailable(message=f"{advice} ({error})") from error
    found = [Path(line) for line in done.stdout.splitlines() if line.endswith(".jar")]
    if done.returncode != 0 and (unusable := _IVY.search(done.stderr)):
        raise LibrariesUnavailable(
            message=f"Ivy cannot write to its directory {unusable[1]} ({unusable[2]}): set spark.jars.ivy in "
            "spark-defaults.conf to a directory that this user can write to"
        )
    if done.returncode != 0 or len(found) != len(coordinates):
        raise LibrariesUnavailable(message=f"{advice} ({_reason(done.stderr)})")
    return found


def _reason(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "unresolved dependency" in line or "Exception" in line]
    return "; ".join(dict.fromkeys(errors)) or "; ".join(lines[-3:])


def _keep(library: _Library, found: list[Path], directory: Path) -> Path:
    """Copy a resolved jar to a directory, if it is the published one. What is checked is the copy."""
    jar = next(jar for jar in found if jar.name.endswith(library.jar))
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".", delete=False) as temporary:
        copy = Path(temporary.name)
    try:
        shutil.copyfile(jar, copy)
        digest = hashlib.sha256(copy.read_bytes()).hexdigest()
        if digest != library.digest:
            raise LibrariesUnavailable(
                message=f"{jar} is not {library.coordinates} as published: its SHA-256 is {digest}, not "
                f"{library.digest}. Check spark.jars.repositories and spark.jars.ivySettings, remove the "
                "file, or set the launcher option jvm-libraries to a directory with libraries of your own"
            )
        copy.chmod(0o644)
        return copy.replace(directory / library.jar)
    finally:
        copy.unlink(missing_ok=True)
