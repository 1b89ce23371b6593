"""Runs JVM jobs in a context, through the gateway of its JVM."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import attrs

from jobserver_core.errors import LaunchError
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_pyspark.installation.compiler import JvmToolchain
from jobserver_pyspark.installation.libraries import LibrariesUnavailable

__all__ = [
    "JvmJar",
    "JvmJobRequest",
    "JvmJobs",
    "JvmOutcome",
    "JvmStatus",
    "context_settings",
    "isolation_for",
]

KINDS = ("any", "spark", "session", "sql", "hive", "streaming")
RUNNER_CLASS = "org.apache.spark.sql.jobserver.JobRunner"


def context_settings(kind: str) -> dict[str, str]:
    """Spark settings that a context of this kind wants for JVM jobs; they change nothing for Python jobs."""
    settings = {
        "spark.streaming.stopSparkContextByDefault": "false"
    }  # a job that stops its stream means that alone
    if kind != "streaming":
        settings["spark.sql.artifact.isolation.enabled"] = "true"
    return settings


def isolation_for(kind: str, wanted: str | None = None) -> str:
    """How class paths are kept apart in a context of this kind: ``session`` or ``shared``.

    ``wanted`` is what the context's settings ask for, if they do. The batches of a streaming context run
    on Spark's own threads, which carry no session: its class paths are always shared.
    """
    if wanted not in {None, "session", "shared"}:
        raise LaunchError(message=f"JVM isolation must be session or shared, not {wanted!r}")
    return "shared" if kind == "streaming" else wanted or "session"


@attrs.frozen(kw_only=True)
class JvmJar:
    """A jar on the driver's machine. ``sha256`` is the hexadecimal digest of its content, its identity."""

    path: Path
    sha256: str = attrs.field(validator=attrs.validators.matches_re(r"[0-9a-f]{64}"))


def _as_tuple(jars: Iterable[JvmJar]) -> tuple[JvmJar, ...]:
    return tuple(jars)


@attrs.frozen(kw_only=True)
class JvmJobRequest:
    """A JVM job to run.

    ``config`` is the job's configuration, a JSON object as text, whose numbers the job can read as they were
    written; ``context_config`` the context's settings likewise (``streaming.batch_interval`` in milliseconds
    and ``streaming.stopGracefully`` are read from it). ``kind`` is what the context's factory makes:
    ``spark``, ``session``, ``sql``, ``hive`` or ``streaming``, or ``any`` where none was named.
    ``result_path`` is written when the job finished; ``log_path`` is appended to.
    ``max_result_bytes`` of 0 means no limit. ``data_dir`` holds the files that ``getDataFile`` hands out.
    """

    job_id: str
    main_class: str
    jars: tuple[JvmJar, ...] = attrs.field(converter=_as_tuple)
    kind: str = attrs.field(validator=attrs.validators.in_(KINDS))
    result_path: Path
    log_path: Path
    config: str = "{}"
    context_config: str = "{}"
    max_result_bytes: int = 0
    max_log_bytes: int = 64 * 1024 * 1024
    data_dir: Path | None = None

    def to_json(self) -> str:
        """The request as the JVM reads it."""
        return json.dumps(
            {
                "jobId": self.job_id,
                "mainClass": self.main_class,
                "jars": _jars(self.jars),
                "kind": self.kind,
                "config": self.config,
                "contextConfig": self.context_config,
                "resultPath": str(self.result_path),
                "logPath": str(self.log_path),
                "maxResultBytes": self.max_result_bytes,
                "maxLogBytes": self.max_log_bytes,
                "dataDir": None if self.data_dir is None else str(self.data_dir),
            }
        )


class JvmStatus(str, Enum):
    """How a JVM job ended."""

    FINISHED = "finished"
    FAILED = "failed"
    KILLED = "killed"


@attrs.frozen(kw_only=True)
class JvmOutcome:
    """How a JVM job ended.

    ``finished``: ``result`` is ``json`` (one JSON value) or ``stream`` (bytes of a streamed result), in the
    request's ``result_path``, ``size`` bytes of it. ``failed``: ``failure`` and ``error`` say why; what may
    lie in ``result_path`` then is no result.
    """

    status: JvmStatus
    failure: FailureKind | None = None
    error: ErrorInfo | None = None
    result: str | None = None
    size: int = 0

    @classmethod
    def failed(cls, failure: FailureKind, error: ErrorInfo) -> JvmOutcome:
        """A job that ended ERROR."""
        return cls(status=JvmStatus.FAILED, failure=failure, error=error)


@attrs.define
class JvmJobs:
    """The JVM jobs of one context.

    ``session`` is the context's own PySpark ``SparkSession``. ``job_classes`` is a directory that the JVM has
    had on its class path since it started, before ``context_jars``; it is empty until the first job, and then
    holds the runner's classes and the API's. ``isolation`` as :func:`isolation_for` says. ``max_sessions``
    class paths are kept ready for their next job. Thread-safe.

    Errors of the job are outcomes. :class:`~jobserver_core.errors.LaunchError` is raised when the JVM side
    cannot be compiled; py4j's own errors when the JVM is gone.
    """

    session: Any
    toolchain: JvmToolchain
    job_classes: Path
    context_jars: tuple[Path, ...] = attrs.field(default=(), kw_only=True)
    isolation: str = attrs.field(default="session", kw_only=True)
    max_sessions: int = attrs.field(default=16, kw_only=True)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _runner: Any = attrs.field(default=None, init=False)
    _api_loaded: bool = attrs.field(default=False, init=False)
    _cancelled: set[str] = attrs.field(factory=set, init=False)

    def run(self, request: JvmJobRequest, on_running: Callable[[], None] | None = None) -> JvmOutcome:
        """Runs a job to its end. Blocks; ``on_running`` is called when its validation has passed."""
        try:
            answer = self._run(request, on_running)
        except LibrariesUnavailable as error:
            return JvmOutcome.failed(FailureKind.LOADING, _as_error_info(error))
        finally:
            self._cancelled.discard(request.job_id)
        return _outcome(answer)

    def cancel(self, job_id: str, wait: float, *, drain: float = 20.0) -> bool:
        """Kills a job; False when it still runs after ``wait`` seconds. A job that is not known is over.

        A stream that stops gracefully has ``drain`` seconds before that; none when it is killed once more.
        """
        self._cancelled.add(job_id)
        runner = self._runner
        if runner is None:
            return True
        return bool(runner.cancel(job_id, int(wait * 1000), int(drain * 1000)))

    def is_running(self, job_id: str) -> bool:
        """Whether a job has not ended yet."""
        return self._runner is not None and bool(self._runner.isRunning(job_id))

    def running(self) -> list[str]:
        """The ids of the jobs that run."""
        if self._runner is None:
            return []
        ids: list[str] = json.loads(self._runner.running())
        return ids

    def close(self, wait: float, *, drain: float = 0.0) -> None:
        """Cancels all jobs, each for at most ``wait`` seconds; to be called before the context is stopped.

        Streams that stop gracefully have ``drain`` seconds before that.
        """
        if self._runner is not None:
            self._runner.close(int(wait * 1000), int(drain * 1000))

    def _run(self, request: JvmJobRequest, on_running: Callable[[], None] | None) -> dict[str, Any]:
        runner = self._prepared(request)
        if request.job_id in self._cancelled:
            return {"status": "killed"}
        runner.start(request.to_json())
        if request.job_id in self._cancelled:  # killed between the two: the JVM did not know it yet
            runner.cancel(request.job_id, 0, 0)
        answer: dict[str, Any] = json.loads(runner.awaitValidated(request.job_id))
        if answer["status"] == "running" and on_running is not None:
            on_running()
        ended: dict[str, Any] = json.loads(runner.awaitEnded(request.job_id))
        return ended

    def _prepared(self, request: JvmJobRequest) -> Any:
        """Return the runner, with the job API if the job may need it."""
        with self._lock:
            if self._runner is None:
                self._runner = self._make_runner()
            if not self._api_loaded:
                self._load_api(request)
            return self._runner

    def _make_runner(self) -> Any:
        jar = self.toolchain.runner_jar()
        self._publish([jar])
        gateway = self.session.sparkContext._gateway
        arguments = gateway.new_array(gateway.jvm.java.lang.Object, 3)
        arguments[0] = self.session._jsparkSession
        arguments[1] = self.isolation
        arguments[2] = self.max_sessions
        loader = gateway.jvm.java.lang.ClassLoader.getSystemClassLoader()
        runner = loader.loadClass(RUNNER_CLASS).getConstructors()[0].newInstance(arguments)
        runner.addLibraries(json.dumps(_jars([_jar(jar)])))
        return runner

    def _load_api(self, request: JvmJobRequest) -> None:
        """Load the job API before any class that refers to it, or any copy of it, can be loaded.

        Where the API is compiled already, every context loads it at once, so that what a jar finds does not
        depend on what ran before. Elsewhere only jobs that need it wait for it, and are refused when there is
        no repository to get its libraries from.
        """
        jars = self.toolchain.ready_api_jars()
        if jars is None:
            code = (*self.context_jars, *(jar.path for jar in request.jars))
            if not any(map(refers_to_api, code)):
                return
            jars = self.toolchain.api_jars()
        self._publish([self.toolchain.runner_jar(), *jars])
        self._runner.addJobApi(json.dumps(_jars(map(_jar, jars))))
        self._api_loaded = True

    def _publish(self, jars: list[Path]) -> None:
        """Put the classes of these jars on the JVM's class path.

        The JVM looks into a directory of its class path whenever it looks for a class, so the content may
        come late. Every loader of jobs is below, and the context's own jars come after it: everybody sees
        these classes, whatever copies of them a jar may hold.
        """
        new = self.job_classes.with_name(f"{self.job_classes.name}.new")
        new.symlink_to(self.toolchain.unpacked(jars))
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
        return False  # loading the job's class says what is wrong with it


def _jar(path: Path) -> JvmJar:
    return JvmJar(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def _jars(jars: Iterable[JvmJar]) -> list[dict[str, str]]:
    return [{"path": str(jar.path), "sha256": jar.sha256} for jar in jars]


def _outcome(answer: Mapping[str, Any]) -> JvmOutcome:
    if answer["status"] == "failed":
        error = answer["error"]
        info = ErrorInfo(message=error["message"], error_class=error["errorClass"], stack=error["stack"])
        return JvmOutcome.failed(FailureKind(answer["failure"]), info)
    return JvmOutcome(
        status=JvmStatus(answer["status"]), result=answer.get("result"), size=int(answer.get("bytes", 0))
    )


def _as_error_info(error: LaunchError) -> ErrorInfo:
    kind = type(error)
    return ErrorInfo(message=str(error), error_class=f"{kind.__module__}.{kind.__qualname__}")
