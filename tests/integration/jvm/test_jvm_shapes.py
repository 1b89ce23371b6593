"""Jobs that need only Spark on their class path: their results, output and outcomes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from jobserver_core.models.failures import FailureKind
from jobserver_pyspark.jvm import LibrarySource
from jobserver_pyspark.protocol.messages import ErrorDetails

pytestmark = pytest.mark.spark


def test_a_class_with_run_job_and_a_map_is_a_job(bench: Any, shapes_jar: Any) -> None:
    assert bench.value("shapes.WordCount", shapes_jar, config={"words": "a b a"}) == {"a": 2, "b": 1}


def test_a_string_from_validate_is_a_refusal(bench: Any, shapes_jar: Any) -> None:
    outcome = bench.run("shapes.WordCount", shapes_jar)
    assert (outcome.failure, outcome.error.message) == (FailureKind.VALIDATION, "words is missing")


def test_a_job_object_with_three_parameters_receives_its_runtime(bench: Any, shapes_jar: Any) -> None:
    value = bench.value(
        "shapes.Runtime", shapes_jar, kind="session", job_id="me", context_config={"setting": 7}
    )
    assert value == {"id": "me", "setting": 7, "group": "me"}


def test_run_job_receives_the_value_returned_by_validate(bench: Any, shapes_jar: Any) -> None:
    assert bench.value("shapes.Data", shapes_jar, config={"n": 4}) == 10
    outcome = bench.run("shapes.Data", shapes_jar)
    assert (outcome.failure, outcome.error.message) == (FailureKind.VALIDATION, "n is missing")


def test_a_plain_application_runs_in_the_warm_session_and_cannot_stop_it(bench: Any, shapes_jar: Any) -> None:
    job = bench.start(bench.request("shapes.Application", shapes_jar, config={"args": ["a", "b"]}))
    outcome = job.outcome()
    assert outcome.status == "finished"
    assert "said a+b 10" in job.log()
    assert "stop() has no effect" in job.log()
    assert bench.content(job.request, outcome) == b"null"
    assert bench.value("shapes.WordCount", shapes_jar, config={"words": "still here"}) == {
        "still": 1,
        "here": 1,
    }


@pytest.mark.parametrize("name", ["shapes.Nothing", "nothing"])
def test_an_unknown_class_is_not_found(bench: Any, shapes_jar: Any, name: str) -> None:
    outcome = bench.run(name, shapes_jar)
    assert outcome.failure == FailureKind.CLASS_NOT_FOUND
    assert outcome.error == ErrorDetails(
        message=f"class {name} not found", stack=f"no class {name} on the job's class path"
    )


def test_the_error_for_a_class_that_is_not_a_job_says_what_is_missing(bench: Any, shapes_jar: Any) -> None:
    outcome = bench.run("shapes.NotAJob", shapes_jar)
    assert outcome.failure == FailureKind.WRONG_TYPE
    assert "shapes.NotAJob is not a job: it needs runJob" in outcome.error.message
    assert (outcome.error.error_class, outcome.error.stack) == ("", "")


def test_a_constructor_that_throws_is_a_loading_failure(bench: Any, shapes_jar: Any) -> None:
    outcome = bench.run("shapes.Broken", shapes_jar)
    assert (outcome.failure, outcome.error.message) == (FailureKind.LOADING, "cannot be made")
    assert outcome.error.error_class == "java.lang.IllegalStateException"


def test_a_file_that_is_not_a_jar_is_a_loading_failure_or_an_unknown_class(bench: Any, tmp_path: Any) -> None:
    no_jar = tmp_path / "no.jar"
    no_jar.write_text("not a zip file")
    assert bench.run("shapes.WordCount", no_jar).failure in {FailureKind.LOADING, FailureKind.CLASS_NOT_FOUND}


def test_a_jar_that_went_away_is_a_loading_failure(bench: Any, tmp_path: Any) -> None:
    gone = tmp_path / "gone.jar"
    gone.write_text("gone")
    request = bench.request("shapes.WordCount", gone)
    gone.unlink()
    assert bench.jobs.run(request).failure == FailureKind.LOADING


def test_several_jars_are_one_class_path(bench: Any, shapes_jar: Any, version_jars: Any) -> None:
    config = {"words": "x y"}
    assert bench.value("shapes.WordCount", version_jars[0], shapes_jar, config=config) == {"x": 1, "y": 1}


def test_a_failure_in_a_task_is_the_jobs_error_and_not_in_its_log(bench: Any, shapes_jar: Any) -> None:
    request = bench.request("shapes.TaskFailure", shapes_jar)
    outcome = bench.jobs.run(request)
    log = request.log_path.read_text() if request.log_path.exists() else ""
    assert "INFO" not in log
    assert "at shapes.TaskFailure" not in log
    assert outcome.failure == FailureKind.RAISED
    assert outcome.error.error_class == "org.apache.spark.SparkException"
    assert "java.lang.IllegalStateException: in a task" in outcome.error.message


def test_every_kind_of_value_becomes_json(bench: Any, shapes_jar: Any) -> None:
    assert bench.value("shapes.Results", shapes_jar, config={"what": "everything"}) == {
        "option": 1,
        "none": None,
        "tuple": [1, "two", 3.5],
        "case": ["x", "NaN"],
        "infinite": "Infinity",
        "array": [1, 2],
        "java": [1, 2],
        "symbol": "it",
        "nested": {"1": [{"a": True}]},
        "decimal": 1.5,
        "unit": None,
        "set": [7],
        "class": "00000000-0000-0001-0000-000000000002",
        "bytes": [1, -1],
        "null": None,
        "char": "c",
        "javaMap": {"k": 1},
        "date": "2020-02-03",
    }


def test_rows_become_objects(bench: Any, shapes_jar: Any) -> None:
    rows = bench.value("shapes.Results", shapes_jar, kind="session", config={"what": "rows"})
    assert rows == [{"a": 1, "b": {"y": "x"}, "c": [1, 2]}]


def test_an_iterator_of_anything_becomes_a_list(bench: Any, shapes_jar: Any) -> None:
    assert bench.value("shapes.Results", shapes_jar, config={"what": "numbers"}) == list(range(1_000_000))


@pytest.mark.parametrize("what", ["dataset", "rdd"])
def test_a_distributed_result_is_refused_with_advice(bench: Any, shapes_jar: Any, what: str) -> None:
    outcome = bench.run("shapes.Results", shapes_jar, config={"what": what})
    assert outcome.failure == FailureKind.RESULT
    assert "collect() or take(n)" in outcome.error.message
    assert (outcome.error.error_class, outcome.error.stack) == ("ResultRefused", "")


def test_a_result_that_is_nested_too_deeply_is_refused(bench: Any, shapes_jar: Any) -> None:
    outcome = bench.run("shapes.Results", shapes_jar, config={"what": "deep"})
    assert (outcome.failure, outcome.error.message) == (
        FailureKind.RESULT,
        "the result is nested more than 500 levels deep, or contains itself",
    )


@pytest.mark.parametrize(("what", "deep"), [("499 lists", 499), ("249 maps", 249), ("499 options", 0)])
def test_a_result_may_nest_as_deep_as_the_limit(bench: Any, shapes_jar: Any, what: str, deep: int) -> None:
    value = bench.value("shapes.Results", shapes_jar, config={"what": what})
    depth = 0
    while isinstance(value, (list, dict)):
        value = value[0] if isinstance(value, list) else value["k"]
        depth += 1
    assert (value, depth) == (1, deep)


def test_an_endless_result_ends_when_its_job_is_killed(bench: Any, shapes_jar: Any) -> None:
    job = bench.start(bench.request("shapes.Results", shapes_jar, config={"what": "endless"}))
    job.wait_for_result(1 << 20)
    assert bench.jobs.cancel(job.request.job_id, wait=30)
    assert job.outcome().status == "killed"


def test_a_future_that_failed_is_the_jobs_error(bench: Any, shapes_jar: Any) -> None:
    for what in ("failed future", "failed stage"):
        outcome = bench.run("shapes.Results", shapes_jar, config={"what": what})
        assert (outcome.failure, outcome.error.message) == (FailureKind.RAISED, "not today")


def test_a_result_over_the_limit_is_refused(bench: Any, shapes_jar: Any) -> None:
    outcome = bench.run("shapes.Results", shapes_jar, config={"what": "numbers"}, max_result_bytes=10_000)
    assert (outcome.failure, outcome.error.message) == (
        FailureKind.RESULT,
        "the result is larger than the limit of 10000 bytes",
    )


def test_a_result_that_fails_while_it_is_written_is_the_jobs_error(bench: Any, shapes_jar: Any) -> None:
    outcome = bench.run("shapes.Results", shapes_jar, config={"what": "failing"})
    assert (outcome.failure, outcome.error.error_class) == (
        FailureKind.RAISED,
        "java.lang.ArithmeticException",
    )


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("bytes", b"streamed result"),
        ("stream", b"0123456789" * 200_000),
        ("chunks", b"chunk " * 3),
        ("input", b"from a stream"),
    ],
)
def test_bytes_are_a_streamed_result(bench: Any, shapes_jar: Any, what: str, content: bytes) -> None:
    request = bench.request("shapes.Results", shapes_jar, config={"what": what})
    outcome = bench.jobs.run(request)
    assert (outcome.status, outcome.result, outcome.size) == ("finished", "stream", len(content))
    assert bench.content(request, outcome) == content


def test_each_job_has_its_own_output(bench: Any, shapes_jar: Any) -> None:
    jobs = [
        bench.start(bench.request("shapes.Printing", shapes_jar, config={"who": who}))
        for who in ("ann", "bob")
    ]
    for job, (mine, other) in zip(jobs, [("ann", "bob"), ("bob", "ann")], strict=True):
        assert job.outcome().status == "finished"
        lines = job.log()
        for what in ("prints", "complains", "in a thread"):
            assert f"{mine} {what}\n" in lines
        assert re.search(rf"ERROR Printing: {mine} logs", lines)
        assert other not in lines


def test_a_warning_of_spark_does_not_hide_the_reason_below_a_stack(
    bench: Any, shapes_jar: Any, tmp_path: Path
) -> None:
    request = bench.request(
        "shapes.ReadText", shapes_jar, kind="session", config={"path": str(tmp_path / "missing")}
    )
    job = bench.start(request)
    error = job.outcome().error
    assert error.message.startswith("[PATH_NOT_FOUND] Path does not exist: file:")
    lines = job.log().splitlines()
    [warning] = [number for number, line in enumerate(lines) if "WARN FileStreamSink" in line]
    assert lines[warning + 1].endswith(f"{tmp_path}/missing does not exist")
    assert not any(line.startswith("\tat ") for line in lines)


def test_a_log_stops_at_its_limit_and_says_so(bench: Any, shapes_jar: Any) -> None:
    config = {"who": "ann", "much": 50_000}
    job = bench.start(bench.request("shapes.Printing", shapes_jar, config=config, max_log_bytes=10_000))
    job.outcome()
    assert len(job.log()) < 10_200
    assert re.search(r"\[\d+ bytes more than the limit of 10000 were dropped\]\n\Z", job.log())


def test_a_job_without_the_old_api_runs_without_the_libraries_of_that_api(
    bench: Any, shapes_jar: Any, old_jar: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor = attrs.evolve(bench.jobs.toolchain, libraries=LibrarySource(directory=tmp_path))
    monkeypatch.setattr(bench.jobs, "toolchain", poor)
    monkeypatch.setattr(bench.jobs, "_api_loaded", False)  # as before any job of the context needed it
    assert bench.value("shapes.WordCount", shapes_jar, config={"words": "a"}) == {"a": 1}
    outcome = bench.run("spark.jobserver.VeryShortDoubleJob", old_jar)
    assert outcome.failure == FailureKind.LOADING
    assert f"no config-<version>.jar in the configured directory {tmp_path}" in outcome.error.message


@pytest.mark.parametrize("name", ["shapes.Waiting", "shapes.SlowTasks"])
def test_a_killed_job_ends_within_seconds_while_another_job_keeps_running(
    bench: Any, shapes_jar: Any, name: str
) -> None:
    job = bench.start(bench.request(name, shapes_jar))
    neighbour = bench.start(bench.request("shapes.Waiting", shapes_jar))
    assert job.validated.wait(60)
    job.wait_for_log("waiting")
    neighbour.wait_for_log("waiting")
    assert job.running
    assert bench.jobs.cancel(job.request.job_id, wait=20.0)
    assert job.outcome().status == "killed"
    assert neighbour.running
    # The cores are free again: a job that needs both gets them.
    assert bench.value("shapes.WordCount", shapes_jar, config={"words": "a b"}) == {"a": 1, "b": 1}
    assert bench.jobs.cancel(neighbour.request.job_id, wait=20.0)
    assert neighbour.outcome().status == "killed"


def test_a_job_that_ignores_its_kill_is_reported_and_stays_running(
    bench: Any, shapes_jar: Any, spark: Any
) -> None:
    system = spark.sparkContext._jvm.java.lang.System
    job = bench.start(bench.request("shapes.Deaf", shapes_jar))
    try:
        job.wait_for_log("waiting")
        assert not bench.jobs.cancel(job.request.job_id, wait=0.5)
        assert job.running
    finally:
        system.setProperty("jobserver.test.deaf", "now")
    assert job.outcome().status == "killed"
    system.clearProperty("jobserver.test.deaf")


def test_killing_a_job_stops_its_structured_streams_and_no_others(bench: Any, shapes_jar: Any) -> None:
    jobs = [
        bench.start(
            bench.request("shapes.StructuredStream", shapes_jar, kind="session", config={"name": name})
        )
        for name in ("killed", "kept")
    ]
    killed, kept = jobs
    try:
        for job in jobs:
            job.wait_for_log("waiting")
        assert bench.jobs.cancel(killed.request.job_id, wait=20.0)
        assert killed.outcome().status == "killed"
        assert kept.running
    finally:
        assert bench.jobs.cancel(kept.request.job_id, wait=20.0)
    assert kept.outcome().status == "killed"


def test_cancelling_an_unknown_job_is_not_an_error(bench: Any) -> None:
    assert bench.jobs.cancel("unknown", wait=0.1)
