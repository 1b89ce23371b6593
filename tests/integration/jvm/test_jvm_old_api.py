"""The documented sample jobs of the old server, compiled unchanged against the shipped API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobserver_core.config.hocon import parse_untrusted
from jobserver_core.models.failures import FailureKind
from jobserver_core.models.json_values import dumps

pytestmark = pytest.mark.spark

WORDS = {"input": {"string": "a b c a b see"}}
COUNTS = {"a": 2, "b": 2, "c": 1, "see": 1}


@pytest.mark.parametrize("name", ["WordCountExample", "WordCountExampleNewApi"])
def test_word_count_of_either_api_counts_words(bench: Any, old_jar: Path, name: str) -> None:
    assert bench.value(f"spark.jobserver.{name}", old_jar, config=WORDS) == COUNTS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("WordCountExample", "One(SparkJobInvalid(No input.string config param))"),
        ("WordCountExampleNewApi", "One(SingleProblem(No input.string param))"),
    ],
)
def test_a_job_that_refuses_its_configuration_is_reported_as_the_old_server_did(
    bench: Any, old_jar: Path, name: str, message: str
) -> None:
    outcome = bench.run(f"spark.jobserver.{name}", old_jar)
    assert outcome.failure == FailureKind.VALIDATION
    assert (outcome.error.message, outcome.error.error_class) == (message, "java.lang.Throwable")
    assert outcome.error.stack.startswith(f"java.lang.Throwable: {message}\n\tat ")


def test_a_long_running_pi_is_about_pi(bench: Any, old_jar: Path) -> None:
    config = {"stress": {"test": {"longpijob": {"duration": 1}}}}
    assert bench.value("spark.jobserver.LongPiJob", old_jar, config=config) == pytest.approx(3.14, abs=0.2)


def test_a_very_short_job_doubles_its_numbers(bench: Any, old_jar: Path) -> None:
    assert bench.value("spark.jobserver.VeryShortDoubleJob", old_jar) == [2, 4, 6]


def test_an_exception_is_the_jobs_error_with_its_java_class_and_stack(bench: Any, old_jar: Path) -> None:
    outcome = bench.run("spark.jobserver.MyErrorJob", old_jar)
    assert outcome.failure == FailureKind.RAISED
    assert (outcome.error.message, outcome.error.error_class) == (
        "Foobar",
        "java.lang.IllegalArgumentException",
    )
    assert "at spark.jobserver.MyErrorJob.runJob" in outcome.error.stack


def test_a_fatal_error_fails_the_job_but_not_the_context(bench: Any, old_jar: Path) -> None:
    outcome = bench.run("spark.jobserver.MyFatalErrorJob", old_jar)
    assert (outcome.failure, outcome.error.error_class) == (FailureKind.RAISED, "java.lang.OutOfMemoryError")
    assert bench.value("spark.jobserver.VeryShortDoubleJob", old_jar) == [2, 4, 6]


def test_a_jobs_own_class_travels_in_closures_results_and_broadcasts(bench: Any, old_jar: Path) -> None:
    assert bench.value("spark.jobserver.ZookeeperJob", old_jar) == [["horse"]]


def test_a_jobs_own_class_is_read_back_from_persisted_blocks(bench: Any, old_jar: Path) -> None:
    assert bench.value("spark.jobserver.PersistedAnimalsJob", old_jar) == [3, 3, 5]


def test_named_rdds_are_cached_by_name(bench: Any, old_jar: Path) -> None:
    assert bench.value("spark.jobserver.CacheRddByNameJob", old_jar) == 55


def test_named_objects_live_from_job_to_job_until_they_are_forgotten(bench: Any, old_jar: Path) -> None:
    def names(**config: Any) -> list[str]:
        left = bench.value("spark.jobserver.NamedObjectsTestJob", old_jar, config=config)
        return [name for name in left if name in {"df1", "rdd1", "broadcast1"}]

    assert names(createDF=True, createRDD=True) == ["df1", "rdd1"]
    assert names(createBroadcast=True) == ["broadcast1", "df1", "rdd1"]
    assert names() == ["broadcast1", "df1", "rdd1"]
    counted = bench.value("spark.jobserver.CountNamedDataFrameJob", old_jar, config={"name": "df1"})
    assert counted == 3
    assert names(delete=["broadcast1", "df1", "rdd1"]) == []


def test_a_missing_named_rdd_is_a_refusal(bench: Any, old_jar: Path) -> None:
    outcome = bench.run("spark.jobserver.SumNamedRddJob", old_jar, config={"name": "nothing"})
    assert outcome.error.message == "One(SparkJobInvalid(Missing named RDD [nothing]))"


def test_habits_of_old_sources_compile_and_work(bench: Any, old_jar: Path) -> None:
    def refusal(name: str, **config: Any) -> str:
        outcome = bench.run(f"spark.jobserver.{name}", old_jar, config=config)
        assert outcome.failure == FailureKind.VALIDATION
        return str(outcome.error.message)

    assert refusal("HabitsJob") == "One(SparkJobInvalid(one is missing))"
    assert refusal("HabitsJob", one=1) == "One(SparkJobInvalid(two is missing))"
    for _ in range(2):
        assert bench.value("spark.jobserver.HabitsJob", old_jar, config={"one": 1, "two": 2}) == [10, 3]
    expected = "Many(SingleProblem(bad at 1), SingleProblem(worse at 2))"
    assert refusal("LocatedProblemJob") == expected


def test_sql_jobs_see_the_tables_of_the_jobs_before(bench: Any, old_jar: Path) -> None:
    assert bench.value("spark.jobserver.SqlLoaderJob", old_jar, kind="sql") == 3
    query = {"sql": "select firstName, city from addresses where city = 'San Jose' order by firstName"}
    assert bench.value("spark.jobserver.SqlTestJob", old_jar, kind="sql", config=query) == [
        {"firstName": "Bob", "city": "San Jose"},
        {"firstName": "Randy", "city": "San Jose"},
    ]


def test_session_jobs_of_scala_and_java_share_their_tables(bench: Any, old_jar: Path, java_jar: Path) -> None:
    assert bench.value("spark.jobserver.SessionLoaderTestJob", old_jar, kind="session") == 2
    query = {"sql": "select name from test_addresses order by name"}
    expected = [{"name": "Bob"}, {"name": "Sandy"}]
    assert bench.value("spark.jobserver.SessionTestJob", old_jar, kind="session", config=query) == expected
    # Another class path, thus another session: the view was carried over.
    assert bench.value("spark.jobserver.JSessionTestJob", java_jar, kind="session", config=query) == expected


def test_tables_of_a_jvm_job_are_there_for_python(bench: Any, old_jar: Path, spark: Any) -> None:
    assert bench.value("spark.jobserver.SessionLoaderTestJob", old_jar, kind="session") == 2
    assert spark.table("test_addresses").count() == 2


def test_a_java_job_says_hi(bench: Any, java_jar: Path) -> None:
    assert bench.value("spark.jobserver.JavaHelloWorldJob", java_jar) == "Hi!"


def test_a_java_job_whose_verify_throws_failed(bench: Any, java_jar: Path) -> None:
    outcome = bench.run("spark.jobserver.FailingJavaJob", java_jar)
    assert (outcome.failure, outcome.error.message) == (FailureKind.RAISED, "fail")


@pytest.mark.parametrize(
    ("name", "kind", "needed"),
    [
        ("WordCountExample", "session", "DefaultSparkContextFactory, or a context without context-factory"),
        (
            "SqlTestJob",
            "spark",
            "HiveContextFactory or SQLContextFactory, or a context without context-factory",
        ),
        ("SessionTestJob", "spark", "SessionContextFactory, or a context without context-factory"),
        ("StreamingTestJob", "spark", "StreamingContextFactory"),
    ],
)
def test_a_job_of_the_wrong_kind_for_its_context_is_refused(
    bench: Any, old_jar: Path, name: str, kind: str, needed: str
) -> None:
    main_class = f"spark.jobserver.{name}"
    factory = f"spark.jobserver.context.Java{kind.title()}ContextFactory"
    config = {"context-factory": factory}
    outcome = bench.run(main_class, old_jar, kind=kind, config=WORDS, context_config=config)
    assert outcome.failure == FailureKind.WRONG_TYPE
    assert outcome.error.message == (
        f"{main_class} needs context-factory = {needed}; this context has context-factory = {factory}"
    )


def test_only_data_files_can_be_opened_by_name(
    bench: Any, tmp_path: Path, compile_jar: Any, toolchain: Any
) -> None:
    source = tmp_path / "DataFile.scala"
    source.write_text(
        """
        import com.typesafe.config.Config
        import org.apache.spark.SparkContext
        import org.scalactic._
        import spark.jobserver.api._
        object DataFile extends SparkJob {
          type JobData = String
          type JobOutput = String
          def validate(sc: SparkContext, runtime: JobEnvironment, config: Config) =
            Good(config.getString("file"))
          def runJob(sc: SparkContext, runtime: JobEnvironment, file: String) =
            scala.io.Source.fromFile(runtime.asInstanceOf[DataFileCache].getDataFile(file)).mkString
        }
        """
    )
    jar = compile_jar("datafile", source, class_path=toolchain.java_class_path())
    data = tmp_path / "data"
    data.mkdir()
    (data / "it.dat").write_text("content")
    (tmp_path / "secret").write_text("secret")
    whole_name = str(data / "it.dat")
    for name in ("it.dat", whole_name):
        assert bench.value("DataFile", jar, config={"file": name}, data_dir=data) == "content"
    outcome = bench.run("DataFile", jar, config={"file": "../secret"}, data_dir=data)
    assert outcome.error.error_class == "java.io.FileNotFoundException"


NUMBERS = """
    0 -0 7 -7 100 2147483647 2147483648 -2147483648 -2147483649 9007199254740993 9223372036854775807
    -9223372036854775808 9223372036854775808 123456789012345678901234567890
    0.0 -0.0 1.0 1.10 2.50 -0.10 0.5 0.50 100.00 0.30000000000000004 3.14159265358979323846
    12345678901234567.89 0.1000000000000000055511151231257827 99999999999999.99999
    1E5 1e5 1e+5 1E+05 1e-2 1E-02 1.50e3 2.5E2 -1e-7 1.0E10 1e21 1.7976931348623157e308 4.9e-324 1e-400
"""


@pytest.mark.parametrize("written", NUMBERS.split())
def test_a_job_reads_numbers_as_they_were_written(bench: Any, old_jar: Path, written: str) -> None:
    text = dumps(parse_untrusted(f"v = {written}, list = [{written}]"))
    read = bench.value("spark.jobserver.WrittenNumberJob", old_jar, config=text, context_config=text)
    whole = int(float(written)) if set(written) & set(".eE") else int(written)
    assert read == {
        "text": written,
        "double": float(written),
        "long": min(max(whole, -(2**63)), 2**63 - 1),
        "int": whole if -(2**31) <= whole < 2**31 else None,
        "listed": written,
        "context": written,
    }


def test_java_records_are_objects_and_so_is_a_configuration(bench: Any, java_jar: Path) -> None:
    value = bench.value("spark.jobserver.RecordJob", java_jar, config={"a": {"b": [1, "x", None]}})
    corners = [{"x": 1, "name": "a"}, {"x": 2, "name": None}]
    assert value == {"corners": corners, "config": {"a": {"b": [1, "x", None]}}}
