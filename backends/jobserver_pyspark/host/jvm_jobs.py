"""JVM jobs: run in the context's own JVM, through :mod:`jobserver_pyspark.jvm`."""

from __future__ import annotations

import base64
import contextlib
import difflib
import json
import re
import threading
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobserver_core.models.dotted_keys import hint_for_lookup, hint_for_message, hint_for_missing
from jobserver_core.models.json_values import JsonMapping
from jobserver_pyspark import processes
from jobserver_pyspark.host.driver import Driver
from jobserver_pyspark.host.job_jars import JobJars
from jobserver_pyspark.host.job_threads import JobThreads
from jobserver_pyspark.host.orphans import end_orphans, unassigned_orphans
from jobserver_pyspark.host.progress import SparkTag
from jobserver_pyspark.host.reports import JobReports
from jobserver_pyspark.protocol import messages
from jobserver_pyspark.protocol.failures import bounded, describe
from jobserver_pyspark.protocol.frames import CHUNK_SIZE
from jobserver_pyspark.protocol.messages import ErrorDetails, HostSpec, Jar, JobFailureKind, JobReport

if TYPE_CHECKING:
    from jobserver_pyspark.jvm import CallThreads, JvmJobRunner, JvmJobState
    from jobserver_pyspark.protocol.jvm_messages import JvmJar

_Hint = Callable[[JsonMapping, str], str]
_MISSING: tuple[tuple[str, re.Pattern[str], _Hint], ...] = (
    (
        "ConfigException$Missing",
        re.compile("No configuration setting found for key '(.+)'"),
        hint_for_missing,
    ),
    ("java.util.NoSuchElementException", re.compile("key not found: (.+)"), hint_for_lookup),
)
"""The exceptions for a missing configuration value: of Typesafe's library, and of a Scala ``Map``."""
_CANCEL_TIMEOUT = 30.0
"""Seconds for a killed job to react to its interrupt before the log says that it still runs."""
_STOP_TIMEOUT = 5.0
"""Seconds for each job to end before the application is stopped under it."""
_ORPHANS_INTERVAL = 1.0
"""Seconds between two checks for processes that a killed job has left; each reads all of ``/proc``."""
_DRAIN_TIMEOUT = 3600.0
"""Seconds that streams have to finish when their context is stopped; the server may end it earlier."""


class _JvmJob:
    """A running job, the reason if its result was refused, and reports that are sent with the next one."""

    def __init__(self, request: messages.SubmitJob) -> None:
        self.id = request.job_id
        self.request = request
        self.running = False
        self.refused: str | None = None
        self.unsent: list[JobReport] = []
        self.begun = processes.boot_ticks()
        self.ended: int | None = None
        """When its code had ended; a killed job then waits for its orphans."""


def nearest_class(name: str, jars: Iterable[Path]) -> str | None:
    """Return the class in these jars that a missing class may mean.

    It has the same name in another package, or a similar name in the same package.
    """
    package, _, simple = name.rpartition(".")
    neighbours = []
    for jar in jars:
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(jar) as archive:
            for entry in archive.namelist():
                if entry.endswith(".class") and "$" not in entry:
                    found = entry.removesuffix(".class").replace("/", ".")
                    its_package, _, its_simple = found.rpartition(".")
                    if its_simple.lower() == simple.lower():
                        return found
                    if its_package == package:
                        neighbours.append(its_simple)
    near = difflib.get_close_matches(simple, neighbours, n=1)
    return ".".join(filter(None, (package, near[0]))) if near else None


class JvmJobs:
    """Runs JVM jobs, each watched by a thread of its own, and reports them to the server.

    :mod:`jobserver_pyspark.jvm` is imported only for the first JVM job of the context.
    """

    def __init__(self, spec: HostSpec, driver: Driver, reports: JobReports, jars: JobJars) -> None:
        self._spec = spec
        self._driver = driver
        self._reports = reports
        self._jars = jars
        self._lock = threading.Lock()
        self._jobs: dict[str, _JvmJob] = {}
        self._threads = JobThreads("JVM job")
        self._runner: JvmJobRunner | None = None
        self._directory = spec.work_dir / "jvm-jobs"

    def submit(self, request: messages.SubmitJob) -> None:
        """Run a job; it has a thread of its own until it has ended."""
        job = _JvmJob(request)
        with self._lock:
            self._jobs[job.id] = job
        self._threads.submit(partial(self._run, job))

    def kill(self, job_id: str) -> None:
        """Cancel a job. Code that never checks for interruption continues, and only a warning is logged."""
        if job_id in self._jobs and not self._load().cancel(job_id, wait=_CANCEL_TIMEOUT):
            self._reports.warn(
                f"job {job_id} still runs after its kill: its code ignores interrupts, or its work in pools "
                "that all jobs share may be that of another running job with the same classes. In the second "
                "case, it ends with that job; in any case, with its context"
            )

    def call_threads(self, tag: str, newest: int) -> CallThreads | None:
        """Return the threads that calls of a Python job have started; None if no jar has code that could.

        ``tag`` is that of its process, ``newest`` the ID of the newest thread that began before the job.

        Raises:
            LaunchError: The JVM side cannot be compiled.
        """
        jars = self.jars
        if not jars:
            return None
        return self._load().call_threads(tag, newest=newest, jars=jars, loader=self._driver.loader)

    @property
    def begun(self) -> list[int]:
        """When those jobs began whose code runs, in ticks of :func:`boot_ticks`."""
        return [job.begun for job in list(self._jobs.values()) if job.ended is None]

    @property
    def jars(self) -> tuple[Path, ...]:
        """The jars of the context and of its Python jobs, whose code their calls can start."""
        return (*self._spec.jars, *self._jars.paths)

    def refuse(self, job_id: str, message: str) -> None:
        """Stop sending a result that the server does not accept."""
        job = self._jobs.get(job_id)
        if job is not None:
            job.refused = message

    def close(self) -> None:
        """Cancel every job before the application stops; graceful streams finish their data."""
        if self._runner is not None:
            self._runner.close(wait=_STOP_TIMEOUT, drain=_DRAIN_TIMEOUT)

    def running(self) -> dict[str, SparkTag]:
        """Return the jobs whose code runs, and the tags that their Spark jobs carry."""
        return {job.id: SparkTag(job.id) for job in list(self._jobs.values()) if job.running}

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def _run(self, job: _JvmJob) -> None:
        try:
            outcome = self._perform(job)
        except Exception as error:  # noqa: BLE001 - any error means that the job has ended
            details = bounded(ErrorDetails(message=describe(error)))
            outcome = messages.JobEnded(job_id=job.id, failure="loading", error=details)
        if outcome.killed:
            self._end_orphans(job)
        with self._lock:
            del self._jobs[job.id]
        self._reports.end(outcome, job.unsent)

    def _end_orphans(self, job: _JvmJob) -> None:
        """Kill the orphans of a killed job. Wait while one is left that may be another running job's."""
        job.ended = processes.boot_ticks()
        warned = False
        while True:
            end_orphans(job.begun, self.begun, of_tasks=False)
            left = unassigned_orphans(job.begun, job.ended)
            if not left:
                return
            if not warned:
                warned = True
                self._reports.warn(
                    f"job {job.id} is not killed yet: process {left[0]}, whose parent has ended, may be "
                    "its own or that of another running job; it ends with that job or its context"
                )
            time.sleep(_ORPHANS_INTERVAL)

    def _perform(self, job: _JvmJob) -> messages.JobEnded:
        from jobserver_pyspark.jvm import JvmJobRequest  # noqa: PLC0415 - few contexts need it

        self._jars.check_jvm_job(job.request.jars)
        self._directory.mkdir(exist_ok=True)
        result = self._directory / f"{job.id}.result"

        def on_running() -> None:
            job.running = True
            self._reports.send(messages.JobRunning(job_id=job.id))

        context_type = self._spec.context_type
        request = JvmJobRequest(
            job_id=job.id,
            main_class=job.request.class_name,
            jars=tuple(map(self._jar, job.request.jars)),
            context_type="session" if context_type == "custom" else context_type,
            result_path=result,
            log_path=job.request.log_path,
            config=bytes(job.request.config).decode(),
            context_config=self._spec.settings,
            max_result_bytes=self._spec.result_limit,
            max_log_bytes=self._spec.log_limit,
            data_dir=self._spec.data_dir,
        )
        try:
            end = self._load().run(request, on_running=on_running)
            if end.validated:
                job.unsent.append(messages.JobRunning(job_id=job.id))
            if end.status == "finished":
                self._send_result(job, end, result)
            error = None if end.error is None else bounded(with_hint(end.error, end.failure, request.config))
            if error is not None and end.failure == "class-not-found":
                near = nearest_class(request.main_class, [jar.path for jar in job.request.jars])
                error = replace(error, stack=f"{error.stack}; did you mean {near!r}?") if near else error
            return messages.JobEnded(
                job_id=job.id, killed=end.status == "killed", failure=end.failure, error=error
            )
        finally:
            result.unlink(missing_ok=True)

    def _send_result(self, job: _JvmJob, end: JvmJobState, path: Path) -> None:
        """Send a large result; a small one goes with the end of the job."""
        stream = end.result == "stream"
        if end.inline is not None:
            data = base64.b64decode(end.inline)
            job.unsent.append(messages.ResultChunk(job_id=job.id, stream=stream, data=data))
            return
        with path.open("rb") as file:
            # If the server has refused the result, it has the reason, and makes it the job's error.
            while job.refused is None and (data := file.read(CHUNK_SIZE)):
                self._reports.send(*job.unsent, messages.ResultChunk(job_id=job.id, stream=stream, data=data))
                job.unsent.clear()

    def _jar(self, jar: Jar) -> JvmJar:
        """Return a jar under a name that ends in ``.jar``."""
        from jobserver_pyspark.jvm import JvmJar  # noqa: PLC0415 - few contexts need it

        link = self._directory / f"{jar.digest}.jar"
        with self._lock:
            if not link.exists():
                link.symlink_to(jar.path)
        return JvmJar(path=link, sha256=jar.digest)

    def _load(self) -> JvmJobRunner:
        from jobserver_pyspark import jvm  # noqa: PLC0415 - few contexts need it

        with self._lock:
            if self._runner is None:
                parts = self._spec.toolchain
                toolchain = jvm.JvmToolchain(
                    spark=jvm.SparkInstall.of(parts.jars),
                    java=parts.java,
                    cache_dir=parts.cache_dir,
                    libraries=jvm.LibrarySource.from_conf(self._spec.conf, parts.libraries),
                )
                if self._driver.session is None:
                    self._driver.start_session()
                self._runner = jvm.JvmJobRunner(
                    jvm.JvmSession(self._driver.gateway, self._driver.session),
                    toolchain,
                    self._driver.job_classes,
                    context_jars=self._spec.jars,
                    isolation=jvm.isolation_for(self._spec.context_type, self._spec.jvm_isolation),
                )
            return self._runner


def with_hint(error: ErrorDetails, failure: JobFailureKind | None, config: str) -> ErrorDetails:
    """Return the error of a job, with a hint if one can help against a missing configuration value."""
    if failure == "validation":
        return _extended(error, hint_for_message, config, error.message)
    for error_class, pattern, hint in _MISSING:
        if error.error_class.endswith(error_class) and (found := pattern.search(error.message)):
            return _extended(error, hint, config, found[1].replace('"', ""))
    return error


def _extended(error: ErrorDetails, hint: _Hint, config: str, text: str) -> ErrorDetails:
    found = hint(json.loads(config), text)
    return replace(error, message=f"{error.message}; {found}") if found else error
