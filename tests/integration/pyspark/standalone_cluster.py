"""Starts Spark's own cluster on this machine: a master, and workers that tests may kill."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyspark
from context_processes import command, end_processes_in, processes_in, variable

from conditions import WAIT, wait_until

SPARK_HOME = Path(pyspark.__file__).parent
_PACKAGE = "org.apache.spark.deploy"
_HERE = ("--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
_EXECUTOR = b"CoarseGrainedExecutorBackend"


class StandaloneCluster:
    """A running master with its page, and its workers with eight cores each: all on loopback."""

    def __init__(self, directory: Path) -> None:
        self.master = self.ui = ""
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        self._workers: list[subprocess.Popen[bytes]] = []

    def start_master(self) -> None:
        log = self._start("master", f"{_PACKAGE}.master.Master", *_HERE)
        self.master = _said(log, r"Starting Spark master at (spark://\S+)")
        port = _said(log, r"Bound MasterWebUI to \S+, and started at http://\S+:(\d+)")
        self.ui = f"http://127.0.0.1:{port}"

    def settings(self, **more: Any) -> dict[str, Any]:
        """The settings of a context with two cores."""
        return {
            "spark": {"master": self.master, "ui": {"enabled": "true", "port": 0}, **more},
            "num-cpu-cores": 2,
            "memory-per-node": "512m",
        }

    def start_worker(self) -> subprocess.Popen[bytes]:
        work = ("--cores", "8", "--memory", "4g", "--work-dir", str(self._work))
        log = self._start(
            f"worker-{len(self._processes)}", f"{_PACKAGE}.worker.Worker", *_HERE, *work, self.master
        )
        _said(log, r"(Successfully registered with master)")
        self._workers.append(self._processes[-1])
        return self._workers[-1]

    def kill_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker with SIGKILL; its executors see that and end by themselves."""
        worker.kill()
        worker.wait(WAIT)
        self._workers.remove(worker)

    def kill_workers(self) -> None:
        for worker in list(self._workers):
            self.kill_worker(worker)

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

    def executors(self, application_id: str = "") -> list[int]:
        """The processes of an application's executors, or of all of them."""
        wanted = application_id.encode()
        commands = {pid: command(pid) for pid in processes_in(self._work)}
        return [pid for pid, line in commands.items() if _EXECUTOR in line and wanted in line]

    def users(self, application_id: str) -> set[str | None]:
        """The users as whom the executors of an application act, which their worker tells them."""
        return {variable(pid, "SPARK_USER") for pid in self.executors(application_id)}

    def left(self, application_id: str) -> list[object]:
        """What the cluster has of an application: its executors, and its state unless it has ended."""
        with urllib.request.urlopen(f"{self.ui}/json/", timeout=30) as response:
            active = {each["id"]: each["state"] for each in json.load(response)["activeapps"]}
        return [*self.executors(application_id), *filter(None, [active.get(application_id)])]

    def end(self) -> None:
        end_processes_in(self._directory)
        for process in self._processes:
            process.wait(WAIT)

    @property
    def _work(self) -> Path:
        return self._directory / "work"

    def _start(self, name: str, *arguments: str) -> Path:
        """Start a process of the cluster, and return its log."""
        temporary = self._directory / "tmp"  # of executors as well, which are killed and leave their files
        temporary.mkdir(exist_ok=True)
        path = self._directory / f"{name}.log"
        environment = {
            **os.environ,
            "SPARK_HOME": str(SPARK_HOME),
            "SPARK_NO_DAEMONIZE": "1",
            "SPARK_MASTER_HOST": "127.0.0.1",
            "JAVA_TOOL_OPTIONS": f"-Djava.io.tmpdir={temporary}",
        }
        with path.open("wb") as log:
            started = subprocess.Popen(
                [SPARK_HOME / "bin" / "spark-class", *arguments],
                cwd=self._directory,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._processes.append(started)
        return path


def _said(log: Path, pattern: str) -> str:
    found: list[str] = []

    def there() -> bool:
        found[:] = re.findall(pattern, log.read_text()) if log.exists() else []
        return bool(found)

    wait_until(there, f"{log.name} has {pattern}", timeout=90.0)
    return found[0]


@contextlib.contextmanager
def started(directory: Path) -> Iterator[StandaloneCluster]:
    """Start a master and a worker that work in this directory, and end them with all their executors."""
    cluster = StandaloneCluster(directory)
    try:
        cluster.start_master()
        cluster.start_worker()
        yield cluster
    finally:
        cluster.end()
