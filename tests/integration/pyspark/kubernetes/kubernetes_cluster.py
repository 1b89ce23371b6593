"""A Kubernetes cluster on this machine: an API server, and a kubelet that runs executor pods."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyspark
import pytest

from conditions import WAIT

HERE = Path(__file__).parent / "cluster"
EXECUTOR = Path(__file__).resolve().parents[4] / "deploy" / "container" / "executor.py"
SPARK_JARS = Path(pyspark.__file__).parent / "jars"
NAMESPACE = "jobs"
IMAGE = "jobserver-executor:test"
ADDRESS = "127.0.0.1"
_PAUSE = 0.1


class KubernetesCluster:
    """The API server, and what it stores."""

    def __init__(self, port: int, requests: Path) -> None:
        self.url = f"http://{ADDRESS}:{port}"
        self._requests = requests

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request about objects of the namespace."""
        request = urllib.request.Request(
            f"{self.url}/api/v1/namespaces/{NAMESPACE}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "tests"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def objects(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", kind)["items"]
        return found

    def of_application(self, application_id: str) -> list[str]:
        """The kinds and names of all objects of an application."""
        return [
            f"{kind}/{thing['metadata']['name']}"
            for kind in ("pods", "configmaps", "services", "persistentvolumeclaims")
            for thing in self.labelled(kind, application_id)
        ]

    def labelled(self, kind: str, application_id: str) -> list[dict[str, Any]]:
        """The objects of a kind that an application has."""
        return [
            thing
            for thing in self.objects(kind)
            if thing["metadata"].get("labels", {}).get("spark-app-selector") == application_id
        ]

    def executors(self, application_id: str) -> list[dict[str, Any]]:
        """The executor pods of an application."""
        return self.labelled("pods", application_id)

    def run_server_pod(self, name: str) -> dict[str, Any]:
        """Store a pod that runs and is ready, as that of the job server, and return it."""
        container = {"name": "server", "image": "jobserver:test"}
        pod = {"metadata": {"name": name}, "spec": {"containers": [container]}}
        stored: dict[str, Any] = self.call("POST", "pods", {"apiVersion": "v1", "kind": "Pod", **pod})
        stored["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        self.call("PUT", f"pods/{name}/status", stored)
        return stored

    def requests(self) -> set[tuple[str, str]]:
        """The verbs and resources that drivers and servers have used, as roles name them."""
        lines = self._requests.read_text().splitlines()
        return {_verb_and_resource(*line.split(" ", 1)) for line in lines}

    def settings(self, **more: Any) -> dict[str, Any]:
        """The settings of a context with one executor pod of two cores, outside of the cluster."""
        settings = self.settings_in_pod(**more)
        settings["spark"]["driver"] = {"host": ADDRESS, "bindAddress": ADDRESS}
        settings["spark"]["kubernetes"]["namespace"] = NAMESPACE
        return settings

    def settings_in_pod(self, **more: Any) -> dict[str, Any]:
        """The same for a server in a pod, whose environment has the rest."""
        return {
            "spark": {
                "master": f"k8s://{self.url}",
                "executor": {"instances": 1, "cores": 2},
                "kubernetes": {"container.image": IMAGE, "allocation.batch.delay": "200ms"},
                **more,
            },
            "memory-per-node": "512m",
        }


def _verb_and_resource(method: str, path: str) -> tuple[str, str]:
    path, _, query = path.partition("?")
    resource, _, name = path.partition(f"/namespaces/{NAMESPACE}/")[2].partition("/")
    verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "GET": "get"}
    verb = verbs[method]
    if not name:
        watches = "watch=true" in query
        verb = {"delete": "deletecollection", "get": "watch" if watches else "list"}.get(verb, verb)
    return verb, resource + ("/status" if name.endswith("/status") else "")


class Kubelet:
    """Runs the container of each executor pod as a process, with the program of the executors' image."""

    def __init__(self, cluster: KubernetesCluster, directory: Path) -> None:
        self._cluster = cluster
        self._directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._seen: set[str] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet")
        self._thread.start()

    def processes(self) -> list[int]:
        """The processes of all pods."""
        return self.processes_of(list(self._running))

    def processes_of(self, pods: Iterable[str]) -> list[int]:
        """The processes of the pods with these names."""
        found = [self._running.get(name) for name in pods]
        return [process.pid for process in found if process is not None and process.poll() is None]

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        for process in self._running.values():
            _end(process)

    def _run(self) -> None:
        while not self._stopped.wait(_PAUSE):
            try:
                self._synchronize({pod["metadata"]["name"]: pod for pod in self._cluster.objects("pods")})
            except urllib.error.HTTPError as error:
                error.close()  # the pod was deleted meanwhile
            except OSError:
                continue

    def _synchronize(self, pods: dict[str, dict[str, Any]]) -> None:
        for name, process in list(self._running.items()):
            if name not in pods:
                _end(process)
                del self._running[name]
            elif process.poll() is not None:
                del self._running[name]
                self._report(
                    pods[name], "Succeeded" if process.returncode == 0 else "Failed", process.returncode
                )
        for name, pod in pods.items():
            if (
                name not in self._seen
                and pod["metadata"].get("labels", {}).get("spark-role") == "executor"
                and self._has_claims(pod)
            ):
                self._seen.add(name)
                self._running[name] = self._start(pod)
                self._report(pod, "Running", None)

    def _start(self, pod: dict[str, Any]) -> subprocess.Popen[bytes]:
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]
        fields = {"metadata.name": name, "status.podIP": ADDRESS}
        variables = {
            entry["name"]: fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            if entry.get("valueFrom")
            else entry.get("value", "")
            for entry in container["env"]
        }
        local = self._directory / name
        local.mkdir()
        volumes = [self.volume(claim) for claim in claims_of(pod)] or [local]
        for volume in volumes:
            volume.mkdir(exist_ok=True)
        variables["SPARK_LOCAL_DIRS"] = ",".join(map(str, volumes))
        with (local / "stderr").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, EXECUTOR, *container["args"]],
                cwd=local,
                env={"PATH": os.environ["PATH"], "TMPDIR": str(local), **variables},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _has_claims(self, pod: dict[str, Any]) -> bool:
        """Whether the volumes that the pod claims exist: Spark creates them after it."""
        known = {claim["metadata"]["name"] for claim in self._cluster.objects("persistentvolumeclaims")}
        return known.issuperset(claims_of(pod))

    def volume(self, claim: str) -> Path:
        """The directory of the volume of a claim."""
        return self._directory / claim

    def _report(self, pod: dict[str, Any], phase: str, code: int | None) -> None:
        container = pod["spec"]["containers"][0]
        ended = {"terminated": {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}}
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": code is None,
            "restartCount": 0,
            "state": {"running": {}} if code is None else ended,
        }
        pod["status"] = {"phase": phase, "podIP": ADDRESS, "containerStatuses": [status]}
        self._cluster.call("PUT", f"pods/{pod['metadata']['name']}/status", pod)


def claims_of(pod: dict[str, Any]) -> list[str]:
    """The names of the claims of a pod's volumes."""
    volumes = pod["spec"].get("volumes", [])
    return [v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v]


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(WAIT)


def require_programs() -> None:
    """Skip the test if something that the cluster needs is missing."""
    pytest.importorskip("lightkube", reason="needs the extra kubernetes")
    missing = [program for program in ("mvn", "java", "javac") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: install Maven and a JDK 17 or newer")


@contextlib.contextmanager
def started(directory: Path) -> Iterator[tuple[KubernetesCluster, Kubelet]]:
    """Start a cluster that works in this directory, and end it with all its pods."""
    jars, requests = directory / "jars", directory / "requests"
    _fetch_jars(jars)
    class_path = f"{jars}/*:{SPARK_JARS}/*"
    command = [
        "java",
        "-Xmx256m",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        class_path,
        HERE / "ApiServer.java",
        requests,
    ]
    with (
        (directory / "api-server.log").open("wb") as log,
        subprocess.Popen(
            command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            assert port, f"the API server did not start: {(directory / 'api-server.log').read_text()[-4000:]}"
            cluster = KubernetesCluster(int(port), requests)
            with contextlib.closing(Kubelet(cluster, directory)) as kubelet:
                yield cluster, kubelet
        finally:
            process.kill()


def _fetch_jars(target: Path) -> None:
    versions = (re.fullmatch(r"kubernetes-client-(\d.+)\.jar", jar.name) for jar in SPARK_JARS.iterdir())
    version = next(match[1] for match in versions if match)
    command = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
    command += [f"-DoutputDirectory={target}", "-DincludeScope=runtime", f"-Dclient.version={version}"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"Maven could not fetch the API server {version}: {done.stdout[-500:]}")
