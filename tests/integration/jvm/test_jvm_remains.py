"""A kill ends everything a job started; any outcome ends its streams. A busy job is not KILLED."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from socket import create_connection, socket
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from conditions import wait_until

pytestmark = pytest.mark.spark

STREAMS = ["query", "query of another session", "stream"]
THREADS = [
    "thread",
    "subclass",
    "pool",
    "scheduled",
    "timer",
    "future",
    "common pool",
    "http client",
    "file channel",
]
SHARED_POOLS = ["delayed", "delayed without pool", "delayed future", "delayed completion"]
LISTENERS = ["listener"]
PROCESSES = ["process", "process of a thread", "grandchild"]


@pytest.fixture(scope="module")
def jar(remains_jar: Path) -> Path:
    return remains_jar


@pytest.fixture(scope="module")
def neighbours_jar(compile_jar: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same jobs in another package."""
    source = (Path(__file__).parent / "jobs" / "remains" / "Remains.scala").read_text()
    copy = tmp_path_factory.mktemp("neighbours") / "Neighbours.scala"
    copy.write_text(source.replace("package remains", "package neighbours"))
    return compile_jar("neighbours", copy)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The file that leftovers of a job write to every few milliseconds, and recreate when it is removed."""
    return tmp_path / "written"


def started(bench: Any, jar: Path, kind: str, written: Path) -> Any:
    request = bench.request("remains.Start", jar, kind="session", config={"kind": kind, "path": str(written)})
    job = bench.start(request)
    job.wait_for_log("now it writes")
    return job


def connect(written: Path) -> socket:
    """Connect to the server of a job that writes for each connection."""
    return create_connection(("127.0.0.1", int(written.with_suffix(".port").read_text())), timeout=60)


def wait_for_listeners() -> None:
    """Wait until all listeners of Spark have got all events."""
    from pyspark import SparkContext

    context: Any = SparkContext._active_spark_context
    context._jsc.sc().listenerBus().waitUntilEmpty()


def assert_nothing_writes(bench: Any, shapes_jar: Path, written: Path) -> None:
    """Remove the file, and see that it does not come back while another job runs."""
    written.unlink()
    assert bench.value("shapes.WordCount", shapes_jar, config={"words": "a b"}) == {"a": 1, "b": 1}
    wait_for_listeners()
    assert not written.exists()


@pytest.mark.parametrize("kind", [*STREAMS, *THREADS, *SHARED_POOLS, *LISTENERS, *PROCESSES, "spark job"])
def test_a_kill_ends_everything_the_job_has_started(
    bench: Any, jar: Path, shapes_jar: Path, written: Path, kind: str
) -> None:
    job = started(bench, jar, kind, written)
    assert bench.jobs.cancel(job.request.job_id, wait=60.0)
    assert_nothing_writes(bench, shapes_jar, written)
    assert job.outcome().status == "killed"
    # And the next one can start the same.
    again = started(bench, jar, kind, written)
    assert bench.jobs.cancel(again.request.job_id, wait=60.0)
    assert_nothing_writes(bench, shapes_jar, written)


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_end_with_a_job_that_finishes(
    bench: Any, jar: Path, shapes_jar: Path, written: Path, kind: str
) -> None:
    config = {"kind": kind, "path": str(written), "wait": False}
    assert bench.value("remains.Start", jar, kind="session", config=config) == "left"
    assert_nothing_writes(bench, shapes_jar, written)


def test_a_thread_of_a_finished_job_keeps_running(bench: Any, jar: Path, written: Path) -> None:
    config = {"kind": "thread", "path": str(written), "wait": False}
    assert bench.value("remains.Start", jar, kind="session", config=config) == "left"
    written.unlink()
    wait_until(written.exists, "another line")


def test_a_kill_spares_threads_processes_and_queries_of_other_jobs(
    bench: Any, jar: Path, shapes_jar: Path, tmp_path: Path
) -> None:
    kinds = ["thread", "process", "query"]
    neighbours = {kind: tmp_path / kind for kind in kinds}
    jobs = [started(bench, jar, kind, path) for kind, path in neighbours.items()]
    victim = started(bench, jar, "thread", tmp_path / "victim")
    assert bench.jobs.cancel(victim.request.job_id, wait=60.0)
    assert_nothing_writes(bench, shapes_jar, tmp_path / "victim")
    for kind, path in neighbours.items():
        path.unlink()
        wait_until(path.exists, f"another line of the {kind}")
    for job in jobs:
        assert bench.jobs.cancel(job.request.job_id, wait=60.0)
    assert {job.outcome().status for job in jobs} == {"killed"}


@pytest.mark.parametrize("kind", ["listener", "http server", "channels", "delayed"])
def test_a_kill_spares_listeners_servers_and_delayed_tasks_of_jobs_of_other_jars(
    bench: Any, jar: Path, neighbours_jar: Path, tmp_path: Path, kind: str
) -> None:
    written = tmp_path / "neighbour"
    config = {"kind": kind, "path": str(written)}
    neighbour = bench.start(bench.request("neighbours.Start", neighbours_jar, kind="session", config=config))
    neighbour.wait_for_log("now it writes")
    victim = started(bench, jar, kind, tmp_path / "victim")
    assert bench.jobs.cancel(victim.request.job_id, wait=60.0)
    written.unlink()
    assert bench.value("remains.Join", jar, kind="session") == 5
    if kind == "http server":
        urlopen(written.with_suffix(".address").read_text(), timeout=60).close()
    if kind == "channels":
        connect(written).close()
    wait_until(written.exists, "another line of the neighbour")
    assert bench.jobs.cancel(neighbour.request.job_id, wait=60.0)
    assert bench.value("remains.Join", jar, kind="session") == 5


@pytest.mark.parametrize("kind", ["delayed", "delayed future", "process of an ended thread"])
def test_a_job_is_not_killed_while_what_it_left_may_be_that_of_another_job_of_the_jar(
    bench: Any, jar: Path, shapes_jar: Path, tmp_path: Path, written: Path, kind: str
) -> None:
    neighbour = started(bench, jar, "thread", tmp_path / "neighbour")
    job = started(bench, jar, kind, written)
    assert not bench.jobs.cancel(job.request.job_id, wait=3.0)
    written.unlink()
    wait_until(written.exists, "another line")
    assert job.running
    assert bench.jobs.cancel(neighbour.request.job_id, wait=60.0)
    assert job.outcome().status == "killed"
    assert_nothing_writes(bench, shapes_jar, written)


def test_killed_jobs_of_one_jar_do_not_wait_for_each_others_work_in_shared_pools(
    bench: Any, jar: Path, shapes_jar: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("one", "two")]
    jobs = [started(bench, jar, "delayed", path) for path in paths]
    assert not bench.jobs.cancel(jobs[0].request.job_id, wait=1.0)
    assert bench.jobs.cancel(jobs[1].request.job_id, wait=60.0)
    assert [job.outcome().status for job in jobs] == ["killed", "killed"]
    for path in paths:
        assert_nothing_writes(bench, shapes_jar, path)


def test_a_kill_closes_the_http_servers_of_the_job(bench: Any, jar: Path, written: Path) -> None:
    job = started(bench, jar, "http server", written)
    assert bench.jobs.cancel(job.request.job_id, wait=60.0)
    with pytest.raises(URLError, match="refused"):
        urlopen(written.with_suffix(".address").read_text(), timeout=60)


@pytest.mark.parametrize("kind", ["channels", "channels of a group"])
def test_a_kill_closes_the_asynchronous_channels_of_the_job(
    bench: Any, jar: Path, shapes_jar: Path, written: Path, kind: str
) -> None:
    job = started(bench, jar, kind, written)
    with connect(written) as connection:
        wait_until(lambda: written.read_bytes().count(b"\n") == 2, "the second connection")
        connection.sendall(b"x")
        wait_until(lambda: written.read_bytes().count(b"\n") == 3, "the line for the byte")
        assert bench.jobs.cancel(job.request.job_id, wait=60.0)
        assert connection.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(written)
    assert job.outcome().status == "killed"
    assert_nothing_writes(bench, shapes_jar, written)


def test_a_kill_removes_its_listeners_and_spares_those_of_another_job_of_the_jar(
    bench: Any, jar: Path, shapes_jar: Path, tmp_path: Path
) -> None:
    neighbour = started(bench, jar, "listener", tmp_path / "neighbour")
    victim = started(bench, jar, "listener", tmp_path / "victim")
    assert bench.jobs.cancel(victim.request.job_id, wait=60.0)
    (tmp_path / "neighbour").unlink()
    assert_nothing_writes(bench, shapes_jar, tmp_path / "victim")
    assert (tmp_path / "neighbour").exists()
    assert bench.jobs.cancel(neighbour.request.job_id, wait=60.0)
    assert_nothing_writes(bench, shapes_jar, tmp_path / "neighbour")


def test_a_job_is_not_killed_while_one_of_its_threads_is_running(
    bench: Any, spark: Any, jar: Path, shapes_jar: Path, written: Path
) -> None:
    job = started(bench, jar, "deaf thread", written)
    assert not bench.jobs.cancel(job.request.job_id, wait=1.0)
    assert job.running
    spark.sparkContext._jvm.java.lang.System.setProperty("remains.deaf", "over")
    assert job.outcome().status == "killed"
    assert_nothing_writes(bench, shapes_jar, written)
