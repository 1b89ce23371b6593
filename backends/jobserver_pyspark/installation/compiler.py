"""Compiles the JVM side once per installed Spark, with the Scala compiler that Spark ships, into a cache."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs

from jobserver_core.errors import LaunchError
from jobserver_pyspark.installation.java import find_java, utf8_locale
from jobserver_pyspark.installation.libraries import LibrarySource, resolve_libraries
from jobserver_pyspark.installation.spark import default_cache_dir, find_installation

__all__ = ["CompilationFailed", "JvmToolchain", "SparkInstall", "default_java"]

SOURCES = Path(__file__).parent.parent / "jvm" / "scala"
COMPILE_TIMEOUT = 300.0
"""Seconds; a compilation takes about five on two idle cores."""


class CompilationFailed(LaunchError):
    """The JVM side could not be compiled; the message has the compiler's words."""


def default_java() -> str:
    """Return the program of the Java that contexts would run. Raises LaunchError when there is none."""
    return str(find_java().program)


@attrs.frozen(kw_only=True)
class SparkInstall:
    """An installed Spark: where its jars are, its version, and the Scala version that it is built for."""

    jars: Path
    version: str
    scala: str

    @classmethod
    def find(cls, home: Path | None = None) -> SparkInstall:
        """The Spark of ``home``, else the one inside the installed PySpark, which contexts run."""
        return cls.of((home or find_installation(sys.executable).folder) / "jars")

    @classmethod
    def of(cls, jars: Path) -> SparkInstall:
        """The Spark whose jars lie in this folder."""
        for jar in jars.glob("spark-core_*.jar"):
            match = re.fullmatch(r"spark-core_([\d.]+)-(.+)\.jar", jar.name)
            if match:
                return cls(jars=jars, scala=match[1], version=match[2])
        raise LaunchError(message=f"no spark-core jar in {jars}: is this a Spark installation?")

    @property
    def major(self) -> int:
        """The major version: 3 or 4."""
        return int(self.version.split(".")[0])

    @property
    def class_path(self) -> str:
        """All of Spark's jars, as ``-classpath`` wants them."""
        return str(self.jars / "*")


@attrs.frozen(kw_only=True)
class JvmToolchain:
    """Builds and finds the compiled JVM side of one installed Spark.

    ``cache_dir`` may be shared by any number of processes: a result appears in it whole or not at all.
    Its content can be deleted at any time when no context runs JVM jobs. ``on_build`` is called before each
    compilation: these take seconds, everything else a moment.
    """

    spark: SparkInstall = attrs.field(factory=SparkInstall.find)
    java: str = attrs.field(factory=default_java)
    cache_dir: Path = attrs.field(factory=default_cache_dir)
    libraries: LibrarySource = attrs.field(factory=LibrarySource)
    on_build: Callable[[], object] = attrs.field(default=lambda: None, eq=False, repr=False)

    def runner_jar(self) -> Path:
        """The runner, which needs nothing but Spark; compiled when it is not there yet."""
        sources = _sources("core", f"spark{min(self.spark.major, 4)}")
        return self._compiled("runner", sources, class_path=())

    def api_jars(self) -> tuple[Path, ...]:
        """The ``spark.jobserver`` API and the libraries that it needs.

        Raises:
            LibrariesUnavailable: no repository has these libraries.

        """
        runner = self.runner_jar()
        libraries = resolve_libraries(self.libraries, self.java, self.spark, runner, self._home())
        api = self._compiled("api", _sources("api"), class_path=(runner, *libraries))
        return (api, *libraries)

    def prepare(self) -> None:
        """Compiles all there is, ahead of the first job."""
        self.api_jars()

    def class_path(self, *, with_spark: bool = True) -> str:
        """What a job is compiled against: the API, its libraries and, when asked for, Spark itself."""
        entries = [str(jar) for jar in self.api_jars()]
        if with_spark:
            entries.append(self.spark.class_path)
        return os.pathsep.join(entries)

    def _home(self) -> Path:
        return self.cache_dir / "jvm" / f"spark-{self.spark.version}_{self.spark.scala}"

    def _compiled(self, name: str, sources: Sequence[Path], class_path: Sequence[Path]) -> Path:
        key = _digest(sources, [path.name for path in class_path])
        jar = self._home() / f"{name}-{key}" / f"jobserver-{name}_{self.spark.scala}.jar"
        if not jar.is_file():
            self._build(jar, sources, class_path)
        return jar

    def _build(self, jar: Path, sources: Sequence[Path], class_path: Sequence[Path]) -> None:
        self.on_build()
        folder = jar.parent
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as temporary:
            built = Path(temporary) / "out"
            classes = Path(temporary) / "classes"
            built.mkdir()
            classes.mkdir()
            self._compile(sources, classes, class_path)
            _archive(classes, built / jar.name)
            try:
                built.rename(folder)
            except OSError:
                if not jar.is_file():  # not another process that was quicker
                    raise

    def _compile(self, sources: Sequence[Path], classes: Path, class_path: Sequence[Path]) -> None:
        spark = sorted(str(path) for path in self.spark.jars.glob("*.jar"))
        # One run, then gone: the first compiler tier alone is the quickest way through.
        command = [
            self.java,
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-Xss8m",
            "-cp",
            self.spark.class_path,
        ]
        command += ["scala.tools.nsc.Main", "-nowarn", "-encoding", "UTF-8", "-d", str(classes)]
        command += ["-classpath", os.pathsep.join([*map(str, class_path), *spark]), *map(str, sources)]
        try:
            done = subprocess.run(  # noqa: S603 - the command is ours
                command,
                env={**os.environ, **utf8_locale()},
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=COMPILE_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilationFailed(
                message=f"cannot compile the JVM side for Spark {self.spark.version}: {error}"
            ) from error
        if done.returncode != 0:
            words = (done.stdout + done.stderr).strip()[-4000:]
            raise CompilationFailed(
                message=f"cannot compile the JVM side for Spark {self.spark.version}:\n{words}"
            )


def _sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((SOURCES / folder).rglob("*.scala"))]


def _digest(sources: Iterable[Path], names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    for name in names:
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()[:16]


def _archive(classes: Path, jar: Path) -> None:
    """A jar with fixed times, so that the same sources give the same bytes."""
    with zipfile.ZipFile(jar, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(classes.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(classes).as_posix(), (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
