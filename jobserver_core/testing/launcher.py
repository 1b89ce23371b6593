"""The contract of launchers, and the listener that it watches them with."""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from jobserver_core.errors import InvalidSetting, TooLarge
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import JobProgress
from jobserver_core.ports import (
    ContextEnd,
    ContextHandle,
    ContextListener,
    ContextSpec,
    JobCode,
    JobOutcome,
    JobSpec,
    Launcher,
    ResultSink,
)
from jobserver_core.testing.contract import Contract

__all__ = ["LauncherContract", "RecordingListener", "RunningContext"]


class _RecordingSink(ResultSink):
    def __init__(self, limit: int | None) -> None:
        self.data = bytearray()
        self._limit = limit

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        self.data += data
        if self._limit is not None and len(self.data) > self._limit:
            raise TooLarge(what="the job's result", limit=self._limit)


class RecordingListener(ContextListener):
    """Keeps what a launcher tells, checks that it keeps to the order of the port, and can wait for it."""

    def __init__(self, *, result_limit: int | None = None) -> None:
        self._result_limit = result_limit
        self._inside = threading.Lock()
        self._changed = threading.Condition()
        self.events: list[tuple[Any, ...]] = []
        self.faults: list[str] = []
        self.results: dict[str, tuple[bool, bytearray]] = {}
        self.progress: dict[str, list[JobProgress]] = {}

    def context_ready(self, *, application_id: str | None, url: str | None) -> None:
        self._record("ready", application_id, url)

    def context_ended(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        self._record("context-ended", end, error)

    def job_running(self, job_id: str) -> None:
        self._record("running", job_id)

    def job_progress(self, job_id: str, progress: JobProgress) -> None:
        self.progress.setdefault(job_id, []).append(progress)
        self._record("progress", job_id)

    def open_result(self, job_id: str, *, stream: bool) -> ResultSink:
        sink = _RecordingSink(self._result_limit)
        self.results[job_id] = (stream, sink.data)
        self._record("result", job_id)
        return sink

    def job_ended(self, job_id: str, outcome: JobOutcome) -> None:
        self._record("job-ended", job_id, outcome)

    def wait_for(self, *start: Any, timeout: float) -> tuple[Any, ...]:
        """Return the first event that begins with these values; fail after ``timeout`` seconds."""
        found: list[tuple[Any, ...]] = []

        def there() -> bool:
            found[:] = [event for event in self.events if event[: len(start)] == start]
            return bool(found)

        with self._changed:
            assert self._changed.wait_for(there, timeout), f"no {start} within {timeout} s: {self.events}"
        return found[0]

    def of_job(self, job_id: str) -> list[str]:
        """Return the kinds of a job's events in order, without its progress."""
        return [e[0] for e in self.events if len(e) > 1 and e[1] == job_id and e[0] != "progress"]

    def outcome(self, job_id: str, *, timeout: float) -> JobOutcome:
        """Wait for a job's end."""
        outcome = self.wait_for("job-ended", job_id, timeout=timeout)[2]
        assert isinstance(outcome, JobOutcome)
        return outcome

    def _record(self, *event: Any) -> None:
        if not self._inside.acquire(blocking=False):
            self.faults.append(f"{event} came while another event was being told")
            self._inside.acquire()
        try:
            with self._changed:
                if any(e[0] == "context-ended" for e in self.events):
                    self.faults.append(f"{event} came after the end of the context")
                self.events.append(event)
                self._changed.notify_all()
        finally:
            self._inside.release()


class RunningContext:
    """A context under test: its specification, what its launcher told, and its handle."""

    def __init__(self, spec: ContextSpec, listener: RecordingListener, handle: ContextHandle) -> None:
        self.spec = spec
        self.listener = listener
        self.handle = handle


class LauncherContract(Contract):
    """What every launcher does. A subclass supplies the launcher, the settings and the jobs.

    The jobs, each under the class name that :meth:`class_name` gives for its kind:

    - ``echo`` returns ``config["value"]``; ``print`` prints ``config["text"]`` and returns null
    - ``raise`` raises an exception with the message ``config["message"]``
    - ``refuse`` does not accept its configuration, with the message ``config["message"]``
    - ``endless`` runs until it is killed
    - ``stream`` yields each text in ``config["chunks"]`` as bytes
    """

    timeout = 60.0
    """Seconds that anything but a context's start may take."""
    start_timeout = 120.0
    """Seconds that a context's start may take."""

    @abstractmethod
    def class_name(self, kind: str) -> str:
        """Return the class name of a kind of job."""

    @abstractmethod
    def class_path(self) -> tuple[JobCode, ...]:
        """Return the class path that holds the jobs."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return settings of a context that starts."""

    @abstractmethod
    def failing_settings(self) -> tuple[dict[str, Any], str]:
        """Return settings of a context that cannot start, and a text that the reason holds."""

    @abstractmethod
    def refused_settings(self) -> tuple[dict[str, Any], str]:
        """Return settings with which no context can ever start, and the key that is wrong."""

    @pytest.fixture
    def launcher(self) -> Iterator[Launcher]:
        """Supply the launcher under test, closed afterwards; to be overridden."""
        raise TypeError("a launcher's tests override the fixture `launcher`")

    @pytest.fixture
    def context(self, launcher: Launcher, tmp_path: Path) -> Iterator[RunningContext]:
        """Supply a context that is ready; afterwards it is ended and checked for faults."""
        context = self.start(launcher, tmp_path, self.settings())
        context.listener.wait_for("ready", timeout=self.start_timeout)
        yield context
        context.handle.kill()
        context.listener.wait_for("context-ended", timeout=self.timeout)
        assert context.listener.faults == []

    def start(
        self, launcher: Launcher, folder: Path, settings: dict[str, Any], *, result_limit: int | None = None
    ) -> RunningContext:
        """Begin to start a context."""
        context_id = str(uuid4())
        data_dir = folder / "data"
        data_dir.mkdir(exist_ok=True)
        spec = ContextSpec(
            id=context_id,
            name=f"contract-{context_id[:8]}",
            settings=settings,
            log_path=folder / f"{context_id}.log",
            work_dir=folder / "work" / context_id,
            data_dir=data_dir,
        )
        listener = RecordingListener(result_limit=result_limit)
        return RunningContext(spec, listener, launcher.start_context(spec, listener))

    def submit(self, context: RunningContext, kind: str, config: str = "{}") -> JobSpec:
        """Submit a job of a kind."""
        job_id = str(uuid4())
        job = JobSpec(
            id=job_id,
            class_name=self.class_name(kind),
            class_path=self.class_path(),
            config=config,
            log_path=context.spec.log_path.with_name(f"job-{job_id}.log"),
        )
        context.handle.submit(job)
        return job

    # -- contexts ----------------------------------------------------------------------------------

    def test_a_context_is_ready_once_and_stops_with_nothing_left(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        context = self.start(launcher, tmp_path, self.settings())
        context.listener.wait_for("ready", timeout=self.start_timeout)
        context.handle.stop(30.0)
        context.handle.stop(30.0)
        ended = context.listener.wait_for("context-ended", timeout=self.timeout)
        assert ended[1:] == (ContextEnd.STOPPED, None)
        assert [event[0] for event in context.listener.events] == ["ready", "context-ended"]
        assert context.listener.faults == []
        assert not context.spec.work_dir.exists()
        assert context.spec.log_path.exists()

    def test_settings_that_may_work_pass_validation(self, launcher: Launcher) -> None:
        launcher.validate(self.settings())
        launcher.validate(self.failing_settings()[0])

    def test_settings_that_can_never_work_are_refused_before_and_at_the_start(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        settings, key = self.refused_settings()
        with pytest.raises(InvalidSetting) as before:
            launcher.validate(settings)
        with pytest.raises(InvalidSetting) as at_start:
            self.start(launcher, tmp_path, settings)
        assert before.value.key == at_start.value.key == key
        assert str(before.value) == str(at_start.value)
        assert not any(path.is_file() for path in tmp_path.rglob("*"))

    def test_a_killed_context_ends_killed_with_nothing_left(self, context: RunningContext) -> None:
        context.handle.kill()
        ended = context.listener.wait_for("context-ended", timeout=self.timeout)
        assert ended[1] is ContextEnd.KILLED
        assert not context.spec.work_dir.exists()

    def test_killing_a_context_that_starts_ends_it(self, launcher: Launcher, tmp_path: Path) -> None:
        context = self.start(launcher, tmp_path, self.settings())
        context.handle.kill()
        ended = context.listener.wait_for("context-ended", timeout=self.timeout)
        assert ended[1] is ContextEnd.KILLED
        assert not context.spec.work_dir.exists()

    def test_stopping_a_context_that_starts_ends_it(self, launcher: Launcher, tmp_path: Path) -> None:
        context = self.start(launcher, tmp_path, self.settings())
        context.handle.stop(30.0)
        ended = context.listener.wait_for("context-ended", timeout=self.start_timeout)
        assert ended[1] is ContextEnd.STOPPED

    def test_a_context_that_cannot_start_tells_the_real_reason(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        settings, reason = self.failing_settings()
        context = self.start(launcher, tmp_path, settings)
        _, end, error = context.listener.wait_for("context-ended", timeout=self.start_timeout)
        assert end is ContextEnd.FAILED
        assert reason in error.message
        assert [event[0] for event in context.listener.events] == ["context-ended"]
        assert not context.spec.work_dir.exists()

    def test_closing_the_launcher_kills_what_is_left(self, launcher: Launcher, tmp_path: Path) -> None:
        context = self.start(launcher, tmp_path, self.settings())
        context.listener.wait_for("ready", timeout=self.start_timeout)
        launcher.close()
        launcher.close()
        assert context.listener.wait_for("context-ended", timeout=0.1)[1] is ContextEnd.KILLED

    def test_a_context_stops_with_its_running_jobs(self, launcher: Launcher, tmp_path: Path) -> None:
        context = self.start(launcher, tmp_path, self.settings())
        context.listener.wait_for("ready", timeout=self.start_timeout)
        job = self.submit(context, "endless")
        context.listener.wait_for("running", job.id, timeout=self.timeout)
        context.handle.stop(10.0)
        ended = context.listener.wait_for("context-ended", timeout=self.timeout)
        assert ended[1] is ContextEnd.STOPPED
        assert context.listener.faults == []

    def test_a_job_for_a_context_that_ended_is_ignored(self, context: RunningContext) -> None:
        context.handle.kill()
        context.listener.wait_for("context-ended", timeout=self.timeout)
        job = self.submit(context, "echo", '{"value": 1}')
        context.handle.kill_job(job.id)
        context.handle.stop(1.0)
        context.handle.kill()
        assert context.listener.of_job(job.id) == []

    # -- jobs --------------------------------------------------------------------------------------

    def test_a_job_runs_hands_over_its_result_and_ends(self, context: RunningContext) -> None:
        job = self.submit(context, "echo", '{"value": {"a": [1, 2.5, null, "é"]}}')
        assert context.listener.outcome(job.id, timeout=self.timeout) == JobOutcome()
        assert context.listener.of_job(job.id) == ["running", "result", "job-ended"]
        stream, data = context.listener.results[job.id]
        assert not stream
        assert _json(data) == {"a": [1, 2.5, None, "é"]}

    def test_a_job_that_raises_fails_with_its_exception(self, context: RunningContext) -> None:
        job = self.submit(context, "raise", '{"message": "no such table"}')
        outcome = context.listener.outcome(job.id, timeout=self.timeout)
        assert outcome.failure is FailureKind.RAISED
        assert outcome.error is not None
        assert "no such table" in outcome.error.message
        assert outcome.error.error_class
        assert "no such table" in outcome.error.stack
        assert context.listener.of_job(job.id) == ["running", "job-ended"]

    def test_a_job_that_refuses_its_configuration_never_runs(self, context: RunningContext) -> None:
        job = self.submit(context, "refuse", '{"message": "input.string is missing"}')
        outcome = context.listener.outcome(job.id, timeout=self.timeout)
        assert outcome.failure is FailureKind.VALIDATION
        assert outcome.error is not None
        assert "input.string is missing" in outcome.error.message
        assert context.listener.of_job(job.id) == ["job-ended"]

    def test_a_class_that_is_not_there_is_told(self, context: RunningContext) -> None:
        job_id = str(uuid4())
        log = context.spec.log_path.with_name(f"job-{job_id}.log")
        name = f"{self.class_name('echo')}NotThere"
        context.handle.submit(
            JobSpec(id=job_id, class_name=name, class_path=self.class_path(), config="{}", log_path=log)
        )
        outcome = context.listener.outcome(job_id, timeout=self.timeout)
        assert outcome.failure is FailureKind.CLASS_NOT_FOUND
        assert context.listener.of_job(job_id) == ["job-ended"]

    def test_a_streamed_result_arrives_as_its_bytes(self, context: RunningContext) -> None:
        job = self.submit(context, "stream", '{"chunks": ["[1, ", "2, ", "3]"]}')
        assert context.listener.outcome(job.id, timeout=self.timeout) == JobOutcome()
        stream, data = context.listener.results[job.id]
        assert stream
        assert bytes(data) == b"[1, 2, 3]"

    def test_a_result_over_the_limit_is_the_jobs_error(self, launcher: Launcher, tmp_path: Path) -> None:
        context = self.start(launcher, tmp_path, self.settings(), result_limit=10)
        context.listener.wait_for("ready", timeout=self.start_timeout)
        job = self.submit(context, "echo", '{"value": "more than ten bytes"}')
        outcome = context.listener.outcome(job.id, timeout=self.timeout)
        assert outcome.failure is FailureKind.RESULT
        assert outcome.error is not None
        assert "limit of 10 bytes" in outcome.error.message
        context.handle.kill()
        context.listener.wait_for("context-ended", timeout=self.timeout)

    def test_what_a_job_prints_is_in_its_log(self, context: RunningContext) -> None:
        job = self.submit(context, "print", '{"text": "hello from the job"}')
        context.listener.outcome(job.id, timeout=self.timeout)
        assert "hello from the job" in job.log_path.read_text(encoding="utf-8")

    def test_jobs_run_beside_each_other(self, context: RunningContext) -> None:
        jobs = [self.submit(context, "endless") for _ in range(2)]
        for job in jobs:
            context.listener.wait_for("running", job.id, timeout=self.timeout)
        for job in jobs:
            context.handle.kill_job(job.id)
            assert context.listener.outcome(job.id, timeout=self.timeout).killed

    def test_a_kill_ends_a_job_and_disturbs_no_other(self, context: RunningContext) -> None:
        victim, neighbour = self.submit(context, "endless"), self.submit(context, "endless")
        for job in (victim, neighbour):
            context.listener.wait_for("running", job.id, timeout=self.timeout)
        context.handle.kill_job(victim.id)
        assert context.listener.outcome(victim.id, timeout=self.timeout).killed
        assert context.listener.of_job(neighbour.id) == ["running"]
        later = self.submit(context, "echo", '{"value": 7}')
        assert context.listener.outcome(later.id, timeout=self.timeout) == JobOutcome()

    def test_killing_a_job_twice_or_after_its_end_changes_nothing(self, context: RunningContext) -> None:
        job = self.submit(context, "endless")
        context.listener.wait_for("running", job.id, timeout=self.timeout)
        context.handle.kill_job(job.id)
        context.handle.kill_job(job.id)
        context.listener.outcome(job.id, timeout=self.timeout)
        context.handle.kill_job(job.id)
        context.handle.kill_job("never-heard-of")
        later = self.submit(context, "echo", '{"value": 7}')
        context.listener.outcome(later.id, timeout=self.timeout)
        assert context.listener.of_job(job.id).count("job-ended") == 1

    def test_killing_a_job_right_after_its_submit_ends_it_once(self, context: RunningContext) -> None:
        for _ in range(5):
            job = self.submit(context, "endless")
            context.handle.kill_job(job.id)
            assert context.listener.outcome(job.id, timeout=self.timeout).killed
            time.sleep(0)
            assert context.listener.of_job(job.id).count("job-ended") == 1


def _json(data: bytes | bytearray) -> Any:
    import json  # noqa: PLC0415 - only here

    return json.loads(bytes(data))
