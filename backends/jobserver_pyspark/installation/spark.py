"""The PySpark of a context's interpreter: where it is, its version, and views of it."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from jobserver_core.errors import InvalidSetting, LaunchError
from jobserver_pyspark.installation.environment import allowed_environment

_ASK = """
import importlib.util, json, sys
spec = importlib.util.find_spec("pyspark")
version = {}
if spec and spec.origin:
    exec(open(spec.origin.replace("__init__.py", "version.py"), encoding="utf-8").read(), version)
print(json.dumps([spec.origin if spec else None, version.get("__version__"), sys.version_info[:2]]))
"""


@attrs.frozen(kw_only=True)
class Installation:
    """An interpreter with PySpark: ``package`` is the directory of the package, which has Spark's jars.

    An interpreter that has none can use that of the server: then ``borrowed`` is true. ``python_version`` is
    the minor version of the interpreter.
    """

    python: str
    package: Path
    version: str
    borrowed: bool = False
    python_version: tuple[int, int] = (sys.version_info[0], sys.version_info[1])

    @property
    def release(self) -> tuple[int, ...]:
        """The first two numbers of Spark's version."""
        return tuple(int(number) for number in self.version.split(".")[:2])

    @property
    def jars(self) -> list[Path]:
        """Spark's own Java class path, in a fixed order: the logging interface first, as in Spark."""
        found = sorted((self.package / "jars").glob("*.jar"))
        return sorted(found, key=lambda jar: not jar.name.startswith("slf4j-api"))


_COMPILED_AGAINST = (
    *("scala-compiler-", "scala-library-", "scala-reflect-", "spark-catalyst_", "spark-common-utils_"),
    *("spark-core_", "spark-hive_", "spark-sql-api_", "spark-sql_", "spark-streaming_"),
)


class InterpreterFailed(LaunchError):
    """A Python interpreter does not run; ``forbidden`` says whether this user may not execute it."""

    message: str
    forbidden: bool = False


@attrs.frozen(kw_only=True)
class SparkInstall:
    """An installed Spark: where its jars are, its version, and the Scala version that it was built with."""

    jars: Path
    version: str
    scala: str

    @classmethod
    def find(cls) -> SparkInstall:
        """Return the Spark inside this interpreter's PySpark."""
        return cls.of(find_installation(sys.executable).package / "jars")

    @classmethod
    def of(cls, jars: Path) -> SparkInstall:
        """Return the Spark whose jars are in this directory."""
        for jar in jars.glob("spark-core_*.jar"):
            match = re.fullmatch(r"spark-core_([\d.]+)-(.+)\.jar", jar.name)
            if match:
                return cls(jars=jars, scala=match[1], version=match[2])
        raise LaunchError(message=f"no spark-core jar in {jars}: is this a Spark installation?")

    @property
    def digest(self) -> str:
        """A short digest of the names and sizes of the jars that the JVM side is compiled with and against.

        It distinguishes a patched Spark from others of its version. Other jars do not count: a site may add
        some, such as JDBC drivers or connectors, to an image whose cache is complete and read-only.
        """
        jars = sorted(jar for jar in self.jars.iterdir() if jar.name.startswith(_COMPILED_AGAINST))
        stamps = "\n".join(f"{jar.name}:{jar.stat().st_size}" for jar in jars)
        return hashlib.sha256(stamps.encode()).hexdigest()[:8]

    @property
    def major(self) -> int:
        """The major version: 3 or 4."""
        return int(self.version.split(".")[0])

    @property
    def java_class_path(self) -> str:
        """All of Spark's jars, as a Java class path."""
        return str(self.jars / "*")


@functools.lru_cache(maxsize=32)
def find_installation(python: str, variables: tuple[str, ...] = ()) -> Installation:
    """Return the PySpark of an interpreter; one without it gets that of the server, which is pure Python.

    The interpreter is the user's code: like a context, it sees only the allowed variables of the server's
    environment, and those named ``variables``. The server's own interpreter sees all: a ``PYTHONPATH`` may
    lead to PySpark.

    Raises:
        LaunchError: A requirement is missing.
    """
    failed = f"the Python interpreter {python!r} does not run"
    try:
        done = subprocess.run(  # noqa: S603 - the configuration of contexts chooses the interpreter
            [python, "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd="/",
            env=None if python == sys.executable else allowed_environment(variables),
        )
    except PermissionError:
        message = f"this user may not execute the Python interpreter {python!r}"
        raise InterpreterFailed(message=message, forbidden=True) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InterpreterFailed(message=f"{failed}: {getattr(error, 'strerror', None) or error}") from None
    if done.returncode != 0:
        raise InterpreterFailed(message=f"{failed}: {done.stderr[-1000:]}")
    try:
        origin, version, python_version = json.loads(done.stdout)
    except ValueError:
        raise InterpreterFailed(message=f"{python!r} does not answer as a Python interpreter does") from None
    if tuple(python_version) < (3, 10):
        found = ".".join(map(str, python_version))
        raise LaunchError(message=f"{python!r} is Python {found}; contexts need 3.10 or newer")
    running = (int(python_version[0]), int(python_version[1]))
    if origin is None or version is None:
        if python == sys.executable:
            advice = "pip install 'jobserver-core[pyspark]'"
            raise LaunchError(message=f"{python!r} has no PySpark: install it there with {advice}")
        servers = find_installation(sys.executable, variables)
        return attrs.evolve(servers, python=python, borrowed=True, python_version=running)
    package = Path(origin).parent
    if not (package / "jars").is_dir():
        raise LaunchError(message=f"the PySpark in {package} has no jars (pyspark-client?): install pyspark")
    return Installation(python=python, package=package, version=version, python_version=running)


def spark_home_view(installation: Installation, cache: Path, *, python: bool = False) -> Path:
    """Return a directory to use as ``SPARK_HOME``: PySpark's, with ``python`` only if it is needed.

    YARN needs it: Spark sends the ZIP files in ``python/lib`` to the executors. Elsewhere, Python workers
    would import from them. They have no byte code, so that takes half a second longer than importing the
    interpreter's own package.
    """
    names = {"jars", "bin", "sbin", *(["python"] if python else [])}
    return _view(cache, [entry for entry in sorted(installation.package.iterdir()) if entry.name in names])


def default_cache_dir() -> Path:
    """Return the user's cache directory for job servers, as the XDG base directory specification says."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    directory = Path(root if os.path.isabs(root) else os.path.expanduser("~/.cache"), "jobserver")
    if not directory.is_absolute():
        message = "must be set, or XDG_CACHE_HOME, because there is no home directory"
        raise InvalidSetting(key="jobserver.launcher.options.cache-dir", message=message)
    return directory


@contextmanager
def writing_to_cache(cache: Path) -> Iterator[None]:
    """Name the cache directory, and how to choose another, in errors of the file system about what is in it.

    Raises:
        LaunchError: This user cannot write there.
    """
    try:
        yield
    except OSError as error:
        place = Path(str(error.filename))
        if cache not in (place, *place.parents) and place not in cache.parents:
            raise
        raise LaunchError(
            message=f"cannot write to the cache directory {cache}: {error.strerror}; set XDG_CACHE_HOME, or "
            "jobserver.launcher.options.cache-dir, to a directory that this user can write to"
        ) from error


def python_view(packages: Iterable[str], cache: Path) -> Path:
    """Return a directory from which exactly these packages of this interpreter can be imported."""
    return _view(cache, [_location(name) for name in packages])


def _location(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise LaunchError(message=f"the package {package} is not installed in the job server's environment")
    path = Path(spec.origin)
    return path.parent if path.name == "__init__.py" else path


def _view(cache: Path, entries: list[Path]) -> Path:
    """Create a directory of symbolic links, named after their targets. Atomic; it never changes."""
    name = hashlib.sha256("\n".join(map(str, entries)).encode()).hexdigest()[:16]
    view = cache / "views" / name
    if not view.is_dir():
        with writing_to_cache(cache):
            _link(view, entries)
    return view


def _link(view: Path, entries: list[Path]) -> None:
    view.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=view.parent, prefix=f".{view.name}."))
    for entry in entries:
        (temporary / entry.name).symlink_to(entry)
    try:
        temporary.rename(view)
    except OSError:  # another thread or process was first
        for link in temporary.iterdir():
            link.unlink()
        temporary.rmdir()
