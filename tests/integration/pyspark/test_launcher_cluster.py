"""Contexts on Spark's own cluster: a master, and workers that are lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher_world import Context, Start
from master_suite import (
    DYNAMIC,
    MasterSuite,
    check_another_user,
    check_deaths,
    check_idle_executors_are_given_back,
    check_loss_of_a_machine,
    check_loss_of_executors,
)
from served_world import check_a_context_outlives_its_server
from standalone_cluster import StandaloneCluster

from conditions import wait_until
from jobserver_core.ports import ContextEnd, JobCode
from jobserver_pyspark import processes

pytestmark = [pytest.mark.spark, pytest.mark.cluster]


@pytest.fixture(scope="module")
def on_cluster(cluster: StandaloneCluster, start_shared: Start) -> Iterator[Context]:
    """A context that names two masters, of which the first is down."""
    settings = cluster.settings(master=f"spark://127.0.0.1:1,{cluster.master.removeprefix('spark://')}")
    context = start_shared(settings, name="on-the-cluster").wait_ready()
    yield context
    context.handle.kill()
    context.wait_end()


@pytest.fixture(scope="module", autouse=True)
def astray(start_shared: Start) -> Context:
    """A context that looks for its master in vain; Spark takes a minute for that, beside the other tests."""
    return start_shared({"spark": {"master": "spark://127.0.0.1:1"}})


def test_an_application_of_the_cluster_is_reported_with_its_address(on_cluster: Context) -> None:
    _, application_id, url = on_cluster.listener.wait_for("context_ready", timeout=1.0)
    assert application_id.startswith("app-")
    assert url.startswith("http://127.0.0.1:")
    conf = on_cluster.run("work.Conf", {"keys": ["spark.cores.max", "spark.executor.memory"]}).value
    assert conf == {"spark.cores.max": "2", "spark.executor.memory": "512m"}


def test_a_job_survives_the_loss_of_its_executor(
    cluster: StandaloneCluster, on_cluster: Context, tmp_path: Path
) -> None:
    check_loss_of_executors(on_cluster, tmp_path / "gate", cluster.executors)


def test_a_job_survives_the_loss_of_a_worker(
    cluster: StandaloneCluster, start: Start, tmp_path: Path
) -> None:
    lost = cluster.start_worker()
    context = start(cluster.settings(executor={"cores": 1})).wait_ready()

    def lose() -> None:
        there = {*processes.children(lost.pid)} & {*cluster.executors(context.application_id)}
        assert len(there) == 1, "each of the two workers has one of the two executors"
        cluster.kill_worker(lost)

    check_loss_of_a_machine(context, tmp_path / "gate", lose)
    context.handle.kill()
    context.wait_end()


def test_a_job_whose_only_worker_is_lost_waits_for_another(
    cluster: StandaloneCluster, on_cluster: Context, tmp_path: Path
) -> None:
    def lose() -> None:
        cluster.kill_workers()
        wait_until(lambda: not cluster.executors(), "the executors end with their worker")
        cluster.start_worker()

    check_loss_of_a_machine(on_cluster, tmp_path / "gate", lose)


class TestStandalone(MasterSuite):
    @pytest.fixture
    def on_master(self, on_cluster: Context) -> Context:
        return on_cluster


def test_nothing_is_left_on_the_cluster_after_deaths(
    cluster: StandaloneCluster, start: Start, tmp_path: Path, code: JobCode
) -> None:
    settings = cluster.settings()
    check_deaths(start, settings, tmp_path / "dead", code, executors=cluster.executors, left=cluster.left)


def test_a_context_outlives_its_server(cluster: StandaloneCluster, tmp_path: Path, code: JobCode) -> None:
    check_a_context_outlives_its_server(tmp_path, cluster.settings(), code, left=cluster.left)


def test_a_context_runs_as_another_user(cluster: StandaloneCluster, start: Start) -> None:
    context = start(cluster.settings(proxy={"user": "alice"})).wait_ready()
    check_another_user(context)
    assert cluster.users(context.application_id) == {"alice"}
    context.handle.kill()
    context.wait_end()


def test_idle_executors_are_given_back_and_come_again(cluster: StandaloneCluster, start: Start) -> None:
    context = start(cluster.settings(**DYNAMIC, executor={"cores": 1})).wait_ready()
    check_idle_executors_are_given_back(context, lambda: cluster.executors(context.application_id))
    context.handle.kill()
    context.wait_end()


def test_an_application_that_its_master_kills_was_killed_from_outside(
    cluster: StandaloneCluster, start: Start
) -> None:
    context = start(cluster.settings()).wait_ready()
    cluster.kill_application(context.application_id)
    end, error = context.wait_end(20.0)
    assert end is ContextEnd.KILLED_OUTSIDE
    assert "killed from outside" in error.message


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_executors_end_with_their_context(cluster: StandaloneCluster, start: Start, how: str) -> None:
    before = set(cluster.executors())
    context = start(cluster.settings()).wait_ready()
    context.running("trouble.SleepingTasks")
    wait_until(lambda: set(cluster.executors()) > before, timeout=60.0)
    if how == "stop":
        context.handle.stop(30.0)
    else:
        context.handle.kill()
    context.wait_end()
    wait_until(lambda: set(cluster.executors()) == before, timeout=30.0)


def test_an_unreachable_master_is_reported(astray: Context) -> None:
    end, error = astray.wait_end(180.0)
    assert end in (ContextEnd.FAILED, ContextEnd.KILLED_OUTSIDE)
    assert error.message.startswith("Spark cannot connect to its master spark://127.0.0.1:1; ")
