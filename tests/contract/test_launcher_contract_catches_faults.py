"""A launcher with a fault fails the contract, and the failing test names the reason.

Each fault is the in-memory launcher with some of its parts replaced. No fault depends on timing: where it
could, it waits for the moment at which it does harm.
"""

from __future__ import annotations

import fcntl
import inspect
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from faults import DEADLINE, LEFT_THREADS, Rendezvous
from test_launchers import FUNCTIONS, DelayingLauncher
from test_launchers import TestInlineLauncher as Suite

from jobserver_core.memory import InlineJob, InlineLauncher, inline_jobs
from jobserver_core.memory import launcher as inline_launcher
from jobserver_core.memory.inline_jobs import InlineReports, InlineRun, JobFunction
from jobserver_core.memory.launcher import _InlineContext
from jobserver_core.models.contexts import Resources
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import JobProgress
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports import (
    ContextEnd,
    ContextHandle,
    ContextListener,
    ContextSpec,
    JobOutcome,
    JobSpec,
)
from jobserver_core.testing.contract import wait_until
from jobserver_core.testing.launcher import LauncherContract, RunningContext

STILL_RAN = "was reported as ended while processes of job"


class Fault(DelayingLauncher):
    """A launcher without a fault, for faults to be planted in."""

    caught_by: ClassVar[tuple[str, ...]]
    because: ClassVar[str]
    """Part of the failed test's message."""
    parts: ClassVar[Mapping[str, type]] = {}
    """What replaces which class of the in-memory launcher."""
    functions_too: ClassVar[Mapping[str, JobFunction]] = {}
    timeout: ClassVar[float] = 30.0
    call_timeout: ClassVar[float] = 10.0
    linger: ClassVar[float] = 30.0
    """Seconds that an event takes to return, unless another one overlaps."""

    def __init__(self) -> None:
        super().__init__({**FUNCTIONS, **self.functions_too}, kill_grace=self.timeout)


# -- contexts ---------------------------------------------------------------------------------------


class EndsContextsBeforeTheirJobs(Fault):
    caught_by = (
        "test_a_killed_context_ends_killed_with_nothing_left",
        "test_a_context_stops_with_its_running_jobs",
        "test_closing_the_launcher_kills_what_is_left_and_waits_for_it",
    )
    because = STILL_RAN

    class Context(_InlineContext):
        def _cancel_jobs(self) -> None:
            return

        def _finish(self, end: ContextEnd, error: ErrorInfo | None) -> None:
            super()._finish(end, error)
            super()._cancel_jobs()

    parts = {"_InlineContext": Context}


class CloseDoesNotWait(Fault):
    caught_by = ("test_closing_the_launcher_kills_what_is_left_and_waits_for_it",)
    because = "context_ended"

    def __init__(self) -> None:
        super().__init__()
        self.closed = threading.Event()

    def close(self) -> None:
        for context in list(self._contexts):
            context.kill()
        self.closed.set()

    class Context(_InlineContext):
        def _finish(self, end: ContextEnd, error: ErrorInfo | None) -> None:
            assert isinstance(self._launcher, CloseDoesNotWait)
            self._launcher.closed.wait(DEADLINE)
            super()._finish(end, error)

    parts = {"_InlineContext": Context}


class LeavesAThread(Fault):
    caught_by = ("test_a_context_stops_with_its_running_jobs",)
    because = "left behind; report context_ended only once"

    class Context(_InlineContext):
        def stop(self, timeout: float) -> None:
            LEFT_THREADS.add()
            super().stop(timeout)

    parts = {"_InlineContext": Context}


class LeavesAProcess(Fault):
    caught_by = ("test_a_context_stops_with_its_running_jobs",)
    because = "sleep 3600"

    class Context(_InlineContext):
        def stop(self, timeout: float) -> None:
            STARTED.append(subprocess.Popen(["sleep", "3600"]))
            super().stop(timeout)

    parts = {"_InlineContext": Context}


class LeavesTheWorkDirectory(Fault):
    caught_by = (
        "test_a_context_is_ready_once_and_stops_with_nothing_left",
        "test_a_killed_context_ends_killed_with_nothing_left",
    )
    because = "remove it before context_ended"

    class Context(_InlineContext):
        def _finish(self, end: ContextEnd, error: ErrorInfo | None) -> None:
            self._listener.close(end, error)

    parts = {"_InlineContext": Context}


class OverwritesTheContextsLog(Fault):
    caught_by = ("test_a_context_is_ready_once_and_stops_with_nothing_left",)
    because = "written by an earlier run"

    class Context(_InlineContext):
        def _prepare(self) -> ErrorInfo | None:
            self.spec.log_path.write_text("")
            return super()._prepare()

    parts = {"_InlineContext": Context}


class ReportsAnApplicationIdThatIsANumber(Fault):
    caught_by = ("test_a_context_is_ready_once_and_stops_with_nothing_left",)
    because = "context_ready(application_id=3): it has to be a string or None"

    class Serial(InlineReports):
        def context_ready(self, *, application_id: str) -> None:
            super().context_ready(application_id=3)  # type: ignore[arg-type]

    parts = {"InlineReports": Serial}


class AsksForMoreEachTime(Fault):
    caught_by = ("test_the_same_settings_always_ask_for_the_same_resources",)
    because = "the sum of all contexts would depend on the time"
    asked = 0

    def resources(self, settings: JsonMapping) -> Resources:
        self.asked += 1
        return Resources(cores=self.asked)


class IgnoresTheContextsClassPath(Fault):
    caught_by = ("test_the_class_path_of_the_context_comes_before_that_of_the_job",)
    because = "StopIteration"

    class Job(InlineJob):
        def __init__(self, spec: Any, context: Any, tell: Any) -> None:
            super().__init__(spec, context, tell)
            self.search_path = spec.class_path

    parts = {"InlineJob": Job}


class PutsTheContextsClassPathLast(Fault):
    caught_by = ("test_the_class_path_of_the_context_comes_before_that_of_the_job",)
    because = "from the job"

    class Job(InlineJob):
        def __init__(self, spec: Any, context: Any, tell: Any) -> None:
            super().__init__(spec, context, tell)
            self.search_path = (*spec.class_path, *context.class_path)

    parts = {"InlineJob": Job}


# -- events -----------------------------------------------------------------------------------------


class EventsOverlap(Fault):
    caught_by = ("test_events_never_overlap",)
    because = "came while another event was being handled"

    class Serial(InlineReports):
        def report(self, job_id: str, call: Callable[[ContextListener], None]) -> None:
            assert self._listener is not None
            call(self._listener)

    parts = {"InlineReports": Serial}


class EndsOfJobsOverlap(Fault):
    caught_by = ("test_events_never_overlap",)
    because = "came while another event was being handled"

    linger = 0.5
    together = Rendezvous(3)

    class Run(InlineRun):
        def run(self) -> None:
            outcome = self._outcome()
            self._forget(self._spec.id)
            assert self._listener._listener is not None
            EndsOfJobsOverlap.together.wait()
            self._listener._listener.job_ended(self._spec.id, outcome)
            self.over.set()

    parts = {"InlineRun": Run}


class OpensNoResultForNull(Fault):
    caught_by = ("test_null_is_a_result",)
    because = "no result was opened"

    class Run(InlineRun):
        def _write(self, value: Any) -> None:
            if value is not None:
                super()._write(value)

    parts = {"InlineRun": Run}


class DoesNotNoticeACrash(Fault):
    caught_by = ("test_a_job_whose_process_ends_by_itself_has_crashed",)
    because = "was not reported within"
    timeout = 0.5

    class Run(InlineRun):
        def run(self) -> None:
            if self._spec.class_name != "test.crash":
                super().run()

    parts = {"InlineRun": Run}


class ReportsACrashAsSuccess(Fault):
    caught_by = ("test_a_job_whose_process_ends_by_itself_has_crashed",)
    because = "CRASHED"

    class Run(InlineRun):
        def _outcome(self) -> JobOutcome:
            outcome = super()._outcome()
            return JobOutcome() if outcome.failure is FailureKind.CRASHED else outcome

    parts = {"InlineRun": Run}


class ReportsProgressOfAJobThatHasNotStarted(Fault):
    caught_by = ("test_a_job_runs_delivers_its_result_and_ends",)
    because = "job_progress of job"

    class Run(InlineRun):
        def _call(self, function: JobFunction) -> None:
            self._job.report(JobProgress(tasks_done=1))
            super()._call(function)

    parts = {"InlineRun": Run}


class ReportsTheStartOfAJobTwice(Fault):
    caught_by = ("test_the_first_entry_of_a_class_path_wins",)
    because = "came after job_running; only job_progress or open_result or job_ended may come then"

    class Run(InlineRun):
        def _write(self, value: Any) -> None:
            self._listener.notify(lambda listener: listener.job_running(self._spec.id))
            super()._write(value)

    parts = {"InlineRun": Run}


class ReturnsAResultThatIsNotJson(Fault):
    caught_by = ("test_a_job_runs_delivers_its_result_and_ends",)
    because = "the result of test.echo has to be JSON in UTF-8, not b'None'"

    class Run(InlineRun):
        def _write(self, value: Any) -> None:
            self._listener.report(self._spec.id, self._write_none)

        def _write_none(self, listener: ContextListener) -> None:
            listener.open_result(self._spec.id, stream=False).write(b"None")

    parts = {"InlineRun": Run}


class ReturnsALargeResultThatIsNotJson(Fault):
    caught_by = ("test_a_large_result_arrives_whole",)
    because = "the result of test.echo has to be JSON in UTF-8, not b"

    class Run(InlineRun):
        def _write(self, value: Any) -> None:
            def write(listener: ContextListener) -> None:
                listener.open_result(self._spec.id, stream=False).write(repr(value).encode())

            self._listener.report(self._spec.id, write)

    parts = {"InlineRun": Run}


class CutsOffALargeResult(Fault):
    caught_by = ("test_a_large_result_arrives_whole",)
    because = "the result of test.echo has to be JSON in UTF-8, not b"

    class Run(InlineRun):
        def _write(self, value: Any) -> None:
            def write(listener: ContextListener) -> None:
                listener.open_result(self._spec.id, stream=False).write(json.dumps(value).encode()[:65536])

            self._listener.report(self._spec.id, write)

    parts = {"InlineRun": Run}


# -- calls that have to return at once ----------------------------------------------------------


class _Waiting(Fault):
    caught_by = ("test_calls_of_a_handle_return_while_the_listener_handles_a_report",)
    call_timeout = 0.5


def _waiting(method: str) -> type[_Waiting]:
    """Return a launcher in which a method of the handle takes the lock around the listener."""

    def call(self: _InlineContext, *arguments: Any) -> None:
        with self._listener._lock:
            getattr(_InlineContext, method)(self, *arguments)

    context = type("Context", (_InlineContext,), {method: call})
    fields = {"because": f"{method} did not return within 0.5 s", "parts": {"_InlineContext": context}}
    return type(f"TakesTheLockOfTheListenerIn_{method}", (_Waiting,), fields)


TAKING_THE_LOCK = [_waiting(method) for method in ("submit", "kill_job", "acknowledge", "stop", "kill")]


class StopWaitsForTheEnd(_Waiting):
    because = "stop did not return within 0.5 s"

    class Context(_InlineContext):
        def stop(self, timeout: float) -> None:
            super().stop(timeout)
            self.join()

    parts = {"_InlineContext": Context}


def _when_ready(handle: ContextHandle, *, or_ended: bool = False) -> _InlineContext:
    """Return a context once it is ready."""
    assert isinstance(handle, _InlineContext)
    wait_until(
        lambda: handle._listener._ready or (or_ended and not handle.lives), "the context is ready", DEADLINE
    )
    return handle


class StartWaitsUntilTheContextIsReady(Fault):
    caught_by = ("test_a_start_returns_before_the_listener_has_handled_that_the_context_is_ready",)
    because = "start_context returned after"
    call_timeout = 0.5

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        context = _when_ready(super().start_context(spec, listener))
        with context._listener._lock:
            return context


class StartWaitsForTheContext(Fault):
    caught_by = ("test_a_start_does_not_wait_for_the_context",)
    because = "start_context did not return within 0.5 s; reported: nothing; it has to return at once"
    timeout = 0.5

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        return _when_ready(super().start_context(spec, listener), or_ended=True)


class StartWaitsForTheReport(Fault):
    """A start that does not return if the context never becomes ready."""

    caught_by = (
        "test_a_context_that_cannot_start_reports_the_real_reason",
        "test_a_start_does_not_wait_for_the_context",
    )
    because = "start_context did not return within 0.5 s; reported: "
    timeout = 0.5

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        return _when_ready(super().start_context(spec, listener))


class StartBlocks(Fault):
    caught_by = ("test_a_start_returns_before_the_listener_has_handled_that_the_context_is_ready",)
    because = "it has to return at once"
    call_timeout = 0.2

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        time.sleep(0.25)
        return super().start_context(spec, listener)


class StartReturnsNothing(Fault):
    caught_by = ("test_a_context_is_ready_once_and_stops_with_nothing_left",)
    because = "start_context returned None; it has to return an instance of ContextHandle"

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        super().start_context(spec, listener)
        return None  # type: ignore[return-value]


class AsksForNoResources(Fault):
    caught_by = ("test_the_same_settings_always_ask_for_the_same_resources",)
    because = "resources returned None; it has to return an instance of Resources"

    def resources(self, settings: JsonMapping) -> Resources:
        return None  # type: ignore[return-value]


class CheckRaises(Fault):
    caught_by = ("test_a_launcher_whose_contexts_start_passes_its_check",)
    because = "check() raised OSError('no cores'); it has to return None where contexts start"

    def check(self) -> None:
        raise OSError("no cores")


class CheckReturnsAnAnswer(Fault):
    caught_by = ("test_a_launcher_whose_contexts_start_passes_its_check",)
    because = "check() returned False"

    def check(self) -> None:
        return False  # type: ignore[return-value]


# -- the next server --------------------------------------------------------------------------------


class EndsContextsWhenDetached(Fault):
    caught_by = ("test_a_context_continues_under_the_next_launcher",)
    because = "context_ended"

    def detach(self) -> None:
        self.close()


class ReportsAfterDetaching(Fault):
    caught_by = ("test_a_context_continues_under_the_next_launcher",)
    because = "reported after the launcher was detached"

    class Context(_InlineContext):
        def detach(self) -> None:
            return

        def reattach(self, jobs: Sequence[JobSpec], listener: ContextListener) -> None:
            before = self._listener._listener
            assert before is not None
            super().reattach(jobs, listener)
            before.job_running("late")

    parts = {"_InlineContext": Context}


class RepeatsAcknowledgedJobs(Fault):
    caught_by = ("test_a_context_continues_under_the_next_launcher",)
    because = "acknowledged"

    class Context(_InlineContext):
        def acknowledge(self, job_id: str) -> None:
            return

    class Serial(InlineReports):
        def ignore(self, job_id: str) -> None:
            return

    parts = {"_InlineContext": Context, "InlineReports": Serial}


class ForgetsReportedJobs(Fault):
    caught_by = ("test_a_context_continues_under_the_next_launcher",)
    because = "was not reported within"
    timeout = 0.5

    class Serial(InlineReports):
        def report(self, job_id: str, call: Callable[[ContextListener], None]) -> None:
            with self._lock:
                self._kept.setdefault(job_id, [])
                self.notify(call)

    parts = {"InlineReports": Serial}


class DropsJobsThatNeverArrived(Fault):
    caught_by = ("test_a_context_continues_under_the_next_launcher",)
    because = "was not reported within"
    timeout = 0.5

    class Context(_InlineContext):
        def reattach(self, jobs: Sequence[JobSpec], listener: ContextListener) -> None:
            super().reattach([job for job in jobs if job.id in self._listener.kept], listener)

    parts = {"_InlineContext": Context}


class KeepsUnwantedJobs(Fault):
    caught_by = ("test_a_context_continues_under_the_next_launcher",)
    because = "still runs"
    timeout = 0.5

    class Context(_InlineContext):
        def reattach(self, jobs: Sequence[JobSpec], listener: ContextListener) -> None:
            self._listener.attach(listener)
            wanted = [job for job in jobs if job.id not in self._listener.kept]
            for job in wanted:
                self.submit(job)

    parts = {"_InlineContext": Context}


class LeavesUnwantedSurvivors(Fault):
    caught_by = ("test_a_survivor_that_is_not_reattached_is_swept",)
    because = "still runs"
    timeout = 0.5

    def sweep(self) -> None:
        return


# -- jobs -------------------------------------------------------------------------------------------


class OverwritesTheJobsLog(Fault):
    caught_by = ("test_what_a_job_prints_is_appended_to_its_log",)
    because = "written by an earlier run"

    class Run(InlineRun):
        def _call(self, function: JobFunction) -> None:
            self._spec.log_path.write_text("")
            super()._call(function)

    parts = {"InlineRun": Run}


class LosesStandardError(Fault):
    caught_by = ("test_what_a_job_prints_is_appended_to_its_log",)
    because = "a warning of the job"
    functions_too = {"test.print": lambda job: job.print(job.config["text"])}


class LosesStandardOutput(Fault):
    caught_by = ("test_what_a_job_prints_is_appended_to_its_log",)
    because = "hello from the job"
    functions_too = {"test.print": lambda job: job.print(job.config["error"])}


class ReversesTheClassPath(Fault):
    caught_by = ("test_the_first_entry_of_a_class_path_wins",)
    because = "second"

    class Job(InlineJob):
        def __init__(self, spec: Any, context: Any, tell: Any) -> None:
            super().__init__(spec, context, tell)
            self.search_path = (*context.class_path, *reversed(spec.class_path))

    parts = {"InlineJob": Job}


def _hold_in_a_process(job: InlineJob) -> None:
    with open(job.config["lock"], "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        STARTED.append(subprocess.Popen(["sleep", "3600"], pass_fds=[file.fileno()]))
    while not job.config.get("return", False):
        job.sleep(60)


def _hold_and_wait_for_the_process(job: InlineJob) -> None:
    """Like a launcher that reads its job's output to the end, which a process of the job holds open."""
    with open(job.config["lock"], "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        STARTED.append(subprocess.Popen(["sleep", "3600"], pass_fds=[file.fileno()]))
    STARTED[-1].wait()


STARTED: list[subprocess.Popen[bytes]] = []


class LeavesGrandchildren(Fault):
    """The in-memory launcher cannot end processes that a job starts."""

    caught_by = (
        "test_processes_that_a_job_started_end_with_it",
        "test_a_kill_ends_a_job_and_disturbs_no_other",
        "test_a_killed_context_ends_killed_with_nothing_left",
        "test_a_context_stops_with_its_running_jobs",
        "test_closing_the_launcher_kills_what_is_left_and_waits_for_it",
    )
    because = STILL_RAN
    functions_too = {"test.hold": _hold_in_a_process}


def _hold_in_another_session(job: InlineJob) -> None:
    with open(job.config["lock"], "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if job.config["detached"]:
            STARTED.append(
                subprocess.Popen(["sleep", "3600"], pass_fds=[file.fileno()], start_new_session=True)
            )
        while not job.config["return"]:
            job.sleep(60)


class LeavesDetachedProcesses(Fault):
    """Like a launcher that waits for the end of pipes, or kills process groups."""

    caught_by = ("test_processes_with_a_session_of_their_own_and_no_pipe_of_the_job_end_with_it",)
    because = STILL_RAN
    functions_too = {"test.hold": _hold_in_another_session}


WITH_PROCESSES = [LeavesAProcess, LeavesGrandchildren, LeavesDetachedProcesses]
IN_MEMORY = [
    # A fault that is caught by waiting in vain takes its whole timeout, or makes each event linger.
    pytest.param(
        fault,
        id=fault.__name__,
        marks=[pytest.mark.slow] if fault.timeout < Fault.timeout or fault.linger < Fault.linger else [],
    )
    for fault in [*Fault.__subclasses__(), *_Waiting.__subclasses__()]
    if fault not in (_Waiting, *WITH_PROCESSES)
]


class WaitsForGrandchildren(InlineLauncher):
    """A launcher that ends nothing that a job starts, and waits for it, even in ``close``."""

    def __init__(self) -> None:
        super().__init__({**FUNCTIONS, "test.hold": _hold_and_wait_for_the_process}, kill_grace=3600)


def _run(name: str, launcher: InlineLauncher, directory: Path, timeout: float) -> None:
    """Run a test of the contract as pytest does, with its fixtures."""
    suite = Suite()
    suite.timeout = suite.start_timeout = timeout  # type: ignore[misc]
    suite._missed = set()  # type: ignore[misc]
    if isinstance(launcher, Fault):
        suite.call_timeout = launcher.call_timeout  # type: ignore[misc]
    suite.linger = launcher.linger if isinstance(launcher, Fault) else 0.0  # type: ignore[misc]
    test = getattr(suite, name)
    wanted = inspect.signature(test).parameters
    fixtures: dict[str, Any] = {"launcher": launcher, "tmp_path": directory}
    if "context" in wanted:
        context: RunningContext = suite.start(launcher, directory, suite.settings())
        context.listener.wait_for("context_ready", timeout=timeout)
        fixtures["context"] = context
    test(**{key: fixtures[key] for key in wanted})
    if "context" in wanted:  # as the fixture does
        assert context.listener.faults == []


def _assert_caught(fault: type[Fault], directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in fault.caught_by:
        assert name in LauncherContract.contract_tests()
        for part, replacement in fault.parts.items():
            for module in (inline_jobs, inline_launcher):
                if hasattr(module, part):
                    monkeypatch.setattr(module, part, replacement)
        target = directory / name
        target.mkdir()
        launcher = fault()
        try:
            with pytest.raises(AssertionError) as caught:
                _run(name, launcher, target, fault.timeout)
            assert fault.because in str(caught.value)
        finally:
            for process in STARTED:
                process.kill()
                process.wait()
            STARTED.clear()
            LEFT_THREADS.end()
            launcher.close()


@pytest.mark.parametrize("fault", IN_MEMORY)
def test_the_contract_catches(fault: type[Fault], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _assert_caught(fault, tmp_path, monkeypatch)


@pytest.mark.real
@pytest.mark.parametrize("fault", WITH_PROCESSES, ids=lambda fault: fault.__name__)
def test_the_contract_catches_processes_that_survive(
    fault: type[Fault], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _assert_caught(fault, tmp_path, monkeypatch)


def _end_started(launcher: InlineLauncher) -> None:
    """End the processes that jobs have started, and close their launcher."""
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()
    launcher.close()


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    [
        "test_a_killed_context_ends_killed_with_nothing_left",
        "test_closing_the_launcher_kills_what_is_left_and_waits_for_it",
        "test_a_kill_ends_a_job_and_disturbs_no_other",
        "test_processes_that_a_job_started_end_with_it",
        "test_a_context_stops_with_its_running_jobs",
    ],
)
def test_the_contract_ends_its_own_processes_instead_of_waiting_for_them(name: str, tmp_path: Path) -> None:
    launcher = WaitsForGrandchildren()
    try:
        with pytest.raises(AssertionError, match=r"sleep 3600.*, which the suite has ended"):
            _run(name, launcher, tmp_path, 1.0)
        for process in STARTED:
            assert process.wait(DEADLINE) == -signal.SIGKILL
    finally:
        _end_started(launcher)


@pytest.mark.real
def test_the_contract_notices_a_hold_job_that_stays_in_its_session(tmp_path: Path) -> None:
    launcher = InlineLauncher({**FUNCTIONS, "test.hold": _hold_in_a_process})
    try:
        with pytest.raises(AssertionError, match="the job hold has no process in a session of its own"):
            _run(
                "test_processes_with_a_session_of_their_own_and_no_pipe_of_the_job_end_with_it",
                launcher,
                tmp_path,
                1.0,
            )
    finally:
        _end_started(launcher)


@pytest.mark.real
def test_the_contract_ends_its_own_processes_before_the_launcher_is_closed(tmp_path: Path) -> None:
    launcher, suite = WaitsForGrandchildren(), Suite()
    suite.hold(suite.started(launcher, tmp_path, suite.settings()))
    wait_until(lambda: STARTED, "the process of the job has started", DEADLINE)
    try:
        suite.end_own_processes()  # as a fixture does after each test
        assert [process.wait(DEADLINE) for process in STARTED] == [-signal.SIGKILL]
    finally:
        _end_started(launcher)
