"""One set of jars for a whole context: streaming contexts, Spark 3.5, and contexts configured that way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_jvm_remains import started, wait_for_listeners

from jobserver_core.models.failures import FailureKind

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def isolation() -> str:
    return "shared"


@pytest.mark.parametrize("turn", ["first", "second"])
def test_a_streaming_job_runs_until_it_is_killed_and_the_context_outlives_it(
    bench: Any, old_jar: Any, spark: Any, turn: str
) -> None:
    config = {"streaming": {"batch_interval": 100, "stopGracefully": True}}
    job = bench.start(
        bench.request("spark.jobserver.StreamingTestJob", old_jar, kind="streaming", context_config=config)
    )
    assert job.validated.wait(60), turn
    job.wait_for_log("batch of 3")
    assert job.running
    assert bench.jobs.cancel(job.request.job_id, wait=20.0)
    assert job.outcome().status == "killed"
    assert spark.range(3).count() == 3


def test_another_version_of_a_class_is_refused_and_the_first_keeps_working(
    bench: Any, version_jars: Any
) -> None:
    one, two = version_jars
    assert bench.value("versions.Job", one)["executors"] == ["one"]
    outcome = bench.run("versions.Job", two)
    assert outcome.failure == FailureKind.LOADING
    assert f"{two.name} holds another version of versions/" in outcome.error.message
    assert "use a new context for the new version" in outcome.error.message
    assert bench.value("versions.Job", one) == {
        "driver": "one",
        "joined": ["one"],
        "executors": ["one"],
        "sent": ["one sent"],
        "broadcast": ["one broadcast"],
    }


def test_a_jobs_own_class_travels_everywhere(bench: Any, old_jar: Any) -> None:
    assert bench.value("spark.jobserver.ZookeeperJob", old_jar) == [["horse"]]
    assert bench.value("spark.jobserver.PersistedAnimalsJob", old_jar) == [3, 3, 5]


@pytest.mark.parametrize("kind", ["query listener", "stream listener"])
def test_a_kill_removes_listeners_of_queries_from_the_session_that_all_jobs_share(
    bench: Any, remains_jar: Path, tmp_path: Path, kind: str
) -> None:
    neighbour = started(bench, remains_jar, kind, tmp_path / "neighbour")
    killed = started(bench, remains_jar, kind, tmp_path / "killed")
    assert bench.jobs.cancel(killed.request.job_id, wait=60.0)
    for name in ("killed", "neighbour"):
        (tmp_path / name).unlink()
    query = started(bench, remains_jar, "query", tmp_path / "query")
    assert bench.value("remains.Join", remains_jar, kind="session") == 5
    assert bench.jobs.cancel(query.request.job_id, wait=60.0)
    wait_for_listeners()
    assert not (tmp_path / "killed").exists()
    assert (tmp_path / "neighbour").exists()
    assert bench.jobs.cancel(neighbour.request.job_id, wait=60.0)
