"""The jobs of a context as the server sees them: sent to the host, followed, and told of."""

from __future__ import annotations

import threading
from typing import Any, Protocol

import attrs

from jobserver_core.errors import JobServerError
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import JobProgress
from jobserver_core.ports import ContextListener, ContextSpec, JobOutcome, JobSpec, ResultSink
from jobserver_pyspark.launcher.packages import PackageLease

__all__ = ["HostedJobs", "error_as_told", "error_info"]


class Send(Protocol):
    """Sends the host a message; one that is gone is no error."""

    def __call__(self, kind: str, payload: bytes = b"", /, **fields: Any) -> None: ...


@attrs.define(eq=False)
class _Job:
    """A submitted job: where its result goes, and why that was refused."""

    spec: JobSpec
    sink: ResultSink | None = None
    refused: ErrorInfo | None = None
    killed: bool = False
    sent: bool = False


class HostedJobs:
    """Submits jobs to a host and passes on what it tells of them.

    ``send`` reaches the host; ``telling`` is held while the listener is called, so that no two calls overlap.
    """

    def __init__(
        self,
        spec: ContextSpec,
        listener: ContextListener,
        packages: PackageLease,
        *,
        send: Send,
        telling: threading.Lock,
    ) -> None:
        self._spec = spec
        self._listener = listener
        self._packages = packages
        self._send = send
        self._telling = telling
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._closed = False

    def submit(self, job: JobSpec) -> None:
        """Run a job; what must be unpacked first is, on another thread."""
        with self._lock:
            if self._closed:
                return
            self._jobs[job.id] = _Job(job)
        if self._packages.ready((*self._spec.class_path, *job.class_path)):
            self._send_job(job)
        else:
            threading.Thread(target=self._send_job, args=(job,), name="unpacking", daemon=True).start()

    def kill(self, job_id: str) -> None:
        """End a job whatever it is doing; one that is being unpacked will not be sent."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                return
            job.killed = True
            sent = job.sent
        if sent:
            self._send("kill_job", job_id=job_id)

    def close(self) -> None:
        """Take and tell nothing any more."""
        with self._telling, self._lock:
            self._closed = True
            self._jobs.clear()

    # -- to the host -------------------------------------------------------------------------------

    def _send_job(self, spec: JobSpec) -> None:
        try:
            packages = self._packages.prepare((*self._spec.class_path, *spec.class_path))
        except JobServerError as error:
            self._end_unsent(spec, JobOutcome(error=error_info(error), failure=FailureKind.LOADING))
            return
        with self._lock:
            job = self._jobs.get(spec.id)
            if job is None:
                return
            job.sent = not job.killed
        if job.sent:
            self._send("submit", spec.config.encode(), **_request(spec, packages))
        else:
            self._end_unsent(spec, JobOutcome(killed=True))

    def _end_unsent(self, spec: JobSpec, outcome: JobOutcome) -> None:
        """Tell the end of a job that the host never got; on a thread that core does not wait for."""
        threading.Thread(
            target=self._tell_end, args=(spec.id, outcome), name=f"job {spec.id}", daemon=True
        ).start()

    # -- from the host -----------------------------------------------------------------------------

    def take(self, header: dict[str, Any], payload: bytes) -> None:
        """Pass on what the host tells of a job."""
        kind = header["kind"]
        job = self._jobs.get(str(header.get("job_id")))
        if job is None:
            return
        if kind == "running":
            with self._telling:
                self._listener.job_running(job.spec.id)
        elif kind == "progress":
            progress = JobProgress(**{name: int(n) for name, n in header["progress"].items()})
            with self._telling:
                self._listener.job_progress(job.spec.id, progress)
        elif kind == "result" and job.refused is None:
            self._take_result(job, payload, stream=bool(header["stream"]))
        elif kind == "ended":
            self._tell_end(job.spec.id, _outcome(job, header))

    def _take_result(self, job: _Job, payload: bytes, *, stream: bool) -> None:
        try:
            with self._telling:
                if job.sink is None:
                    job.sink = self._listener.open_result(job.spec.id, stream=stream)
                job.sink.write(payload)
        except JobServerError as error:
            job.refused = error_info(error)
            self._send("refuse", job_id=job.spec.id, message=str(error))

    def _tell_end(self, job_id: str, outcome: JobOutcome) -> None:
        with self._telling:
            with self._lock:
                known = self._jobs.pop(job_id, None) is not None
            if known:
                self._listener.job_ended(job_id, outcome)


def _request(spec: JobSpec, packages: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "job_id": spec.id,
        "class_name": spec.class_name,
        "log_path": str(spec.log_path),
        "python": spec.class_path[-1].type.python if spec.class_path else True,
        "packages": packages,
        "jars": [
            {"path": str(code.path), "digest": code.digest}
            for code in spec.class_path
            if code.type is BinaryType.JAR
        ],
    }


def _outcome(job: _Job, header: dict[str, Any]) -> JobOutcome:
    if job.refused is not None:
        return JobOutcome(error=job.refused, failure=FailureKind.RESULT)
    if header.get("killed"):
        return JobOutcome(killed=True)
    if header.get("failure") is not None:
        return JobOutcome(error=error_as_told(header.get("error")), failure=FailureKind(header["failure"]))
    if job.sink is None:
        message = "the job's process told its success but no result"
        return JobOutcome(error=ErrorInfo(message=message), failure=FailureKind.RESULT)
    return JobOutcome()


def error_info(error: BaseException) -> ErrorInfo:
    """Return what an exception of the server's own says."""
    kind = type(error)
    return ErrorInfo(message=str(error), error_class=f"{kind.__module__}.{kind.__qualname__}")


def error_as_told(told: Any) -> ErrorInfo:
    """Return the error that a host told, whatever it really sent."""
    fields = told if isinstance(told, dict) else {}
    names = ("message", "error_class", "stack")
    return ErrorInfo(**{name: str(fields.get(name, "")) for name in names})
