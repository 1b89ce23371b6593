"""The jobs of a context in the server: sent to the host, and reported to the listener."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable

import attrs

from jobserver_core.errors import JobServerError, LaunchError
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import JobProgress
from jobserver_core.ports import ContextListener, ContextSpec, JobOutcome, JobSpec, ResultSink
from jobserver_pyspark.launcher.descriptors import with_descriptor_limit
from jobserver_pyspark.launcher.packages import PackageLease
from jobserver_pyspark.protocol.converter import ProtocolError
from jobserver_pyspark.protocol.messages import (
    AcknowledgeJob,
    ErrorDetails,
    HostToServer,
    Jar,
    JobEnded,
    JobRunning,
    KillJob,
    Package,
    ProgressReport,
    RefuseResult,
    ResultChunk,
    ServerToHost,
    SubmitJob,
)


@attrs.define(eq=False)
class _HostedJob:
    """A submitted job: the sink for its result, and the reason if that was refused.

    ``sent`` says whether the host has the job, and ``killed`` whether it was killed, maybe before that.
    """

    spec: JobSpec
    sink: ResultSink | None = None
    refused: ErrorInfo | None = None
    killed: bool = False
    sent: bool = False


@attrs.define(eq=False)
class HostedJobs:
    """Submits jobs to a host, and forwards its reports about them.

    ``send`` sends the host a message, and does nothing if the host has ended. ``listener_lock`` is held while
    the listener is called, so that no two calls overlap.
    """

    _spec: ContextSpec
    _listener: ContextListener
    _packages: PackageLease
    _send: Callable[[ServerToHost], None]
    _listener_lock: threading.Lock
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _jobs: dict[str, _HostedJob] = attrs.field(factory=dict, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _resuming: bool = attrs.field(default=False, init=False)

    @property
    def busy(self) -> bool:
        """Whether a submitted job has not ended."""
        return bool(self._jobs)

    def expect(self, jobs: Iterable[JobSpec]) -> None:
        """Expect these jobs of an earlier server in the host; nothing is sent before :meth:`resume`.

        Packages that are on the disk are kept from now on: running jobs may import from them at any time.
        """
        self._resuming = True
        self._jobs = {job.id: _HostedJob(job) for job in jobs}
        for search_path in (self._spec.search_path_of(job.spec) for job in self._jobs.values()):
            if self._packages.ready(search_path):
                with contextlib.suppress(JobServerError):  # the host has what it needs if the job runs
                    self._packages.prepare(search_path)

    def resume(self, arrived: Iterable[str]) -> None:
        """Make host and server agree, given the jobs that have arrived in the host.

        Jobs that have not arrived are sent, and those that are not expected are killed.
        """
        with self._lock:
            if self._closed:
                return  # nothing is expected any more, and every job would be killed
            self._resuming = False
            jobs = dict(self._jobs)
            for job_id in arrived:
                if job_id in jobs:
                    jobs[job_id].sent = True
        for job_id in arrived:
            if job_id not in jobs or jobs[job_id].killed:
                self._send(KillJob(job_id=job_id))
        for job in jobs.values():
            if not job.sent:
                self._prepare_and_send(job.spec)

    def submit(self, job: JobSpec) -> None:
        """Run a job; packages that are not unpacked yet are unpacked first, on another thread."""
        with self._lock:
            if self._closed:
                return
            self._jobs[job.id] = _HostedJob(job)
            if self._resuming:
                return
        self._prepare_and_send(job)

    def _prepare_and_send(self, job: JobSpec) -> None:
        if self._packages.ready(self._spec.search_path_of(job)):
            self._send_job(job)
        else:
            threading.Thread(target=self._send_job, args=(job,), name="unpacking", daemon=True).start()

    def kill(self, job_id: str) -> None:
        """Kill a job; one whose packages are being unpacked will not be sent."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                return
            job.killed = True
            sent = job.sent
        if sent:
            self._send(KillJob(job_id=job_id))

    def close(self) -> None:
        """Stop accepting jobs and forwarding reports; a call of the listener may still be under way."""
        with self._lock:
            self._closed = True
            self._jobs.clear()

    # -- to the host -------------------------------------------------------------------------------

    def _send_job(self, spec: JobSpec) -> None:
        try:
            packages = self._packages.prepare(self._spec.search_path_of(spec))
        except JobServerError as error:
            self._end_unsent(
                spec, JobOutcome(error=ErrorInfo.from_exception(error), failure=FailureKind.LOADING)
            )
            return
        with self._lock:
            job = self._jobs.get(spec.id)
            if job is None:
                return
            killed = job.killed
        if killed:
            self._end_unsent(spec, JobOutcome(killed=True))
            return
        self._send(_request(spec, packages))
        with self._lock:  # only now: a kill that overtook the job would be ignored by the host
            job.sent = True
            killed = job.killed
        if killed:
            self._send(KillJob(job_id=spec.id))

    def _end_unsent(self, spec: JobSpec, outcome: JobOutcome) -> None:
        """Report the end of a job that the host never received, on a thread that does not block the core."""
        threading.Thread(
            target=self._report_end, args=(spec.id, outcome), name=f"job {spec.id}", daemon=True
        ).start()

    # -- from the host -----------------------------------------------------------------------------

    def handle(self, message: HostToServer) -> None:
        """Forward a report of the host about a job.

        Raises:
            ProtocolError: The message is not about a job.
        """
        match message:
            case JobRunning():
                with self._listener_lock:
                    if message.job_id in self._jobs:
                        self._listener.job_running(message.job_id)
            case ProgressReport():
                with self._listener_lock:
                    if message.job_id in self._jobs:
                        progress = JobProgress(
                            stages_done=message.stages_done,
                            stages_total=message.stages_total,
                            tasks_done=message.tasks_done,
                            tasks_total=message.tasks_total,
                        )
                        self._listener.job_progress(message.job_id, progress)
            case ResultChunk():
                if (job := self._jobs.get(message.job_id)) is not None and job.refused is None:
                    self._take_result(job, message)
            case JobEnded():
                if (job := self._jobs.get(message.job_id)) is not None:
                    self._report_end(job.spec.id, _outcome(job, message))
                elif not self._closed:  # the end of a job that this server does not want is stored already
                    self._send(AcknowledgeJob(job_id=message.job_id))
            case _:
                raise ProtocolError(f"the context's host sent {type(message).__name__} out of turn")

    def _take_result(self, job: _HostedJob, chunk: ResultChunk) -> None:
        try:
            with self._listener_lock:
                if self._closed:
                    return
                if job.sink is None:
                    job.sink = self._listener.open_result(job.spec.id, stream=chunk.stream)
                job.sink.write(bytes(chunk.data))
        except JobServerError as error:
            job.refused = ErrorInfo.from_exception(error)
            self._send(RefuseResult(job_id=job.spec.id, message=str(error)))

    def _report_end(self, job_id: str, outcome: JobOutcome) -> None:
        with self._listener_lock:
            with self._lock:
                known = self._jobs.pop(job_id, None) is not None
            if known:
                self._listener.job_ended(job_id, outcome)


def _request(spec: JobSpec, packages: tuple[Package, ...]) -> SubmitJob:
    return SubmitJob(
        job_id=spec.id,
        class_name=spec.class_name,
        python=spec.class_path[-1].type.python if spec.class_path else True,
        log_path=spec.log_path,
        packages=packages,
        jars=tuple(
            Jar(digest=code.digest, path=code.path) for code in spec.class_path if code.type is BinaryType.JAR
        ),
        config=spec.config.encode(),
    )


def _outcome(job: _HostedJob, end: JobEnded) -> JobOutcome:
    if job.refused is not None:
        return JobOutcome(error=job.refused, failure=FailureKind.RESULT)
    if end.killed:
        return JobOutcome(killed=True)
    if end.failure is not None:
        error = end.error or ErrorDetails(message="the job failed without an error")
        info = with_descriptor_limit(reported_error(error))
        return JobOutcome(error=info, failure=FailureKind(end.failure))
    if job.sink is None:
        missing = LaunchError(message="the job's process reported success without a result")
        return JobOutcome(error=ErrorInfo.from_exception(missing), failure=FailureKind.RESULT)
    return JobOutcome()


def reported_error(details: ErrorDetails) -> ErrorInfo:
    """Return the error that a host reported."""
    return ErrorInfo(message=details.message, error_class=details.error_class, stack=details.stack)
