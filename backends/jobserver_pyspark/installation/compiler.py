"""Compiles the JVM side once per installed Spark, with the Scala compiler that Spark ships, into a cache."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from jobserver_core.errors import LaunchError
from jobserver_pyspark.installation.java import find_java, run_java
from jobserver_pyspark.installation.libraries import (
    LibrariesUnavailable,
    LibrarySource,
    jar_digest,
    kept_libraries,
    resolve_libraries,
)
from jobserver_pyspark.installation.spark import SparkInstall, default_cache_dir, writing_to_cache

SOURCES = Path(__file__).parent.parent / "jvm" / "scala"
_MAX_OUTPUT = 4000
"""The most characters of the compiler's output that an error shows: the last ones, with the summary."""
_BUILDING = ".building-"
"""How the names of directories begin whose content is not complete."""
COMPILE_TIMEOUT = 300.0
"""Seconds; a compilation takes about five on two idle cores."""


class CompilationFailed(LaunchError):
    """The JVM side could not be compiled; the message has the compiler's output."""


def default_java() -> str:
    """Return the ``java`` program that contexts run.

    Raises:
        JavaNotFound: None is version 17 or newer.
    """
    return str(find_java().program)


@attrs.frozen(kw_only=True)
class JvmToolchain:
    """Builds and finds the compiled JVM side of one installed Spark.

    Any number of processes may share ``cache_dir``: a result appears in it complete or not at all. It belongs
    to one Spark, one state of our sources and the content of the libraries that it was compiled against.
    The content of the cache can be deleted while no context runs JVM jobs. ``on_build`` is called before each
    compilation, which takes seconds.
    """

    spark: SparkInstall = attrs.field(factory=SparkInstall.find)
    java: str = attrs.field(factory=default_java)
    cache_dir: Path = attrs.field(factory=default_cache_dir)
    libraries: LibrarySource = attrs.field(factory=LibrarySource)
    on_build: Callable[[], object] = attrs.field(default=lambda: None, eq=False, repr=False)

    def runner_jar(self) -> Path:
        """Return the runner, which needs only Spark; compile it if it does not exist yet."""
        sources = _sources("core", f"spark{min(self.spark.major, 4)}")
        return self._build_jar("runner", sources, against=())

    def api_jars(self) -> tuple[Path, ...]:
        """Return the ``spark.jobserver`` API and the libraries that it needs.

        Raises:
            LibrariesUnavailable: The libraries could not be resolved from any repository, or it has others.
        """
        runner = self.runner_jar()
        libraries = resolve_libraries(self.libraries, self.java, self.spark, runner, self._shared)
        api = self._build_jar("api", _sources("api"), against=(runner, *libraries))
        return (api, *libraries)

    def ready_api_jars(self) -> tuple[Path, ...] | None:
        """Return the result of :meth:`api_jars` if it needs no compilation and no repository, else None."""
        try:
            libraries = kept_libraries(self.libraries, self.spark, self._shared)
        except LibrariesUnavailable:
            return None
        if libraries is None:
            return None
        api = self._jar("api", _sources("api"), against=(self.runner_jar(), *libraries))
        return (api, *libraries) if api.is_file() else None

    def unpack(self, jars: Sequence[Path]) -> Path:
        """Return a directory with the classes of several jars; create it if it does not exist yet.

        The name is a digest of its content, which never changes.
        """
        digest = hashlib.sha256()
        for jar in jars:
            digest.update(bytes.fromhex(jar_digest(jar)))
        directory = self._home() / f"classes-{digest.hexdigest()[:16]}"
        if not directory.is_dir():
            with writing_to_cache(self.cache_dir), _made_at_once(directory) as made:
                for jar in jars:
                    with zipfile.ZipFile(jar) as archive:
                        archive.extractall(made)
        return directory

    def prepare(self) -> None:
        """Make everything that jobs need, so that contexts can run where the cache is read-only.

        Raises:
            LibrariesUnavailable: The libraries could not be resolved. Jobs that need only Spark can run.
        """
        runner = self.runner_jar()
        self.unpack([runner])
        self.unpack([runner, *self.api_jars()])

    def java_class_path(self, *, with_spark: bool = True) -> str:
        """Return the Java class path to compile jobs with: the API, its libraries and, by default, Spark."""
        entries = [str(jar) for jar in self.api_jars()]
        if with_spark:
            entries.append(self.spark.java_class_path)
        return os.pathsep.join(entries)

    @property
    def _shared(self) -> Path:
        return self.cache_dir / "jvm"

    def _home(self) -> Path:
        return self._shared / f"spark-{self.spark.version}_{self.spark.scala}-{self.spark.digest}"

    def _build_jar(self, name: str, sources: Sequence[Path], against: Sequence[Path]) -> Path:
        jar = self._jar(name, sources, against)
        if not jar.is_file():
            self.on_build()
            with writing_to_cache(self.cache_dir), _made_at_once(jar.parent) as built:
                classes = built.with_name("classes")
                classes.mkdir()
                self._compile(sources, classes, against)
                _archive(classes, built / jar.name)
        return jar

    def _jar(self, name: str, sources: Sequence[Path], against: Sequence[Path]) -> Path:
        key = _digest(sources, [jar_digest(jar) for jar in against])
        return self._home() / f"{name}-{key}" / f"jobserver-{name}_{self.spark.scala}.jar"

    def _compile(self, sources: Sequence[Path], classes: Path, against: Sequence[Path]) -> None:
        spark = sorted(str(path) for path in self.spark.jars.glob("*.jar"))
        # One short run: the first compiler tier alone is the fastest.
        arguments = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xss8m"]
        arguments += ["-cp", self.spark.java_class_path]
        arguments += ["scala.tools.nsc.Main", "-nowarn", "-encoding", "UTF-8", "-d", str(classes)]
        arguments += ["-classpath", os.pathsep.join([*map(str, against), *spark]), *map(str, sources)]
        failed = f"cannot compile the JVM side for Spark {self.spark.version}"
        try:
            done = run_java(self.java, arguments, timeout=COMPILE_TIMEOUT)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilationFailed(message=f"{failed}: {error}") from error
        if done.returncode != 0:
            output = (done.stdout + done.stderr).strip()[-_MAX_OUTPUT:]
            raise CompilationFailed(message=f"{failed}:\n{output}")


@contextlib.contextmanager
def _made_at_once(directory: Path) -> Iterator[Path]:
    """Yield an empty directory that is moved to its place at the end, unless another process was faster."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _building_directory(directory.parent) as temporary:
        made = temporary / "made"
        made.mkdir()
        yield made
        try:
            made.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise


@contextlib.contextmanager
def _building_directory(parent: Path) -> Iterator[Path]:
    """Yield a temporary directory, and remove those of processes that were killed.

    A process locks its directory, and the system unlocks it when the process ends. The lock of ``parent``
    keeps others away while a new directory has no lock yet. Some file systems have no such locks: there,
    nothing is removed.
    """
    with contextlib.ExitStack() as held:
        with _locked(parent) as alone:
            for left in parent.glob(f"{_BUILDING}*") if alone else ():
                with contextlib.suppress(OSError), _locked(left, wait=False) as dead:
                    if dead:
                        shutil.rmtree(left)
            temporary = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=parent))
            held.enter_context(_locked(temporary))
            held.callback(shutil.rmtree, temporary, ignore_errors=True)
        yield temporary


@contextlib.contextmanager
def _locked(directory: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock a directory for the block, and yield whether this succeeded."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        locked = True
    except OSError:
        locked = False
    try:
        yield locked
    finally:
        os.close(opened)


def _sources(*directories: str) -> list[Path]:
    return [path for name in directories for path in sorted((SOURCES / name).rglob("*.scala"))]


def _digest(sources: Iterable[Path], digests: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    for other in digests:
        digest.update(other.encode() + b"\0")
    return digest.hexdigest()[:16]


def _archive(classes: Path, jar: Path) -> None:
    """Create a jar with fixed times, so that the same sources give the same bytes."""
    with zipfile.ZipFile(jar, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(classes.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(classes).as_posix(), (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
