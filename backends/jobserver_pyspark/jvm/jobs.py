"""Runs JVM jobs in a context, through py4j's gateway to its JVM."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from jobserver_core.errors import LaunchError
from jobserver_pyspark.installation.compiler import JvmToolchain
from jobserver_pyspark.installation.libraries import LibrariesUnavailable, jar_digest
from jobserver_pyspark.java_objects import JavaGateway, JavaObject
from jobserver_pyspark.protocol.converter import ProtocolMessage, decode, encode
from jobserver_pyspark.protocol.failures import qualified_name
from jobserver_pyspark.protocol.jvm_messages import (
    JvmJar,
    JvmJars,
    JvmJobRequest,
    JvmJobState,
    JvmToHost,
)
from jobserver_pyspark.protocol.messages import ContextType, ErrorDetails

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

RUNNER_CLASS = "org.apache.spark.sql.jobserver.JobRunner"
_CALL_THREADS_CLASS = "org.apache.spark.sql.jobserver.CallThreads"
_MAX_SESSIONS = 16
"""How many class paths the JVM keeps ready for their next job."""


def context_settings(context_type: ContextType) -> dict[str, str]:
    """Return the Spark settings that a context needs for JVM jobs; they change nothing for Python jobs."""
    # A job that stops its stream must not stop the context.
    settings = {"spark.streaming.stopSparkContextByDefault": "false"}
    if context_type != "streaming":
        settings["spark.sql.artifact.isolation.enabled"] = "true"
    return settings


def isolation_for(context_type: ContextType, wanted: str | None = None) -> str:
    """Return how class paths are isolated in a context: ``session`` or ``shared``.

    ``wanted`` is the value in the context's settings, if any. The batches of a streaming context run
    on Spark's own threads, which carry no session: its class paths are always shared.
    """
    if wanted not in {None, "session", "shared"}:
        raise LaunchError(message=f"JVM isolation must be session or shared, not {wanted!r}")
    return "shared" if context_type == "streaming" else wanted or "session"


@attrs.frozen
class JvmSession:
    """A Spark session for JVM jobs: py4j's gateway to its JVM, and the session's Java object."""

    gateway: JavaGateway
    java_session: JavaObject

    @classmethod
    def of(cls, session: SparkSession) -> JvmSession:
        """Return the session of a PySpark ``SparkSession``."""
        gateway: JavaGateway | None = session.sparkContext._gateway
        assert gateway is not None  # the context is attached
        return cls(gateway, session._jsparkSession)


@attrs.frozen
class CallThreads:
    """The threads that a Python job's calls have started in the JVM; see ``CallThreads.scala``."""

    _threads: JavaObject

    def end(self, others: Iterable[str]) -> str | None:
        """Try once to end them all; return what is left, as a clause for a warning, or None.

        ``others`` are the tags of the processes of other running jobs.
        """
        return " ".join(str(self._threads.end("\n".join(others))).split()) or None


@attrs.define
class JvmJobRunner:
    """The JVM jobs of one context.

    ``session`` is the context's own. ``job_classes`` is a directory that the JVM has had on its Java class
    path since it started, before ``context_jars``; it is empty until the first job, and then has the runner's
    classes and the API's. ``isolation`` is as :func:`isolation_for` returns it. Thread-safe.

    Errors of the job are in its :class:`JvmJobState`. :class:`~jobserver_core.errors.LaunchError` is raised
    when the JVM side cannot be compiled, and errors of py4j when the JVM has ended.
    """

    session: JvmSession
    toolchain: JvmToolchain
    job_classes: Path
    context_jars: tuple[Path, ...] = attrs.field(default=(), kw_only=True)
    isolation: str = attrs.field(default="session", kw_only=True)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _runner: JavaObject | None = attrs.field(default=None, init=False)
    _api_loaded: bool = attrs.field(default=False, init=False)
    _cancelled: set[str] = attrs.field(factory=set, init=False)
    _without_api: set[tuple[JvmJar, ...]] = attrs.field(factory=set, init=False)

    def run(self, request: JvmJobRequest, on_running: Callable[[], None] | None = None) -> JvmJobState:
        """Run a job to its end. Blocks; ``on_running`` is called when its validation has passed.

        It is not called for a job that ends at once; then ``validated`` of its state says so.
        """
        try:
            return self._run(request, on_running)
        except LibrariesUnavailable as error:
            details = ErrorDetails(message=str(error), error_class=qualified_name(type(error)))
            return JvmJobState(status="failed", failure="loading", error=details)
        finally:
            self._cancelled.discard(request.job_id)

    def cancel(self, job_id: str, wait: float, *, drain: float = 20.0) -> bool:
        """Kill a job; return False if it still runs after ``wait`` seconds. An unknown job has ended.

        A stream that stops gracefully has ``drain`` seconds before that, or none if it is killed again.
        """
        self._cancelled.add(job_id)
        runner = self._runner
        if runner is None:
            return True
        return bool(runner.cancel(job_id, int(wait * 1000), int(drain * 1000)))

    def close(self, wait: float, *, drain: float = 0.0) -> None:
        """Kill all jobs, waiting at most ``wait`` seconds for each; call it before the context is stopped.

        Streams that stop gracefully have ``drain`` seconds before that.
        """
        if self._runner is not None:
            self._runner.close(int(wait * 1000), int(drain * 1000))

    def call_threads(self, tag: str, *, newest: int, jars: Sequence[Path], loader: JavaObject) -> CallThreads:
        """Return the threads that calls of a Python job have started, to end them.

        ``tag`` is that of its process. ``newest`` is the ID of the newest thread of the JVM that began before
        the job. Only threads that run code of ``jars`` count, which calls find in ``loader``.
        """
        with self._lock:
            if not self.job_classes.is_symlink():
                self._publish([self.toolchain.runner_jar()])
        spark = self.session.java_session.sparkContext()
        paths = "\n".join(map(str, jars))
        return CallThreads(self._new(_CALL_THREADS_CLASS, spark, tag, newest, paths, loader))

    def _run(self, request: JvmJobRequest, on_running: Callable[[], None] | None) -> JvmJobState:
        runner = self._prepare_runner(request)
        if request.job_id in self._cancelled:
            return JvmJobState(status="killed")
        state = _read(runner.start(_written(request)))
        if state.status != "running":
            return state
        if on_running is not None:
            on_running()
        return _read(runner.awaitEnded(request.job_id))

    def _prepare_runner(self, request: JvmJobRequest) -> JavaObject:
        """Return the runner, with the job API if the job may need it."""
        with self._lock:
            if self._runner is None:
                self._runner = self._make_runner()
            if not self._api_loaded and request.jars not in self._without_api:
                self._load_api(self._runner, request)
            return self._runner

    def _make_runner(self) -> JavaObject:
        jar = self.toolchain.runner_jar()
        self._publish([jar])
        runner = self._new(RUNNER_CLASS, self.session.java_session, self.isolation, _MAX_SESSIONS)
        runner.addLibraries(_written(JvmJars(jars=(_jar(jar),))))
        return runner

    def _new(self, class_name: str, *arguments: object) -> JavaObject:
        """Create an object of a published class, which has one constructor."""
        gateway = self.session.gateway
        array = gateway.new_array(gateway.jvm.java.lang.Object, len(arguments))
        for index, argument in enumerate(arguments):
            array[index] = argument
        loader = gateway.jvm.java.lang.ClassLoader.getSystemClassLoader()
        made: JavaObject = loader.loadClass(class_name).getConstructors()[0].newInstance(array)
        return made

    def _load_api(self, runner: JavaObject, request: JvmJobRequest) -> None:
        """Load the job API before any class that refers to it, or any copy of it, can be loaded.

        If the API is compiled already, every context loads it at once, so that the classes that a jar
        finds do not depend on earlier jobs. Otherwise only jobs that need it wait for it, and they fail if
        its libraries cannot be resolved.
        """
        jars = self.toolchain.ready_api_jars()
        if jars is None:
            code = (*self.context_jars, *(jar.path for jar in request.jars))
            if not any(map(refers_to_api, code)):
                self._without_api.add(request.jars)
                return
            jars = self.toolchain.api_jars()
        self._publish([self.toolchain.runner_jar(), *jars])
        runner.addJobApi(_written(JvmJars(jars=tuple(map(_jar, jars)))))
        self._api_loaded = True

    def _publish(self, jars: list[Path]) -> None:
        """Put the classes of these jars on the Java class path of the JVM.

        The JVM searches the directories there each time it loads a class, so the content can be added later.
        Every loader of jobs is below, and the context's own jars come after it. So all code uses these
        classes, even if a jar has copies of them.
        """
        new = self.job_classes.with_name(f"{self.job_classes.name}.new")
        new.symlink_to(self.toolchain.unpack(jars))
        if not self.job_classes.is_symlink():
            self.job_classes.rmdir()
        new.replace(self.job_classes)


_API_NAMES = (b"spark/jobserver/", b"org/scalactic/", b"com/typesafe/config/")


def refers_to_api(jar: Path) -> bool:
    """Return whether any class in a jar names the job API, or one of the libraries in its signatures."""
    try:
        with zipfile.ZipFile(jar) as archive:
            classes = (archive.read(name) for name in archive.namelist() if name.endswith(".class"))
            return any(part in data for data in classes for part in _API_NAMES)
    except (OSError, zipfile.BadZipFile):
        return False  # loading the job's class reports the error


def _jar(path: Path) -> JvmJar:
    return JvmJar(path=path, sha256=jar_digest(path))


def _written(message: ProtocolMessage) -> str:
    header, _ = encode(message)
    return header.decode("utf-8", "surrogatepass")


def _read(text: str) -> JvmJobState:
    reply = decode(JvmToHost, text.encode("utf-8", "surrogatepass"))
    assert isinstance(reply, JvmJobState)  # the only kind of reply
    return reply
