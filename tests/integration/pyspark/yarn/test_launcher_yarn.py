"""Contexts on a real YARN: a ResourceManager and two NodeManagers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from launcher_world import Context, Start
from master_suite import MasterSuite
from yarn_cluster import YarnCluster

from conditions import wait_until
from jobserver_core.ports import ContextEnd

pytestmark = [pytest.mark.spark, pytest.mark.yarn, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def on_yarn(yarn: YarnCluster, start_shared: Start) -> Iterator[Context]:
    settings = yarn.settings(**{"yarn.queue": "small", "yarn.tags": "nightly"})
    context = start_shared(settings, name="on-yarn").wait_ready(200.0)
    yield context
    context.handle.kill()
    context.wait_end()


def application_id(context: Context) -> str:
    found: str = context.listener.wait_for("ready", timeout=1.0)[1]
    return found


def test_an_application_has_its_queue_its_tags_and_its_page(yarn: YarnCluster, on_yarn: Context) -> None:
    _, application, url = on_yarn.listener.wait_for("ready", timeout=1.0)
    found = yarn.application(application)
    assert found["name"] == "on-yarn"
    assert found["queue"] == "root.small"
    tags = {"nightly", "jobserver", f"jobserver-context-{on_yarn.spec.id}"}
    assert set(found["applicationTags"].split(",")) == tags
    assert url == found["trackingUrl"]


class TestYarn(MasterSuite):
    @pytest.fixture
    def on_master(self, on_yarn: Context) -> Context:
        return on_yarn


def test_a_job_survives_the_loss_of_an_executor(yarn: YarnCluster, on_yarn: Context) -> None:
    job = on_yarn.submit("work.Stages")
    wait_until(lambda: on_yarn.listener.progress.get(job.id), "the job has tasks")
    for pid in yarn.executors(application_id(on_yarn)):
        os.kill(pid, signal.SIGKILL)
    assert on_yarn.end_of(job, timeout=120.0).value == 6


def test_an_application_killed_through_yarn_ends_its_context_with_the_reason(
    yarn: YarnCluster, on_yarn: Context
) -> None:
    job = on_yarn.running("trouble.SleepingTasks")
    yarn.kill_application(application_id(on_yarn))
    end, error = on_yarn.wait_end(30.0)
    assert end is ContextEnd.KILLED_OUTSIDE
    assert "YARN ended the application as KILLED" in error.message
    assert "ended by the administrator" in error.message
    assert on_yarn.listener.of_job(job.id) == ["running"], "what ended was the context"


def test_a_context_that_dies_leaves_nothing_on_yarn(yarn: YarnCluster, start: Start) -> None:
    context = start(yarn.settings()).wait_ready(200.0)
    application = application_id(context)
    context.handle.kill()
    context.wait_end()
    wait_until(lambda: yarn.application(application)["state"] == "FINISHED", "the application ends")
    wait_until(lambda: not yarn.executors(application), "its executors end")
