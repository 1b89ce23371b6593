"""A job server on real Spark for tests, and the way of its callbacks to the test that is running."""

from __future__ import annotations

import hashlib
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
        try:
            newest = self.binary(name)
        except BinaryNotFound:
            return self.upload(name, BinaryType.WHEEL, data)
        unchanged = newest.digest == hashlib.sha256(data).hexdigest()
        return newest if unchanged else self.upload(name, BinaryType.WHEEL, data)

    def run(self, job_class: type, config: str | JsonMapping = "", *, timeout: float = 300.0) -> Json:
        """Upload the package of a job's class, run the job in a warm context, and return its result.

        The traceback of a failed job is a note of the exception; before Python 3.11, it is in its message.

        Raises:
            JobFailed: The job ended as ERROR.
            ResultTimeout: It did not end within ``timeout`` seconds.
            ValueError: The class is inside a function, so no server could find it.
        """
        __tracebackhide__ = True
        if "<locals>" in job_class.__qualname__:
            raise ValueError(f"{job_class.__qualname__} is inside a function: move it to the top of a module")
        binary = self.upload_package(job_class.__module__.partition(".")[0])
        with self._creating:
            if self.context_name not in [context.name for context in self.contexts()]:
                self.create_context(self.context_name).result(timeout)
        request = JobRequest(
            class_name=f"{job_class.__module__}.{job_class.__qualname__}",
            class_path=binary.name,
            context=self.context_name,
            config=config,
        )
        try:
            return self.submit(request).result(timeout)
        except JobServerError as error:
            if isinstance(error, JobFailed) and error.error.stack:
                note = f"The traceback of the job:\n{error.error.stack.rstrip()}"
                if sys.version_info >= (3, 11):
                    error.add_note(note)
                else:
                    error.args = (f"{error}\n{note}",)
            raise error.with_traceback(None)  # noqa: B904 - it is the same error, with the test's frames alone


def _source_of(package: str) -> Path:
    """Return the directory of a package, or the file of a module."""
    if "." in package:
        raise ValueError(f"{package} is inside another package: upload {package.partition('.')[0]}")
    file = importlib.import_module(package).__file__
    if file is None or not file.endswith(".py"):
        raise ValueError(f"{package} has no source files: a package needs an __init__.py")
    path = Path(file)
    return path.parent if path.name == "__init__.py" else path
