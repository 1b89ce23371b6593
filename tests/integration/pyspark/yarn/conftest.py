"""A YARN cluster for these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yarn_cluster


@pytest.fixture(scope="session")
def yarn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[yarn_cluster.YarnCluster]:
    yarn_cluster.require_programs()
    with yarn_cluster.started(tmp_path_factory.mktemp("yarn")) as cluster:
        yield cluster
