"""Kills, logs, progress, slots and class paths of JVM jobs over HTTP, as for Python jobs."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_caller import Caller

from loopback import Loopback

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def context(caller: Caller, parts: dict[str, Path]) -> Iterator[str]:
    """One context for all tests that leave it as it was; with a jar for all of its jobs."""
    with caller.context("control", **{"dependent-jar-uris": f"file://{parts['Left']}"}) as name:
        yield name


def test_a_log_can_be_read_while_its_job_runs_and_after(caller: Caller, context: str, tmp_path: Path) -> None:
    until = tmp_path / "until"
    job_id = caller.running("control.Talk", f'until = "{until}"', "control", context=context)
    caller.until(lambda: "logged before" in caller.log(job_id), "the log of a running job")
    log = caller.log(job_id)
    assert caller.record(job_id)["status"] == "RUNNING"
    assert "said before\n" in log
    assert "WARN Talk: logged before\n" in log
    assert "after" not in log
    until.touch()
    assert caller.ended(job_id)["result"] == "talked"
    log = caller.log(job_id)
    assert log.index("said before\n") < log.index("said after\n") < log.index("WARN Talk: logged after\n")


def test_progress_is_in_the_record_of_a_running_job(caller: Caller, context: str, tmp_path: Path) -> None:
    until = tmp_path / "until"
    job_id = caller.running("control.Steps", f'until = "{until}"', "control", context=context)
    caller.until(lambda: caller.record(job_id).get("progress", {}).get("tasksDone") == 8, "eight tasks done")
    record = caller.record(job_id)
    assert record["status"] == "RUNNING"
    assert record["progress"] == {"stagesDone": 0, "stagesTotal": 1, "tasksDone": 8, "tasksTotal": 10}
    until.touch()
    assert caller.ended(job_id)["result"] == 55.0


def test_jobs_above_the_slots_wait_and_more_are_refused(caller: Caller, context: str, tmp_path: Path) -> None:
    until = tmp_path / "until"

    def send() -> Any:
        return caller.send("control.Talk", f'until = "{until}"', "control", context=context)

    ids = [caller.running("control.Talk", f'until = "{until}"', "control", context=context) for _ in range(2)]
    waiting = send().json()
    assert waiting["waiting"] is True
    refused = send()
    reason = (
        "the queue is full (1 waiting, jobserver.jobs.max-queued-jobs = 1), and so are the slots "
        "(jobserver.jobs.max-jobs-per-context = 2); try again when a job has ended"
    )
    assert (refused.status_code, refused.json()) == (
        503,
        {
            "status": "NO SLOTS AVAILABLE",
            "result": f"Too many running jobs (2) for job context '{context}'",
            "code": "no_slots",
            "detail": reason,
            "fields": {
                "context": context,
                "running": 2,
                "reason": reason,
            },
        },
    )
    assert caller.record(waiting["jobId"])["status"] == "STARTED"
    until.touch()
    assert [caller.ended(job_id)["result"] for job_id in (*ids, waiting["jobId"])] == ["talked"] * 3


def test_killing_a_job_stops_its_structured_stream(caller: Caller, context: str) -> None:
    job_id = caller.running("shapes.StructuredStream", "name = rates", "shapes", context=context)
    caller.until(lambda: "waiting" in caller.log(job_id), "the stream")
    assert caller.client.delete(f"/jobs/{job_id}").json() == {"status": "KILLED"}
    assert caller.record(job_id)["status"] == "KILLED"
    # A query of the same name would be refused while the first one lives.
    again = caller.running("shapes.StructuredStream", "name = rates", "shapes", context=context)
    caller.until(lambda: "waiting" in caller.log(again), "the second stream")
    assert caller.client.delete(f"/jobs/{again}").json() == {"status": "KILLED"}


@pytest.mark.parametrize("kind", ["stream", "pool", "process", "orphan", "orphan without environment"])
def test_killing_a_job_ends_everything_it_has_started(
    caller: Caller, context: str, tmp_path: Path, kind: str
) -> None:
    for turn in range(2):
        written = tmp_path / f"written-{turn}"
        config = f'kind = {kind}, path = "{written}"'
        job_id = caller.running("remains.Start", config, "remains", context=context)
        caller.until(written.exists, "a line")
        assert caller.client.delete(f"/jobs/{job_id}").json() == {"status": "KILLED"}
        written.unlink()
        assert caller.result("shapes.WordCount", "words = a", "shapes", context=context) == {"a": 1}
        assert not written.exists()


@pytest.mark.parametrize("kind", ["orphan", "orphan without environment"])
def test_a_job_is_not_killed_while_an_orphan_may_be_its_own_or_that_of_another_job(
    caller: Caller, tmp_path: Path, kind: str
) -> None:
    paths = [tmp_path / name for name in ("neighbor", "orphan")]
    with caller.context("orphans") as context:
        neighbor, job = [
            caller.running("remains.Start", f'kind = {started}, path = "{path}"', "remains", context=context)
            for path, started in zip(paths, ("thread", kind), strict=True)
        ]
        caller.until(paths[1].exists, "a line")
        assert caller.client.delete(f"/jobs/{job}").json()["status"] == "RUNNING"
        paths[1].unlink()
        caller.until(paths[1].exists, "another line: the neighbor could have started the orphan")
        assert caller.client.delete(f"/jobs/{neighbor}").json() == {"status": "KILLED"}
        assert caller.ended(job)["status"] == "KILLED"
        paths[1].unlink()
        assert caller.result("shapes.WordCount", "words = a", "shapes", context=context) == {"a": 1}
        assert not paths[1].exists()


@pytest.mark.parametrize("kind", ["orphan", "orphan without environment"])
def test_an_orphan_of_one_of_several_jobs_ends_with_the_context(
    caller: Caller, tmp_path: Path, kind: str
) -> None:
    paths = [tmp_path / name for name in ("neighbor", "orphan")]
    with caller.context("orphans") as context:
        for path, started in zip(paths, ("thread", kind), strict=True):
            config = f'kind = {started}, path = "{path}"'
            job_id = caller.running("remains.Start", config, "remains", context=context)
            caller.until(path.exists, "a line")
        assert caller.client.delete(f"/jobs/{job_id}").json()["status"] == "RUNNING"
    paths[1].unlink()
    with caller.context("orphans") as context:
        assert caller.result("shapes.WordCount", "words = a", "shapes", context=context) == {"a": 1}
    assert not paths[1].exists()


def test_a_broadcast_is_shared_by_two_jobs_and_destroyed_by_one(caller: Caller, context: str) -> None:
    shared = caller.result("ShareRatesJob", context=context)
    assert caller.result("ShareRatesJob", context=context) == shared
    found = {"id": shared, "known": [1, 2, 0], "left": ["rates"]}
    assert caller.result("UseRatesJob", context=context) == found
    assert caller.result("UseRatesJob", "destroy = true", context=context) == {**found, "left": []}
    assert caller.result("ShareRatesJob", context=context) != shared


# -- class paths -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(control_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three jars: a job, and two with one class each that it needs."""
    directory = tmp_path_factory.mktemp("parts")
    for name in ("Main", "Left", "Right"):
        with zipfile.ZipFile(directory / f"{name}.jar", "w") as jar:
            for path in (control_classes / "parts").glob(f"{name}*.class"):
                jar.write(path, f"parts/{path.name}")
    return {name: directory / f"{name}.jar" for name in ("Main", "Left", "Right")}


@pytest.fixture(scope="module")
def repository(parts: dict[str, Path]) -> Iterator[str]:
    """An HTTP server that has the jars."""
    directory = parts["Main"].parent
    with Loopback(lambda handler: handler.say(200, (directory / handler.path[1:]).read_bytes())) as server:
        yield server.url("")


def test_jars_of_the_context_by_name_and_by_address_are_one_class_path(
    caller: Caller, context: str, parts: dict[str, Path], repository: str
) -> None:
    caller.upload("main", parts["Main"])
    query = {"mainClass": "parts.Main", "context": context, "sync": "true", "timeout": 200}
    whole = {"cp": f"main,shapes,{repository}/Right.jar", **query}
    response = caller.client.post("/jobs", params=whole)
    assert response.json()["result"] == ["left", "right", "left", "right"]
    response = caller.client.post("/jobs", params={"cp": "main,shapes", **query})
    assert response.json()["result"]["errorClass"] == "java.lang.NoClassDefFoundError"
    assert response.json()["result"]["message"] == "parts/Right$"


# -- ends ------------------------------------------------------------------------------------------


def test_a_job_that_ignores_its_kill_runs_until_force_kills_its_context(caller: Caller) -> None:
    response = caller.client.post("/contexts/deaf", params={"jvm.isolation": "shared"})
    assert response.status_code == 200, response.text
    # Shared isolation also supports the threads of global pools.
    assert caller.result("control.FromFuture", "", "control", context="deaf") == 10.0
    deaf = caller.running("shapes.Deaf", "", "shapes", context="deaf")
    neighbour = caller.running("shapes.Waiting", "", "shapes", context="deaf")
    response = caller.client.delete(f"/jobs/{deaf}")
    assert response.status_code == 202
    assert (response.json()["status"], response.json()["killRequested"]) == ("RUNNING", True)
    assert caller.record(deaf)["status"] == caller.record(neighbour)["status"] == "RUNNING"

    response = caller.client.delete(f"/jobs/{deaf}", params={"force": "true"})
    assert (response.status_code, response.json()) == (200, {"status": "KILLED"})
    assert caller.record(deaf)["result"]["message"] == f"Job {deaf} killed"
    lost = caller.ended(neighbour)
    assert lost["status"] == "ERROR"
    assert lost["result"]["message"] == "Context (deaf) for this job was terminated"
    ended = caller.client.get("/contexts/deaf").json()
    assert ended["state"] == "KILLED"
    assert processes_of(ended["id"]) == []


def processes_of(context_id: str) -> list[str]:
    """The processes that carry the mark of a context in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if f"{context_id}:".encode() in environment:
            found.append(process.name)
    return found


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    """Where the batches of a stream write when they begin and when they are done."""
    return tmp_path / "batches"


def _in_a_batch(caller: Caller, context: str, batches: Path, millis: int = 2000) -> str:
    """Submit a stream of one batch that takes so long; its id, once that batch has begun."""
    batches.unlink(missing_ok=True)
    config = f'path = "{batches}", millis = {millis}'
    job_id = caller.running("control.Batches", config, "control", context=context)
    caller.until(lambda: batches.exists() and batches.read_text() == "begun\n", "a batch")
    return job_id


# Not shorter: batches would pile up behind one that takes two seconds, and a graceful stop runs them all.
STREAMING = {"streaming.batch_interval": 1000, "streaming.stopSparkContext": "true"}


def test_a_graceful_stream_finishes_its_batch_when_its_job_is_killed_and_when_its_context_stops(
    caller: Caller, batches: Path
) -> None:
    graceful = {**STREAMING, "streaming.stopGracefully": "true"}
    with caller.context("graceful", "StreamingContextFactory", **graceful) as context:
        job_id = _in_a_batch(caller, context, batches)
        caller.client.delete(f"/jobs/{job_id}")  # which may return before the batch is done
        assert caller.ended(job_id)["status"] == "KILLED"
        assert batches.read_text() == "begun\ndone\n"
        assert caller.client.get(f"/contexts/{context}").json()["state"] == "RUNNING"
        # A second kill means it.
        job_id = _in_a_batch(caller, context, batches, millis=120_000)
        killer = threading.Thread(target=caller.client.delete, args=(f"/jobs/{job_id}",))
        killer.start()
        caller.until(lambda: caller.record(job_id).get("killRequested"), "the first kill")
        caller.client.delete(f"/jobs/{job_id}")
        assert caller.ended(job_id)["status"] == "KILLED"
        killer.join()
        assert batches.read_text() == "begun\n"
        stopped = _in_a_batch(caller, context, batches)
    assert batches.read_text() == "begun\ndone\n"
    assert caller.client.get("/contexts/graceful").json()["state"] == "FINISHED"
    message = caller.record(stopped)["result"]["message"]
    assert message == "Context (graceful) for this job was terminated"


def test_a_stream_that_is_not_graceful_breaks_its_batch_off(caller: Caller, batches: Path) -> None:
    abrupt = {**STREAMING, "streaming.stopGracefully": "false"}
    with caller.context("abrupt", "JavaStreamingContextFactory", **abrupt) as context:
        job_id = _in_a_batch(caller, context, batches, millis=120_000)
        assert caller.client.delete(f"/jobs/{job_id}").json() == {"status": "KILLED"}
        assert batches.read_text() == "begun\n"
        # And one of the Java API, which waits for its end itself.
        job_id = caller.running("JStreamingTestJob", "", "java", context=context)
        caller.until(lambda: "batch of 5\n" in caller.log(job_id), "a batch")
        assert caller.client.delete(f"/jobs/{job_id}").json() == {"status": "KILLED"}
        assert caller.record(job_id)["status"] == "KILLED"
        refused = caller.send("JavaHelloWorldJob", "", "java", context=context)
        assert (refused.status_code, refused.json()["result"]) == (400, "Invalid job type for this context")
