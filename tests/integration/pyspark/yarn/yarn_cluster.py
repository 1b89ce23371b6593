"""Starts a YARN cluster with HDFS on this machine: a ResourceManager and two NodeManagers, in one JVM."""

from __future__ import annotations

import contextlib
import getpass
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import attrs
import pyspark
import pytest
from context_processes import command, end_processes_in, processes_in

from conditions import WAIT, wait_until

_NODE_MANAGER = "org.apache.hadoop.yarn.server.nodemanager.NodeManager"
_JVM_OPTIONS = ("-Xmx512m", "-XX:TieredStopAtLevel=1")
HERE = Path(__file__).parent / "cluster"
SPARK_JARS = Path(pyspark.__file__).parent / "jars"
SMALLEST_ALLOCATION = 64
"""MiB: the memory of each container is a multiple of this."""


@attrs.frozen
class Node:
    """A NodeManager in a JVM of its own, which works in a directory with all its containers."""

    id: str
    directory: Path


@attrs.frozen
class Allocated:
    """What the ResourceManager has given to an application; the memory is in MiB."""

    containers: int
    cores: int
    memory: int


@attrs.frozen
class Hdfs:
    """The cluster's file system, over WebHDFS."""

    address: str

    def names(self, directory: str) -> list[str]:
        """The names of what is in a directory, none if it does not exist."""
        try:
            with urllib.request.urlopen(self._url(directory, op="LISTSTATUS"), timeout=30) as response:
                found = json.load(response)["FileStatuses"]["FileStatus"]
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != HTTPStatus.NOT_FOUND:
                raise
            return []
        return [each["pathSuffix"] for each in found]

    def put(self, path: str, file: Path) -> None:
        """Upload a file."""
        there = self.change(path, op="CREATE", noredirect="true")["Location"]
        request = urllib.request.Request(there, data=file.read_bytes(), method="PUT")
        urllib.request.urlopen(request, timeout=60).close()

    def change(self, path: str, **query: str) -> Any:
        """Carry out an operation of WebHDFS that changes something, and return its answer."""
        request = urllib.request.Request(self._url(path, **query), method="PUT")
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or "null")

    def _url(self, path: str, **query: str) -> str:
        fields = urllib.parse.urlencode({"user.name": getpass.getuser(), **query})
        return f"http://{self.address}/webhdfs/v1{path}?{fields}"


class YarnCluster:
    """A cluster, with the directory of its client configuration and its REST API."""

    def __init__(self, directory: Path) -> None:
        self.conf_dir = directory / "conf"
        self._directory = directory
        self._jars = directory / "jars"
        self._processes: list[subprocess.Popen[str]] = []
        self._web = ""
        self.hdfs = Hdfs("")

    def start(self) -> None:
        for path in (self.conf_dir, self._directory / "tmp"):
            path.mkdir()
        _fetch_jars(self._jars)
        main = self._start(
            self._directory, str(HERE / "YarnCluster.java"), str(self.conf_dir), str(SMALLEST_ALLOCATION)
        )
        while (line := self._answer(main)) != "ready\n":
            assert line, f"the cluster did not start: {(self._directory / 'log').read_text()[-4000:]}"
        document = ElementTree.parse(self.conf_dir / "yarn-site.xml")
        values = {entry.findtext("name"): entry.findtext("value") for entry in document.iter("property")}
        self._web = f"http://{values['yarn.resourcemanager.webapp.address']}/ws/v1/cluster"
        self.hdfs = Hdfs(str(values["dfs.namenode.http-address"]))

    def end(self) -> None:
        """End it with all its containers, which a killed NodeManager leaves."""
        end_processes_in(self._directory)
        for process in self._processes:
            process.communicate(timeout=WAIT)

    def settings(self, **more: Any) -> dict[str, Any]:
        """The settings of a context on this cluster, whose nodes have Spark's jars already."""
        spark = {
            "master": "yarn",
            "driver.host": "127.0.0.1",
            "driver.bindAddress": "127.0.0.1",
            "yarn.jars": f"local:{SPARK_JARS}/*",
            "executor.instances": 1,
            "executor.cores": 2,
            "yarn.am.memory": "256m",
            "yarn.report.interval": "200ms",  # these two make tests wait less than the defaults
            "yarn.scheduler.heartbeat.interval-ms": 500,
        }
        return {
            "spark": {**spark, **more},
            "memory-per-node": "512m",
            "hadoop-conf-dir": str(self.conf_dir),
        }

    def start_node(self) -> Node:
        """Start one more NodeManager, with twice the memory of the others, in a JVM of its own."""
        before = self._running_nodes()
        directory = self._directory / f"node-{len(self._processes)}"
        directory.mkdir()
        options = {
            "hostname": "127.0.0.1",
            "address": "127.0.0.1:0",
            "localizer.address": "127.0.0.1:0",
            "webapp.address": "127.0.0.1:0",
            "local-dirs": directory / "local",
            "log-dirs": directory / "logs",
            "resource.memory-mb": 8192,
        }
        given = [f"-Dyarn.nodemanager.{name}={value}" for name, value in options.items()]
        self._start(directory, _NODE_MANAGER, *given)
        wait_until(lambda: self._running_nodes() - before, "the new node is part of the cluster", 120.0)
        [node_id] = self._running_nodes() - before
        return Node(node_id, directory)

    def lose_node(self, node: Node) -> None:
        """Kill a NodeManager and its containers with SIGKILL, and let YARN notice it at once."""
        end_processes_in(node.directory)
        self._command(f"expire {node.id}")

    def _running_nodes(self) -> set[str]:
        nodes = self._get("nodes?states=RUNNING")["nodes"]["node"]
        return {node["id"] for node in nodes}

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self._web}/{path}", timeout=30) as response:
            return json.load(response)

    def application(self, application_id: str) -> dict[str, Any]:
        """What the ResourceManager knows about an application."""
        found: dict[str, Any] = self._get(f"apps/{application_id}")["app"]
        return found

    def allocated(self, application_id: str) -> Allocated:
        """What an application has now."""
        found = self.application(application_id)
        return Allocated(found["runningContainers"], found["allocatedVCores"], found["allocatedMB"])

    def kill_application(self, application_id: str) -> None:
        """Kill an application as its owner, through the ResourceManager."""
        query = urllib.parse.urlencode({"user.name": getpass.getuser()})
        request = urllib.request.Request(
            f"{self._web}/apps/{application_id}/state?{query}",
            data=json.dumps({"state": "KILLED", "diagnostics": "ended by the administrator"}).encode(),
            headers={"Content-Type": "application/json"},
            method="PUT",
        )
        urllib.request.urlopen(request, timeout=30).close()

    def executors(self, application_id: str) -> list[int]:
        """The processes of an application's executors."""
        return self._containers(application_id, b"YarnCoarseGrainedExecutorBackend")

    def masters(self, application_id: str) -> list[int]:
        """The process of an application's master."""
        return self._containers(application_id, b"ExecutorLauncher")

    def _containers(self, application_id: str, main_class: bytes) -> list[int]:
        wanted = f"/{application_id}/".encode()
        commands = {pid: command(pid) for pid in processes_in(self._directory)}
        return [
            pid
            for pid, line in commands.items()
            if line.partition(b"\0")[0].endswith(b"java") and wanted in line and main_class in line
        ]

    def left(self, application_id: str) -> list[object]:
        """What the cluster has of an application: its executors, and its state unless it has ended."""
        state = self.application(application_id)["state"]
        ended = state in ("FINISHED", "FAILED", "KILLED")
        return [*self.executors(application_id), *([] if ended else [state])]

    def _command(self, line: str) -> None:
        main = self._processes[0]
        assert main.stdin is not None
        main.stdin.write(f"{line}\n")
        main.stdin.flush()
        assert self._answer(main) == "done\n"

    @staticmethod
    def _answer(main: subprocess.Popen[str]) -> str:
        assert main.stdout is not None
        return main.stdout.readline()

    def _start(self, directory: Path, *arguments: str) -> subprocess.Popen[str]:
        """Start a JVM of the cluster that works in a directory, with its log there."""
        class_path = f"{self.conf_dir}:{self._jars}/*:{SPARK_JARS}/*"
        options = (*_JVM_OPTIONS, f"-Djava.io.tmpdir={self._directory / 'tmp'}")
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                ["java", *options, "-cp", class_path, *arguments],
                cwd=directory,
                stdin=subprocess.PIPE,
                stdout=log if self._processes else subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._processes.append(process)
        return process


def require_programs() -> None:
    """Skip the test if a program that the cluster needs is missing."""
    missing = [program for program in ("mvn", "java", "javac") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: install Maven and a JDK 17 or newer")


@contextlib.contextmanager
def started(directory: Path) -> Iterator[YarnCluster]:
    """Start a cluster that works in this directory, and end it."""
    cluster = YarnCluster(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


def _fetch_jars(target: Path) -> None:
    version = next(
        match[1]
        for jar in SPARK_JARS.iterdir()
        if (match := re.fullmatch(r"hadoop-client-api-(.+)\.jar", jar.name))
    )
    mvn = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
    mvn += [f"-DoutputDirectory={target}", "-DincludeScope=runtime", f"-Dhadoop.version={version}"]
    done = subprocess.run(
        mvn, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"Maven could not fetch Hadoop {version}: {done.stdout[-500:]}")
