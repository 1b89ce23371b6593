"""Launchers are plug-ins: what they report wrongly ends the job or the context, and names the launcher."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from jobserver_core import (
    ContextFailed,
    ErrorInfo,
    FailureKind,
    InvalidRequest,
    JobFailed,
    JobRequest,
    JobServer,
    LaunchError,
    Settings,
    TooLarge,
)
from jobserver_core.models.lifecycle import ContextState, JobState
from jobserver_core.ports import ContextEnd, ContextHandle, ContextListener, ContextSpec, JobOutcome, JobSpec
from jobserver_core.ports import Launcher as LauncherPort
from jobserver_core.running import result_storage
from jobserver_core.testing.server import empty_wheel

Script = Callable[[ContextListener, str], None]


class Careless(LauncherPort):
    """Its jobs do what a script says, on a thread of their own, or in ``submit`` itself."""

    def __init__(self, script: Script, *, in_submit: bool = False) -> None:
        self.script = script
        self.in_submit = in_submit
        self.raised: list[BaseException] = []
        self.handles: list[Handle] = []

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        self.handles.append(Handle(self, listener))
        threading.Thread(target=listener.context_ready, kwargs={"application_id": None, "url": None}).start()
        return self.handles[-1]

    def close(self) -> None:
        for handle in self.handles:
            handle.kill()


class Handle(ContextHandle):
    def __init__(self, launcher: Careless, listener: ContextListener) -> None:
        self.launcher = launcher
        self.listener = listener

    def submit(self, job: JobSpec) -> None:
        if self.launcher.in_submit:
            self.launcher.script(self.listener, job.id)
        else:
            threading.Thread(target=self._run, args=(job.id,)).start()

    def _run(self, job_id: str) -> None:
        try:
            self.launcher.script(self.listener, job_id)
        except Exception as error:
            self.launcher.raised.append(error)
            self.listener.job_ended(job_id, JobOutcome())

    def kill_job(self, job_id: str) -> None:
        self.listener.job_ended(job_id, JobOutcome(killed=True))

    def stop(self, timeout: float) -> None:
        self.listener.context_ended(ContextEnd.STOPPED, None)

    def kill(self) -> None:
        self.listener.context_ended(ContextEnd.KILLED, None)


@contextmanager
def serving(launcher: LauncherPort, **jobs: Any) -> Iterator[JobServer]:
    settings = Settings.from_mapping({"spark": {"contexts": {"warm": {}}}, "jobserver": {"jobs": jobs}})
    with JobServer.in_memory(launcher=launcher, settings=settings) as server:
        server.upload("code", "wheel", empty_wheel())
        yield server


REQUEST = JobRequest(class_name="code.Job", class_path="code", context="warm")


def error_of(launcher: Careless) -> JobFailed:
    """Run a job that fails, and return its error."""
    with serving(launcher) as server:
        handle = server.submit(REQUEST)
        with pytest.raises(JobFailed) as failed:
            handle.result(timeout=10)
        assert server.job(handle.id).state is JobState.ERROR
        return failed.value


def _ended_with(outcome: Any) -> Script:
    def script(listener: ContextListener, job_id: str) -> None:
        listener.job_running(job_id)
        listener.job_ended(job_id, outcome)

    return script


BOOM = ErrorInfo(message="boom")


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (None, "the launcher Careless reported the end of the job with NoneType instead of JobOutcome"),
        ("killed", "the launcher Careless reported the end of the job with str instead of JobOutcome"),
        (
            JobOutcome(error="boom", failure=FailureKind.RAISED),  # type: ignore[arg-type]
            "the launcher Careless reported an error of type str instead of ErrorInfo: boom",
        ),
        (
            JobOutcome(error=BOOM, failure="raised"),  # type: ignore[arg-type]
            "the launcher Careless reported a failure of type str instead of FailureKind: boom",
        ),
        (
            JobOutcome(error=ErrorInfo(message=OSError("boom")), failure=FailureKind.RAISED),  # type: ignore[arg-type]
            "the launcher Careless reported an ErrorInfo with a message of type OSError instead of str: boom",
        ),
        (
            JobOutcome(error=ErrorInfo(message="boom", stack=None), failure=FailureKind.RAISED),  # type: ignore[arg-type]
            "the launcher Careless reported an ErrorInfo with a stack of type NoneType instead of str: boom",
        ),
    ],
)
def test_a_malformed_outcome_ends_the_job_as_crashed(outcome: Any, message: str) -> None:
    error = error_of(Careless(_ended_with(outcome)))
    assert (error.failure, error.error.message) == (FailureKind.CRASHED, message)
    assert error.error.error_class == "jobserver_core.errors.LaunchError"


def test_success_without_a_result_is_a_failure() -> None:
    error = error_of(Careless(_ended_with(JobOutcome())))
    assert error.failure is FailureKind.RESULT
    assert error.error.message == (
        "the launcher Careless reported success without a result; it has to call open_result, even for null"
    )


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, asyncio.CancelledError])
def test_a_submit_that_raises_ends_the_job_as_crashed(kind: type[BaseException]) -> None:
    def script(_listener: ContextListener, _job_id: str) -> None:
        raise kind("no such socket")

    error = error_of(Careless(script, in_submit=True))
    assert error.failure is FailureKind.CRASHED
    assert error.error.message == f"submit of the launcher Careless raised {kind.__name__}: no such socket"
    assert error.error.error_class.endswith(kind.__name__)


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, asyncio.CancelledError])
def test_a_call_of_a_launcher_that_raises_is_logged_and_disturbs_no_later_call(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Careless):
        def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
            super().start_context(spec, listener)
            return FailingHandle(self, listener)

    class FailingHandle(Handle):
        def kill_job(self, job_id: str) -> None:
            super().kill_job(job_id)
            raise kind("no such socket")

    with serving(Failing(lambda listener, job_id: listener.job_running(job_id))) as server:
        handle = server.submit(REQUEST)
        handle.started.result(timeout=10)
        assert server.kill_job(handle.id).result(timeout=10).state is JobState.KILLED
    fault = f"kill_job of the launcher Failing raised {kind.__name__}: no such socket"
    assert [record.getMessage() for record in caplog.records if fault in record.getMessage()] == [
        fault,
        f"context warm: {fault}",
    ]
    assert "in kill_job" in caplog.text


@pytest.mark.parametrize("chunk", ["5", None, 5, [1]])
def test_a_chunk_that_is_not_bytes_is_refused_and_the_result_is_not_stored(chunk: Any) -> None:
    def script(listener: ContextListener, job_id: str) -> None:
        sink = listener.open_result(job_id, stream=False)
        sink.write(b"4")
        sink.write(chunk)

    launcher = Careless(script)
    error = error_of(launcher)  # although it then reports success
    assert error.failure is FailureKind.RESULT
    (raised,) = launcher.raised
    assert isinstance(raised, InvalidRequest)
    assert str(raised) == f"a chunk of a result must be bytes, not {type(chunk).__name__}"


@pytest.mark.parametrize("data", [b"{x", b"", b"NaN", b"[1e5, -Infinity]", b"[" * 50_000])
def test_a_result_that_is_not_json_is_not_stored(data: bytes) -> None:
    def script(listener: ContextListener, job_id: str) -> None:
        listener.open_result(job_id, stream=False).write(data)
        listener.job_ended(job_id, JobOutcome())

    error = error_of(Careless(script))
    assert error.failure is FailureKind.RESULT
    assert "the launcher Careless wrote a result that is not JSON: " in error.error.message


@pytest.mark.parametrize("data", [b'"\xff"', b"NaN"])
def test_a_streamed_result_need_not_be_json(data: bytes) -> None:
    def script(listener: ContextListener, job_id: str) -> None:
        listener.open_result(job_id, stream=True).write(data)
        listener.job_ended(job_id, JobOutcome())

    with serving(Careless(script)) as server:
        assert server.submit(REQUEST).result(timeout=10) == data


@pytest.mark.parametrize(
    "data",
    [
        b"{x".ljust(2_000_000),
        b"['a', " + b"1," * 1_000_000 + b"1]",  # a repr
        b'"\xff"'.ljust(2_000_000),
        b'["' + b"x" * 2_000_000 + b'\xff"]',
        b"[" + b"1," * 1_000_000,  # cut off
    ],
    ids=["other text", "repr", "other encoding", "other encoding later", "cut off"],
)
def test_a_large_result_that_is_not_json_at_its_beginning_or_end_is_not_stored(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def script(listener: ContextListener, job_id: str) -> None:
        sink = listener.open_result(job_id, stream=False)
        for start in range(0, len(data), 300_000):
            sink.write(data[start : start + 300_000])
        listener.job_ended(job_id, JobOutcome())

    error = error_of(Careless(script))
    assert error.failure is FailureKind.RESULT
    fault = "the launcher Careless wrote a result that is not JSON: "
    assert fault in error.error.message
    assert len([record for record in caplog.records if fault in record.getMessage()]) == 1


def test_a_large_result_that_is_not_json_in_its_middle_is_an_error_of_the_launcher_when_it_is_read() -> None:
    def script(listener: ContextListener, job_id: str) -> None:
        listener.open_result(job_id, stream=False).write(b"[" + b"1," * 1_000_000 + b"x, 1]")
        listener.job_ended(job_id, JobOutcome())

    with serving(Careless(script)) as server:
        handle = server.submit(REQUEST)
        fault = "the result is not JSON: .*; the launcher Careless that wrote it is faulty"
        with pytest.raises(LaunchError, match=fault):
            handle.result(timeout=10)
        reader = server.open_result(handle.id)
        assert reader is not None
        with pytest.raises(LaunchError, match=fault):
            reader.value()


@pytest.mark.parametrize(
    "text",
    [
        '{"é\\u00e9\\\\\\"": [1, -2.5e-10, true, false, null, {}, []],\n   "b": "\U0001f642"}  ',
        ' [ [ ] , { "a" : { } } , "" ]',
        '"one string"',
        "-1234567890",
    ],
)
def test_a_large_result_of_json_is_stored_wherever_its_beginning_is_cut_off(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = text.encode()

    def script(listener: ContextListener, job_id: str) -> None:
        sink = listener.open_result(job_id, stream=False)
        for byte in data:
            sink.write(bytes([byte]))
        listener.job_ended(job_id, JobOutcome())

    with serving(Careless(script), **{"inline-result-limit": 0}) as server:
        for size in range(len(data)):
            monkeypatch.setattr(result_storage, "BUFFER", size)
            assert server.submit(REQUEST).result(timeout=10) == json.loads(text)


def test_a_launcher_that_promises_json_and_writes_something_else_is_named() -> None:
    class Promising(Careless):
        writes_json = True

    def script(listener: ContextListener, job_id: str) -> None:
        listener.open_result(job_id, stream=False).write(b"{x")
        listener.job_ended(job_id, JobOutcome())

    with serving(Promising(script)) as server:
        handle = server.submit(REQUEST)
        fault = "the result is not JSON: .*; the launcher Promising that wrote it is faulty"
        for waiting in (handle, server.job_handle(handle.id)):
            with pytest.raises(LaunchError, match=fault):
                waiting.result(timeout=10)


def test_a_launcher_that_swallows_the_refusal_of_a_large_result_reports_no_success() -> None:
    def script(listener: ContextListener, job_id: str) -> None:
        sink = listener.open_result(job_id, stream=False)
        for _ in range(2):
            with suppress(TooLarge):
                sink.write(b"1" * 2000)
        listener.job_ended(job_id, JobOutcome())

    with serving(Careless(script), **{"max-result-size": "3 KB"}) as server:
        handle = server.submit(REQUEST)
        with pytest.raises(JobFailed) as failed:
            handle.result(timeout=10)
    assert failed.value.failure is FailureKind.RESULT
    assert failed.value.error == ErrorInfo(
        message="the job's result is larger than the limit of 3000 bytes",
        error_class="jobserver_core.errors.TooLarge",
    )


REPORTS: list[tuple[str, Script]] = [
    ("job_running of the job 'other', which does not run there", lambda at, _id: at.job_running("other")),
    ("job_running of the job 5, which does not run there", lambda at, _id: at.job_running(5)),  # type: ignore[arg-type]
    (
        "job_ended of the job 'other', which does not run there",
        lambda at, _id: at.job_ended("other", JobOutcome()),
    ),
    (
        "open_result of the job 'other', which does not run there",
        lambda at, _id: at.open_result("other", stream=False),
    ),
    (
        "open_result of the job {id} a second time",
        lambda at, job_id: at.open_result(job_id, stream=False),
    ),
]


@pytest.mark.parametrize(("fault", "report"), REPORTS)
def test_a_report_out_of_turn_is_logged_once_for_each_context_and_changes_nothing(
    fault: str, report: Script, caplog: pytest.LogCaptureFixture
) -> None:
    raised: list[str] = []

    def script(listener: ContextListener, job_id: str) -> None:
        listener.job_running(job_id)
        listener.open_result(job_id, stream=False).write(b"7")
        for _ in range(3):
            try:
                report(listener, job_id)
            except InvalidRequest as error:
                raised.append(str(error))
        listener.job_ended(job_id, JobOutcome())

    with serving(Careless(script)) as server:
        handle = server.submit(REQUEST)
        assert handle.result(timeout=10) == 7
        assert server.job(handle.id).state is JobState.FINISHED
    faults = [record.getMessage() for record in caplog.records if "reported" in record.getMessage()]
    name = fault.format(id=handle.id)
    assert faults == [f"context warm: the launcher Careless reported {name}; this is ignored, now and later"]
    if "open_result" in fault:
        assert len(raised) == 3


def test_a_second_end_of_a_job_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def script(listener: ContextListener, job_id: str) -> None:
        listener.open_result(job_id, stream=False).write(b"7")
        listener.job_ended(job_id, JobOutcome())
        listener.job_ended(job_id, JobOutcome(error=BOOM, failure=FailureKind.RAISED))
        reported.set()

    reported = threading.Event()
    with serving(Careless(script)) as server:
        handle = server.submit(REQUEST)
        assert handle.result(timeout=10) == 7
        assert reported.wait(10)
        assert server.job(handle.id).state is JobState.FINISHED
    assert f"the launcher Careless reported job_ended of the job '{handle.id}'" in caplog.text


@pytest.mark.parametrize("stream", ["no", None, 0])
def test_a_result_that_is_opened_with_something_else_than_a_bool_is_refused(stream: Any) -> None:
    def script(listener: ContextListener, job_id: str) -> None:
        listener.open_result(job_id, stream=stream)

    launcher = Careless(script)
    error_of(launcher)
    (raised,) = launcher.raised
    assert str(raised) == f"stream must be True or False, not {type(stream).__name__}"


def test_malformed_progress_is_refused_at_the_call() -> None:
    def script(listener: ContextListener, job_id: str) -> None:
        listener.job_running(job_id)
        progress: Any = 0.5
        listener.job_progress(job_id, progress)

    launcher = Careless(script)
    error_of(launcher)
    assert [str(error) for error in launcher.raised] == ["progress must be a JobProgress, not float"]


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        (None, None, "the launcher Careless reported an end of type NoneType instead of ContextEnd"),
        (
            ContextEnd.FAILED,
            "boom",
            "the launcher Careless reported an error of type str instead of ErrorInfo: boom",
        ),
    ],
)
def test_a_malformed_end_of_a_context_is_a_failure(end: Any, error: Any, message: str) -> None:
    def script(listener: ContextListener, _job_id: str) -> None:
        listener.context_ended(end, error)

    with serving(Careless(script)) as server:
        context_id = server.context("warm").id
        handle = server.submit(REQUEST)
        with pytest.raises(JobFailed):
            handle.result(timeout=10)
        (ended,) = [c for c in server.ended_contexts() if c.id == context_id]
        assert ended.state is ContextState.ERROR
        assert ended.error is not None
        assert ended.error.message == message


class Unready(Careless):
    """Reports a context as ready with an ID that is not a string."""

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        self.handles.append(Handle(self, listener))
        number: Any = 3
        threading.Thread(
            target=listener.context_ready, kwargs={"application_id": number, "url": None}
        ).start()
        return self.handles[-1]


def test_a_malformed_report_that_a_context_is_ready_ends_it() -> None:
    with JobServer.in_memory(launcher=Unready(_ended_with(JobOutcome()))) as server:
        with pytest.raises(ContextFailed) as failed:
            server.create_context("other").result(timeout=10)
        reason = "reported a ready context with application_id of type int instead of str or None"
        assert failed.value.error.message == f"the launcher Unready {reason}"
        assert server.context("other").state is ContextState.ERROR


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, asyncio.CancelledError])
def test_a_start_that_raises_is_an_error_of_the_launcher(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Careless):
        def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
            raise error("boom")

    with JobServer.in_memory(launcher=Failing(_ended_with(JobOutcome()))) as server:
        with pytest.raises(LaunchError) as failed:
            server.create_context("other")
        message = f"start_context of the launcher Failing raised {error.__name__}: boom"
        assert str(failed.value) == message
        assert isinstance(failed.value.__cause__, error)
        ended = server.context("other")
        assert (ended.state, ended.error and ended.error.message) == (ContextState.ERROR, message)
    assert "in start_context" in caplog.text


def test_a_start_with_a_missing_parameter_names_the_launcher() -> None:
    class Short(Careless):
        def start_context(self, spec: ContextSpec) -> ContextHandle:  # type: ignore[override]
            raise AssertionError

    message = "start_context of the launcher Short raised TypeError: "
    launcher = Short(_ended_with(JobOutcome()))
    with JobServer.in_memory(launcher=launcher) as server, pytest.raises(LaunchError, match=message):
        server.create_context("other")


@pytest.mark.parametrize("error", [KeyboardInterrupt("enough"), LaunchError(message="enough")])
def test_a_start_that_is_interrupted_or_refuses_raises_that_error(error: BaseException) -> None:
    class Interrupted(Careless):
        def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
            raise error

    with JobServer.in_memory(launcher=Interrupted(_ended_with(JobOutcome()))) as server:
        with pytest.raises(type(error), match="enough"):
            server.create_context("other")
        ended = server.context("other")
        assert (ended.state, ended.error and ended.error.message) == (ContextState.ERROR, "enough")


def test_a_start_that_returns_no_handle_fails() -> None:
    class Forgetful(Careless):
        def start_context(self, spec: ContextSpec, listener: ContextListener) -> Any:
            super().start_context(spec, listener)

    def script(_listener: ContextListener, _job_id: str) -> None:
        raise AssertionError

    with JobServer.in_memory(launcher=Forgetful(script)) as server:
        with pytest.raises(LaunchError) as failed:
            server.create_context("other").result(timeout=10)
        assert str(failed.value) == (
            "start_context of the launcher Forgetful returned None instead of ContextHandle"
        )
