"""The documented sample jobs of the old server over HTTP, as its clients send them.

On a local master, and on a real standalone cluster with separate executors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from http_caller import FACTORIES, Caller, calling
from test_jvm_cluster import Daemon, master  # noqa: F401 - a fixture

from conditions import SPARK_WAIT

assert Daemon
pytestmark = pytest.mark.spark

WORDS = "input.string = a b c a b see"
COUNTS = {"a": 2, "b": 2, "c": 1, "see": 1}


@pytest.fixture(scope="module", params=["local", pytest.param("cluster", marks=pytest.mark.cluster)])
def caller(
    request: pytest.FixtureRequest,
    old_jar: Path,
    java_jar: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Caller]:
    address = "local[2]" if request.param == "local" else request.getfixturevalue("master")
    settings = {
        "spark.master": address,
        "spark.context-settings": {"spark.executor.memory": "512m", "spark.cores.max": 2},
    }
    jars = {"old": old_jar, "java": java_jar}
    with calling(tmp_path_factory.mktemp("data"), jars, **settings) as caller:
        yield caller


def test_the_sample_jobs_give_their_documented_results_in_a_context_of_no_factory(caller: Caller) -> None:
    with caller.context("any") as name:
        in_it = {"context": name}
        assert caller.result("WordCountExample", WORDS, **in_it) == COUNTS
        assert caller.result("WordCountExampleNewApi", WORDS, **in_it) == COUNTS
        assert caller.result("VeryShortDoubleJob", **in_it) == [2, 4, 6]
        assert caller.result("JavaHelloWorldJob", app="java", **in_it) == "Hi!"
        pi = caller.result("LongPiJob", "stress.test.longpijob.duration = 1", **in_it)
        assert pi == pytest.approx(3.14, abs=0.3)
        assert caller.result("CacheRddByNameJob", **in_it) == 55
        assert caller.result("SumNamedRddJob", "name = cached by name", **in_it) == 15


def test_a_missing_value_whose_key_has_a_dot_comes_with_the_way_to_nest_it(caller: Caller) -> None:
    def error_of(job: str, config: str) -> str:
        response = caller.send(job, config, context=name, sync="true", timeout=int(SPARK_WAIT))
        message: str = response.json()["result"]["message"]
        return message

    hint = "the configuration has a key named 'input.string' with a dot; nest it: "
    with caller.context("any") as name:
        refused = error_of("WordCountExample", '{"input.string": "a b"}')
        assert refused == (
            f'One(SparkJobInvalid(No input.string config param)); {hint}{{"input": {{"string": …}}}}'
        )
        failed = error_of("SqlTestJob", '{"sql.query": "select 1"}')
        assert "key 'sql'; the configuration has a key named 'sql.query' with a dot; nest it: " in failed


def test_sql_jobs_load_and_query_in_a_context_of_their_factory(caller: Caller) -> None:
    with caller.context("sql", "SQLContextFactory"):
        assert caller.result("SqlLoaderJob", context="sql") == 3
        query = 'sql = "select count(*) as n from addresses"'
        assert caller.result("SqlTestJob", query, context="sql") == [{"n": 3}]
        refused = caller.send("WordCountExample", WORDS, context="sql")
        assert (refused.status_code, refused.json()["result"]) == (400, "Invalid job type for this context")


def test_a_streaming_job_runs_until_it_is_killed_and_its_context_outlives_it(caller: Caller) -> None:
    # Longer than a batch takes on a busy machine: a killed stream finishes the batches that have piled up.
    settings = {"context-factory": f"{FACTORIES}.StreamingContextFactory", "streaming.batch_interval": 1000}
    assert caller.client.post("/contexts/stream", params=settings).status_code == 200
    for _ in range(2):
        job_id = caller.submit("StreamingTestJob", context="stream")["jobId"]
        caller.until(lambda job_id=job_id: "batch of" in caller.log(job_id), "a batch")
        assert caller.record(job_id)["status"] == "RUNNING"
        assert caller.client.delete(f"/jobs/{job_id}").json() == {"status": "KILLED"}
    assert caller.client.get("/contexts/stream").json()["state"] == "RUNNING"

    # A job that stops the application takes its context along, which says which job that was.
    caller.submit("StreamStopperJob", context="stream")
    caller.until(lambda: caller.client.get("/contexts/stream").json()["state"] == "ERROR", "the end")
    message = caller.client.get("/contexts/stream").json()["error"]["message"]
    assert "a job stopped the SparkContext, which belongs to its context, in " in message
    assert "StreamStopperJob" in message


KRYO = {
    "spark.serializer": "org.apache.spark.serializer.KryoSerializer",
    "spark.kryo.registrator": "loading.base.Registrator",
}


def test_a_context_has_jars_of_its_own_and_a_job_brings_a_copy_of_the_api(
    request: pytest.FixtureRequest, caller: Caller, base_jar: Path, thin_jar: Path, fat_jar: Path
) -> None:
    on_cluster = request.node.callspec.params["caller"] == "cluster"
    isolation = "session" if on_cluster else "shared"  # test_jvm_loading.py has every combination
    caller.upload("fat", fat_jar)
    caller.upload("thin", thin_jar)
    settings = {"dependent-jar-uris": base_jar.as_uri(), "jvm.isolation": isolation, **KRYO}
    with caller.context(f"own-{isolation}", **settings) as name:
        assert caller.result("loading.Merged", "", "fat", context=name) == "hey?"
        for app in ("thin", "fat"):
            assert caller.result("loading.Shout", "word = hey", app, context=name) == "hey!"
            assert caller.result("loading.Stamps", "", app, context=name) == ["a", "b"]
            assert caller.result("loading.Drivers", "", app, context=name) == 7
            parcels = caller.result("loading.Parcels", "", app, context=name)
            assert parcels["collect"] == parcels["kryo dataset"] == ["Bern", "Łódź", "Oslo"]
