"""The contract of every launcher."""

from __future__ import annotations

import json
import threading
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from uuid import uuid4

import attrs
import pytest

from jobserver_core.errors import InvalidSetting
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.json_values import JsonObject
from jobserver_core.ports import (
    ContextEnd,
    ContextHandle,
    ContextSpec,
    JobCode,
    JobOutcome,
    JobSpec,
    Launcher,
)
from jobserver_core.testing.contract import Contract, assert_none_left, threads_and_processes, wait_until
from jobserver_core.testing.recording import RecordingListener, end_holders, is_held_in_one_session, is_locked


class RunningContext:
    """A context under test: its specification, its listener, and its handle."""

    def __init__(self, spec: ContextSpec, listener: RecordingListener, handle: ContextHandle) -> None:
        self.spec = spec
        self.listener = listener
        self.handle = handle


_EARLIER = "written by an earlier run\n"
_WORK_DIR_LEFT = (
    "the context was reported as ended, but its work_dir is still there; remove it before context_ended"
)
_NOT_KILLED = "a job that kill_job ended has to be reported with JobOutcome(killed=True)"


class LauncherContract(Contract):
    """The behavior of every launcher. A subclass supplies the launcher, the settings and the jobs.

    The jobs, each with the class name that :meth:`class_name` returns for its kind:

    - ``echo`` returns ``config["value"]``
    - ``print`` prints ``config["text"]`` to standard output and ``config["error"]`` to standard error, and
      returns null
    - ``raise`` raises an exception with the message ``config["message"]``
    - ``refuse`` rejects its configuration, with the message ``config["message"]``
    - ``endless`` runs until it is killed
    - ``stream`` yields each string in ``config["chunks"]`` as bytes
    - ``astream`` does so as an asynchronous generator; it is like ``stream`` in a language without them
    - ``crash`` ends its process at once, as ``os._exit(3)`` does; jobs that share the server's process raise
      SystemExit instead
    - ``hold`` opens the file ``config["lock"]``, takes an exclusive ``fcntl.flock`` on it, and starts a
      process that inherits the open file and sleeps for an hour. Then it returns null if ``config["return"]``
      is true; if it is false, it runs until it is killed. So the lock is held as long as any process of the
      job lives. If ``config["detached"]`` is true, the process has a session of its own and no pipe of the
      job: give ``Popen`` the arguments ``start_new_session=True`` and ``DEVNULL`` for ``stdin``, ``stdout``
      and ``stderr``. Jobs on threads of the server's process hold the lock themselves.
    """

    timeout = 60.0
    """Seconds that anything but a context's start may take. A timeout for whole tests must be longer."""
    start_timeout = 120.0
    """Seconds that a context's start may take."""
    linger = 0.3
    """Seconds for which a slow listener gives overlapping events time to arrive."""

    @abstractmethod
    def class_name(self, kind: str) -> str:
        """Return the class name of a kind of job."""

    @abstractmethod
    def class_path(self) -> tuple[JobCode, ...]:
        """Return the class path with the jobs. Called once for each test: its files must not change later."""

    @abstractmethod
    def label_code(self, directory: Path, kind: str, text: str) -> JobCode:
        """Write code into a directory with a job of the class name of ``kind``, which returns ``text``.

        ``kind`` is ``shared`` or ``ordered``. Their classes are in modules of their own, one for each kind,
        which :meth:`class_path` does not have: every context of the suite has code of ``shared`` in its class
        path, which comes first, so a module with other jobs as well would hide those of :meth:`class_path`.
        """

    @abstractmethod
    def settings(self) -> JsonObject:
        """Return settings with which a context starts."""

    @abstractmethod
    def failing_settings(self) -> tuple[JsonObject, str]:
        """Return settings that pass validation but prevent a context's start, and a part of the reason."""

    @abstractmethod
    def refused_settings(self) -> tuple[JsonObject, str]:
        """Return invalid settings, and the invalid key."""

    @cached_property
    def _class_path(self) -> tuple[JobCode, ...]:
        """The class path with the jobs, the same for all jobs of a test: running ones may read its files."""
        return self.class_path()

    @pytest.fixture
    def launcher(self) -> Iterator[Launcher]:
        """Supply the launcher under test, and close it afterwards; a subclass overrides this."""
        raise TypeError("a launcher's tests override the fixture `launcher`")

    @cached_property
    def _locks(self) -> list[Path]:
        """The locks of the ``hold`` jobs of a test."""
        return []

    @pytest.fixture(autouse=True)
    def own_processes(self, request: pytest.FixtureRequest) -> Iterator[None]:
        """End what ``hold`` jobs left before the launcher is closed, because that may wait for it."""
        if "launcher" in request.fixturenames:
            request.getfixturevalue("launcher")  # so it is closed after this
        yield
        self.end_own_processes()

    def end_own_processes(self) -> str:
        """End what ``hold`` jobs of this test left; return what to add to the message of a failure."""
        return "".join(end_holders(lock) for lock in self._locks)

    def close(self, launcher: Launcher) -> None:
        """Close a launcher, within the timeout."""
        errors: list[BaseException] = []

        def close() -> None:
            try:
                launcher.close()
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(self.timeout)
        if errors:
            raise errors[0]
        if closing.is_alive():
            left = self.end_own_processes()
            raise AssertionError(f"close() did not return within {self.timeout} s{left}")

    @pytest.fixture
    def context(self, launcher: Launcher, tmp_path: Path) -> Iterator[RunningContext]:
        """Supply a context that is ready; afterwards end it and check for faults."""
        context = self.started(launcher, tmp_path, self.settings())
        yield context
        context.handle.kill()
        self.end_of(context)
        assert context.listener.faults == []

    def start(
        self, launcher: Launcher, directory: Path, settings: JsonObject, *, result_limit: int | None = None
    ) -> RunningContext:
        """Begin to start a context, with a log that exists already and a class path of its own."""
        context_id = str(uuid4())
        data_dir, code = directory / "data", directory / "code"
        data_dir.mkdir(exist_ok=True)
        code.mkdir(exist_ok=True)
        log_path = directory / f"{context_id}.log"
        log_path.write_text(_EARLIER)
        spec = ContextSpec(
            id=context_id,
            name=f"contract-{context_id[:8]}",
            settings=settings,
            class_path=(self.label_code(code, "shared", "from the context"),),
            log_path=log_path,
            work_dir=directory / "work" / context_id,
            data_dir=data_dir,
        )
        listener = RecordingListener(result_limit=result_limit)
        return RunningContext(spec, listener, launcher.start_context(spec, listener))

    def started(
        self, launcher: Launcher, directory: Path, settings: JsonObject, *, result_limit: int | None = None
    ) -> RunningContext:
        """Start a context, and wait until it is ready."""
        context = self.start(launcher, directory, settings, result_limit=result_limit)
        context.listener.wait_for("ready", timeout=self.start_timeout)
        return context

    def end_of(
        self, context: RunningContext, *, timeout: float | None = None
    ) -> tuple[ContextEnd, ErrorInfo | None]:
        """Wait for the end of a context, and return how and why it ended."""
        _, end, error = context.listener.wait_for("context-ended", timeout=timeout or self.timeout)
        return end, error

    def outcome(self, context: RunningContext, job: JobSpec) -> JobOutcome:
        """Wait for the end of a job."""
        return context.listener.outcome(job.id, timeout=self.timeout)

    def error_of(self, context: RunningContext, job: JobSpec, failure: FailureKind) -> ErrorInfo:
        """Wait for the failure of a job of this kind, and return its error."""
        outcome = self.outcome(context, job)
        wrong = f"job {job.class_name} has to fail with {failure}, not to end with {outcome}"
        assert outcome.failure is failure, wrong
        assert outcome.error is not None
        return outcome.error

    def submit(
        self, context: RunningContext, kind: str, config: str = "{}", *, first: tuple[JobCode, ...] = ()
    ) -> JobSpec:
        """Submit a job of a kind, with ``first`` at the head of its class path."""
        job = self.spec_of(context, kind, config, first=first)
        if kind == "hold":
            lock = Path(json.loads(config)["lock"])
            self._locks.append(lock)
            context.listener.watch(job.id, lock)
        context.handle.submit(job)
        return job

    def spec_of(
        self, context: RunningContext, kind: str, config: str, *, first: tuple[JobCode, ...] = ()
    ) -> JobSpec:
        """Return a job of a kind."""
        job_id = str(uuid4())
        return JobSpec(
            id=job_id,
            class_name=self.class_name(kind),
            class_path=(*first, *self._class_path),
            config=config,
            log_path=context.spec.log_path.with_name(f"job-{job_id}.log"),
        )

    def submit_hold(self, context: RunningContext, *, returns: bool, detached: bool = False) -> JobSpec:
        """Submit a ``hold`` job with a lock of its own."""
        lock = context.spec.log_path.with_name(f"{uuid4()}.lock")
        config = {"lock": str(lock), "return": returns, "detached": detached}
        return self.submit(context, "hold", json.dumps(config))

    def hold(self, context: RunningContext, *, detached: bool = False) -> JobSpec:
        """Submit a ``hold`` job that does not return, and wait until it has its lock."""
        job = self.submit_hold(context, returns=False, detached=detached)
        lock = Path(json.loads(job.config)["lock"])
        listener = context.listener
        listener.wait_for("running", job.id, timeout=self.timeout)
        what = f"the job hold has locked {lock}"
        wait_until(lambda: is_locked(lock) or listener.ended(job.id), what, self.timeout)
        ended = listener.ended(job.id)
        assert not ended, f"the job hold ended instead of running until it is killed: {ended}"
        return job

    def expect_success(self, context: RunningContext, job: JobSpec) -> None:
        """Wait for the end of a job that has to succeed."""
        outcome = self.outcome(context, job)
        assert outcome == JobOutcome(), f"job {job.class_name} has to succeed, but ended with {outcome}"

    def value(self, context: RunningContext, job: JobSpec) -> object:
        """Wait for the success of a job, and return its JSON result."""
        self.expect_success(context, job)
        assert job.id in context.listener.results, "the job succeeded, but no result was opened"
        stream, data = context.listener.results[job.id]
        assert not stream, "a result of JSON has to be opened with stream=False"
        return json.loads(bytes(data))

    def successor(self, launcher: Launcher) -> Launcher | None:
        """Return the launcher of the next server, given one that was detached.

        None, which is the default, means that contexts end with their server.
        """
        return None

    # -- contexts ----------------------------------------------------------------------------------

    def test_a_context_is_ready_once_and_stops_with_nothing_left(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        context = self.started(launcher, tmp_path, self.settings())
        context.handle.stop(30.0)
        context.handle.stop(30.0)
        assert self.end_of(context) == (ContextEnd.STOPPED, None)
        assert [event[0] for event in context.listener.events] == ["ready", "context-ended"]
        assert context.listener.faults == []
        assert not context.spec.work_dir.exists(), _WORK_DIR_LEFT
        text = context.spec.log_path.read_text(encoding="utf-8")
        assert text.startswith(_EARLIER), (
            f"the log was not appended to; it had {_EARLIER!r} before, and has now {text!r}"
        )

    def test_settings_that_may_work_pass_validation(self, launcher: Launcher) -> None:
        launcher.validate(self.settings())
        launcher.validate(self.failing_settings()[0])

    def test_the_same_settings_always_ask_for_the_same_resources(self, launcher: Launcher) -> None:
        first, again = launcher.resources(self.settings()), launcher.resources(self.settings())
        assert first == again, "the sum of all contexts would depend on the time"
        assert all(amount is None or amount >= 0 for amount in (first.cores, first.memory)), (
            f"resources below zero: {first}"
        )

    def test_settings_that_can_never_work_are_refused_before_and_at_the_start(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        settings, key = self.refused_settings()
        directory = tmp_path / "refused"
        directory.mkdir()
        with pytest.raises(InvalidSetting) as before:
            launcher.validate(settings)
        with pytest.raises(InvalidSetting) as at_start:
            self.start(launcher, directory, settings)
        assert before.value.key == at_start.value.key == key
        assert str(before.value) == str(at_start.value)
        logs = list(directory.glob("*.log"))
        assert [log.read_text() for log in logs] == [_EARLIER]
        assert set(directory.iterdir()) == {directory / "code", directory / "data", *logs}

    def test_a_killed_context_ends_killed_with_nothing_left(self, context: RunningContext) -> None:
        self.hold(context)
        context.handle.kill()
        assert self.end_of(context)[0] is ContextEnd.KILLED
        assert not context.spec.work_dir.exists(), _WORK_DIR_LEFT
        assert context.listener.faults == []

    def test_killing_a_starting_context_ends_it(self, launcher: Launcher, tmp_path: Path) -> None:
        context = self.start(launcher, tmp_path, self.settings())
        context.handle.kill()
        assert self.end_of(context)[0] is ContextEnd.KILLED
        assert not context.spec.work_dir.exists(), _WORK_DIR_LEFT

    def test_stopping_a_starting_context_ends_it(self, launcher: Launcher, tmp_path: Path) -> None:
        context = self.start(launcher, tmp_path, self.settings())
        context.handle.stop(30.0)
        assert self.end_of(context, timeout=self.start_timeout)[0] is ContextEnd.STOPPED

    def test_a_context_that_cannot_start_reports_the_real_reason(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        settings, reason = self.failing_settings()
        context = self.start(launcher, tmp_path, settings)
        end, error = self.end_of(context, timeout=self.start_timeout)
        assert end is ContextEnd.FAILED
        assert error is not None
        assert reason in error.message, (
            f"the error has to give the real reason, {reason!r}: {error.message!r}"
        )
        assert [event[0] for event in context.listener.events] == ["context-ended"]
        assert not context.spec.work_dir.exists(), _WORK_DIR_LEFT

    def test_closing_the_launcher_kills_what_is_left_and_waits_for_it(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        context = self.started(launcher, tmp_path, self.settings())
        self.hold(context)
        self.close(launcher)
        events = list(context.listener.events)
        self.close(launcher)
        assert events[-1][:2] == ("context-ended", ContextEnd.KILLED)
        assert context.listener.events == events
        assert context.listener.faults == []

    def test_a_context_stops_with_its_running_jobs(self, launcher: Launcher, tmp_path: Path) -> None:
        before = threads_and_processes()
        context = self.started(launcher, tmp_path, self.settings())
        self.hold(context)
        context.handle.stop(60.0)
        assert self.end_of(context)[0] is ContextEnd.STOPPED
        assert context.listener.faults == []
        self.close(launcher)
        assert_none_left(
            before,
            "report context_ended only once the context's jobs are gone, with their threads and processes; "
            "close() has to end those of the launcher, and wait for them",
        )

    def test_a_job_for_a_context_that_ended_is_ignored(self, context: RunningContext) -> None:
        context.handle.kill()
        self.end_of(context)
        job = self.submit(context, "echo", '{"value": 1}')
        context.handle.kill_job(job.id)
        context.handle.stop(1.0)
        context.handle.kill()
        assert context.listener.of_job(job.id) == []

    # -- the next server ---------------------------------------------------------------------------

    def test_a_context_continues_under_the_next_launcher(self, launcher: Launcher, tmp_path: Path) -> None:
        self.skip_unless_contexts_outlive(launcher)
        context = self.started(launcher, tmp_path, self.settings())
        ready = context.listener.events[0]
        ended = self.submit(context, "echo", '{"value": "again"}')
        streamed = self.submit(context, "stream", '{"chunks": ["a", "b", "c"]}')
        acknowledged = self.submit(context, "echo", '{"value": 1}')
        for job in (ended, streamed, acknowledged):
            self.outcome(context, job)
        context.handle.acknowledge(acknowledged.id)
        running = self.submit(context, "endless")
        context.listener.wait_for("running", running.id, timeout=self.timeout)
        unwanted = self.hold(context)
        launcher.detach()
        before = list(context.listener.events)
        assert not [event for event in before if event[0] == "context-ended"], (
            "detach reported the end of a context that continues"
        )

        following = self.successor(launcher)
        assert following is not None
        try:
            (spec,) = following.survivors()
            assert spec == context.spec
            listener = RecordingListener()
            arriving = self.spec_of(context, "echo", '{"value": "it never arrived"}')
            jobs = [ended, streamed, running, arriving]
            again = RunningContext(spec, listener, following.reattach(spec, jobs, listener))
            following.sweep()
            assert listener.wait_for("ready", timeout=self.timeout) == ready
            assert self.value(again, ended) == "again"
            assert listener.outcome(streamed.id, timeout=self.timeout) == JobOutcome()
            assert listener.results[streamed.id] == (True, bytearray(b"abc"))
            assert self.value(again, arriving) == "it never arrived"
            for job in (ended, streamed, arriving):
                assert listener.of_job(job.id) == ["running", "result", "job-ended"]
            again.handle.kill_job(running.id)
            assert listener.outcome(running.id, timeout=self.timeout) == JobOutcome(killed=True)
            self.wait_until_free(unwanted)
            for job in (acknowledged, unwanted):
                assert listener.of_job(job.id) == [], "an acknowledged or unwanted job was reported"
            again.handle.stop(30.0)
            assert listener.wait_for("context-ended", timeout=self.timeout)[1] is ContextEnd.STOPPED
            assert listener.faults == []
            assert not spec.work_dir.exists(), _WORK_DIR_LEFT
            assert context.listener.events == before, "events were reported after the launcher was detached"
        finally:
            self.close(following)

    def test_a_survivor_that_is_not_reattached_is_swept(self, launcher: Launcher, tmp_path: Path) -> None:
        self.skip_unless_contexts_outlive(launcher)
        context = self.started(launcher, tmp_path, self.settings())
        job = self.hold(context)
        launcher.detach()
        following = self.successor(launcher)
        assert following is not None
        try:
            assert [spec.id for spec in following.survivors()] == [context.spec.id]
            following.sweep()
            self.wait_until_free(job)
            work_dir = context.spec.work_dir
            wait_until(lambda: not work_dir.exists(), f"{work_dir} is removed", self.timeout)
            assert list(following.survivors()) == []
        finally:
            self.close(following)

    def skip_unless_contexts_outlive(self, launcher: Launcher) -> None:
        """Skip the test for a launcher whose contexts end with their server."""
        if not launcher.reattaches:
            pytest.skip("the contexts of this launcher end with their server")

    def wait_until_free(self, job: JobSpec) -> None:
        """Wait until no process of a ``hold`` job is left."""
        lock = Path(json.loads(job.config)["lock"])
        wait_until(lambda: not is_locked(lock), f"the end of job {job.id}, which still runs", self.timeout)

    def wait_until_detached(self, job: JobSpec) -> None:
        """Wait until the process of a ``hold`` job has a session of its own, unless the job has none here."""
        lock = Path(json.loads(job.config)["lock"])
        what = 'the job hold has no process in a session of its own, although config["detached"] is true'
        wait_until(lambda: not is_held_in_one_session(lock), what, self.timeout)

    # -- jobs --------------------------------------------------------------------------------------

    def test_a_job_runs_delivers_its_result_and_ends(self, context: RunningContext) -> None:
        job = self.submit(context, "echo", '{"value": {"a": [1, 2.5, null, "é"]}}')
        assert self.value(context, job) == {"a": [1, 2.5, None, "é"]}
        assert context.listener.of_job(job.id) == ["running", "result", "job-ended"]

    def test_null_is_a_result(self, context: RunningContext) -> None:
        job = self.submit(context, "echo", '{"value": null}')
        assert self.value(context, job) is None
        assert context.listener.of_job(job.id) == ["running", "result", "job-ended"]

    def test_events_never_overlap(self, context: RunningContext) -> None:
        context.listener.linger = self.linger
        jobs = [self.submit(context, "echo", f'{{"value": {number}}}') for number in range(3)]
        assert [self.value(context, job) for job in jobs] == [0, 1, 2]
        context.listener.linger = 0.0
        assert context.listener.faults == []

    def test_a_job_whose_process_ends_by_itself_has_crashed(self, context: RunningContext) -> None:
        job = self.submit(context, "crash")
        error = self.error_of(context, job, FailureKind.CRASHED)
        assert error.message, "the error of a job has to say why it failed"
        assert context.listener.of_job(job.id) == ["running", "job-ended"]
        assert self.value(context, self.submit(context, "echo", '{"value": 7}')) == 7

    def test_processes_that_a_job_started_end_with_it(self, context: RunningContext) -> None:
        job = self.submit_hold(context, returns=True)
        assert self.value(context, job) is None
        assert context.listener.faults == []

    def test_processes_with_a_session_of_their_own_and_no_pipe_of_the_job_end_with_it(
        self, context: RunningContext
    ) -> None:
        killed = self.hold(context, detached=True)
        self.wait_until_detached(killed)
        context.handle.kill_job(killed.id)
        assert self.outcome(context, killed).killed, _NOT_KILLED
        assert context.listener.faults == []
        returning = self.submit_hold(context, returns=True, detached=True)
        assert self.value(context, returning) is None
        assert context.listener.faults == []

    def test_the_first_entry_of_a_class_path_wins(self, context: RunningContext, tmp_path: Path) -> None:
        first, second = (self.label_code(tmp_path, "ordered", text) for text in ("first", "second"))
        job = self.submit(context, "ordered", first=(first, second))
        assert self.value(context, job) == "first"

    def test_the_class_path_of_the_context_comes_before_that_of_the_job(
        self, context: RunningContext, tmp_path: Path
    ) -> None:
        assert self.value(context, self.submit(context, "shared")) == "from the context"
        own = self.label_code(tmp_path, "shared", "from the job")
        assert self.value(context, self.submit(context, "shared", first=(own,))) == "from the context"

    def test_a_job_that_raises_fails_with_its_exception(self, context: RunningContext) -> None:
        job = self.submit(context, "raise", '{"message": "no such table"}')
        error = self.error_of(context, job, FailureKind.RAISED)
        assert "no such table" in error.message, f"no message of the exception: {error}"
        assert error.error_class, "the error has to name the class of the exception that was raised"
        assert "no such table" in error.stack, f"no stack trace of the exception: {error}"
        assert context.listener.of_job(job.id) == ["running", "job-ended"]

    def test_a_job_that_refuses_its_configuration_never_runs(self, context: RunningContext) -> None:
        job = self.submit(context, "refuse", '{"message": "input.string is missing"}')
        error = self.error_of(context, job, FailureKind.VALIDATION)
        assert "input.string is missing" in error.message, f"no reason for the refusal: {error}"
        assert context.listener.of_job(job.id) == ["job-ended"]

    def test_a_class_that_does_not_exist_is_an_error_of_its_own_kind(self, context: RunningContext) -> None:
        job = self.spec_of(context, "echo", "{}")
        context.handle.submit(attrs.evolve(job, class_name=f"{job.class_name}NotThere"))
        assert self.outcome(context, job).failure is FailureKind.CLASS_NOT_FOUND
        assert context.listener.of_job(job.id) == ["job-ended"]

    def test_a_streamed_result_arrives_as_its_bytes(self, context: RunningContext) -> None:
        for kind in ("stream", "astream"):
            job = self.submit(context, kind, '{"chunks": ["[1, ", "2, ", "3]"]}')
            self.expect_success(context, job)
            stream, data = context.listener.results[job.id]
            assert stream, "a streamed result has to be opened with stream=True"
            assert bytes(data) == b"[1, 2, 3]"

    def test_a_result_over_the_limit_is_the_jobs_error(self, launcher: Launcher, tmp_path: Path) -> None:
        context = self.started(launcher, tmp_path, self.settings(), result_limit=10)
        job = self.submit(context, "echo", '{"value": "more than ten bytes"}')
        error = self.error_of(context, job, FailureKind.RESULT)
        assert "limit of 10 bytes" in error.message, f"no message of the TooLarge that write raised: {error}"
        context.handle.kill()
        self.end_of(context)

    def test_what_a_job_prints_is_appended_to_its_log(self, context: RunningContext) -> None:
        config = '{"text": "hello from the job", "error": "a warning of the job"}'
        job = self.spec_of(context, "print", config)
        job.log_path.write_text(_EARLIER)
        context.handle.submit(job)
        self.expect_success(context, job)
        text = job.log_path.read_text(encoding="utf-8")
        assert text.startswith(_EARLIER), (
            f"the log was not appended to; it had {_EARLIER!r} before, and has now {text!r}"
        )
        assert "hello from the job" in text, f"the log has no standard output of the job: {text!r}"
        assert "a warning of the job" in text, f"the log has no standard error of the job: {text!r}"

    def test_jobs_run_at_the_same_time(self, context: RunningContext) -> None:
        jobs = [self.submit(context, "endless") for _ in range(2)]
        for job in jobs:
            context.listener.wait_for("running", job.id, timeout=self.timeout)
        for job in jobs:
            context.handle.kill_job(job.id)
            assert self.outcome(context, job).killed, _NOT_KILLED

    def test_a_kill_ends_a_job_and_disturbs_no_other(self, context: RunningContext) -> None:
        victim, neighbour = self.hold(context), self.submit(context, "endless")
        context.listener.wait_for("running", neighbour.id, timeout=self.timeout)
        context.handle.kill_job(victim.id)
        assert self.outcome(context, victim).killed, _NOT_KILLED
        assert context.listener.faults == []
        assert context.listener.of_job(neighbour.id) == ["running"]
        later = self.submit(context, "echo", '{"value": 7}')
        self.expect_success(context, later)

    def test_killing_a_job_twice_or_after_its_end_changes_nothing(self, context: RunningContext) -> None:
        job = self.submit(context, "endless")
        context.listener.wait_for("running", job.id, timeout=self.timeout)
        context.handle.kill_job(job.id)
        context.handle.kill_job(job.id)
        self.outcome(context, job)
        context.handle.kill_job(job.id)
        context.handle.kill_job("never-heard-of")
        later = self.submit(context, "echo", '{"value": 7}')
        self.outcome(context, later)
        assert context.listener.of_job(job.id).count("job-ended") == 1

    def test_killing_a_job_right_after_its_submit_ends_it_once(self, context: RunningContext) -> None:
        for _ in range(5):
            job = self.submit(context, "endless")
            context.handle.kill_job(job.id)
            assert self.outcome(context, job).killed, _NOT_KILLED
            assert context.listener.of_job(job.id).count("job-ended") == 1
