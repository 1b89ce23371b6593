"""What the tests of a launcher supply to the contract, and how the contract's tests run contexts and jobs."""

from __future__ import annotations

import json
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar
from uuid import uuid4

import pytest

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
from jobserver_core.testing.contract import returned, wait_until
from jobserver_core.testing.options import OptionsContract
from jobserver_core.testing.recording import (
    PART_OF_LATER_TIMEOUTS,
    RecordingListener,
    end_holders,
    is_held_in_one_session,
    is_locked,
)

T = TypeVar("T")


class RunningContext:
    """A context under test: its specification, its listener, and its handle."""

    def __init__(self, spec: ContextSpec, listener: RecordingListener, handle: ContextHandle) -> None:
        self.spec = spec
        self.listener = listener
        self.handle = handle


def _called(call: Callable[[], T], timeout: float) -> Future[T]:
    """Make a call that may never return on a thread of its own; return its outcome, which may not be done."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised where the outcome is read
            outcome.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    return outcome


EARLIER = "written by an earlier run\n"
"""What the logs of contexts contain before they start."""


class LauncherAccess(OptionsContract):
    """The launcher, the settings and the jobs that a subclass supplies, and what the tests do with them."""

    timeout = 60.0
    """Seconds that anything but a context's start may take. A timeout for whole tests must be longer."""
    start_timeout = 120.0
    """Seconds that a context's start may take."""
    call_timeout = 10.0
    """Seconds that a call may take that has to return at once, on a busy machine."""
    linger = 0.3
    """Seconds for which a slow listener gives overlapping events time to arrive."""

    _missed: ClassVar[set[str]]
    """The reports that a test of this suite has missed."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls._missed = set()

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

    def unready_settings(self, directory: Path) -> JsonObject | None:
        """Return settings with which a context starts, but is not ready until it is killed.

        Examples are an interpreter that is a script in ``directory`` and only sleeps, and the address of a
        cluster that does not answer. None, which is the default, skips the test that a start does not wait
        for the context: implement this if you can.
        """
        return None

    @cached_property
    def _class_path(self) -> tuple[JobCode, ...]:
        """The class path with the jobs, the same for all jobs of a test: running ones may read its files."""
        return self.class_path()

    @pytest.fixture
    def launcher(self) -> Iterator[Launcher]:
        """Supply the launcher under test, and :meth:`close` it afterwards; a subclass overrides this."""
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
        """Close a launcher; fail if that takes longer than the timeout."""
        closing = _called(launcher.close, self.timeout)
        if not closing.done():
            left = self.end_own_processes()
            raise AssertionError(f"close() did not return within {self.timeout:g} s{left}")
        closing.result()

    @pytest.fixture
    def context(self, launcher: Launcher, tmp_path: Path) -> Iterator[RunningContext]:
        """Supply a context that is ready; afterwards end it and check for faults."""
        context = self.started(launcher, tmp_path, self.settings())
        yield context
        context.handle.kill()
        self.end_of(context)
        assert context.listener.faults == []

    def listener(self, *, result_limit: int | None = None) -> RecordingListener:
        """Return a new listener."""
        return RecordingListener(result_limit=result_limit, missed=self._missed)

    def start(
        self,
        launcher: Launcher,
        directory: Path,
        settings: JsonObject,
        *,
        listener: RecordingListener | None = None,
    ) -> RunningContext:
        """Begin to start a context, with a log that exists already and a class path of its own."""
        context_id = str(uuid4())
        data_dir, code = directory / "data", directory / "code"
        data_dir.mkdir(exist_ok=True)
        code.mkdir(exist_ok=True)
        log_path = directory / f"{context_id}.log"
        log_path.write_text(EARLIER)
        spec = ContextSpec(
            id=context_id,
            name=f"contract-{context_id[:8]}",
            settings=settings,
            class_path=(self.label_code(code, "shared", "from the context"),),
            log_path=log_path,
            work_dir=directory / "work" / context_id,
            data_dir=data_dir,
        )
        listener = listener or self.listener()
        again = "start_context" in self._missed
        timeout = self.start_timeout * (PART_OF_LATER_TIMEOUTS if again else 1)
        starting = _called(lambda: launcher.start_context(spec, listener), timeout)
        if not starting.done():
            self._missed.add("start_context")
            reported = listener.events or "nothing"
            raise AssertionError(
                f"start_context did not return within {timeout:g} s; reported: {reported}; it has to "
                "return at once: start the context on another thread or in another process, and report "
                "context_ready or context_ended from there"
            )
        return RunningContext(spec, listener, returned("start_context", starting.result(), ContextHandle))

    def started(
        self,
        launcher: Launcher,
        directory: Path,
        settings: JsonObject,
        *,
        listener: RecordingListener | None = None,
    ) -> RunningContext:
        """Start a context, and wait until it is ready."""
        context = self.start(launcher, directory, settings, listener=listener)
        context.listener.wait_for("context_ready", timeout=self.start_timeout)
        return context

    def end_of(
        self, context: RunningContext, *, timeout: float | None = None
    ) -> tuple[ContextEnd, ErrorInfo | None]:
        """Wait for the end of a context, and return how and why it ended."""
        _, end, error = context.listener.wait_for("context_ended", timeout=timeout or self.timeout)
        return end, error

    def expect_end(self, context: RunningContext, expected: ContextEnd, why: str) -> None:
        """Wait for the end of a context, and check how it ended; ``why`` says what happened to it."""
        end = self.end_of(context, timeout=self.start_timeout)[0]
        assert end is expected, f"the end of a context {why} has to be reported with {expected}, not {end}"

    def expect_reports(self, listener: RecordingListener, job: JobSpec, *expected: str) -> None:
        """Check which reports about a job have come."""
        found = listener.of_job(job.id)
        assert found == list(expected), (
            f"the reports about job {job.class_name} have to be {', '.join(expected) or 'none'}, in this "
            f"order, not {', '.join(found) or 'none'}"
        )

    def outcome(self, context: RunningContext, job: JobSpec) -> JobOutcome:
        """Wait for the end of a job."""
        return context.listener.outcome(job.id, timeout=self.timeout)

    def error_of(self, context: RunningContext, job: JobSpec, failure: FailureKind) -> ErrorInfo:
        """Wait for the failure of a job of this kind, and return its error."""
        outcome = self.outcome(context, job)
        wrong = f"job {job.class_name} has to fail with {failure}, not to end with {outcome}"
        assert outcome.failure is failure, wrong
        assert isinstance(outcome.error, ErrorInfo), (
            f"the error of a failed job has to be an ErrorInfo: {outcome}"
        )
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
        listener.wait_for("job_running", job.id, timeout=self.timeout)
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
        try:
            return json.loads(bytes(data))
        except ValueError as error:
            shown = f"{bytes(data[:100])!r}{'…' if len(data) > 100 else ''}"
            wrong = f"the result of {job.class_name} has to be JSON in UTF-8, not {shown}: {error}"
            raise AssertionError(wrong) from None

    def successor(self, launcher: Launcher) -> Launcher | None:
        """Return the launcher of the next server, given one that was detached.

        None, which is the default, means that contexts end with their server.
        """
        return None

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
