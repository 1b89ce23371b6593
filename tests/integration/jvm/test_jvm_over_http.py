"""The documented sample jobs of the old server over HTTP, as its clients send them.

On a local master, and on a real standalone cluster with executors of their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_jvm_cluster import Daemon, master  # noqa: F401 - a fixture

from jobserver_core import JobServer
from jobserver_core.config import load_settings
from jobserver_http import running
from jobserver_pyspark.jvm import JvmToolchain

assert Daemon
pytestmark = pytest.mark.spark

PATIENCE = 240.0
JAR = {"Content-Type": "application/java-archive"}
WORDS = "input.string = a b c a b see"
COUNTS = {"a": 2, "b": 2, "c": 1, "see": 1}


class Caller:
    """A client of a server that has the sample jars."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def submit(self, main_class: str, config: str = "", app: str = "old", **params: Any) -> Any:
        answer = self.client.post(
            "/jobs",
            params={"appName": app, "classPath": f"spark.jobserver.{main_class}", **params},
            content=config,
        )
        assert answer.status_code in (200, 202), answer.text
        return answer.json()

    def result(self, main_class: str, config: str = "", app: str = "old", **params: Any) -> Any:
        answer = self.submit(main_class, config, app, sync="true", timeout=int(PATIENCE), **params)
        assert "status" not in answer, answer
        return answer["result"]

    def context(self, name: str, **settings: Any) -> None:
        answer = self.client.post(f"/contexts/{name}", params=settings)
        assert answer.status_code == 200, answer.text

    def report(self, job_id: str) -> Any:
        return self.client.get(f"/jobs/{job_id}").json()


@pytest.fixture(scope="module", params=["local", pytest.param("cluster", marks=pytest.mark.cluster)])
def caller(
    request: pytest.FixtureRequest,
    old_jar: Path,
    java_jar: Path,
    toolchain: JvmToolchain,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Caller]:
    address = "local[2]" if request.param == "local" else request.getfixturevalue("master")
    settings = load_settings(
        overrides={
            "jobserver.data-dir": str(tmp_path_factory.mktemp("data")),
            "jobserver.http.port": 0,
            "jobserver.contexts.creation-timeout": f"{PATIENCE} s",
            "jobserver.launcher.options": {"cache-dir": str(toolchain.cache_dir)},
            "spark.master": address,
            "spark.context-settings": {"spark.executor.memory": "512m", "spark.cores.max": 2},
        }
    )
    with (
        running(JobServer.from_settings(settings)) as url,
        httpx.Client(base_url=url, timeout=PATIENCE) as client,
    ):
        for name, jar in (("old", old_jar), ("java", java_jar)):
            assert client.post(f"/binaries/{name}", content=jar.read_bytes(), headers=JAR).status_code == 201
        yield Caller(client)


def test_the_sample_jobs_give_their_documented_results_in_a_context_of_no_factory(caller: Caller) -> None:
    caller.context("any")
    in_it = {"context": "any"}
    assert caller.result("WordCountExample", WORDS, **in_it) == COUNTS
    assert caller.result("WordCountExampleNewApi", WORDS, **in_it) == COUNTS
    assert caller.result("VeryShortDoubleJob", **in_it) == [2, 4, 6]
    assert caller.result("JavaHelloWorldJob", app="java", **in_it) == "Hi!"
    pi = caller.result("LongPiJob", "stress.test.longpijob.duration = 1", **in_it)
    assert pi == pytest.approx(3.14, abs=0.3)
    assert caller.result("CacheRddByNameJob", **in_it) == 55
    assert caller.result("SumNamedRddJob", "name = cached by name", **in_it) == 15
    assert caller.client.delete("/contexts/any").status_code == 200


def test_sql_jobs_load_and_query_in_a_context_of_their_factory(caller: Caller) -> None:
    caller.context("sql", **{"context-factory": "spark.jobserver.context.SQLContextFactory"})
    assert caller.result("SqlLoaderJob", context="sql") == 3
    query = 'sql = "select count(*) as n from addresses"'
    assert caller.result("SqlTestJob", query, context="sql") == [{"n": 3}]
    refused = caller.client.post(
        "/jobs",
        params={"appName": "old", "classPath": "spark.jobserver.WordCountExample", "context": "sql"},
        content=WORDS,
    )
    assert (refused.status_code, refused.json()["result"]) == (400, "Invalid job type for this context")
    assert caller.client.delete("/contexts/sql").status_code == 200


def test_a_streaming_job_runs_until_it_is_killed_and_its_context_outlives_it(caller: Caller) -> None:
    factory = "spark.jobserver.context.StreamingContextFactory"
    caller.context("stream", **{"context-factory": factory, "streaming.batch_interval": 100})
    for _ in range(2):
        job_id = caller.submit("StreamingTestJob", context="stream")["jobId"]
        deadline = time.monotonic() + PATIENCE
        while "batch of" not in caller.client.get(f"/jobs/{job_id}/logs").text:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert caller.report(job_id)["status"] == "RUNNING"
        assert caller.client.delete(f"/jobs/{job_id}").json() == {"status": "KILLED"}
    assert caller.client.get("/contexts/stream").json()["state"] == "RUNNING"
    assert caller.client.delete("/contexts/stream").status_code == 200
