"""Two versions of one class in one context: driver, closures, results and broadcasts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobserver_core.models.failures import FailureKind

pytestmark = pytest.mark.spark


def expected(version: str) -> dict[str, object]:
    return {
        "driver": version,
        "joined": [version],
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
        outcome = job.outcome()
        assert outcome.status == "finished"
        assert bench.content(job.request, outcome).decode().count(f"{version} sent") == 1


def test_a_running_job_keeps_its_classes_when_they_are_loaded_anew_for_later_jobs(
    bench: Any, version_jars: Any, tmp_path: Path
) -> None:
    one, _ = version_jars
    gate = tmp_path / "gate"
    job = bench.start(bench.request("versions.Job", one, config={"gate": str(gate)}))
    job.wait_for_log("waiting")
    bench.jobs._runner.addLibraries('{"jars": []}')  # so that the next job gets a session of its own
    assert bench.value("versions.Job", one) == expected("one")
    gate.touch()
    outcome = job.outcome()
    assert outcome.error is None
    assert json.loads(bench.content(job.request, outcome)) == expected("one")


def test_pool_threads_never_run_code_of_another_version(bench: Any, version_jars: Any) -> None:
    for jar in version_jars:
        assert bench.run("versions.Job", jar).status == "finished"
    for jar in version_jars:
        outcome = bench.run("versions.Job", jar, config={"future": True})
        assert outcome.failure == FailureKind.RAISED
        assert "started on a thread that does not carry its job's class path" in outcome.error.message
        assert "jvm.isolation = shared" in outcome.error.message
