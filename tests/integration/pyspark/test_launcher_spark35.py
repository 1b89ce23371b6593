from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator

import pytest
from launcher_world import Context, Start

from jobserver_core.failures import FailureKind
from jobserver_core.ports import ContextEnd, JobCode

pytestmark = [pytest.mark.spark, pytest.mark.pyspark35, pytest.mark.slow]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with PySpark 3.5 and nothing else; JOBSERVER_TEST_PYSPARK35 names one that is there."""
    if given := os.environ.get("JOBSERVER_TEST_PYSPARK35"):
        return given
    if sys.version_info >= (3, 12):
        pytest.skip("PySpark 3.5 supports Python up to 3.11")
    folder = tmp_path_factory.mktemp("pyspark35")
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "pyspark>=3.5,<3.6", "setuptools<80"], check=True, timeout=280)
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def on_35(start_shared: Start, python: str) -> Iterator[Context]:
    context = start_shared(
        {"python": {"executable": python}, "my": {"setting": "of the context"}}
    ).wait_ready()
    yield context
    assert context.listener.faults == []
    context.handle.stop(30.0)
    assert context.wait_end()[0] is ContextEnd.STOPPED


def test_jobs_run_on_spark_3_5(on_35: Context) -> None:
    counted = on_35.run("work.WordCount", {"input": {"string": "a b c a b see"}})
    assert counted.value == {"a": 2, "b": 2, "c": 1, "see": 1}
    told = on_35.run("work.Tell", {"own": 1}).value
    assert told["config"] == "ConfigTree"
    assert told["setting"] == told["merged"] == "of the context"
    assert on_35.run("work.Sql", {"query": "select 1 as n"}).value == [{"n": 1}]


def test_versions_of_a_package_keep_apart_on_spark_3_5(
    on_35: Context, code: JobCode, other_code: JobCode
) -> None:
    for each, version in ((code, "1.0"), (other_code, "2.0"), (code, "1.0")):
        assert on_35.run("work.Version", code=each).value == {"driver": version, "executors": version}
        assert on_35.run("work.UdfVersion", code=each).value == [version]


@pytest.mark.parametrize("name", ["trouble.BusyLoop", "trouble.SleepingTasks", "trouble.ThreadedTasks"])
def test_kills_kill_on_spark_3_5(on_35: Context, name: str) -> None:
    job = on_35.running(name)
    on_35.handle.kill_job(job.id)
    assert on_35.listener.outcome(job.id, timeout=15.0).killed
    assert on_35.end_of(on_35.submit("work.WordCount", {"input": {"string": "a"}}), 20.0).value == {"a": 1}


def test_crashes_and_failures_are_told_on_spark_3_5(on_35: Context) -> None:
    assert on_35.run("trouble.Exit").outcome.failure is FailureKind.CRASHED
    failed = on_35.run("trouble.SparkFailure").outcome
    assert failed.error is not None
    assert "bad row 1" in failed.error.stack


def test_objects_and_progress_on_spark_3_5(on_35: Context) -> None:
    assert on_35.run("results.Share").value == ["frame", "rdd"]
    assert on_35.run("results.UseShared").value["frame"] == 5
    job = on_35.submit("work.Stages")
    assert on_35.end_of(job).value == 6
    assert any(0 < p.tasks_done < p.tasks_total for p in on_35.listener.progress[job.id])
