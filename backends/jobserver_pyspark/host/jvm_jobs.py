"""JVM jobs: run in the context's own JVM, through :mod:`jobserver_pyspark.jvm`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from jobserver_pyspark import processes
from jobserver_pyspark.host.driver import Driver
from jobserver_pyspark.host.job_jars import JobJars
from jobserver_pyspark.host.orphans import end_orphans
from jobserver_pyspark.host.progress import SparkTag
from jobserver_pyspark.host.reports import Telling
from jobserver_pyspark.protocol.failures import bounded_fields, describe
from jobserver_pyspark.protocol.frames import CHUNK_SIZE

if TYPE_CHECKING:
    from jobserver_pyspark.jvm import JvmJobs

__all__ = ["HostedJvmJobs"]

_CANCEL_WAIT = 30.0
_MAX_THREADS = 10_000
_STOP_WAIT = 5.0
_DRAIN_WAIT = 3600.0
"""Seconds that streams of a context that is stopped have to finish: the server ends it before, if need be."""


class _Job:
    """One running job, and why its result was refused."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.id: str = request["job_id"]
        self.request = request
        self.running = False
        self.refused: str | None = None
        self.begun = processes.boot_ticks()


class HostedJvmJobs:
    """Runs JVM jobs, each watched by a thread of its own, and tells the server of them.

    Nothing of :mod:`jobserver_pyspark.jvm` is imported before the first such job of the context.
    """

    def __init__(self, order: dict[str, Any], driver: Driver, telling: Telling, jars: JobJars) -> None:
        self._order = order
        self._driver = driver
        self._telling = telling
        self._jars = jars
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        # A thread that ran a job has a connection to the JVM, which the next job need not wait for.
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="JVM job")
        self._runner: JvmJobs | None = None
        self._folder = Path(order["work_dir"], "jvm-jobs")

    def submit(self, request: dict[str, Any], payload: bytes) -> None:
        """Run a job; a thread is its own until it has ended."""
        job = _Job(request)
        with self._lock:
            self._jobs[job.id] = job
        self._threads.submit(self._run, job, payload)

    def kill(self, job_id: str) -> None:
        """Cancel a job. Code that never looks up cannot be ended alone: then nothing follows but a note."""
        if job_id in self._jobs and not self._loaded().cancel(job_id, wait=_CANCEL_WAIT):
            self._telling.note(f"job {job_id} does not heed its cancellation: only the context's end ends it")

    def refuse(self, job_id: str, message: str) -> None:
        """Send no more of a result that the server does not take."""
        job = self._jobs.get(job_id)
        if job is not None:
            job.refused = message

    def close(self) -> None:
        """Cancel every job, before the application is stopped; graceful streams finish what they have."""
        if self._runner is not None:
            self._runner.close(wait=_STOP_WAIT, drain=_DRAIN_WAIT)

    def running(self) -> dict[str, SparkTag]:
        """Return the jobs whose code runs, and the tags that their Spark jobs carry."""
        return {job.id: SparkTag(job.id) for job in list(self._jobs.values()) if job.running}

    @property
    def busy(self) -> bool:
        """Whether any job runs."""
        return bool(self._jobs)

    def _run(self, job: _Job, payload: bytes) -> None:
        try:
            outcome = self._perform(job, payload.decode())
        except Exception as error:  # noqa: BLE001 - whatever it is, the job has ended
            outcome = _failed("loading", describe(error))
        if outcome.get("killed"):
            others = [other.begun for other in list(self._jobs.values()) if other is not job]
            end_orphans(job.begun, others, of_tasks=False)
        with self._lock:
            del self._jobs[job.id]
        self._telling.ended(job.id, outcome)

    def _perform(self, job: _Job, config: str) -> dict[str, Any]:
        from jobserver_pyspark.jvm import JvmJobRequest, JvmStatus  # noqa: PLC0415 - few contexts need it

        self._jars.note(job.request["jars"])
        self._folder.mkdir(exist_ok=True)
        result = self._folder / f"{job.id}.result"

        def on_running() -> None:
            job.running = True
            self._telling.running(job.id)

        request = JvmJobRequest(
            job_id=job.id,
            main_class=job.request["class_name"],
            jars=[self._jar(jar) for jar in job.request["jars"]],
            kind=_kind(self._order["flavour"]),
            result_path=result,
            log_path=Path(job.request["log_path"]),
            config=config,
            context_config=self._order["settings"],
            max_result_bytes=self._order["result_limit"],
            max_log_bytes=self._order["log_limit"],
            data_dir=Path(self._order["data_dir"]),
        )
        try:
            ended = self._loaded().run(request, on_running=on_running)
            if ended.status is JvmStatus.KILLED:
                return {"killed": True}
            if ended.failure is not None and ended.error is not None:
                fields = {name: getattr(ended.error, name) for name in ("message", "error_class", "stack")}
                return {"failure": ended.failure.value, "error": bounded_fields(fields)}
            self._send_result(job, result, stream=ended.result == "stream")
            return {}
        finally:
            result.unlink(missing_ok=True)

    def _send_result(self, job: _Job, path: Path, *, stream: bool) -> None:
        with path.open("rb") as file:
            first = True
            while (data := file.read(CHUNK_SIZE)) or first:
                if job.refused is not None:
                    return  # the server has the reason, and makes it the job's error
                self._telling.result(job.id, data, stream=stream)
                first = False

    def _jar(self, jar: dict[str, str]) -> Any:
        """A jar under a name that ends as one."""
        from jobserver_pyspark.jvm import JvmJar  # noqa: PLC0415 - few contexts need it

        link = self._folder / f"{jar['digest']}.jar"
        with self._lock:
            if not link.exists():
                link.symlink_to(jar["path"])
        return JvmJar(path=link, sha256=jar["digest"])

    def _loaded(self) -> JvmJobs:
        from jobserver_pyspark.jvm import (  # noqa: PLC0415 - few contexts need it
            JvmJobs,
            JvmToolchain,
            LibrarySource,
            SparkInstall,
            isolation_for,
        )

        with self._lock:
            if self._runner is None:
                told = self._order["toolchain"]
                libraries = Path(told["libraries"]) if told["libraries"] else None
                toolchain = JvmToolchain(
                    spark=SparkInstall.of(Path(told["jars"])),
                    java=told["java"],
                    cache_dir=Path(told["cache_dir"]),
                    libraries=LibrarySource.from_conf(self._order["conf"], libraries),
                )
                isolation = isolation_for(_kind(self._order["flavour"]), self._order["jvm_isolation"])
                self._runner = JvmJobs(
                    self._session(),
                    toolchain,
                    self._driver.job_classes,
                    context_jars=tuple(map(Path, self._order["jars"])),
                    isolation=isolation,
                )
            return self._runner

    def _session(self) -> Any:
        """What stands for a PySpark session: its connection to the JVM, and the JVM's session."""
        if self._driver.session is None:
            self._driver.start_session()
        context = SimpleNamespace(_gateway=self._driver.gateway, _jvm=self._driver.jvm)
        return SimpleNamespace(sparkContext=context, _jsparkSession=self._driver.session)


def _kind(flavour: str) -> str:
    return "session" if flavour == "custom" else flavour


def _failed(kind: str, message: str) -> dict[str, Any]:
    return {"failure": kind, "error": {"message": message, "error_class": "", "stack": ""}}
