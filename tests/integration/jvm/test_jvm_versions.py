"""Two versions of one class in one context: driver, closures, results and broadcasts."""

from __future__ import annotations

from typing import Any

import pytest

from jobserver_pyspark.jvm import JvmStatus

pytestmark = pytest.mark.spark


def expected(version: str) -> dict[str, object]:
    return {
        "driver": version,
        "executors": [version],
        "sent": [f"{version} sent"],
        "broadcast": [f"{version} broadcast"],
    }


def test_two_versions_in_turn_are_each_right(bench: Any, version_jars: Any) -> None:
    one, two = version_jars
    for jar, version in [(one, "one"), (two, "two"), (one, "one"), (two, "two")]:
        assert bench.value("versions.Job", jar) == expected(version)


def test_two_versions_at_once_are_each_right(bench: Any, version_jars: Any) -> None:
    jobs = [
        bench.start(bench.request("versions.Job", jar, config={"sleep": 100})) for jar in version_jars * 3
    ]
    for job, version in zip(jobs, ["one", "two"] * 3, strict=True):
        assert job.outcome().status is JvmStatus.FINISHED
        assert job.request.result_path.read_text().count(f"{version} sent") == 1
