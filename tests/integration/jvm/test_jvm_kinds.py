"""Every kind of job of the old Scala and Java APIs, in a context of the matching factory, over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest
from http_caller import Caller

pytestmark = pytest.mark.spark

HIVE_QUERY = "select city, count(*) as n from {table} group by city order by city"
CITIES = [{"city": "Purple City", "n": 1}, {"city": "San Jose", "n": 2}]


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("addresses") / "addresses.txt"
    path.write_text("Bob|San Jose\nSandy|Purple City\nRandy|San Jose\n")
    return path


def test_hive_jobs_use_hive_tables_and_leave_the_working_directory_clean(
    caller: Caller, addresses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with caller.context("hive", "HiveContextFactory") as hive:
        assert caller.result("HiveLoaderJob", f'path = "{addresses}"', context=hive) == 3
        query = f'sql = "{HIVE_QUERY.format(table="default.test_addresses")}"'
        assert caller.result("HiveTestJob", query, context=hive) == CITIES
        # A Hive context is an SQL context as well, a HiveContext is none of SparkContext's jobs.
        assert caller.result("SqlTestJob", 'sql = "select 1 as one"', context=hive) == [{"one": 1}]
        refused = caller.send("VeryShortDoubleJob", context=hive)
        assert (refused.status_code, refused.json()["result"]) == (400, "Invalid job type for this context")
        refused = caller.send("HiveLoaderJob", context=hive)
        assert (refused.status_code, refused.json()["status"]) == (400, "VALIDATION FAILED")
        assert refused.json()["result"]["message"] == "One(SparkJobInvalid(No path))"
    assert list(tmp_path.iterdir()) == []


def test_java_hive_and_sql_jobs_load_query_and_refuse(caller: Caller, addresses: Path) -> None:
    with caller.context("jhive", "JavaHiveContextFactory") as hive:
        assert caller.result("JHiveTestLoaderJob", f'path = "{addresses}"', "java", context=hive) == 3
        query = f'sql = "{HIVE_QUERY.format(table="default.java_addresses")}"'
        assert caller.result("JHiveTestJob", query, "java", context=hive) == CITIES
        assert caller.result("JSqlTestJob", query, "java", context=hive) == CITIES
        refused = caller.send("JSqlTestJob", "", "java", context=hive)
        assert (refused.status_code, refused.json()["status"]) == (400, "VALIDATION FAILED")
        assert refused.json()["result"]["message"] == "sql is missing"


def test_java_jobs_of_sql_and_of_sessions_share_their_tables_where_no_factory_was_named(
    caller: Caller,
) -> None:
    with caller.context("jany") as context:
        assert caller.result("JSessionTestLoaderJob", "", "java", context=context) == 2
        query = 'sql = "select value from java_names order by value"'
        expected = [{"value": "Bob"}, {"value": "Sandy"}]
        assert caller.result("JSessionTestJob", query, "java", context=context) == expected
        assert caller.result("JSqlTestJob", query, "java", context=context) == expected


def test_jobs_of_the_oldest_java_api_and_of_the_older_scala_api_with_an_environment(caller: Caller) -> None:
    with caller.context("jspark", "JavaSparkContextFactory") as spark:
        assert caller.result("JavaHelloWorldJob", "", "java", context=spark) == "Hi!"
        assert caller.result("OldestJavaJob", "numbers = [1, 2, 39]", "java", context=spark) == 42
        refused = caller.send("OldestJavaJob", "", "java", context=spark)
        assert (refused.status_code, refused.json()["status"]) == (400, "VALIDATION FAILED")
        assert refused.json()["result"]["message"] == "One(SparkJobInvalid(numbers are missing))"
        assert caller.result("EnvironmentJob", "words = [a, b]", context=spark) == {
            "same job": True,
            "setting": "of the context",
            "words": ["a", "b"],
        }
        refused = caller.send("EnvironmentJob", "reasons = 2", context=spark)
        assert refused.json()["result"]["message"] == "Many(SingleProblem(no 1), SingleProblem(no 2))"
