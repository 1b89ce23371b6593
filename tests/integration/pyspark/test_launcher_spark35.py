from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from context_processes import family
from launcher_world import Context, Start, code_of

from built_once import built_once
from conditions import wait_until
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import ContextEnd, JobCode, JobSpec
from jobserver_pyspark.jvm import JvmToolchain, SparkInstall

pytestmark = [pytest.mark.spark, pytest.mark.pyspark35, pytest.mark.slow]


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter with PySpark 3.5 and nothing else; JOBSERVER_TEST_PYSPARK35 names one that is there."""
    if given := os.environ.get("JOBSERVER_TEST_PYSPARK35"):
        return given
    if sys.version_info >= (3, 12):
        pytest.skip("PySpark 3.5 supports Python up to 3.11")
    packages = ["pyspark>=3.5,<3.6", "setuptools<80"]

    def build(directory: Path) -> None:
        venv.create(directory, with_pip=True)
        pip = [directory / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *packages], check=True, timeout=280)

    directory = built_once("pyspark35", [sys.executable, sys.version, *packages], build)
    return str(directory / "bin" / "python")


@pytest.fixture(scope="module")
def on_35(start_shared: Start, python: str) -> Iterator[Context]:
    context = start_shared(
        {"python": {"executable": python}, "spark": {"my": {"setting": "of the context"}}}
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


def test_versions_of_a_package_are_isolated_on_spark_3_5(
    on_35: Context, code: JobCode, other_code: JobCode
) -> None:
    for each, version in ((code, "1.0"), (other_code, "2.0"), (code, "1.0")):
        assert on_35.run("work.Version", code=each).value == {"driver": version, "executors": version}
        assert on_35.run("work.UdfVersion", code=each).value == [version]


@pytest.mark.parametrize(
    "name", ["trouble.BusyLoop", "trouble.SleepingTasks", "trouble.ThreadedTasks", "trouble.JvmSleep"]
)
def test_kills_kill_on_spark_3_5(on_35: Context, name: str) -> None:
    job = on_35.running(name)
    on_35.handle.kill_job(job.id)
    assert on_35.listener.outcome(job.id, timeout=15.0).killed
    assert on_35.run("trouble.JvmCalls", {"frame": "Thread.sleep"}).value == 0
    assert on_35.end_of(on_35.submit("work.WordCount", {"input": {"string": "a"}}), 20.0).value == {"a": 1}


@pytest.mark.parametrize("kind", ["thread", "timer", "scheduled", "queue"])
def test_a_kill_ends_the_threads_that_the_calls_of_a_job_have_started_on_spark_3_5(
    on_35: Context, remains_jar: JobCode, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "written"
    config = {"path": str(path), "kind": kind, "stay": True}
    job = on_35.submit("calls.Starts", config, before=remains_jar)
    wait_until(path.exists, timeout=120.0)
    on_35.handle.kill_job(job.id)
    assert on_35.end_of(job).outcome.killed
    path.unlink()
    assert on_35.run("work.WordCount", {"input": {"string": "a"}}).value == {"a": 1}
    assert not path.exists()


def test_a_connection_of_a_stranger_does_not_stop_the_context_on_spark_3_5(on_35: Context) -> None:
    assert on_35.end_of(on_35.submit("trouble.Besieged"), timeout=30.0).value == 4


def test_a_late_task_of_a_job_does_not_stop_the_accumulators_of_the_next_one_on_spark_3_5(
    on_35: Context,
) -> None:
    first = on_35.run("reuse.Accumulate").value
    for _ in range(10):
        later = on_35.run("reuse.Accumulate", first).value
        assert later["sum"] == 6
        if later["pid"] == first["pid"]:
            return
    raise AssertionError("no other job ran in the process of the first one")


def test_crashes_and_failures_are_reported_on_spark_3_5(on_35: Context) -> None:
    assert on_35.run("trouble.Exit").outcome.failure is FailureKind.CRASHED
    failed = on_35.run("trouble.SparkFailure").outcome
    assert failed.error is not None
    assert "bad row 1" in failed.error.stack


def test_objects_and_progress_on_spark_3_5(on_35: Context, tmp_path: Path) -> None:
    assert on_35.run("results.Share").value == ["frame", "rdd"]
    assert on_35.run("results.UseShared").value["frame"] == 5
    assert on_35.progress_of_stages(tmp_path / "gate")[-1].stages_total == 2


# -- JVM jobs --------------------------------------------------------------------------------------

OLD = Path(__file__).parents[1] / "jvm" / "jobs" / "old"
VERSIONS = OLD.parent / "versions"


@pytest.fixture(scope="module")
def compile_35(python: str) -> Callable[..., JobCode]:
    """Compiles Scala sources with the compiler of Spark 3.5, Scala 2.12, against it and the job API."""
    where = "import os, pyspark; print(os.path.dirname(pyspark.__file__))"
    home = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True, timeout=60)
    toolchain = JvmToolchain(spark=SparkInstall.of(Path(home.stdout.strip()) / "jars"))

    spark = [str(jar) for jar in toolchain.spark.jars.glob("*.jar")]

    def compiled(*sources: Path) -> JobCode:
        class_path = os.pathsep.join([toolchain.java_class_path(with_spark=False), *spark])

        def build(directory: Path) -> None:
            classes = directory / "classes"
            classes.mkdir()
            command = [toolchain.java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
            command += ["-cp", toolchain.spark.java_class_path, "scala.tools.nsc.Main", "-nowarn"]
            command += ["-d", str(classes), "-classpath", class_path, *map(str, sources)]
            subprocess.run(command, check=True, timeout=200)
            with zipfile.ZipFile(directory / "jobs.jar", "w") as archive:
                for path in sorted(classes.rglob("*.class")):
                    archive.write(path, path.relative_to(classes).as_posix())

        inputs = [class_path, *(source.read_text("utf-8") for source in sources)]
        return code_of(built_once("jobs35", inputs, build) / "jobs.jar", BinaryType.JAR)

    return compiled


@pytest.fixture(scope="module")
def jar_35(compile_35: Callable[..., JobCode]) -> JobCode:
    old = [OLD / f"{name}.scala" for name in ("WordCount", "Numbers", "Named")]
    return compile_35(*old, Path(__file__).parent / "jobs" / "jvm" / "JvmJobs.scala")


def _start(context: Context, jar: JobCode, class_name: str, config: Any = None) -> JobSpec:
    job_id = str(uuid4())
    job = JobSpec(
        id=job_id,
        class_name=class_name,
        class_path=(jar,),
        config=json.dumps(config or {}),
        log_path=context.spec.log_path.with_name(f"job-{job_id}.log"),
    )
    context.handle.submit(job)
    return job


def _value(context: Context, jar: JobCode, class_name: str, config: Any = None) -> Any:
    return context.end_of(_start(context, jar, class_name, config), timeout=240.0).value


def test_jars_of_the_old_apis_and_of_none_run_on_spark_3_5(on_35: Context, jar_35: JobCode) -> None:
    words, counted = {"input": {"string": "a b c a b see"}}, {"a": 2, "b": 2, "c": 1, "see": 1}
    assert _value(on_35, jar_35, "launcherjobs.Count", {"rows": 7}) == 7
    assert _value(on_35, jar_35, "spark.jobserver.WordCountExample", words) == counted
    assert _value(on_35, jar_35, "spark.jobserver.WordCountExampleNewApi", words) == counted
    # A job's own class in closures, task results, broadcasts and in persisted blocks.
    assert _value(on_35, jar_35, "spark.jobserver.ZookeeperJob") == [["horse"]]
    assert _value(on_35, jar_35, "spark.jobserver.PersistedAnimalsJob") == [3, 3, 5]
    refused = on_35.end_of(_start(on_35, jar_35, "spark.jobserver.WordCountExample")).outcome
    assert refused.failure is FailureKind.VALIDATION
    assert refused.error is not None
    assert refused.error.message == "One(SparkJobInvalid(No input.string config param))"


def test_python_and_jars_share_named_objects_on_spark_3_5(on_35: Context, jar_35: JobCode) -> None:
    assert _value(on_35, jar_35, "spark.jobserver.CacheRddByNameJob") == 55
    assert on_35.run("results.ReadNamed", {"name": "cached by name"}).value == [1, 2, 3, 4, 5]
    on_35.run("results.Share")
    assert _value(on_35, jar_35, "spark.jobserver.SumNamedRddJob", {"name": "rdd"}) == 14
    assert _value(on_35, jar_35, "spark.jobserver.CountNamedDataFrameJob", {"name": "frame"}) == 5
    for name in ("cached by name", "frame", "rdd"):
        on_35.run("results.Forget", {"name": name})


def test_another_version_of_a_class_is_refused_clearly_on_spark_3_5(
    on_35: Context, compile_35: Callable[..., JobCode]
) -> None:
    one, two = (compile_35(VERSIONS / f"{name}.scala") for name in ("one", "two"))
    assert _value(on_35, one, "versions.Job")["executors"] == ["one"]
    refused = on_35.end_of(_start(on_35, two, "versions.Job")).outcome
    assert refused.failure is FailureKind.LOADING
    assert refused.error is not None
    assert "holds another version of versions/" in refused.error.message
    assert "use a new context for the new version" in refused.error.message
    # Threads of a pool carry the one class path that there is.
    assert _value(on_35, one, "versions.Job", {"future": True})["sent"] == ["one sent"]


def test_a_kill_ends_a_jar_job_and_frees_its_cores_on_spark_3_5(on_35: Context, jar_35: JobCode) -> None:
    job = _start(on_35, jar_35, "launcherjobs.Sleep")
    on_35.listener.wait_for("job_running", job.id, timeout=60.0)
    on_35.handle.kill_job(job.id)
    assert on_35.listener.outcome(job.id, timeout=15.0).killed
    assert on_35.run("work.WordCount", {"input": {"string": "a"}}).value == {"a": 1}


def test_a_kill_of_a_jar_job_spares_python_workers_that_were_started_after_it_on_spark_3_5(
    on_35: Context, jar_35: JobCode, other_code: JobCode, tmp_path: Path
) -> None:
    job = _start(on_35, jar_35, "launcherjobs.Gated", {"gate": str(tmp_path / "gate")})
    on_35.listener.wait_for("job_running", job.id, timeout=60.0)
    # A class path of its own, whose workers have a daemon of their own.
    on_35.end_of(on_35.submit("work.Version", before=other_code))
    workers = set(family(on_35)["workers"])
    on_35.handle.kill_job(job.id)
    assert on_35.listener.outcome(job.id, timeout=15.0).killed
    assert workers <= set(family(on_35)["workers"])
