"""Contexts on Kubernetes: an API server, and executor pods that run the program of the executors' image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_cluster import IMAGE, Kubelet, KubernetesCluster
from launcher_world import Context, Start
from master_suite import MasterSuite, check_loss_of_executors

from conditions import wait_until

pytestmark = [pytest.mark.spark, pytest.mark.kubernetes, pytest.mark.timeout(600)]

ROLE = Path(__file__).resolve().parents[4] / "deploy" / "kubernetes" / "base" / "role.yaml"


@pytest.fixture(scope="module")
def on_kubernetes(kubernetes: KubernetesCluster, start_shared: Start) -> Iterator[Context]:
    context = start_shared(kubernetes.settings(), name="on-kubernetes").wait_ready(200.0)
    yield context
    context.handle.kill()
    context.wait_end()


def test_a_job_survives_the_loss_of_its_executor(kubelet: Kubelet, on_kubernetes: Context) -> None:
    check_loss_of_executors(on_kubernetes, kubelet.processes)


class TestKubernetes(MasterSuite):
    @pytest.fixture
    def on_master(self, on_kubernetes: Context) -> Context:
        return on_kubernetes


def test_pods_are_labelled_with_their_server_and_their_context(
    kubernetes: KubernetesCluster, on_kubernetes: Context
) -> None:
    application_id = on_kubernetes.listener.wait_for("ready", timeout=1.0)[1]
    assert application_id == f"spark-{on_kubernetes.spec.id}"

    def pods() -> list[dict[str, Any]]:
        found = kubernetes.objects("pods")
        return [pod for pod in found if pod["metadata"]["labels"].get("spark-app-selector") == application_id]

    wait_until(pods, "an executor pod")
    for pod in pods():
        labels = pod["metadata"]["labels"]
        assert labels["jobserver-context"] == on_kubernetes.spec.id
        assert labels["jobserver-server"]
        assert pod["spec"]["containers"][0]["image"] == IMAGE


def test_a_killed_context_leaves_nothing_on_kubernetes(
    kubernetes: KubernetesCluster, kubelet: Kubelet, on_kubernetes: Context
) -> None:
    # This ends the context that the tests above share, so it is the last one that uses it.
    application_id = on_kubernetes.listener.wait_for("ready", timeout=1.0)[1]
    wait_until(lambda: len(kubernetes.of_application(application_id)) > 1, "a pod and a config map")
    on_kubernetes.running("trouble.SleepingTasks")
    on_kubernetes.handle.kill()
    on_kubernetes.wait_end()
    assert kubernetes.of_application(application_id) == []
    wait_until(lambda: not kubelet.processes(), "its executors end")


def test_a_stopped_context_leaves_nothing_on_kubernetes(
    kubernetes: KubernetesCluster, kubelet: Kubelet, start: Start
) -> None:
    context = start(kubernetes.settings()).wait_ready(200.0)
    application_id = context.listener.wait_for("ready", timeout=1.0)[1]
    wait_until(lambda: len(kubernetes.of_application(application_id)) > 1, "a pod and a config map")
    context.handle.stop(60.0)
    assert context.wait_end(120.0)[1] is None
    assert kubernetes.of_application(application_id) == []
    wait_until(lambda: not kubelet.processes(), "its executors end")


@pytest.mark.usefixtures("on_kubernetes")
def test_the_role_of_the_server_allows_what_contexts_do(kubernetes: KubernetesCluster) -> None:
    # The shared context may have ended meanwhile; what it requested counts.
    wait_until(lambda: ("create", "pods") in kubernetes.requests(), "a context creates a pod")
    rules = next(yaml.safe_load_all(ROLE.read_text()))["rules"]
    allowed = {(verb, name) for rule in rules for verb in rule["verbs"] for name in rule["resources"]}
    ours = {("update", "pods/status")}
    assert kubernetes.requests() - ours - allowed == set()
