"""A Kubernetes cluster for these tests."""

from __future__ import annotations

from collections.abc import Iterator

import kubernetes_cluster
import pytest
from kubernetes_cluster import Kubelet, KubernetesCluster


@pytest.fixture(scope="session")
def started_cluster(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[KubernetesCluster, Kubelet]]:
    kubernetes_cluster.require_programs()
    with kubernetes_cluster.started(tmp_path_factory.mktemp("kubernetes")) as started:
        yield started


@pytest.fixture(scope="session")
def kubernetes(started_cluster: tuple[KubernetesCluster, Kubelet]) -> KubernetesCluster:
    return started_cluster[0]


@pytest.fixture(scope="session")
def kubelet(started_cluster: tuple[KubernetesCluster, Kubelet]) -> Kubelet:
    return started_cluster[1]
