from __future__ import annotations

import importlib.metadata
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from launcher_world import Start, make_launcher, starter
from master_suite import check_another_user

from conditions import wait_until
from jobserver_core import JobServer
from jobserver_core.errors import ContextFailed, InvalidSetting, LogNotFound
from jobserver_core.ports import ContextEnd, JobCode
from jobserver_core.testing.clock import ManualClock

pytestmark = pytest.mark.spark


def test_settings_reach_spark_as_the_contract_says(start: Start) -> None:
    settings: dict[str, Any] = {
        "num-cpu-cores": 1,
        "memory-per-node": "600m",
        "spark": {"master": "local[*]", "my": {"key": "of spark"}, "ui": {"enabled": True, "port": 0}},
        "passthrough": {"spark": {"passed": {"through": "yes"}}},
        "hadoop": {"my": {"hadoop": {"key": "of hadoop"}}},
        "launcher": {"spark": {"driver": {"extraJavaOptions": "-Dmy.option=set"}}},
        "context-factory": "spark.jobserver.python.PythonContextFactory",
        "python": {"paths": [str(Path(__file__).parent / "jobs")]},
    }
    context = start(settings, name="by-the-contract").wait_ready()
    _, application_id, url = context.listener.wait_for("context_ready", timeout=1.0)
    assert application_id.startswith("local-")
    assert url is not None
    assert url.startswith("http://127.0.0.1:")
    keys = ["spark.master", "spark.app.name", "spark.my.key", "spark.passed.through", "spark.executor.memory"]
    found = context.run("work.Conf", {"keys": keys, "hadoop": ["my.hadoop.key"]}).value
    assert found == {
        "spark.master": "local[1]",
        "spark.app.name": "by-the-contract",
        "spark.my.key": "of spark",
        "spark.passed.through": "yes",
        "spark.executor.memory": "600m",
        "my.hadoop.key": "of hadoop",
    }
    assert context.run("work.Tell").value["context"] == "SparkContext"
    paths = context.run("work.Environment").value["job"]["PYTHONPATH"].split(":")
    assert paths[1:] == settings["python"]["paths"]
    context.handle.kill()
    context.wait_end()


def test_spark_and_hadoop_act_as_the_proxy_user(start: Start) -> None:
    context = start({"spark": {"proxy": {"user": "alice"}}}).wait_ready()
    check_another_user(context)
    context.handle.stop(30.0)
    assert context.wait_end()[0] is ContextEnd.STOPPED
    assert _processes_of(context.spec.id) == []


def test_jobs_of_an_sql_factory_receive_an_sql_context(start: Start) -> None:
    context = start({"context-factory": "spark.jobserver.python.PythonSQLContextFactory"}).wait_ready()
    assert context.run("work.Tell").value["context"] == "SQLContext"
    assert context.run("work.Sql", {"query": "select count(*) as n from range(3)"}).value == [{"n": 3}]
    context.handle.kill()
    context.wait_end()


def test_jobs_of_a_hive_factory_keep_tables_and_write_nothing_outside_the_directories_of_their_context(
    start: Start,
) -> None:
    traces = [Path.cwd() / name for name in ("derby.log", "metastore_db", "spark-warehouse")]
    before = [path.exists() for path in traces]
    context = start({"context-factory": "spark.jobserver.python.PythonHiveContextFactory"}).wait_ready()
    assert context.run("work.Tell").value["context"] == "HiveContext"
    context.run("work.Sql", {"query": "create table kept (n int)"})
    context.run("work.Sql", {"query": "insert into kept values (1), (2)"})
    kept = context.run("work.Sql", {"query": "select n from kept order by n"})
    assert kept.value == [{"n": 1}, {"n": 2}]
    context.handle.stop(30.0)
    assert context.wait_end()[0] is ContextEnd.STOPPED
    assert not context.spec.work_dir.exists()
    assert [path.exists() for path in traces] == before
    assert not list(Path("/tmp").glob(f"*{context.spec.id}*"))


def test_a_session_context_has_tables_of_hive_where_the_old_setting_asks_for_them(start: Start) -> None:
    factory = "spark.jobserver.python.PythonSessionContextFactory"
    settings = {"context-factory": factory, "spark": {"session": {"hive": {"enabled": True}}}}
    context = start(settings).wait_ready()
    assert context.run("work.Tell").value["context"] == "SparkSession"
    assert "Using an existing SparkContext" not in context.spec.log_path.read_text()
    context.run("work.Sql", {"query": "create table of_hive (n int) using hive"})
    assert context.run("work.Sql", {"query": "select count(*) as n from of_hive"}).value == [{"n": 0}]
    context.handle.kill()
    context.wait_end()


def test_jobs_build_their_context_where_the_factory_is_custom(start: Start) -> None:
    context = start({"context-factory": "custom"}, name="of-my-own").wait_ready()
    assert context.run("work.Custom").value == "of-my-own"
    built = context.run("work.CustomClass").value
    assert built == ["Counting", importlib.metadata.version("pyspark"), 3, 4]
    assert context.run("work.Custom").value == "of-my-own"
    refused = context.run("work.Tell").outcome.error
    assert refused is not None
    assert "returned None; the context-factory here is custom, or a class" in refused.message
    context.handle.kill()
    context.wait_end()


def test_a_factory_of_the_users_own_is_custom_if_a_jar_of_the_context_has_its_class(
    start: Start, jar: JobCode
) -> None:
    settings = {"context-factory": "launcherjobs.Count"}
    context = start(settings, name="of-a-jar", class_path=(jar,)).wait_ready()
    assert context.run("work.Custom").value == "of-a-jar"
    context.handle.kill()
    context.wait_end()
    missing = start({"context-factory": "launcherjobs.Lost"}, class_path=(jar,))
    end, error = missing.wait_end()
    assert end is ContextEnd.FAILED
    assert error.error_class == "jobserver_core.errors.UnknownContextFactory"
    assert "setting 'context-factory': class launcherjobs.Lost is in no jar of" in error.message
    assert _processes_of(missing.spec.id) == []
    assert not missing.spec.work_dir.exists()


def test_the_class_of_a_factory_may_be_in_a_jar_of_spark_and_is_not_loaded(
    start: Start, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "factory.jar", "w") as archive:
        archive.writestr("com/acme/Outer$Factory.class", b"of another job server")
    settings = {"context-factory": "com.acme.Outer$Factory", "spark.jars": str(tmp_path / "factory.jar")}
    context = start(settings).wait_ready()
    context.handle.kill()
    context.wait_end()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"num-cpu-cores": "many"}, "num-cpu-cores"),
        ({"num-cpu-cores": 0}, "num-cpu-cores"),
        ({"memory-per-node": "much"}, "memory-per-node"),
        ({"spark": {"executor": {"memory": "lots"}}}, "spark.executor.memory"),
        ({"launcher": {"spark": {"driver": {"memory": "-1g"}}}}, "launcher.spark.driver.memory"),
    ],
)
def test_settings_that_can_never_work_are_refused_at_once(
    start: Start, settings: dict[str, Any], key: str
) -> None:
    with pytest.raises(InvalidSetting) as caught:
        start(settings)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("[null, null, [3, 9]]", "contexts need 3.10 or newer"),
        (
            '["/no/such/pyspark/__init__.py", "4.0.0", [3, 11]]',
            "has no jars (pyspark-client?): install pyspark",
        ),
    ],
)
def test_a_context_whose_interpreter_cannot_run_jobs_fails_and_says_so(
    start: Start, tmp_path: Path, answer: str, message: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    end, error = start({"python": {"executable": str(program)}}).wait_end()
    assert end is ContextEnd.FAILED
    assert message in error.message


def test_a_start_that_fails_has_the_reason_and_the_log(start: Start) -> None:
    context = start({"spark": {"driver": {"extraJavaOptions": "-Xms8p"}}})
    end, error = context.wait_end()
    assert end is ContextEnd.FAILED
    assert "JVM ended" in error.message
    assert "Invalid initial heap size" in error.stack
    assert not context.spec.work_dir.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spark.sql.adaptive.enabled", "perhaps"),
        ("spark.sql.catalogImplementation", "hve"),
        ("spark.task.maxFailures", "few"),
    ],
)
def test_a_value_that_spark_would_refuse_later_fails_the_start(start: Start, key: str, value: str) -> None:
    end, error = start({key: value}).wait_end()
    assert end is ContextEnd.FAILED
    assert (key in error.message, value in error.message) == (True, True), error.message


def test_a_context_that_takes_too_long_to_start_fails_with_the_output_of_spark(tmp_path: Path) -> None:
    clock = ManualClock()
    with JobServer.in_memory(launcher=make_launcher(tmp_path), clock=clock) as server:
        waiter = server.create_context("late", {"spark": {"master": "spark://127.0.0.1:1"}})

        def said() -> str:
            try:
                return server.context_log("late").read_text()
            except LogNotFound:
                return ""

        wait_until(lambda: "Failed to connect to master 127.0.0.1:1" in said(), timeout=60.0)
        clock.advance(180)
        said_first = (
            r"after 180 s: Spark cannot connect to its master spark://127\.0\.0\.1:1; .*; its log ends"
        )
        with pytest.raises(ContextFailed, match=said_first) as caught:
            waiter.result(20.0)
        assert "Failed to connect to master 127.0.0.1:1" in caught.value.error.stack
        context_id = server.context("late").id
    assert _processes_of(context_id) == []


def test_a_context_starts_when_the_temporary_directory_has_a_long_path(
    tmp_path: Path, code: JobCode, other_code: JobCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / ("long" * 40)
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr("tempfile.tempdir", None)
    launcher = make_launcher(directory, options={"packages_size": 0})
    try:
        context = starter(launcher, directory, code)().wait_ready()
        for each, version in ((code, "1.0"), (other_code, "2.0")):
            assert context.run("work.Version", code=each).value["executors"] == version
        place = Path(context.run("work.Environment").value["job"]["TMPDIR"])
        assert len(list((directory / "pyspark" / "packages" / "contents").iterdir())) == 2
    finally:
        launcher.close()
    assert len(str(place)) <= 60
    assert not place.exists()
    assert (
        list((directory / "pyspark" / "packages" / "contents").iterdir()) == []
    )  # unused packages are removed


def test_a_missing_socket_directory_is_reported_before_anything_starts(
    tmp_path: Path, code: JobCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobserver_pyspark.launcher import launcher as module

    monkeypatch.setattr(module, "_MAX_TMP_PATH", 10)
    launcher = make_launcher(tmp_path)
    try:
        context = starter(launcher, tmp_path, code)()
        end, error = context.wait_end()
    finally:
        launcher.close()
    assert end is ContextEnd.FAILED
    assert f"{context.spec.work_dir / 'tmp'} has" in error.message
    assert "bytes where 10 are allowed" in error.message
    assert not context.spec.work_dir.exists()
    assert not context.spec.log_path.exists()


def test_a_stop_that_times_out_is_forced(start: Start) -> None:
    context = start().wait_ready()
    context.running("trouble.SleepingTasks")
    context.handle.stop(0.0)
    assert context.wait_end(10.0)[0] is ContextEnd.STOPPED
    assert _processes_of(context.spec.id) == []


def test_a_launcher_names_missing_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from jobserver_core.errors import LaunchError
    from jobserver_pyspark.installation import java

    launcher = make_launcher(tmp_path)
    launcher.check()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(java, "_packaged", lambda: None)
    with pytest.raises(LaunchError, match=r"pip install 'jobserver-core\[jdk\]'"):
        launcher.check()
    launcher.close()


def _processes_of(context_id: str) -> list[str]:
    """Processes that still carry the context's mark, or its work directory on their command line."""
    needle = context_id.encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_a_context_that_is_killed_with_running_tasks_leaves_nothing(start: Start) -> None:
    context = start({"python": {"executable": sys.executable}}).wait_ready()
    assert context.run("contract.Echo", {"value": 1}).value == 1, "a context may have its own interpreter"
    context.running("trouble.SleepingTasks")
    wait_until(lambda: any(context.listener.progress.values()), "the job has tasks")
    context.handle.kill()
    context.wait_end()
    wait_until(lambda: _processes_of(context.spec.id) == [])
    assert not context.spec.work_dir.exists()
