"""Threads that code of a jar starts in the JVM when a Python job calls it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launcher_world import Context, Start

from conditions import wait_until
from jobserver_core.ports import ContextEnd, JobCode, JobSpec

pytestmark = pytest.mark.spark

KINDS = ["thread", "timer", "scheduled", "queue", "static"]
NAMES = ("pool-", "test-timer", "stubborn")
"""How the names of threads begin that the jar starts."""


@pytest.fixture(scope="module")
def calling(start_shared: Start, remains_jar: JobCode) -> Iterator[Context]:
    """A context with the jar in its class path."""
    context = start_shared(class_path=(remains_jar,)).wait_ready()
    yield context
    assert context.listener.faults == []
    context.handle.stop(30.0)
    assert context.wait_end()[0] is ContextEnd.STOPPED


def _started(context: Context, path: Path, kind: str, **more: Any) -> JobSpec:
    """Run a job that starts threads of a kind and stays, until they have written."""
    name = more.pop("name", "Starts")
    before = more.pop("before", None)
    config = {"path": str(path), "kind": kind, "stay": True, **more}
    job = context.submit(f"calls.{name}", config, before=before)
    wait_until(path.exists, timeout=120.0)
    return job


def _writes(path: Path) -> None:
    """Wait until a thread writes to a file."""
    path.unlink(missing_ok=True)
    wait_until(path.exists)


def _assert_nothing_runs(context: Context, path: Path) -> None:
    path.unlink(missing_ok=True)
    assert context.run("work.WordCount", {"input": {"string": "a"}}).value == {"a": 1}
    names = context.run("calls.Threads").value
    assert [name for name in names if name.startswith(NAMES)] == []
    assert not path.exists()


@pytest.mark.parametrize("kind", [*KINDS, "again", "common"])
def test_a_kill_ends_the_threads_that_the_calls_of_a_job_have_started(
    calling: Context, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "written"
    job = _started(calling, path, kind)
    calling.handle.kill_job(job.id)
    assert calling.end_of(job).outcome.killed
    _assert_nothing_runs(calling, path)


def test_a_kill_closes_the_http_server_that_the_calls_of_a_job_have_started(
    calling: Context, tmp_path: Path
) -> None:
    path = tmp_path / "port"
    job = _started(calling, path, "server")
    wait_until(path.read_text)
    address = ("127.0.0.1", int(path.read_text()))
    socket.create_connection(address).close()
    calling.handle.kill_job(job.id)
    assert calling.end_of(job).outcome.killed
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_kill_ends_the_threads_that_code_of_a_jobs_own_jar_has_started(
    start: Start, remains_jar: JobCode, tmp_path: Path
) -> None:
    context = start().wait_ready()
    for kind in ("thread", "scheduled"):
        path = tmp_path / kind
        job = _started(context, path, kind, before=remains_jar)
        context.handle.kill_job(job.id)
        assert context.end_of(job).outcome.killed
        _assert_nothing_runs(context, path)


@pytest.mark.parametrize("kind", ["stubborn", "hostile"])
def test_a_job_is_not_killed_before_the_threads_of_its_calls_have_ended(
    calling: Context, tmp_path: Path, kind: str
) -> None:
    path, gate = tmp_path / "written", tmp_path / "gate"
    job = _started(calling, path, kind, gate=str(gate))
    calling.handle.kill_job(job.id)
    for _ in range(3):  # each is slower than the report of a kill
        assert calling.run("work.WordCount", {"input": {"string": "a"}}).value == {"a": 1}
    assert calling.listener.of_job(job.id) == ["job_running"]
    _writes(path)
    gate.touch()
    assert calling.end_of(job).outcome.killed
    _assert_nothing_runs(calling, path)


@pytest.mark.parametrize("kind", ["thread", "timer", "scheduled", "queue"])
def test_a_kill_ends_no_threads_of_another_job(calling: Context, tmp_path: Path, kind: str) -> None:
    path, others = tmp_path / "written", tmp_path / "others"
    other = _started(calling, others, kind)
    job = _started(calling, path, kind)
    calling.handle.kill_job(job.id)
    assert calling.end_of(job).outcome.killed
    _writes(others)
    assert calling.listener.of_job(other.id) == ["job_running"]
    path.unlink(missing_ok=True)
    calling.handle.kill_job(other.id)
    assert calling.end_of(other).outcome.killed
    assert not path.exists()
    _assert_nothing_runs(calling, others)


def test_a_static_pool_can_be_used_after_a_kill_that_emptied_it(calling: Context, tmp_path: Path) -> None:
    job = _started(calling, tmp_path / "written", "static")
    calling.handle.kill_job(job.id)
    assert calling.end_of(job).outcome.killed
    assert calling.run("calls.UsesStaticPool").value == 7


def test_a_kill_leaves_what_earlier_jobs_of_the_same_process_have_left(
    calling: Context, tmp_path: Path
) -> None:
    path, gate = tmp_path / "written", tmp_path / "gate"
    left: dict[str, Path] = {}  # what each process writes to, by the log that names the process
    for number in range(10):  # until one has a second job
        own = tmp_path / f"left-{number}"
        config = {"path": str(own), "gate": str(gate), "kind": "stubborn", "stay": False}
        left[calling.run("calls.Starts", config).log] = own
        calling.run("calls.Threads")  # the process of the job before is ready again only after a while
        job = _started(calling, path, "thread")
        calling.handle.kill_job(job.id)
        assert calling.end_of(job).outcome.killed
        if (log := job.log_path.read_text()) in left:
            _writes(left[log])
            gate.touch()
            return
        path.unlink(missing_ok=True)
    raise AssertionError("no second job ran in the process of the first one")


def test_a_kill_leaves_the_threads_of_sparks_pools(
    start: Start, remains_jar: JobCode, tmp_path: Path
) -> None:
    context = start(class_path=(remains_jar,)).wait_ready()
    path = tmp_path / "written"
    job = _started(context, path, "thread", name="StartsAfterSparksThreads")
    before = set(context.run("calls.Threads").value)
    sparks = {name for name in before if name.startswith(("broadcast-exchange-", "shuffle-exchange-"))}
    assert sparks
    context.handle.kill_job(job.id)
    assert context.end_of(job).outcome.killed
    _assert_nothing_runs(context, path)
    assert sparks <= set(context.run("calls.Threads").value)
    assert context.run("calls.Joins").value == 50
