"""Starts a YARN cluster on this machine: a ResourceManager and two NodeManagers, in one JVM."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyspark
import pytest

from conditions import wait_until

_EXECUTOR = b"YarnCoarseGrainedExecutorBackend"
_JVM_OPTIONS = ("-Xmx512m", "-XX:TieredStopAtLevel=1")
HERE = Path(__file__).parent / "cluster"
SPARK_JARS = Path(pyspark.__file__).parent / "jars"


class YarnCluster:
    """A running cluster, with the directory of its client configuration and its REST API."""

    def __init__(self, process: subprocess.Popen[str], conf_dir: Path) -> None:
        self._process = process
        self.conf_dir = conf_dir
        self.staging = conf_dir.parent / "staging"
        document = ElementTree.parse(conf_dir / "yarn-site.xml")
        values = {entry.findtext("name"): entry.findtext("value") for entry in document.iter("property")}
        self.web = f"http://{values['yarn.resourcemanager.webapp.address']}"

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
            "yarn.stagingDir": str(self.staging),
        }
        return {
            "spark": {**spark, **more},
            "memory-per-node": "512m",
            "hadoop-conf-dir": str(self.conf_dir),
        }

    def application(self, application_id: str) -> dict[str, Any]:
        """What the ResourceManager knows about an application."""
        url = f"{self.web}/ws/v1/cluster/apps/{application_id}"
        with urllib.request.urlopen(url, timeout=30) as response:
            found: dict[str, Any] = json.load(response)["app"]
        return found

    def kill_application(self, application_id: str) -> None:
        """Kill an application as its owner, through the ResourceManager."""
        query = urllib.parse.urlencode({"user.name": getpass.getuser()})
        request = urllib.request.Request(
            f"{self.web}/ws/v1/cluster/apps/{application_id}/state?{query}",
            data=json.dumps({"state": "KILLED", "diagnostics": "ended by the administrator"}).encode(),
            headers={"Content-Type": "application/json"},
            method="PUT",
        )
        urllib.request.urlopen(request, timeout=30).close()

    def executors(self, application_id: str) -> list[int]:
        """The processes of an application's executors."""
        containers = f"/{application_id}/".encode()
        return [pid for pid, command in _commands() if containers in command and _EXECUTOR in command]

    def left(self, application_id: str) -> list[object]:
        """What the cluster has of an application: its executors, and its state unless it has ended."""
        state = self.application(application_id)["state"]
        ended = state in ("FINISHED", "FAILED", "KILLED")
        return [*self.executors(application_id), *([] if ended else [state])]

    def command(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        while (answer := self._process.stdout.readline()) != "done\n":
            assert answer, "the cluster has ended"


def require_programs() -> None:
    """Skip the test if a program that the cluster needs is missing."""
    missing = [program for program in ("mvn", "java", "javac") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: install Maven and a JDK 17 or newer")


@contextlib.contextmanager
def started(directory: Path) -> Iterator[YarnCluster]:
    """Start a cluster that works in this directory, and end it with all its containers."""
    jars, conf, temporary = directory / "jars", directory / "conf", directory / "tmp"
    conf.mkdir()
    temporary.mkdir()
    _fetch_jars(jars)
    class_path = f"{jars}/*:{SPARK_JARS}/*"
    with (
        (directory / "cluster.log").open("wb") as log,
        subprocess.Popen(
            [
                "java",
                *_JVM_OPTIONS,
                f"-Djava.io.tmpdir={temporary}",
                "-cp",
                class_path,
                str(HERE / "YarnCluster.java"),
                str(conf),
            ],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            while (line := process.stdout.readline()) != "ready\n":
                assert line, f"the cluster did not start: {(directory / 'cluster.log').read_text()[-4000:]}"
            yield YarnCluster(process, conf)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _end_containers(directory)


def _fetch_jars(target: Path) -> None:
    version = next(
        match[1]
        for jar in SPARK_JARS.iterdir()
        if (match := re.fullmatch(r"hadoop-client-api-(.+)\.jar", jar.name))
    )
    command = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
    command += [f"-DoutputDirectory={target}", "-DincludeScope=runtime", f"-Dhadoop.version={version}"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"Maven could not fetch Hadoop {version}: {done.stdout[-500:]}")


def _end_containers(directory: Path) -> None:
    """Kill the containers that a killed NodeManager leaves."""

    def left() -> bool:
        found = [
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _works_in(pid, directory)
        ]
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return bool(found)

    wait_until(lambda: not left(), "the containers of the cluster have ended", timeout=20)


def _commands() -> Iterator[tuple[int, bytes]]:
    """The Java processes of this machine, with their command lines."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            command = (entry / "cmdline").read_bytes()
            if command.partition(b"\0")[0].endswith(b"java"):
                yield int(entry.name), command


def _works_in(pid: int, directory: Path) -> bool:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(directory)
    except OSError:
        return False
