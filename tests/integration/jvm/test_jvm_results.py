"""Results of any size use bounded memory, from the JVM through host and server to the client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_caller import Caller

pytestmark = [pytest.mark.spark, pytest.mark.slow]

MEGABYTES = 200
GROWTH = 64 << 20
"""Bytes by which server and host may grow: far less than a result, far more than buffers need."""


def resident(process: str | int) -> int:
    """The resident size of a process, in bytes; 0 once it is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def host_of(context_id: str) -> str:
    """The process of a context's host."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"{context_id}:".encode() in environment and command.endswith(b"jobserver_pyspark.host\0"):
            return process.name
    raise AssertionError("the context has no host")


@pytest.fixture(scope="module")
def context(caller: Caller) -> Iterator[str]:
    """A context whose JVM could not hold much of a result."""
    with caller.context("large", **{"spark.driver.memory": "512m"}) as name:
        yield name


@pytest.mark.parametrize("kind", ["bytes", "json"])
def test_a_large_result_of_a_jvm_job_passes_in_bounded_memory(
    caller: Caller, context: str, kind: str
) -> None:
    # The server is this process, with its client.
    watched = [os.getpid(), host_of(caller.client.get(f"/contexts/{context}").json()["id"])]
    small = {"sync": "true", "timeout": 200, "context": context}
    response = caller.send("control.Large", f"megabytes = 1, as = {kind}", "control", **small)
    assert response.status_code == 200
    before = [resident(process) for process in watched]
    most = list(before)

    def look() -> None:
        most[:] = [max(size, resident(process)) for size, process in zip(most, watched, strict=True)]

    config = f"megabytes = {MEGABYTES}, as = {kind}"
    job_id = caller.submit("control.Large", config, "control", context=context)["jobId"]

    def over() -> bool:
        look()
        return bool(caller.client.get("/jobs?limit=1").json()[0]["status"] in ("FINISHED", "ERROR"))

    caller.until(over, "the job's end")
    size = 0
    with caller.client.stream("GET", f"/jobs/{job_id}") as response:
        for number, chunk in enumerate(response.iter_bytes()):
            size += len(chunk)
            if number % 100 == 0:
                look()
    assert size > MEGABYTES << 20
    grown = [after - size for after, size in zip(most, before, strict=True)]
    assert max(grown) < GROWTH, grown
