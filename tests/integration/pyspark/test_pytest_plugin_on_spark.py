"""The pytest plugin with real Spark: a job alone in this process, and the same job on a server."""

from __future__ import annotations

import gzip
import importlib
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobserver_core import JobFailed, JobRequest, Settings
from jobserver_core.memory import MemoryTransport
from jobserver_pyspark.demo import build_wheel
from jobserver_pytest import JobRunner, LocalSpark, SparkJobServer
from jobserver_pytest.spark_server import CallbackRelay

pytestmark = pytest.mark.spark

PROJECT = """
from sparkjobserver.api import SparkJob, build_problems


class Rows(SparkJob):
    def validate(self, spark, runtime, config):
        return config.get_int("rows", 0) or build_problems(["rows: is missing"])

    def run_job(self, spark, runtime, rows):
        frame = runtime.namedObjects.get_or_else_create("rows", lambda: spark.range(rows).cache())
        frame.createOrReplaceTempView("view")
        return spark.sql("SELECT count(*) AS n, date'2026-01-02' AS day, 1.10BD AS price FROM view").first()


class Views(SparkJob):
    def validate(self, spark, runtime, config):
        return None

    def run_job(self, spark, runtime, data):
        spark.stop()
        return [table.name for table in spark.catalog.listTables()]


class Functions(SparkJob):
    def validate(self, spark, runtime, config):
        return [1, 2, 3]

    def run_job(self, spark, runtime, numbers):
        return spark.sparkContext.parallelize(numbers).map(double).collect()


def double(number):
    return number * 2


class One(SparkJob):
    def validate(self, spark, runtime, config):
        return 1

    def run_job(self, spark, runtime, one):
        return one


class Lines(SparkJob):
    def validate(self, spark, runtime, config):
        return config.get_string("file")

    def run_job(self, spark, runtime, name):
        return [row.value for row in spark.read.text(str(runtime.data_file(name))).collect()]


class Kind(SparkJob):
    def validate(self, context, runtime, config):
        return None

    def run_job(self, context, runtime, data):
        from pyspark import SparkContext
        from pyspark.sql import SparkSession, SQLContext

        return [isinstance(context, kind) for kind in (SparkSession, SparkContext, SQLContext)]
"""


@pytest.fixture(scope="module")
def _local_spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSpark]:
    """That of the plugin, but not for longer than this module: later ones start a Spark of their own."""
    spark = LocalSpark(tmp_path_factory)
    yield spark
    spark.close()


@pytest.fixture(scope="module")
def _spark_job_server(
    spark_job_server_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SparkJobServer, CallbackRelay]]:
    """That of the plugin, but not for longer than this module."""
    relay = CallbackRelay()
    directory = tmp_path_factory.mktemp("spark-job-server")
    with SparkJobServer.create(spark_job_server_settings, directory, relay) as server:
        yield server, relay


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module of a project, importable as it is for the tests of that project."""
    directory = tmp_path_factory.mktemp("project")
    (directory / "rows_project.py").write_text(PROJECT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(directory))
        import rows_project  # type: ignore[import-not-found]

        yield rows_project
        del sys.modules["rows_project"]


def test_spark_decompresses_an_uploaded_data_file(spark_job_server: SparkJobServer, project: Any) -> None:
    file = spark_job_server.add_data_file("lines.txt.gz", gzip.compress(b"one\ntwo\n"))
    assert spark_job_server.run(project.Lines, {"file": str(file.path)}) == ["one", "two"]
    spark_job_server.delete_data_file(str(file.path))


def test_a_job_alone_returns_what_it_returns_on_a_server(
    run_job: JobRunner, spark_job_server: SparkJobServer, project: Any
) -> None:
    alone = run_job(project.Rows, {"rows": 5})
    assert alone == spark_job_server.run(project.Rows, {"rows": 5})
    assert (alone["n"], alone["day"], str(alone["price"])) == (5, "2026-01-02", "1.10")
    assert run_job.named_objects.get("rows").count() == 5
    with pytest.raises(JobFailed) as here:
        run_job(project.Rows)
    with pytest.raises(JobFailed) as there:
        spark_job_server.run(project.Rows)
    assert (here.value.error, here.value.failure) == (there.value.error, there.value.failure)


def test_workers_import_the_functions_of_the_project(run_job: JobRunner, project: Any) -> None:
    assert run_job(project.Functions) == [2, 4, 6]


def test_jobs_of_one_test_share_a_session_as_in_a_context(
    run_job: JobRunner, spark_job_server: SparkJobServer, project: Any, capsys: Any
) -> None:
    for run in (run_job, spark_job_server.run):
        run(project.Rows, {"rows": 1})
        assert run(project.Views) == ["view"]
    assert "stop() does nothing in a job" in capsys.readouterr().err


def test_each_test_has_a_session_of_its_own(run_job: JobRunner, project: Any) -> None:
    assert run_job(project.Views) == []


@pytest.mark.parametrize(
    ("factory", "kinds"),
    [
        ("PythonSessionContextFactory", [True, False, False]),
        ("PythonSparkContextFactory", [False, True, False]),
        ("PythonSQLContextFactory", [False, False, True]),
    ],
)
def test_the_type_of_the_context_decides_what_the_job_gets(
    run_job: JobRunner, project: Any, factory: str, kinds: list[bool]
) -> None:
    assert run_job(project.Kind, context_settings={"context-factory": factory}) == kinds


def test_the_package_is_uploaded_again_only_when_it_changed(
    spark_job_server: SparkJobServer, callback_sink: MemoryTransport, project: Any
) -> None:
    first = spark_job_server.upload_package("rows_project", name="mine")
    assert spark_job_server.upload_package("rows_project", name="mine") == first
    with Path(project.__file__).open("a") as file:
        file.write("\n# changed\n")
    assert spark_job_server.upload_package("rows_project", name="mine").digest != first.digest
    with pytest.raises(ValueError, match="upload os"):
        spark_job_server.upload_package("os.path")

    class Local(project.Views):  # type: ignore[misc]
        pass

    with pytest.raises(ValueError, match="inside a function"):
        spark_job_server.run(Local)


IMPORTING = """
import importlib


class Importing:
    def validate(self, spark, runtime, config):
        return config.get_string("module")

    def run_job(self, spark, runtime, name):
        return importlib.import_module(name).VALUE
"""


@pytest.fixture
def importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A job that imports the module that its configuration names: from a file beside it, or from a wheel."""
    (tmp_path / "importing_job.py").write_text(IMPORTING)
    (tmp_path / "beside_job.py").write_text("VALUE = 'beside'\n")
    source = tmp_path / "source" / "in_a_wheel.py"
    source.parent.mkdir()
    source.write_text("VALUE = 'wheel'\n")
    build_wheel(source, tmp_path, version="1.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("importing_job")
    for name in ("importing_job", "beside_job"):
        sys.modules.pop(name, None)


def test_a_job_imports_from_the_packages_that_the_test_names(
    spark_job_server: SparkJobServer, importing: Any, tmp_path: Path
) -> None:
    job, run = importing.Importing, spark_job_server.run
    wheel = tmp_path / "in_a_wheel-1.0-py3-none-any.whl"
    packages = ["beside_job", wheel]
    assert run(job, {"module": "beside_job"}, packages=packages) == "beside"
    assert run(job, {"module": "in_a_wheel"}, packages=packages) == "wheel"
    assert len(spark_job_server.binary_versions(f"file-{wheel.name}")) == 1
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        run(job, packages=["no_such_module"])
    with pytest.raises(ValueError, match=r"must be a list, such as \['beside_job'\]"):
        run(job, packages="beside_job")
    with pytest.raises(ValueError, match=r"importing_job\.py is not a wheel, an egg or a ZIP file"):
        run(job, packages=[tmp_path / "importing_job.py"])


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("beside_job", "run(…, packages=['beside_job'])"),
        (
            "in_a_wheel",
            "in_a_wheel is not installed for this test, nor in a package of the job: ",
        ),
    ],
)
def test_a_job_that_finds_no_module_says_how_to_give_it_one(
    spark_job_server: SparkJobServer, importing: Any, module: str, advice: str
) -> None:
    with pytest.raises(JobFailed) as failed:
        spark_job_server.run(importing.Importing, {"module": module})
    assert advice in "".join(traceback.format_exception_only(failed.type, failed.value))
    for part in ("json.nothing", "importing_job.nothing"):
        with pytest.raises(JobFailed) as failed:
            spark_job_server.run(importing.Importing, {"module": part})
        assert "packages=" not in "".join(traceback.format_exception_only(failed.type, failed.value))


def test_callbacks_of_the_shared_server_arrive_in_the_sink_of_the_test(
    spark_job_server: SparkJobServer, callback_sink: MemoryTransport, project: Any
) -> None:

    spark_job_server.run(project.One)  # the context and the binary are there now
    request = JobRequest(
        class_name="rows_project.One",
        class_path="rows_project",
        context=spark_job_server.context_name,
        callback_url="https://customer.example/done",
    )
    handle = spark_job_server.submit(request)
    [body] = callback_sink.bodies(timeout=120)
    assert body == {"jobId": handle.id, "result": 1}


SESSION = """
from pathlib import Path
import pytest
from pyspark import SparkContext
from pyspark.sql import SparkSession
from jobserver_pytest import JobRunner, LocalSpark

@pytest.fixture(scope="session", autouse=True)
def processes():
    started = []
    yield started
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()], "Spark has ended with its owner"

class Count:
    def validate(self, spark, runtime, config):
        return None

    def run_job(self, spark, runtime, data):
        return spark.range(3).count()

class Stop(Count):
    def run_job(self, spark, runtime, data):
        spark.sparkContext.stop()
        return super().run_job(spark, runtime, data)

def test_own(run_job, tmp_path_factory):
    own = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    used = LocalSpark(tmp_path_factory)
    assert JobRunner(used)(Count) == 3
    used.close()
    assert run_job(Stop) == run_job(Count, context=own) == run_job(Stop) == 3
    assert own.sparkContext.master == "local[1]"
    assert own.range(2).count() == 2
    own.stop()
    assert SparkContext._active_spark_context is None

def test_ours(run_job, processes):
    assert run_job(Count) == 3
    processes.append(SparkContext._gateway.proc.pid)
"""


def test_the_session_of_a_project_is_used_and_only_the_plugins_own_is_ended(tmp_path: Path) -> None:
    (tmp_path / "test_session.py").write_text(SESSION)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "jobserver_pytest", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["test_session.py"]
