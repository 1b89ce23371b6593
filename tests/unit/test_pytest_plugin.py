"""The pytest plugin, as far as it needs no Spark; each test is one that a user could write."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conditions import wait_until
from jobserver_core import (
    InvalidConfig,
    InvalidRequest,
    InvalidSetting,
    JobFailed,
    JobRequest,
    JobState,
    ResultTimeout,
    Settings,
)
from jobserver_core.memory import InlineJob, InlineLauncher, MemoryTransport
from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import Message
from jobserver_core.testing.clock import ManualClock
from jobserver_core.testing.server import InMemoryJobServer
from jobserver_pyspark.runner.named_objects import UnsupportedNamedObject
from jobserver_pytest import JobRunner, SparkJobServer
from serving import ScriptedLauncher
from sparkjobserver.api import JobEnvironment, SparkJob, build_problems


class Words(SparkJob):
    """Counts words without Spark."""

    def validate(self, context: Any, runtime: JobEnvironment, config: Any) -> Any:
        text = config.get_string("text", "")
        return text.split() if text else build_problems(["text: is missing", "text: must have words"])

    def run_job(self, context: Any, runtime: JobEnvironment, data: Any) -> Any:
        return {word: data.count(word) for word in data}


class Returns:
    """Returns whatever ``make`` makes; the base class is optional."""

    make: Any = None

    def validate(self, context: Any, runtime: Any, config: Any) -> Any:
        return config

    def run_job(self, context: Any, runtime: Any, data: Any) -> Any:
        return type(self).make(context, runtime, data)


def returns(call: Any) -> type:
    """Return the class of a job whose ``run_job`` is a function."""
    return type("Job", (Returns,), {"make": staticmethod(call)})


# -- run_job ----------------------------------------------------------------------------------------


def test_a_job_runs_alone(run_job: JobRunner) -> None:
    assert run_job(Words, {"text": "a b a"}) == {"a": 2, "b": 1}
    assert run_job(Words, 'text = "a b a"') == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        ({"config": [1]}, InvalidConfig, "a job's configuration must be HOCON text or a mapping, not list"),
        ({"context_settings": ["a"]}, InvalidRequest, "context_settings must be a mapping of context settin"),
        ({"data_files": ["x"]}, InvalidRequest, "data_files must be a mapping of names to paths, not list"),
    ],
)
def test_arguments_of_another_type_are_refused_in_words(
    run_job: JobRunner, arguments: dict[str, Any], error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=f"^{expected}"):
        run_job(Words, **arguments)


def test_a_refused_configuration_fails_with_all_problems(run_job: JobRunner) -> None:
    with pytest.raises(JobFailed, match="text: is missing; text: must have words") as caught:
        run_job(Words)
    assert caught.value.failure is FailureKind.VALIDATION


class Report:
    """Asks for ``input.path`` and ``limits.a.rows`` in one of the usual ways."""

    def validate(self, context: Any, runtime: Any, config: Any) -> Any:
        wanted = ("input.path", "limits.a.rows")
        problems = [f"{path}: is missing" for path in wanted if path not in config]
        return build_problems(problems) if problems else config

    def run_job(self, context: Any, runtime: Any, config: Any) -> Any:
        return config.get_string("input.path")


class Careless(Report):
    """Asks for it without checking."""

    def validate(self, context: Any, runtime: Any, config: Any) -> Any:
        return config


class Strict(Careless):
    """Asks for it in ``validate``, where the exception is not a problem."""

    def validate(self, context: Any, runtime: Any, config: Any) -> Any:
        return config.get_string("input.path")


NEST = """the configuration has a key named 'input.path' with a dot; nest it: {"input": {"path": …}}"""


@pytest.mark.parametrize("job", [Report, Careless, Strict])
@pytest.mark.parametrize("config", [{"input.path": "s.csv"}, '{"input.path": "s.csv"}'])
def test_a_missing_value_whose_key_has_a_dot_comes_with_the_way_to_nest_it(
    run_job: JobRunner, job: type, config: Any
) -> None:
    with pytest.raises(JobFailed) as caught:
        run_job(job, config)
    assert caught.value.error.message.endswith(f"; {NEST}")


def test_the_hint_to_nest_a_key_names_its_place(run_job: JobRunner) -> None:
    config = {"input": {"path": "s.csv"}, "limits": {"a.rows": 1}}
    with pytest.raises(JobFailed) as caught:
        run_job(Report, config)
    assert caught.value.error.message == (
        "limits.a.rows: is missing; the configuration has a key named 'a.rows' with a dot in limits; "
        'nest it: {"a": {"rows": …}}'
    )


@pytest.mark.parametrize(
    ("job", "config"),
    [
        (Careless, {}),
        (Careless, {"inputs.path": "s.csv"}),
        (Report, {"input": {"path": "s.csv"}, "input.path": "other", "hosts": {"a.example.com": 1}}),
        (Report, {'limits.a.rows"': 1, "..": 2, ".": 3}),
    ],
)
def test_other_keys_with_a_dot_give_no_hint(run_job: JobRunner, job: type, config: Any) -> None:
    with pytest.raises(JobFailed) as caught:
        run_job(job, config)
    assert "nest it" not in caught.value.error.message


def test_an_exception_of_the_job_is_the_cause_of_the_failure(run_job: JobRunner) -> None:
    def fail(*_args: Any) -> None:
        raise KeyError("day")

    with pytest.raises(JobFailed, match="'day'") as caught:
        run_job(returns(fail))
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.failure is FailureKind.RAISED
    assert caught.value.error.error_class == "KeyError"
    assert "in fail" in caught.value.error.stack
    assert "job_runner" not in caught.value.error.stack


def frames_shown(error: BaseException) -> list[str]:
    """Return the functions whose source pytest shows for an exception."""
    info = pytest.ExceptionInfo.from_exception(error)
    return [entry.name for entry in info.traceback.filter(info)]


async def _fail_soon(*_args: Any) -> None:
    raise KeyError("b")


def _fail(*_args: Any) -> None:
    raise KeyError("b")


def _fail_streaming(*_args: Any) -> Iterator[bytes]:
    yield b"a"
    raise KeyError("b")


def _read_file(_context: Any, runtime: Any, _config: Any) -> None:
    runtime.data_file("none.csv")


def _share(_context: Any, runtime: Any, _config: Any) -> None:
    runtime.namedObjects.get_or_else_create("rates", lambda: "text")


@pytest.mark.parametrize(
    ("job", "innermost"),
    [
        (returns(_fail), "_fail"),
        (returns(_fail_soon), "_fail_soon"),
        (returns(_fail_streaming), "_fail_streaming"),
        (returns(_read_file), "_read_file"),
        (returns(_share), "_share"),
        (Strict, "validate"),
        (type("Unmade", (Returns,), {"__init__": _fail}), "_fail"),
    ],
)
def test_a_failure_shows_the_source_of_the_test_and_the_job_and_not_of_the_plugin(
    run_job: JobRunner, job: type, innermost: str
) -> None:
    with pytest.raises(JobFailed) as caught:
        run_job(job)
    me = "test_a_failure_shows_the_source_of_the_test_and_the_job_and_not_of_the_plugin"
    assert [entry.name for entry in caught.traceback.filter(caught)] == [me]
    assert caught.value.__cause__ is not None
    info = pytest.ExceptionInfo.from_exception(caught.value.__cause__)
    shown = [str(entry.path) for entry in info.traceback.filter(info)]
    assert not [path for path in shown if "/jobserver_p" in path]
    assert innermost in frames_shown(caught.value.__cause__)


def test_a_refused_job_shows_the_source_of_the_test_alone(run_job: JobRunner) -> None:
    for job in (Words, str):
        with pytest.raises(JobFailed) as caught:
            run_job(job)
        assert frames_shown(caught.value) == ["test_a_refused_job_shows_the_source_of_the_test_alone"]


def test_results_are_converted_as_for_clients(run_job: JobRunner) -> None:
    value: Any = {"day": date(2026, 1, 2), 3: (1, 2.5, None)}
    assert run_job(returns(lambda *_: value)) == {"day": "2026-01-02", "3": [1, 2.5, None]}
    value = [value]
    value.append(value)
    with pytest.raises(JobFailed, match="contains itself") as caught:
        run_job(returns(lambda *_: value))
    assert caught.value.failure is FailureKind.RESULT
    error = caught.value.error
    assert error.message.startswith(f"{__name__}.Job.run_job: the result is nested")
    assert (error.error_class, error.stack) == ("ResultRefused", "")


def test_a_streamed_result_is_bytes(run_job: JobRunner) -> None:
    def stream(*_args: Any) -> Iterator[bytes]:
        yield b"a,b\n"
        yield b"1,2\n"

    def broken(*_args: Any) -> Iterator[bytes]:
        yield b"a,b\n"
        raise OSError("disk gone")

    assert run_job(returns(stream)) == b"a,b\n1,2\n"
    with pytest.raises(JobFailed, match="disk gone"):
        run_job(returns(broken))


def test_methods_can_be_asynchronous(run_job: JobRunner) -> None:
    async def answer(*_args: Any) -> int:
        await asyncio.sleep(0)
        return 42

    async def rows(*_args: Any) -> AsyncIterator[bytes]:
        yield b"row"

    assert run_job(returns(answer)) == 42
    assert run_job(returns(rows)) == b"row"


def test_what_is_no_job_is_refused(run_job: JobRunner) -> None:
    with pytest.raises(JobFailed, match="has no method validate and no method run_job") as caught:
        run_job(str)
    assert caught.value.failure is FailureKind.WRONG_TYPE
    with pytest.raises(JobFailed, match="is not a class"):
        run_job(Words())  # type: ignore[arg-type]


def test_the_settings_of_the_context_lie_under_the_configuration(run_job: JobRunner) -> None:
    def read(_context: Any, runtime: Any, config: Any) -> Any:
        return [
            config.get_string("spark.a"),
            config.get_string("spark.b"),
            dict(runtime.contextConfig["spark"]),
        ]

    settings = {"spark": {"a": "context", "b": "context"}}
    result = run_job(returns(read), "spark.b = job", context_settings=settings)
    assert result == ["context", "job", {"a": "context", "b": "context"}]
    with pytest.raises(InvalidSetting, match="num-cpu-cores"):
        run_job(Words, context_settings={"num-cpu-coers": 1})


def test_a_configuration_that_no_server_would_accept_is_refused(run_job: JobRunner) -> None:
    with pytest.raises(InvalidConfig):
        run_job(Words, "text = [1")
    with pytest.raises(InvalidConfig):
        run_job(Words, {"text": object()})


def test_a_fake_can_be_the_context(run_job: JobRunner) -> None:
    class FakeSession:
        def sql(self, query: str) -> str:
            return f"rows of {query}"

    assert (
        run_job(returns(lambda spark, _runtime, _config: spark.sql("x")), context=FakeSession())
        == "rows of x"
    )


def test_a_type_of_context_that_cannot_be_made_here_is_named(run_job: JobRunner) -> None:
    with pytest.raises(JobFailed, match=r"provides no custom context; pass one: run_job\(…, context=…\)"):
        run_job(Words, {"text": "a"}, context_settings={"context-factory": "custom"})


def test_named_objects_are_shared_and_as_strict_as_on_a_server(run_job: JobRunner) -> None:
    get = returns(lambda _context, runtime, _config: runtime.namedObjects.get("rates"))
    assert run_job(get) is None
    run_job.named_objects.objects["rates"] = [1.5]
    assert run_job(get) == [1.5]
    assert run_job(returns(lambda _context, runtime, _config: runtime.namedObjects.get_names())) == ["rates"]
    run_job(returns(lambda _context, runtime, _config: runtime.namedObjects.forget("rates")))
    assert run_job.named_objects.objects == {}
    with pytest.raises(
        JobFailed, match="must be a DataFrame, an RDD or an object of the JVM, not str"
    ) as caught:
        run_job(returns(lambda _context, runtime, _config: runtime.namedObjects.update("rates", "text")))
    assert isinstance(caught.value.__cause__, UnsupportedNamedObject)


def test_data_files_are_those_of_the_test(run_job: JobRunner, tmp_path: Path) -> None:
    (tmp_path / "rates.csv").write_text("1.5")
    read = returns(lambda _context, runtime, config: runtime.data_file(config["file"]).read_text())
    assert run_job(read, {"file": "rates.csv"}, data_files={"rates.csv": tmp_path / "rates.csv"}) == "1.5"
    with pytest.raises(JobFailed, match="data_files=") as caught:
        run_job(read, {"file": "other.csv"})
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_job_that_does_not_use_spark_starts_none(
    run_job: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)  # as if it were not installed
    assert run_job(returns(lambda _spark, runtime, _config: runtime.jobId)) == "test-1"
    with pytest.raises(JobFailed, match="pyspark"):
        run_job(returns(lambda spark, _runtime, _config: spark.range(3)))


# -- job_server -------------------------------------------------------------------------------------


def test_a_service_runs_functions_as_jobs(job_server: InMemoryJobServer) -> None:
    job_server.define("reports.Sales", lambda job: {"sold": job.config["day"]})
    handle = job_server.submit(JobRequest(class_name="reports.Sales", class_path="reports", config="day = 3"))
    assert handle.result(60) == {"sold": 3}
    job_server.define("reports.Sales", lambda _job: None)
    job_server.define("Sales", lambda _job: 5, binary="more-reports")
    assert [binary.name for binary in job_server.binaries()] == ["more-reports", "reports"]
    assert len(job_server.binary_versions("reports")) == 1
    assert job_server.submit(JobRequest(class_name="Sales", class_path="more-reports")).result(60) == 5


async def _awaiting(_job: InlineJob) -> int:
    return 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (3, "the job a.D must be a function, not int"),
        (_awaiting, r"the job a.D must not be declared with async def; call asyncio.run\(…\) in a function"),
    ],
)
def test_a_job_that_is_no_plain_function_is_refused(
    job_server: InMemoryJobServer, function: Any, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        job_server.define("a.D", function)


def test_a_function_receives_the_callbacks_of_a_call_url_through_the_sink(
    job_server: InMemoryJobServer, callback_sink: MemoryTransport, manual_clock: ManualClock
) -> None:
    received: list[str] = []

    def on_callback(message: Message) -> int | None:
        received.append(message.url)
        if len(received) == 1:
            raise ValueError("not yet")
        return None

    callback_sink.pass_on("call:billing", on_callback)
    callback_sink.answer("call:audit", 503)
    job_server.define("w.Answer", lambda _job: 42)
    jobs = {}
    for url in ("call:billing", "call:audit"):
        request = JobRequest(class_name="w.Answer", class_path="w", callback_url=url)
        jobs[url] = job_server.submit(request)
        assert jobs[url].result(60) == 42
    assert len(callback_sink.bodies(2)) == 2

    def attempted() -> list[str | int | None]:
        found = [job_server.deliveries(jobs[url].id)[0] for url in ("call:billing", "call:audit")]
        return [delivery.last_error or delivery.last_status for delivery in found]

    wait_until(lambda: all(attempted()))
    assert attempted() == ["the function raised ValueError: not yet", 503]
    manual_clock.advance(3600)
    wait_until(lambda: received == ["call:billing"] * 2)
    assert len(callback_sink.bodies(4)) == 4


def test_callbacks_arrive_in_the_sink(job_server: InMemoryJobServer, callback_sink: MemoryTransport) -> None:
    job_server.define("reports.Sales", lambda _job: 3)
    url = "https://customer.example/done"
    request = JobRequest(class_name="reports.Sales", class_path="reports", callback_url=url)
    handle = job_server.submit(request)
    [body] = callback_sink.bodies()
    assert body == {"jobId": handle.id, "result": 3}
    with pytest.raises(TimeoutError, match="1 of 2 callbacks arrived within"):
        callback_sink.bodies(2, timeout=0.01)


def test_a_test_can_move_the_clock_of_its_server(
    job_server: InMemoryJobServer, manual_clock: ManualClock
) -> None:
    began = manual_clock.now()
    job_server.define("reports.Slow", lambda job: job.sleep(3600))
    request = JobRequest(class_name="reports.Slow", class_path="reports", max_run_time=30.0)
    handle = job_server.submit(request)
    handle.started.result(60)
    assert handle.finished.done() is False
    manual_clock.advance(31)
    assert handle.finished.result(60).state is JobState.ERROR
    assert job_server.job(handle.id).submitted_at == began


def test_without_a_manual_clock_the_time_passes(job_server: InMemoryJobServer) -> None:
    job_server.define("reports.Slow", lambda job: job.sleep(3600))
    handle = job_server.submit(JobRequest(class_name="reports.Slow", class_path="reports", max_run_time=0.05))
    assert handle.finished.result(60).state is JobState.ERROR


class TestWithOtherSettings:
    @pytest.fixture
    def job_server_settings(self) -> Settings:
        return Settings.from_mapping({"jobserver": {"jobs": {"max-jobs-per-context": 1}}})

    def test_the_server_has_them(self, job_server: InMemoryJobServer) -> None:
        assert job_server.settings.jobs.max_jobs_per_context == 1


@pytest.mark.parametrize("end", ["fails", "hangs"])
def test_a_job_that_fails_on_a_server_shows_its_own_traceback_and_the_source_of_the_test_alone(
    end: str,
) -> None:
    def job(running: InlineJob) -> None:
        if end == "hangs":
            running.sleep(3600)
        raise KeyError("b")

    launcher = InlineLauncher({f"{__name__}.Words": job})
    with SparkJobServer.in_memory(launcher=launcher) as server:
        with pytest.raises((JobFailed, ResultTimeout)) as caught:
            server.run(Words, timeout=0.1 if end == "hangs" else 60)
        assert frames_shown(caught.value) == [
            "test_a_job_that_fails_on_a_server_shows_its_own_traceback_and_the_source_of_the_test_alone"
        ]
        assert (f"{Path(__file__).name}" in caught.exconly()) == (end == "fails")
        assert ('raise KeyError("b")' in caught.exconly()) == (end == "fails")
        assert caught.exconly().count("KeyError: 'b'") == (2 if end == "fails" else 0)


def test_a_job_that_misses_a_module_which_only_the_test_has_made_still_fails_with_its_own_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(_job: InlineJob) -> None:
        raise ModuleNotFoundError("No module named 'rates'")

    monkeypatch.setitem(sys.modules, "rates", ModuleType("rates"))
    launcher = InlineLauncher({f"{Words.__module__}.{Words.__qualname__}": run})
    with SparkJobServer.in_memory(launcher=launcher) as server:
        with pytest.raises(JobFailed) as caught:
            server.run(Words)
        assert "rates was made by this test and has no file, so no job can import it" in caught.exconly()


def test_contexts_on_spark_have_minutes_to_start_on_a_busy_machine(
    spark_job_server_settings: Settings,
) -> None:
    assert spark_job_server_settings.contexts.creation_timeout == 300.0


def test_jobs_can_be_defined_only_for_the_launcher_in_memory() -> None:
    with (
        InMemoryJobServer.in_memory(launcher=ScriptedLauncher()) as server,
        pytest.raises(TypeError) as caught,
    ):
        server.define("a.B", lambda _job: 1)
    assert "not a ScriptedLauncher" in str(caught.value)
