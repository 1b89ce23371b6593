from __future__ import annotations

import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from context_processes import family
from launcher_world import Context, Result, Start, code_of

from conditions import wait_until
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import JobCode

pytestmark = pytest.mark.spark


BURST = 30
OTHERS = 5
"""Threads of the JVM itself, which come and go."""


def _run(context: Context, jar: JobCode, name: str, config: Any = None) -> Result:
    return context.end_of(context.submit_jvm(jar, name, config), timeout=200.0)


def test_a_jar_runs_in_the_same_context_as_python_jobs(context: Context, jar: JobCode) -> None:
    counted = _run(context, jar, "Count", {"rows": 7})
    assert counted.value == 7
    assert "counting in the JVM" in counted.log
    assert context.listener.of_job(counted.id) == ["job_running", "open_result", "job_ended"]
    assert context.run("contract.Echo", {"value": 1}).value == 1


def test_a_jar_job_that_throws_fails_with_its_exception(context: Context, jar: JobCode) -> None:
    outcome = _run(context, jar, "Fail").outcome
    assert outcome.failure is FailureKind.RAISED
    assert outcome.error is not None
    assert outcome.error.message == "no such row"
    assert outcome.error.error_class == "java.lang.IllegalStateException"


def test_a_class_missing_from_the_jar_is_reported(context: Context, jar: JobCode) -> None:
    outcome = _run(context, jar, "Cuont").outcome
    assert outcome.failure is FailureKind.CLASS_NOT_FOUND
    assert outcome.error is not None
    assert outcome.error.message == "class launcherjobs.Cuont not found"
    assert outcome.error.stack == (
        "no class launcherjobs.Cuont on the job's class path; did you mean 'launcherjobs.Count'?"
    )


def test_a_kill_ends_a_jar_job_and_frees_its_cores(context: Context, jar: JobCode) -> None:
    job = context.submit_jvm(jar, "Sleep")
    context.listener.wait_for("job_running", job.id, timeout=60.0)
    context.handle.kill_job(job.id)
    assert context.listener.outcome(job.id, timeout=15.0).killed
    assert context.run("work.WordCount", {"input": {"string": "a"}}).value == {"a": 1}


def test_the_threads_of_jar_jobs_are_as_many_as_needed_and_end_after_a_burst(
    start: Start, jar: JobCode, tmp_path: Path
) -> None:
    context = start().wait_ready()
    assert _run(context, jar, "Count", {"rows": 7}).value == 7
    [jvm] = family(context)["jvm"]

    def threads() -> int:
        """Count the threads that run jobs; Spark's pools have names, grow with the queries, and end later."""
        count = 0
        for name in Path(f"/proc/{jvm}/task").glob("*/comm"):
            with suppress(OSError):  # it has just ended
                count += name.read_text().startswith("Thread-")
        return count

    before, during = threads(), list[int]()
    for number in range(3):
        gate = tmp_path / f"gate-{number}"
        jobs = [context.submit_jvm(jar, "Gated", {"gate": str(gate)}) for _ in range(BURST)]
        for job in jobs:
            context.listener.wait_for("job_running", job.id, timeout=200.0)
        during.append(threads())
        gate.touch()
        for job in jobs:
            assert context.end_of(job, timeout=200.0).value == 1000
    assert max(during) <= before + BURST + OTHERS, (before, during)
    wait_until(lambda: threads() <= before + OTHERS, lambda: f"{threads()} threads, {before} before")


def test_the_jvm_forgets_jar_jobs_that_have_ended(context: Context, jar: JobCode) -> None:
    counts = [_run(context, jar, "CountGroups").value for _ in range(20)]
    assert max(counts) < 10, counts


def test_a_large_result_of_a_jar_job_arrives_whole(context: Context, jar: JobCode) -> None:
    value = _run(context, jar, "Large", {"megabytes": 5}).value
    assert value == ["x" * 1048576] * 5


CALLED = {"driver": [42, 42], "sql": [0, 2, 4, 6], "rdd": [0, 2, 4, 6]}


def test_a_python_job_calls_the_classes_of_a_jar_in_its_class_path(context: Context, jar: JobCode) -> None:
    for _ in range(2):
        assert context.end_of(context.submit("work.CallsJar", before=jar)).value == CALLED
    assert _run(context, jar, "Count", {"rows": 7}).value == 7


def test_a_jar_with_another_version_of_a_class_is_refused_where_python_jobs_brought_the_first(
    context: Context, jar: JobCode, tmp_path: Path
) -> None:
    assert context.end_of(context.submit("work.CallsJar", before=jar)).value == CALLED
    path = tmp_path / "other.jar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("launcherjobs/Twice.class", b"other code")
        archive.writestr("META-INF/versions/9/module-info.class", b"")
    other = code_of(path, BinaryType.JAR)
    for job in (context.submit("work.CallsJar", before=other), context.submit_jvm(other, "Count")):
        outcome = context.end_of(job).outcome
        assert outcome.failure is FailureKind.LOADING
        assert outcome.error is not None
        assert "the class launcherjobs.Twice is in two different jars" in outcome.error.message
