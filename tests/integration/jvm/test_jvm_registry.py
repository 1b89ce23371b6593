"""Named objects that Python and JVM jobs of one context share."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from jobserver_core.models.failures import FailureKind
from jobserver_pyspark.jvm import NamedObjects
from jobserver_pyspark.runner.named_objects import NamedObjectTimeout, UnsupportedNamedObject, abandon

pytestmark = pytest.mark.spark


@pytest.fixture
def named(spark: Any) -> Any:
    objects = NamedObjects(spark, "python-job")
    yield objects
    for name in objects.get_names():
        objects.forget(name)


def test_a_context_without_jvm_jobs_has_named_objects(named: NamedObjects, spark: Any) -> None:
    assert named.get("numbers") is None
    made = []

    def make() -> Any:
        made.append(1)
        return spark.range(5)

    assert named.get_or_else_create("numbers", make).count() == 5
    assert named.get_or_else_create("numbers", make).count() == 5
    assert made == [1]
    assert named.get("numbers").count() == 5
    assert named.get_names() == ["numbers"]
    named.update("numbers", spark.range(7))
    assert named.get("numbers").count() == 7
    named.forget("numbers")
    assert (named.get("numbers"), named.get_names()) == (None, [])


def test_an_rdd_of_python_objects_comes_back_as_it_was(named: NamedObjects, spark: Any) -> None:
    content = [1, "two", {"three": [3.0]}, None]
    rdd = spark.sparkContext.parallelize(content, 2).persist()
    named.update("rdd", rdd)
    assert named.get("rdd").collect() == content
    assert named.get("rdd").map(str).count() == 4
    assert rdd._jrdd.getStorageLevel().useMemory()
    named.destroy("rdd")
    assert not rdd._jrdd.getStorageLevel().useMemory()
    assert named.get("rdd") is None


def test_python_sees_objects_created_by_a_jvm_job(named: NamedObjects, bench: Any, old_jar: Any) -> None:
    config = {"createDF": True, "createRDD": True}
    assert bench.value("spark.jobserver.NamedObjectsTestJob", old_jar, config=config) == ["df1", "rdd1"]
    assert named.get_names() == ["df1", "rdd1"]
    assert sorted(row.i for row in named.get("df1").collect()) == [1, 2, 55]
    # The rows that this job shares have no schema, and thus no names.
    assert sorted(named.get("rdd1").collect()) == [[1, True], [2, False], [55, True]]
    named.destroy("df1")
    assert bench.value("spark.jobserver.NamedObjectsTestJob", old_jar) == ["rdd1"]


def test_python_sees_values_of_the_jvm_as_a_result_would_show_them(
    named: NamedObjects, bench: Any, old_jar: Any
) -> None:
    bench.value("spark.jobserver.ShareMixedRddJob", old_jar)
    expected = [[1, "x"], 2, "/tmp/a", {1: "one", "List(2)": "two"}, b"b", {"left": 3}]
    assert named.get("mixed").collect() == expected
    named.destroy("mixed")


def test_a_jvm_job_sees_objects_created_by_python(
    named: NamedObjects, bench: Any, old_jar: Any, spark: Any
) -> None:
    named.update("from python", spark.sparkContext.parallelize([1, 2, 39], 2))
    named.update("frame", spark.range(4))
    assert bench.value("spark.jobserver.SumNamedRddJob", old_jar, config={"name": "from python"}) == 42
    assert bench.value("spark.jobserver.CountNamedDataFrameJob", old_jar, config={"name": "frame"}) == 4


def test_a_caller_waits_for_an_object_that_is_being_created(named: NamedObjects, spark: Any) -> None:
    begun, may_finish, seen = threading.Event(), threading.Event(), []

    def slow() -> Any:
        begun.set()
        assert may_finish.wait(60)
        return spark.range(3)

    other = NamedObjects(spark, "other-job")
    maker = threading.Thread(target=named.get_or_else_create, args=("slow", slow))
    waiter = threading.Thread(target=lambda: seen.append(other.get("slow").count()))
    maker.start()
    try:
        assert begun.wait(60)
        assert other.get_names() == []
        waiter.start()
        with pytest.raises(NamedObjectTimeout, match=r"'slow' was not created within 0\.1 seconds"):
            NamedObjects(spark, "hasty-job", timeout=0.1).get("slow")
    finally:
        may_finish.set()
        maker.join(60)
    waiter.join(60)
    assert seen == [3]


def test_a_failed_factory_leaves_nothing_behind(named: NamedObjects, spark: Any) -> None:
    def fail() -> Any:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        named.get_or_else_create("failed", fail)
    assert named.get("failed") is None
    with pytest.raises(UnsupportedNamedObject, match="not int"):
        named.update("failed", 5)
    assert named.get("failed") is None


def test_killing_a_job_that_creates_an_object_releases_its_waiters(named: NamedObjects, spark: Any) -> None:
    jvm = spark.sparkContext._jvm
    killed = NamedObjects(spark, "killed-job")
    # A process that is killed leaves the block of `_creating` without ending it, at any of its steps.
    creating = killed._creating("half")
    future = creating.__enter__()
    killed._table().put("half", future)
    abandon(jvm, "killed")
    assert killed._table().containsKey("half")
    abandon(jvm, "killed-job")
    assert future.isCancelled()
    assert killed._creators().isEmpty()
    assert named.get("half") is None
    assert named.get_or_else_create("half", lambda: spark.range(2)).count() == 2


def test_a_call_of_a_killed_job_that_arrives_late_does_not_spoil_the_name(
    named: NamedObjects, spark: Any, bench: Any, old_jar: Any
) -> None:
    killed = NamedObjects(spark, "killed-job")
    creating = killed._creating("late")
    future = creating.__enter__()
    abandon(spark.sparkContext._jvm, "killed-job")
    killed._table().put("late", future)
    assert named.get("late") is None
    killed._table().put("cached by name", future)
    assert bench.value("spark.jobserver.CacheRddByNameJob", old_jar) == 55
    killed._table().put("late", future)
    assert named.get_or_else_create("late", lambda: spark.range(2)).count() == 2


def test_a_missing_named_object_is_the_jobs_own_refusal(bench: Any, old_jar: Any) -> None:
    outcome = bench.run("spark.jobserver.SumNamedRddJob", old_jar, config={"name": "nowhere"})
    assert outcome.failure == FailureKind.VALIDATION
