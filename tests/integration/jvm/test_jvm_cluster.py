"""The same jobs on a real standalone cluster: executors are separate processes."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobserver_pyspark.jvm import JvmToolchain, context_settings

pytestmark = [pytest.mark.spark, pytest.mark.cluster]


PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ends the process when this one ends for any reason."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Daemon:
    """A real Spark master or worker, in its own process group."""

    def __init__(self, toolchain: JvmToolchain, directory: Path, *arguments: str) -> None:
        home = toolchain.spark.jars.parent
        environment = {
            **os.environ,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_NO_DAEMONIZE": "1",
            "SPARK_DAEMON_MEMORY": "256m",
            "JAVA_TOOL_OPTIONS": f"-Djava.io.tmpdir={directory}",
        }
        environment.pop("SPARK_HOME", None)
        self.log = directory / f"{arguments[0].rsplit('.', 1)[1]}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(home / "bin" / "spark-class"), *arguments],
                stdout=log,
                stderr=log,
                cwd=directory,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, no locks taken
            )

    def find(self, pattern: str) -> str:
        end = time.monotonic() + 60
        while not (match := re.search(pattern, self.log.read_text())):
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, f"{pattern} did not appear in:\n{self.log.read_text()}"
            time.sleep(0.05)
        return match[0]

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(timeout=20)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(timeout=20)


@pytest.fixture(scope="module")
def master(toolchain: JvmToolchain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("cluster")
    package = "org.apache.spark.deploy"
    daemons = [
        Daemon(
            toolchain,
            directory,
            f"{package}.master.Master",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--webui-port",
            "0",
        )
    ]
    try:
        url = daemons[0].find(r"spark://127\.0\.0\.1:\d+")
        worker = [
            "--host",
            "127.0.0.1",
            "--webui-port",
            "0",
            "--cores",
            "2",
            "--memory",
            "1g",
            "--work-dir",
            str(directory / "work"),
        ]
        daemons.append(Daemon(toolchain, directory, f"{package}.worker.Worker", *worker, url))
        daemons[1].find("Successfully registered with master")
        yield url
    finally:
        for daemon in reversed(daemons):
            daemon.stop()


@pytest.fixture(scope="module")
def spark_settings(master: str) -> dict[str, str]:
    return {
        "spark.master": master,
        "spark.executor.memory": "512m",
        "spark.executor.cores": "1",
        "spark.cores.max": "2",
        **context_settings("spark"),
    }


def test_named_rdds_are_shared(bench: Any, old_jar: Path) -> None:
    assert bench.value("spark.jobserver.CacheRddByNameJob", old_jar) == 55
    assert bench.value("spark.jobserver.SumNamedRddJob", old_jar, config={"name": "cached by name"}) == 15


def test_a_jobs_own_classes_travel_to_executors_and_back(bench: Any, old_jar: Path) -> None:
    assert bench.value("spark.jobserver.ZookeeperJob", old_jar) == [["horse"]]
    assert bench.value("spark.jobserver.PersistedAnimalsJob", old_jar) == [3, 3, 5]


def test_two_versions_of_a_class_are_each_right_on_executors(bench: Any, version_jars: Any) -> None:
    for jar, version in zip(version_jars * 2, ["one", "two"] * 2, strict=True):
        assert bench.value("versions.Job", jar) == {
            "driver": version,
            "joined": [version],
            "executors": [version],
            "sent": [f"{version} sent"],
            "broadcast": [f"{version} broadcast"],
        }


def test_a_killed_job_frees_the_executors(bench: Any, shapes_jar: Path) -> None:
    job = bench.start(bench.request("shapes.SlowTasks", shapes_jar))
    job.wait_for_log("waiting")
    assert bench.jobs.cancel(job.request.job_id, wait=20.0)
    assert job.outcome().status == "killed"
    assert bench.value("shapes.WordCount", shapes_jar, config={"words": "a b"}) == {"a": 1, "b": 1}
