"""Contexts on Kubernetes: an API server, and executor pods that run the program of the executors' image."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_cluster import ADDRESS, IMAGE, NAMESPACE, Kubelet, KubernetesCluster, claims_of
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
from package_checks import Wheel, check_a_large_package_is_shipped_once, check_packed_environment
from served_world import World, check_a_context_outlives_its_server, worlds_over_one_database

from conditions import wait_until
from jobserver_core.ports import JobCode
from jobserver_pyspark.launcher.context_settings import flattened
from jobserver_sql.testing import PostgresqlServer

pytestmark = [pytest.mark.spark, pytest.mark.kubernetes, pytest.mark.timeout(600)]

ROLE = Path(__file__).resolve().parents[4] / "deploy" / "kubernetes" / "base" / "role.yaml"
SERVER = "jobserver-0"
TEMPLATE = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"labels": {"team": "analytics"}},
    "spec": {
        "nodeSelector": {"node.kubernetes.io/instance-type": "m5.large"},
        "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
    },
}
VOLUME = {
    "options": {"claimName": "OnDemand", "storageClass": "fast", "sizeLimit": "1Gi"},
    "mount": {"path": "/scratch", "readOnly": False},
}
OBJECTS = ("pods", "configmaps", "persistentvolumeclaims")
RETRIES = 200
"""How many ports a driver tries after that of its settings."""


def free_ports() -> tuple[int, int]:
    """Two ports that stay free: Linux gives those below 32768 to nobody who does not ask for them.

    The second is beyond the ports that are tried after the first.
    """
    for first in random.sample(range(10_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind((ADDRESS, first))
            other.bind((ADDRESS, first + RETRIES + 1))
            return first, first + RETRIES + 1
    raise AssertionError("no port is free")


def executor_pod(kubernetes: KubernetesCluster, context: Context) -> dict[str, Any]:
    """The executor pod of a context that has one. Waits until it exists, and until lost ones are gone."""
    found: list[dict[str, Any]] = []

    def is_one() -> bool:
        found[:] = kubernetes.executors(context.application_id)
        return len(found) == 1

    wait_until(is_one, lambda: f"one executor pod: {[pod['metadata']['name'] for pod in found]}")
    return found[0]


def wait_for_objects(kubernetes: KubernetesCluster, context: Context) -> None:
    """Wait until a context has objects of all kinds."""
    executor_pod(kubernetes, context)
    for kind in OBJECTS:
        wait_until(lambda kind=kind: kubernetes.labelled(kind, context.application_id), kind)


def driver_port(kubernetes: KubernetesCluster, context: Context) -> int:
    """The port at which the executors of a context look for their driver."""
    variables = executor_pod(kubernetes, context)["spec"]["containers"][0]["env"]
    [address] = [entry["value"] for entry in variables if entry["name"] == "SPARK_DRIVER_URL"]
    return int(address.rpartition(":")[2])


@pytest.fixture(scope="module")
def server_pod(kubernetes: KubernetesCluster) -> dict[str, Any]:
    return kubernetes.run_server_pod(SERVER)


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    """The ports of drivers and of their block managers."""
    return free_ports()


@pytest.fixture(scope="module")
def on_kubernetes(
    kubernetes: KubernetesCluster, server_pod: dict[str, Any], ports: tuple[int, int], start_shared: Start
) -> Iterator[Context]:
    """A context of a server in a pod, with fixed ports."""
    driver, block_manager = ports
    fixed = {"driver.port": driver, "driver.blockManager.port": block_manager}
    context = start_in_pod(kubernetes, start_shared, **fixed)
    yield context
    context.handle.kill()
    context.wait_end()


def start_in_pod(kubernetes: KubernetesCluster, start: Start, **more: Any) -> Context:
    """Start a context of a server in a pod, with a template and a volume on demand."""
    settings = kubernetes.settings_in_pod(
        **{"kubernetes.node.selector.zone": "a"},
        **{"kubernetes.executor.volumes.persistentVolumeClaim.spark-local-dir-1": VOLUME},
        **more,
    )
    settings["pod-template"] = yaml.safe_dump(TEMPLATE)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("POD_NAME", SERVER)
        environment.setenv("POD_NAMESPACE", NAMESPACE)
        environment.setenv("POD_IP", ADDRESS)
        return start(settings).wait_ready(200.0)


def test_a_job_survives_the_loss_of_its_executor(
    kubelet: Kubelet, on_kubernetes: Context, tmp_path: Path
) -> None:
    check_loss_of_executors(on_kubernetes, tmp_path / "gate", kubelet.processes)


def test_a_job_survives_the_deletion_of_its_executor_pods(
    kubernetes: KubernetesCluster, kubelet: Kubelet, on_kubernetes: Context, tmp_path: Path
) -> None:
    # This is what the cluster does when a node is lost or drained.
    def lose() -> None:
        lost = kubelet.processes()
        for pod in kubernetes.executors(on_kubernetes.application_id):
            kubernetes.call("DELETE", f"pods/{pod['metadata']['name']}")
        wait_until(lambda: not set(lost) & set(kubelet.processes()), "the executors end")

    check_loss_of_a_machine(on_kubernetes, tmp_path / "gate", lose)


class TestKubernetes(MasterSuite):
    @pytest.fixture
    def on_master(self, on_kubernetes: Context) -> Context:
        return on_kubernetes


def test_pods_are_labelled_with_their_server_and_their_context(
    kubernetes: KubernetesCluster, on_kubernetes: Context
) -> None:
    application_id = on_kubernetes.application_id
    assert application_id == f"spark-{on_kubernetes.spec.id}"
    pod = executor_pod(kubernetes, on_kubernetes)
    labels = pod["metadata"]["labels"]
    assert labels["jobserver-context"] == on_kubernetes.spec.id
    assert labels["jobserver-server"] == SERVER
    assert pod["spec"]["containers"][0]["image"] == IMAGE


def test_all_objects_of_a_context_belong_to_the_pod_of_the_server(
    kubernetes: KubernetesCluster, server_pod: dict[str, Any], on_kubernetes: Context
) -> None:
    wait_for_objects(kubernetes, on_kubernetes)
    for kind in OBJECTS:
        for thing in kubernetes.labelled(kind, on_kubernetes.application_id):
            [owner] = thing["metadata"]["ownerReferences"]
            assert (owner["kind"], owner["name"]) == ("Pod", SERVER)
            assert owner["uid"] == server_pod["metadata"]["uid"]


def test_executor_pods_follow_the_template_and_the_settings_of_their_context(
    kubernetes: KubernetesCluster, on_kubernetes: Context
) -> None:
    pod = executor_pod(kubernetes, on_kubernetes)
    assert pod["metadata"]["labels"]["team"] == "analytics"
    assert pod["spec"]["tolerations"] == TEMPLATE["spec"]["tolerations"]
    assert pod["spec"]["nodeSelector"] == TEMPLATE["spec"]["nodeSelector"] | {"zone": "a"}


def test_each_executor_writes_to_a_volume_that_is_claimed_for_it(
    kubernetes: KubernetesCluster, kubelet: Kubelet, on_kubernetes: Context
) -> None:
    assert on_kubernetes.run("work.Stages").value == 6
    found = kubernetes.labelled("persistentvolumeclaims", on_kubernetes.application_id)
    claims = {claim["metadata"]["name"]: claim["spec"] for claim in found}
    [name] = claims_of(executor_pod(kubernetes, on_kubernetes))
    assert claims[name]["storageClassName"] == "fast"
    assert claims[name]["resources"]["requests"] == {"storage": "1Gi"}
    assert list(kubelet.volume(name).rglob("shuffle_*"))


def test_a_driver_listens_on_the_ports_of_its_settings_or_on_the_next_free_ones(
    kubernetes: KubernetesCluster,
    kubelet: Kubelet,
    on_kubernetes: Context,
    ports: tuple[int, int],
    start: Start,
) -> None:
    assert driver_port(kubernetes, on_kubernetes) == ports[0]
    for port in ports:
        socket.create_connection((ADDRESS, port), timeout=10.0).close()
    same = {"driver.port": ports[0], "driver.blockManager.port": ports[1], "port.maxRetries": RETRIES}
    other = start(kubernetes.settings(**same)).wait_ready(200.0)
    assert driver_port(kubernetes, other) in range(ports[0] + 1, ports[0] + 1 + RETRIES)
    pod = executor_pod(kubernetes, other)["metadata"]["name"]
    wait_until(lambda: kubelet.processes_of([pod]), "its executor runs")
    other.handle.stop(60.0)
    assert other.wait_end(120.0)[1] is None
    assert kubernetes.of_application(other.application_id) == []
    wait_until(lambda: not kubelet.processes_of([pod]), "its executor ends")


def test_the_limits_count_what_a_context_asks_the_cluster_for(
    kubernetes: KubernetesCluster, on_kubernetes: Context
) -> None:
    asked = on_kubernetes.launcher.resources(on_kubernetes.spec.settings)
    requests = executor_pod(kubernetes, on_kubernetes)["spec"]["containers"][0]["resources"]["requests"]
    mebibytes = int(requests["memory"].removesuffix("Mi"))
    assert asked.cores == int(requests["cpu"])
    assert asked.memory == (1024 + mebibytes) * 2**20, "the driver has 1 GiB"


def test_idle_executors_are_given_back_and_come_again(
    kubernetes: KubernetesCluster, kubelet: Kubelet, start: Start
) -> None:
    settings = kubernetes.settings(**DYNAMIC, executor={"cores": 1})
    context = start(settings | {"num-cpu-cores": 2}).wait_ready(200.0)
    most: list[int] = []

    def executors() -> list[dict[str, Any]]:
        found = kubernetes.executors(context.application_id)
        most.append(len(found))
        return found

    check_idle_executors_are_given_back(context, executors)
    assert max(most) == 2
    context.handle.kill()
    context.wait_end()
    assert kubernetes.of_application(context.application_id) == []


@pytest.fixture(scope="module")
def in_environment(
    kubernetes: KubernetesCluster, start_shared: Start, environment: Path
) -> Iterator[Context]:
    """The driver and two executor pods run the interpreter of an archive, as another user."""
    settings = kubernetes.settings(
        **{
            "archives": f"{environment}#packed",
            "executor": {"instances": 2, "cores": 1},
            "proxy.user": "alice",
        }
    )
    context = start_shared(settings | {"python": {"executable": "packed/bin/python"}}).wait_ready(200.0)
    yield context
    context.handle.kill()
    context.wait_end()


def test_executors_run_in_a_packed_environment(in_environment: Context, rates: Wheel) -> None:
    check_packed_environment(in_environment, rates)


def test_a_context_runs_as_another_user(in_environment: Context) -> None:
    check_another_user(in_environment)


def test_a_large_package_is_shipped_once_for_all_jobs_of_a_context(
    in_environment: Context, tmp_path: Path
) -> None:
    check_a_large_package_is_shipped_once(in_environment, tmp_path)


def test_nothing_is_left_on_the_cluster_after_deaths(
    kubernetes: KubernetesCluster, on_kubernetes: Context, start: Start, tmp_path: Path, code: JobCode
) -> None:
    wait_for_objects(kubernetes, on_kubernetes)
    alive = kubernetes.of_application(on_kubernetes.application_id)
    check_deaths(
        start,
        kubernetes.settings(
            **{"kubernetes.executor.volumes.persistentVolumeClaim.spark-local-dir-1": VOLUME}
        ),
        tmp_path / "dead",
        code,
        executors=kubernetes.executors,
        left=kubernetes.of_application,
    )
    assert kubernetes.of_application(on_kubernetes.application_id) == alive
    assert on_kubernetes.run("work.WordCount", {"input": {"string": "a"}}).value == {"a": 1}


def test_a_context_outlives_its_server(kubernetes: KubernetesCluster, tmp_path: Path, code: JobCode) -> None:
    check_a_context_outlives_its_server(tmp_path, kubernetes.settings(), code, left=kubernetes.of_application)


@pytest.fixture
def servers(tmp_path: Path, postgresql_server: PostgresqlServer) -> Iterator[tuple[World, World]]:
    more = "jobserver.contexts.creation-timeout = 4 minutes"
    with worlds_over_one_database(tmp_path, postgresql_server, lease=8.0, more=more) as worlds:
        yield worlds


@pytest.mark.postgresql
def test_another_server_removes_what_contexts_of_a_dead_one_left(
    kubernetes: KubernetesCluster, on_kubernetes: Context, servers: tuple[World, World]
) -> None:
    first, second = servers
    for server in servers:
        server.serve(reattach_timeout="0 s")
    settings = kubernetes.settings(
        **{"kubernetes.executor.volumes.persistentVolumeClaim.spark-local-dir-1": VOLUME}
    )
    response = first.client.post("/contexts/shared", params=flattened(settings))
    assert response.status_code == 200, response.text
    application = first.context()["applicationId"]
    for kind in OBJECTS:
        wait_until(lambda kind=kind: kubernetes.labelled(kind, application), kind)
    alive = kubernetes.of_application(on_kubernetes.application_id)
    second.signal(signal.SIGSTOP)  # until the test has seen what is left
    processes = list(first.commands())
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)  # so that the driver removes nothing when its server ends
    first.end()
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not first.commands(), "nothing of the first server is left on the machine")
    left = kubernetes.of_application(application)
    assert {name.partition("/")[0] for name in left} == set(OBJECTS)
    second.signal(signal.SIGCONT)
    wait_until(
        lambda: not kubernetes.of_application(application), lambda: kubernetes.of_application(application)
    )
    assert second.context()["state"] == "ERROR"
    assert kubernetes.of_application(on_kubernetes.application_id) == alive


def kill(kubernetes: KubernetesCluster, context: Context) -> None:
    """Kill a context that has objects of all kinds, also a service, as applications may have."""
    wait_for_objects(kubernetes, context)
    labels = {"spark-app-selector": context.application_id}
    service = {"metadata": {"name": f"of-{context.application_id}", "labels": labels}}
    kubernetes.call("POST", "services", {"apiVersion": "v1", "kind": "Service", **service})
    context.handle.kill()
    context.wait_end()


def test_a_killed_context_leaves_nothing_on_kubernetes(
    kubernetes: KubernetesCluster, on_kubernetes: Context
) -> None:
    # This ends the context that the tests above share, so it is the last one that uses it.
    on_kubernetes.running("trouble.SleepingTasks")
    kill(kubernetes, on_kubernetes)
    assert kubernetes.of_application(on_kubernetes.application_id) == []


def test_the_role_of_the_server_allows_what_contexts_do_and_no_more(
    kubernetes: KubernetesCluster, server_pod: dict[str, Any], start: Start
) -> None:
    killed, stopped = start_in_pod(kubernetes, start), start(kubernetes.settings()).wait_ready(200.0)
    kill(kubernetes, killed)
    stopped.handle.stop(60.0)
    stopped.wait_end(120.0)
    rules = next(yaml.safe_load_all(ROLE.read_text()))["rules"]
    allowed = {(verb, name) for rule in rules for verb in rule["verbs"] for name in rule["resources"]}
    assert kubernetes.requests() == allowed
