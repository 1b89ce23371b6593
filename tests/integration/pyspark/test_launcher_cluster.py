from __future__ import annotations

import os
import re
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pyspark
import pytest
from context_processes import command
from launcher_world import Context, Start
from master_suite import DYNAMIC, MasterSuite, check_idle_executors_are_given_back, check_loss_of_executors

from conditions import wait_until
from jobserver_core.ports import ContextEnd
from jobserver_pyspark import processes

pytestmark = [pytest.mark.spark, pytest.mark.cluster]

SPARK_HOME = Path(pyspark.__file__).parent
_EXECUTOR = b"CoarseGrainedExecutorBackend"


@attrs.frozen
class Cluster:
    """A standalone master, and a worker with four cores: both on loopback.

    Most tests name a second master, which is down.
    """

    master: str
    ui: str
    worker: int

    def settings(self, **more: Any) -> dict[str, Any]:
        return {
            "spark": {"master": self.master, "ui": {"enabled": "true", "port": 0}, **more},
            "num-cpu-cores": 2,
            "memory-per-node": "512m",
        }

    def kill_application(self, application_id: str) -> None:
        """Press the button of the master's page, with the token that newer masters put there."""
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(self.ui, timeout=10) as page:
            text = page.read().decode()
        tokens = re.findall(r'name="csrfToken"[^>]*value="([^"]+)"', text)
        fields = {"id": application_id, "terminate": "true"} | ({"csrfToken": tokens[0]} if tokens else {})
        body = urllib.parse.urlencode(fields).encode()
        with opener.open(f"{self.ui}/app/kill/", data=body, timeout=10):
            pass

    def executors(self) -> list[int]:
        """The executor processes of the worker."""
        return [pid for pid in processes.children(self.worker) if _EXECUTOR in command(pid)]


def _spark_class(directory: Path, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    temporary = directory / "tmp"  # of executors as well, which are killed and leave their files
    temporary.mkdir(exist_ok=True)
    environment["JAVA_TOOL_OPTIONS"] = f"-Djava.io.tmpdir={temporary}"
    with (directory / f"{name.rpartition('.')[2]}.log").open("wb") as log:
        return subprocess.Popen(
            [SPARK_HOME / "bin" / "spark-class", name, *arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, "SPARK_HOME": str(SPARK_HOME), "SPARK_NO_DAEMONIZE": "1", **environment},
            start_new_session=True,
        )


def _said(log: Path, pattern: str) -> str:
    found: list[str] = []

    def there() -> bool:
        found[:] = re.findall(pattern, log.read_text()) if log.exists() else []
        return bool(found)

    wait_until(there, timeout=90.0)
    return found[0]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("cluster")
    package = "org.apache.spark.deploy"
    here = ("--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
    started = [_spark_class(directory, f"{package}.master.Master", *here, SPARK_MASTER_HOST="127.0.0.1")]
    try:
        master = _said(directory / "Master.log", r"Starting Spark master at (spark://\S+)")
        port = _said(directory / "Master.log", r"Bound MasterWebUI to \S+, and started at http://\S+:(\d+)")
        worker = (*here, "--cores", "4", "--memory", "2g", "--work-dir", str(directory / "work"), master)
        started.append(_spark_class(directory, f"{package}.worker.Worker", *worker))
        _said(directory / "Worker.log", r"(Successfully registered with master)")
        yield Cluster(master, f"http://127.0.0.1:{port}", started[1].pid)
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def on_cluster(cluster: Cluster, start_shared: Start) -> Iterator[Context]:
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
    _, application_id, url = on_cluster.listener.wait_for("ready", timeout=1.0)
    assert application_id.startswith("app-")
    assert url.startswith("http://127.0.0.1:")
    conf = on_cluster.run("work.Conf", {"keys": ["spark.cores.max", "spark.executor.memory"]}).value
    assert conf == {"spark.cores.max": "2", "spark.executor.memory": "512m"}


def test_a_job_survives_the_loss_of_its_executor(cluster: Cluster, on_cluster: Context) -> None:
    check_loss_of_executors(on_cluster, cluster.executors)


class TestStandalone(MasterSuite):
    @pytest.fixture
    def on_master(self, on_cluster: Context) -> Context:
        return on_cluster


def test_idle_executors_are_given_back_and_come_again(cluster: Cluster, start: Start) -> None:
    context = start(cluster.settings(**DYNAMIC, executor={"cores": 1})).wait_ready()
    application_id = context.listener.wait_for("ready", timeout=1.0)[1].encode()

    def executors() -> list[int]:
        return [pid for pid in cluster.executors() if application_id in command(pid)]

    check_idle_executors_are_given_back(context, executors)
    context.handle.kill()
    context.wait_end()


def test_an_application_that_its_master_kills_was_killed_from_outside(cluster: Cluster, start: Start) -> None:
    context = start(cluster.settings()).wait_ready()
    application_id = context.listener.wait_for("ready", timeout=1.0)[1]
    cluster.kill_application(application_id)
    end, error = context.wait_end(20.0)
    assert end is ContextEnd.KILLED_OUTSIDE
    assert "killed from outside" in error.message


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_executors_end_with_their_context(cluster: Cluster, start: Start, how: str) -> None:
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
    assert error.message
