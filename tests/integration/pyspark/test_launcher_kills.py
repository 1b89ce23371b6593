from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from context_processes import command, family
from launcher_world import Context, Start

from conditions import wait_until
from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import ContextEnd, JobSpec

pytestmark = pytest.mark.spark


@pytest.mark.parametrize(
    "name",
    [
        "trouble.BusyLoop",
        "contract.Endless",
        "trouble.NativeCall",
        "trouble.SleepingTasks",
        "trouble.BusyTasks",
        "trouble.ThreadedTasks",
        "trouble.JvmSleep",
    ],
)
def test_a_kill_ends_any_job_and_frees_its_cores(context: Context, name: str) -> None:
    neighbour = context.running("contract.Endless")
    victim = context.running(name)
    time.sleep(1.0)  # let the job get started; the test is valid either way
    context.handle.kill_job(victim.id)
    assert context.listener.outcome(victim.id, timeout=10.0).killed
    counted = context.end_of(context.submit("work.WordCount", {"input": {"string": "a b"}}), timeout=20.0)
    assert counted.value == {"a": 1, "b": 1}
    assert context.listener.of_job(neighbour.id) == ["job_running"]
    context.handle.kill_job(neighbour.id)
    assert context.end_of(neighbour).outcome.killed


def test_a_kill_does_not_wait_for_the_tasks_of_another_job(context: Context) -> None:
    neighbour = context.running("trouble.SleepingTasks")
    wait_until(lambda: context.listener.progress.get(neighbour.id), "the other job has tasks")
    victim = context.running("contract.Endless")
    context.handle.kill_job(victim.id)
    assert context.listener.outcome(victim.id, timeout=10.0).killed
    assert "job_ended" not in context.listener.of_job(neighbour.id)
    context.handle.kill_job(neighbour.id)
    assert context.end_of(neighbour, timeout=10.0).outcome.killed


def test_a_kill_interrupts_the_calls_that_a_job_waits_for_in_the_jvm(context: Context) -> None:
    before = _calls(context, "Thread.sleep")
    job = context.running("trouble.JvmSleep")
    wait_until(lambda: _calls(context, "Thread.sleep") == before + 2)
    context.handle.kill_job(job.id)
    assert context.end_of(job, timeout=10.0).outcome.killed
    assert _calls(context, "Thread.sleep") == before


def test_a_job_is_not_killed_before_its_calls_in_the_jvm_have_ended(context: Context) -> None:
    job = context.running("trouble.JvmAccept")
    wait_until(lambda: job.log_path.exists() and "port" in job.log_path.read_text())
    port = int(job.log_path.read_text().split()[1])
    context.handle.kill_job(job.id)
    for _ in range(3):  # each is slower than the report of a kill
        assert context.run("work.WordCount", {"input": {"string": "a"}}).value == {"a": 1}
    assert context.listener.of_job(job.id) == ["job_running"]
    socket.create_connection(("127.0.0.1", port)).close()
    assert context.end_of(job, timeout=10.0).outcome.killed
    assert _calls(context, "accept") == 0


@pytest.mark.parametrize("read", [False, True])
def test_a_kill_ends_the_processes_that_the_calls_of_a_job_have_started(
    context: Context, tmp_path: Path, read: bool
) -> None:
    """Of two jobs at once, each of which has such a process, only one is killed."""

    def started(name: str) -> tuple[JobSpec, list[int]]:
        path = tmp_path / name
        job = context.submit("trouble.JvmProcess", {"path": str(path), "read": read})
        wait_until(lambda: path.exists() and len(path.read_text().split()) == 2)
        return job, [int(pid) for pid in path.read_text().split()]

    (other, others), (job, pids) = started("other"), started("killed")
    context.handle.kill_job(job.id)
    assert context.end_of(job).outcome.killed
    assert [pid for pid in pids if command(pid)] == []
    assert [pid for pid in others if command(pid)] == others
    assert context.listener.of_job(other.id) == ["job_running"]
    context.handle.kill_job(other.id)
    assert context.end_of(other).outcome.killed
    assert [pid for pid in others if command(pid)] == []


def _calls(context: Context, frame: str) -> object:
    return context.run("trouble.JvmCalls", {"frame": frame}).value


def test_a_connection_of_a_stranger_to_a_jobs_process_does_not_stop_the_context(start: Start) -> None:
    context = start().wait_ready()
    for _ in range(2):  # the first process has run tasks to warm up
        assert context.end_of(context.submit("trouble.Besieged"), timeout=30.0).value == 4


def test_a_query_that_is_planned_when_its_job_is_killed_keeps_no_cores(
    context: Context,
) -> None:
    for pause in (0.2, 0.5):  # the test is valid whatever the JVM has got to
        job = context.running("trouble.LongPlan")
        log = job.log_path
        wait_until(lambda log=log: log.exists() and "planning" in log.read_text())
        time.sleep(pause)
        context.handle.kill_job(job.id)
        assert context.listener.outcome(job.id, timeout=60.0).killed
        assert _calls(context, "collect") == 0
        counted = context.end_of(context.submit("work.WordCount", {"input": {"string": "a"}}), timeout=20.0)
        assert counted.value == {"a": 1}


def test_the_workers_of_a_context_that_stops_print_nothing(start: Start) -> None:
    context = start().wait_ready()
    assert context.run("work.WordCount", {"input": {"string": "a b"}}).value == {"a": 1, "b": 1}
    workers = family(context)["workers"]
    assert workers
    assert all(b"jobserver_pyspark.daemon" in command(pid) for pid in workers)
    context.handle.stop(30.0)
    assert context.wait_end()[0] is ContextEnd.STOPPED
    log = context.spec.log_path.read_text()
    assert "Traceback" not in log
    assert "serves no other job" not in log


def test_a_kill_ends_a_job_in_its_validation(context: Context) -> None:
    job = context.submit("trouble.NeverValid")
    wait_until(job.log_path.exists)
    context.handle.kill_job(job.id)
    assert context.end_of(job, timeout=10.0).outcome.killed
    assert context.listener.of_job(job.id) == ["job_ended"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trouble.Exit", "exit status 3"),
        ("trouble.Segfault", "SIGSEGV"),
    ],
)
def test_a_job_whose_process_dies_fails_alone(context: Context, name: str, text: str) -> None:
    neighbour = context.running("contract.Endless")
    outcome = context.run(name).outcome
    assert outcome.failure is FailureKind.CRASHED
    assert outcome.error is not None
    assert text in outcome.error.message
    assert context.listener.of_job(neighbour.id) == ["job_running"]
    context.handle.kill_job(neighbour.id)
    context.end_of(neighbour)


def test_the_error_of_a_crash_includes_the_last_output_of_the_process(context: Context) -> None:
    error = context.run("trouble.Exit").outcome.error
    assert error is not None
    assert "about to leave" in error.stack
    error = context.run("trouble.Segfault").outcome.error
    assert error is not None
    assert "Fatal Python error: Segmentation fault" in error.stack


def test_running_out_of_memory_is_the_jobs_error(context: Context) -> None:
    outcome = context.run("trouble.MemoryHog").outcome
    assert outcome.failure is FailureKind.RAISED
    assert outcome.error is not None
    assert outcome.error.error_class == "MemoryError"


def test_exiting_with_status_zero_is_not_a_success(context: Context) -> None:
    assert context.run("trouble.Exit", {"status": 0}).outcome.failure is FailureKind.CRASHED


@pytest.mark.parametrize("stay", [False, True])
def test_processes_that_a_job_started_end_with_it(context: Context, stay: bool) -> None:
    job = context.submit("trouble.Families", {"stay": stay})
    if stay:
        wait_until(lambda: len(_sleepers()) == 3)
        context.handle.kill_job(job.id)
    context.end_of(job)
    wait_until(lambda: not _sleepers(), timeout=5.0)


@pytest.mark.parametrize("stay", [False, True])
def test_a_job_writes_nothing_after_its_outcome_is_reported(
    context: Context, tmp_path: Path, stay: bool
) -> None:
    written = tmp_path / "written"
    job = context.submit("trouble.Dynasty", {"path": str(written), "stay": stay})
    if stay:
        wait_until(lambda: written.exists() and "written" in written.read_text())
        context.handle.kill_job(job.id)
    context.end_of(job)
    written.unlink()
    assert context.run("work.WordCount", {"input": {"string": "a"}}).value == {"a": 1}
    assert not written.exists()


def _sleepers() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if command[0] == b"sleep" and command[1:2] in ([b"611"], [b"612"], [b"613"]):
            found.append(entry.name)
    return found


def test_streaming_queries_end_with_their_job(context: Context) -> None:
    job = context.running("trouble.Streaming", {"wait": True})
    wait_until(lambda: len(context.run("trouble.StreamingQueries").value) == 1)
    context.handle.kill_job(job.id)
    assert context.end_of(job, timeout=20.0).outcome.killed
    assert context.run("trouble.StreamingQueries").value == []
    assert context.run("trouble.Streaming", {"wait": False}).value is True
    assert context.run("trouble.StreamingQueries").value == []


def test_a_streaming_query_in_another_session_ends_with_its_job(context: Context) -> None:
    job = context.running("trouble.QueryOfAnotherSession")
    wait_until(lambda: context.run("trouble.AllQueries").value == ["mine"])
    context.handle.kill_job(job.id)
    assert context.end_of(job, timeout=20.0).outcome.killed
    assert context.run("trouble.AllQueries").value == []


@pytest.mark.parametrize("then", ["wait", "stop", "leave"])
def test_a_streaming_context_created_by_a_job_ends_with_it(
    context: Context, tmp_path: Path, then: str
) -> None:
    for turn in range(2):  # the JVM has room for one
        written = tmp_path / f"written-{turn}"
        job = context.submit("trouble.OwnStreaming", {"path": str(written), "then": then})
        if then == "wait":
            wait_until(written.exists, timeout=60.0)
            context.handle.kill_job(job.id)
        ended = context.end_of(job).outcome
        assert (ended.killed, ended.error) == (then == "wait", None)
        written.unlink()
        assert context.run("work.WordCount", {"input": {"string": "a"}}).value == {"a": 1}
        assert not written.exists()


def test_leftover_spark_jobs_of_a_finished_job_are_cancelled(context: Context) -> None:
    assert context.run("trouble.LeavesTasks").value == "left"
    counted = context.end_of(context.submit("work.WordCount", {"input": {"string": "a"}}), timeout=20.0)
    assert counted.value == {"a": 1}
