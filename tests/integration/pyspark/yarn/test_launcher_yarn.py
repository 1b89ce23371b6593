"""Contexts on a real YARN: a ResourceManager and two NodeManagers."""

from __future__ import annotations

import math
import os
import re
import signal
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
from package_checks import Wheel, check_a_large_package_is_shipped_once, check_packed_environment, see
from served_world import check_a_context_outlives_its_server
from yarn_cluster import SMALLEST_ALLOCATION, Allocated, YarnCluster

from conditions import wait_until
from jobserver_core.ports import ContextEnd, JobCode

pytestmark = [pytest.mark.spark, pytest.mark.yarn, pytest.mark.timeout(600)]

PACKED = "./packed/bin/python"
HEAP = 500
"""MiB of an executor of the shared context."""


@pytest.fixture(scope="module")
def on_yarn(yarn: YarnCluster, start_shared: Start) -> Iterator[Context]:
    """Its executor's memory is no multiple of YARN's smallest allocation."""
    settings = yarn.settings(**{"yarn.queue": "small", "yarn.tags": "nightly"})
    settings["memory-per-node"] = f"{HEAP}m"
    context = start_shared(settings, name="on-yarn").wait_ready(200.0)
    yield context
    context.handle.kill()
    context.wait_end()


def test_an_application_has_its_queue_its_tags_and_its_page(yarn: YarnCluster, on_yarn: Context) -> None:
    _, application, url = on_yarn.listener.wait_for("context_ready", timeout=1.0)
    found = yarn.application(application)
    assert found["name"] == "on-yarn"
    assert found["queue"] == "root.small"
    tags = {"nightly", "jobserver", f"jobserver-context-{on_yarn.spec.id}"}
    assert set(found["applicationTags"].split(",")) == tags
    assert url == found["trackingUrl"]
    assert f"Application report for {application} (state: " in on_yarn.spec.log_path.read_text()


def test_the_limits_count_what_yarn_allocates_before_it_rounds(yarn: YarnCluster, on_yarn: Context) -> None:
    asked = on_yarn.launcher.resources(on_yarn.spec.settings)
    master, executor = 256 + 384, HEAP + 384
    assert asked.cores == 1 + 2
    assert asked.memory == (1024 + master + executor) * 2**20, "the driver has 1 GiB"
    job = on_yarn.running("trouble.SleepingTasks")
    wait_until(lambda: yarn.allocated(on_yarn.application_id).containers == 2, "an executor is allocated")
    rounded = sum(math.ceil(each / SMALLEST_ALLOCATION) * SMALLEST_ALLOCATION for each in (master, executor))
    assert rounded > master + executor
    assert yarn.allocated(on_yarn.application_id) == Allocated(2, asked.cores, rounded)
    on_yarn.handle.kill_job(job.id)
    assert on_yarn.end_of(job).outcome.killed


def test_a_job_survives_the_loss_of_its_executor(yarn: YarnCluster, on_yarn: Context, tmp_path: Path) -> None:
    check_loss_of_executors(on_yarn, tmp_path / "gate", lambda: yarn.executors(on_yarn.application_id))


def test_a_job_survives_the_loss_of_a_node(yarn: YarnCluster, start: Start, tmp_path: Path) -> None:
    node = yarn.start_node()  # only this one has room for such an executor, which YARN refuses without
    context = start(yarn.settings() | {"memory-per-node": "4g"}).wait_ready(200.0)

    def lose() -> None:
        yarn.start_node()  # before the other one is lost: without room on any node, YARN ends the application
        yarn.lose_node(node)

    check_loss_of_a_machine(context, tmp_path / "gate", lose)
    context.handle.kill()
    context.wait_end()


def test_a_job_survives_the_death_of_the_application_master(
    yarn: YarnCluster, on_yarn: Context, tmp_path: Path
) -> None:
    def lose() -> None:
        [master] = yarn.masters(on_yarn.application_id)
        before = set(yarn.executors(on_yarn.application_id))
        os.kill(master, signal.SIGKILL)
        wait_until(
            lambda: not before & set(yarn.executors(on_yarn.application_id)), "its executors end", 120.0
        )

    check_loss_of_a_machine(on_yarn, tmp_path / "gate", lose)


class TestYarn(MasterSuite):
    @pytest.fixture
    def on_master(self, on_yarn: Context) -> Context:
        return on_yarn


@pytest.fixture(scope="module")
def in_environment_on_yarn(yarn: YarnCluster, start_shared: Start, environment: Path) -> Iterator[Context]:
    """The driver and the executors run the interpreter of the archive."""
    settings = yarn.settings(archives=f"{environment}#packed")
    settings["python"] = {"executable": "packed/bin/python"}
    context = start_shared(settings).wait_ready(200.0)
    yield context
    context.handle.kill()
    context.wait_end()


def test_executors_run_in_a_packed_environment(in_environment_on_yarn: Context, rates: Wheel) -> None:
    check_packed_environment(in_environment_on_yarn, rates)


def test_a_large_package_is_shipped_once_for_all_jobs_of_a_context(
    in_environment_on_yarn: Context, tmp_path: Path
) -> None:
    check_a_large_package_is_shipped_once(in_environment_on_yarn, tmp_path)


def test_idle_executors_are_given_back_and_come_again(yarn: YarnCluster, start: Start) -> None:
    settings = yarn.settings(**DYNAMIC) | {"num-cpu-cores": 2}
    del settings["spark"]["executor.instances"]
    context = start(settings).wait_ready(200.0)
    check_idle_executors_are_given_back(context, lambda: yarn.executors(context.application_id))
    context.handle.kill()
    context.wait_end()


def test_nothing_is_left_on_the_cluster_after_deaths(
    yarn: YarnCluster, start: Start, tmp_path: Path, code: JobCode
) -> None:
    settings = yarn.settings()
    check_deaths(start, settings, tmp_path / "dead", code, executors=yarn.executors, left=yarn.left)


def test_a_context_outlives_its_server(yarn: YarnCluster, tmp_path: Path, code: JobCode) -> None:
    check_a_context_outlives_its_server(tmp_path, yarn.settings(), code, left=yarn.left)


def test_an_application_killed_through_yarn_ends_its_context_with_the_reason(
    yarn: YarnCluster, on_yarn: Context
) -> None:
    # This ends the context that the tests above share, so it is the last one that uses it.
    job = on_yarn.running("trouble.SleepingTasks")
    yarn.kill_application(on_yarn.application_id)
    end, error = on_yarn.wait_end(30.0)
    assert end is ContextEnd.KILLED_OUTSIDE
    assert "YARN ended the application as KILLED" in error.message
    assert "ended by the administrator" in error.message
    assert on_yarn.listener.of_job(job.id) == ["job_running"], "what ended was the context"


def test_a_context_of_another_user_has_its_files_on_hdfs_and_leaves_nothing_when_it_dies(
    yarn: YarnCluster, start: Start, environment: Path, rates: Wheel
) -> None:
    yarn.hdfs.put("/environments/packed.tar.gz", environment)
    executors = {"archives": "hdfs:///environments/packed.tar.gz#packed", "pyspark.python": PACKED}
    # The driver has PyArrow, but the archive has not.
    executors["sql.execution.pythonUDF.arrow.enabled"] = "false"
    settings = yarn.settings(**{"proxy.user": "alice"}, **executors)
    del settings["spark"]["yarn.jars"]
    context = start(settings, class_path=(rates("5.0", "of the context"),)).wait_ready(200.0)
    application = context.application_id
    check_another_user(context)
    assert yarn.application(application)["user"] == "alice"
    seen = see(context)
    assert seen["values"] == ["of the context"] * 3
    assert {Path(prefix).name for prefix in seen["prefixes"][1:]} == {"packed"}
    [archive] = yarn.hdfs.names("/user/alice/.jobserver")
    assert re.fullmatch(r"spark-[0-9a-f]{24}\.zip", archive)
    assert yarn.hdfs.names("/user/alice/.sparkStaging") == [application]
    context.running("trouble.SleepingTasks")
    context.handle.kill()
    context.wait_end()
    wait_until(lambda: not yarn.left(application), lambda: yarn.left(application))
    assert yarn.hdfs.names("/user/alice/.sparkStaging") == []
