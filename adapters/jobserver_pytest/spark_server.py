"""A job server on real Spark for tests, and the way of its callbacks to the test that is running."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
import sysconfig
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from jobserver_core import (
    Binary,
    BinaryNotFound,
    BinaryType,
    JobFailed,
    JobRequest,
    JobServer,
    JobServerError,
    Settings,
)
from jobserver_core.memory import MemoryTransport
from jobserver_core.models.callbacks import Answer
from jobserver_core.models.json_values import Json, JsonMapping
from jobserver_core.ports import Message, Transport
from jobserver_pyspark import PySparkLauncher
from jobserver_pyspark.demo import build_wheel

_KINDS = {".whl": BinaryType.WHEEL, ".egg": BinaryType.EGG, ".zip": BinaryType.EGG}
"""The types of files that a Python job can import from, by their endings."""
_MISSING_MODULE = re.compile(r"No module named '([^']+)'(?!;)")
"""Matches Python's message, unless a module with this name hides the package."""
SCHEMES = ("http", "https", "memory", "call", "log")
"""Those of all transports that are part of this distribution."""


class CallbackRelay(Transport):
    """Passes callbacks on to the sink of the present test; between tests, it accepts and drops them."""

    schemes = SCHEMES

    def __init__(self) -> None:
        self._sink: MemoryTransport | None = None

    @contextmanager
    def to(self, sink: MemoryTransport) -> Iterator[None]:
        """Pass callbacks on to this sink inside the block."""
        self._sink = sink
        try:
            yield
        finally:
            self._sink = None

    def send(self, message: Message, *, timeout: float) -> Answer:
        """Let the sink answer."""
        sink = self._sink
        return Answer(status=200) if sink is None else sink.send(message, timeout=timeout)


class SparkJobServer(JobServer):
    """A job server that runs jobs on Spark, in processes as in production, and keeps its records in memory.

    Tests share it. Use names of binaries and contexts that no other test uses, or use :meth:`run`.
    """

    context_name = "tests"
    """The warm context in which :meth:`run` runs jobs; it is created by the first one."""
    _creating = threading.Lock()

    @classmethod
    def create(cls, settings: Settings, directory: Path, callbacks: Transport) -> SparkJobServer:
        """Return a server, not started, that keeps its files in a directory."""
        return cls.in_memory(
            settings=settings,
            launcher=PySparkLauncher.from_settings(settings, directory),
            transports=[callbacks],
            data_dir=directory,
        )

    def upload_package(self, package: str, name: str | None = None) -> Binary:
        """Build a wheel of an importable top-level package or module, and upload it unless it is the newest.

        ``name`` is that of the binary; by default the name of the package.

        Raises:
            ModuleNotFoundError: There is no such package.
            ValueError: It is not a top-level package, or has no source files.
        """
        name = name or package
        with TemporaryDirectory() as directory:
            data = build_wheel(_source_of(package), Path(directory), version="0").read_bytes()
        return self._upload_unless_newest(name, BinaryType.WHEEL, data)

    def _upload_unless_newest(self, name: str, kind: BinaryType, data: bytes) -> Binary:
        try:
            newest = self.binary(name)
        except BinaryNotFound:
            return self.upload(name, kind, data)
        unchanged = newest.digest == hashlib.sha256(data).hexdigest()
        return newest if unchanged else self.upload(name, kind, data)

    def run(
        self,
        job_class: type,
        config: str | JsonMapping = "",
        *,
        packages: Iterable[str | PathLike[str]] = (),
        timeout: float = 300.0,
    ) -> Json:
        """Upload the package of a job's class, run the job in a warm context, and return its result.

        ``packages`` are what else the job imports from: names of top-level packages or modules of the
        project, of which wheels are built, and :class:`~pathlib.Path` objects of wheels, eggs and ZIP files.
        The job finds what is installed in the environment of the test without them.

        The traceback of a failed job is a note of the exception, and so is advice if the job has not found a
        module; before Python 3.11, they are in its message.

        Raises:
            JobFailed: The job ended as ERROR.
            ResultTimeout: It did not end within ``timeout`` seconds.
            ModuleNotFoundError: There is no package with a name of ``packages``.
            ValueError: The class is inside a function, so no server could find it; or one of ``packages`` is
                not a top-level package with source files, nor a wheel, egg or ZIP file.
        """
        __tracebackhide__ = True
        if "<locals>" in job_class.__qualname__:
            raise ValueError(f"{job_class.__qualname__} is inside a function: move it to the top of a module")
        if isinstance(packages, str | PathLike):
            raise ValueError(f"packages must be a list, such as [{packages!r}]")
        binary = self.upload_package(job_class.__module__.partition(".")[0])
        further = [self._uploaded(package).name for package in packages]
        with self._creating:
            if self.context_name not in [context.name for context in self.contexts()]:
                self.create_context(self.context_name).result(timeout)
        request = JobRequest(
            class_name=f"{job_class.__module__}.{job_class.__qualname__}",
            class_path=binary.name,
            context=self.context_name,
            packages=further,
            config=config,
        )
        try:
            return self.submit(request).result(timeout)
        except JobServerError as error:
            for note in _notes_about(error, {binary.name, *further}):
                if sys.version_info >= (3, 11):
                    error.add_note(note)
                else:
                    error.args = (f"{error}\n{note}",)
            raise error.with_traceback(None)  # noqa: B904 - it is the same error, with the test's frames alone

    def _uploaded(self, package: str | PathLike[str]) -> Binary:
        """Upload one of the packages of a job."""
        if isinstance(package, str):
            return self.upload_package(package)
        path = Path(package)
        kind = _KINDS.get(path.suffix.lower())
        if kind is None:
            raise ValueError(
                f"{path} is not a wheel, an egg or a ZIP file, whose names end in .whl, .egg or .zip"
            )
        return self._upload_unless_newest(f"file-{path.name}", kind, path.read_bytes())


def _notes_about(error: JobServerError, packages: Collection[str]) -> Iterator[str]:
    """Yield the traceback of a job that failed, and how to give it a module beyond its packages."""
    if isinstance(error, JobFailed) and error.error.stack:
        yield f"The traceback of the job:\n{error.error.stack.rstrip()}"
    if missing := _MISSING_MODULE.search(str(error)):
        module = missing[1].partition(".")[0]
        try:
            spec = importlib.util.find_spec(module)
        except ValueError:  # it has no spec, unlike all that is imported
            yield f"{module} was made by this test and has no file, so no job can import it"
            return
        if spec is None:
            lacking = f"{module} is not installed for this test, nor in a package of the job"
            yield f"{lacking}: install it, or pass its wheel, as in run(…, packages=[Path('{module}.whl')])"
        elif module not in packages and not _is_installed(spec.origin or ""):
            lacking = f"{module}, which this test can import, is in no package of the job"
            yield f"{lacking}: pass it, as in run(…, packages=['{module}'])"


def _is_installed(file: str) -> bool:
    """Whether every process of this interpreter finds a module: only a part of it can be missing."""
    directories = map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
    return any(file.startswith(f"{directory}{os.sep}") for directory in directories)


def _source_of(package: str) -> Path:
    """Return the directory of a package, or the file of a module."""
    if "." in package:
        raise ValueError(f"{package} is inside another package: upload {package.partition('.')[0]}")
    file = importlib.import_module(package).__file__
    if file is None or not file.endswith(".py"):
        raise ValueError(f"{package} has no source files: a package needs an __init__.py")
    path = Path(file)
    return path.parent if path.name == "__init__.py" else path
