"""How failures are described, and the log excerpt that comes with them."""

from __future__ import annotations

import pickle
from pathlib import Path

import attrs
import pytest

from jobserver_core import BinaryType, ErrorInfo, errors
from jobserver_core.memory import JobRefused
from jobserver_core.ports import ContextSpec, JobCode, JobSpec
from jobserver_core.results import UnusableResult


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def spec(log: Path, *code: JobCode) -> ContextSpec:
    return ContextSpec(
        id="c", name="c", class_path=code, log_path=log, work_dir=log.parent, data_dir=log.parent
    )


def test_an_exception_is_described_by_its_qualified_class_and_its_message() -> None:
    assert ErrorInfo.from_exception(ValueError("bad")) == ErrorInfo(message="bad", error_class="ValueError")
    info = ErrorInfo.from_exception(errors.StorageError(message="disk full"), message="not stored")
    assert info == ErrorInfo(message="not stored", error_class="jobserver_core.errors.StorageError")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (UnusableResult("x"), "jobserver_core.results.UnusableResult"),
        (JobRefused("x"), "jobserver_core.memory.JobRefused"),
    ],
)
def test_an_exception_is_described_by_the_module_that_exports_it(error: Exception, name: str) -> None:
    assert ErrorInfo.from_exception(error).error_class == name
    assert type(pickle.loads(pickle.dumps(error))) is type(error)


def test_an_exception_is_described_with_its_traceback_on_request() -> None:
    assert "in raised" in ErrorInfo.from_exception(raised(ValueError("bad")), stack=True).stack


@pytest.mark.parametrize(
    ("content", "tail"),
    [
        (b"", ""),
        (b"one\n", "one"),
        (b"0123456789\nlast\n", "last"),
        (b"x\n\xff\n", "x\n\ufffd"),
    ],
)
def test_the_tail_of_a_log_begins_with_a_whole_line(tmp_path: Path, content: bytes, tail: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(content)
    assert spec(log).log_tail(8) == tail


def test_a_log_that_is_not_there_has_an_empty_tail(tmp_path: Path) -> None:
    assert spec(tmp_path / "none").log_tail() == ""


_START_UP = (
    "WARN NativeCodeLoader: Unable to load native-hadoop library for your platform... using "
    "builtin-java classes where applicable",
    "WARN Utils: Your hostname, here, resolves to a loopback address",
    "WARN Utils: Set SPARK_LOCAL_IP if you need to bind to another address",
    "Using Spark's default log4j profile: org/apache/spark/log4j2-defaults.properties",
    'Setting default log level to "WARN".',
    "To adjust logging level use sc.setLogLevel(newLevel). For SparkR, use setLogLevel(newLevel).",
    "WARNING: Using incubator modules: jdk.incubator.vector",
    "Picked up JAVA_TOOL_OPTIONS: -Xmx1g",
    "SLF4J: Class path contains multiple SLF4J bindings.",
    "log4j:WARN No appenders could be found for logger (org.apache.hadoop.util.Shell).",
)
"""What Spark and Java write at every start on many machines, also if it succeeds."""


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("", ""),
        ("one\ntwo\n", "two"),
        ("WARN none of the nodes\n\n\tat Client.scala\n", "WARN none of the nodes"),
        ("INFO Client: state: RUNNING\nINFO Client: \n\t queue: default\n", "INFO Client: state: RUNNING"),
        ("INFO Client:\n", ""),
        *((f"{line}\n", "") for line in _START_UP),
        *((f"ERROR no such master\n{line}\n", "ERROR no such master") for line in _START_UP),
    ],
)
def test_the_last_message_of_a_log_says_something_by_itself(tmp_path: Path, log: str, message: str) -> None:
    (tmp_path / "log").write_text(log)
    assert spec(tmp_path / "log").last_message() == message


_UNREACHABLE = """
26/12/01 02:38:54 WARN StandaloneAppClient$ClientEndpoint: Failed to connect to master {}
org.apache.spark.SparkException: Exception thrown in awaitResult:
\tat org.apache.spark.util.SparkThreadUtils$.awaitResult(SparkThreadUtils.scala:70)
Caused by: java.io.IOException: Failed to connect to /127.0.0.1:7099
\tat io.netty.channel.unix.Errors.newConnectException0(Errors.java:166)
"""


@pytest.mark.parametrize(
    ("failed", "master", "named"),
    [
        ([], "spark://a:1", None),
        (["a:1"] * 40, "spark://a:1", "spark://a:1"),
        (["a:1"], None, "spark://a:1"),
        (["b:2", "a:1"], "spark://a:1,b:2", "spark://a:1,b:2"),
        (["a:1"], "spark://a:1,b:2", None),
    ],
)
def test_a_log_tells_that_no_master_can_be_reached(
    tmp_path: Path, failed: list[str], master: str | None, named: str | None
) -> None:
    (tmp_path / "log").write_text("".join(_UNREACHABLE.format(address) for address in failed))
    found = attrs.evolve(spec(tmp_path / "log"), settings={"spark": {"master": master}}).master_problem()
    ends = "; start it, or correct spark.master"
    assert found == (f"Spark cannot connect to its master {named}{ends}" if named else "")


def test_the_search_path_of_a_job_begins_with_the_class_path_of_its_context(tmp_path: Path) -> None:
    first, second = (
        JobCode(path=tmp_path / name, type=BinaryType.JAR, digest="0" * 64, source=name) for name in "ab"
    )
    job = JobSpec(id="j", class_name="w.Any", class_path=(second,), config="{}", log_path=tmp_path / "log")
    assert spec(tmp_path / "log", first).search_path_of(job) == (first, second)
