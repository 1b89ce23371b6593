from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from context_processes import ServerProcess, carrying, command, family, parent
from launcher_world import Context, Start, make_launcher

from conditions import wait_until
from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import ContextEnd, JobCode
from jobserver_pyspark import processes
from spark_server import leftover_records

pytestmark = pytest.mark.spark


def _assert_all_gone(context: Context) -> None:
    wait_until(lambda: not any(family(context).values()), timeout=10.0)
    assert not context.spec.work_dir.exists()


@pytest.mark.parametrize(
    ("victim", "expected"),
    [
        ("host", ContextEnd.KILLED_OUTSIDE),
        ("jvm", ContextEnd.KILLED_OUTSIDE),
        ("zygote", ContextEnd.FAILED),
    ],
)
def test_the_death_of_one_process_ends_the_whole_context(
    start: Start, victim: str, expected: ContextEnd
) -> None:
    context = start().wait_ready()
    jobs = [
        context.running(name) for name in ("contract.Endless", "trouble.SleepingTasks", "trouble.JvmSleep")
    ]
    wait_until(lambda: len(family(context)["workers"]) > 0)
    found = family(context)
    assert len(found[victim]) == 1
    begun = time.monotonic()
    os.kill(found[victim][0], signal.SIGKILL)
    end, error = context.wait_end(10.0)
    assert time.monotonic() - begun < 10.0
    assert end is expected
    assert ("was killed from outside (signal 9)" in error.message) is (end is ContextEnd.KILLED_OUTSIDE)
    told = [context.listener.of_job(job.id) for job in jobs]
    assert told == [["job_running"]] * 3, "what broke was the context, and no job of its own"
    _assert_all_gone(context)


@pytest.mark.parametrize(
    ("killer", "text"),
    [
        ("trouble.KillsJvm", "JVM ended by itself"),
        (
            "trouble.FillsHeap",
            "JVM ran out of memory (Java heap space); give the context more with memory-per-node",
        ),
        ("trouble.StopsApplication", "the SparkContext was stopped, by a job or by Spark itself"),
    ],
)
def test_a_job_that_ends_the_application_ends_the_context_quietly(
    start: Start, caplog: pytest.LogCaptureFixture, killer: str, text: str
) -> None:
    context = start().wait_ready()
    jobs = [
        context.running("trouble.SleepingTasks"),
        context.running("contract.Endless"),
        context.submit(killer),
    ]
    end, error = context.wait_end(15.0)
    assert end is ContextEnd.FAILED
    assert text in error.message
    assert caplog.messages == []
    assert "Py4JJavaError" not in context.spec.log_path.read_text()
    logs = [job.log_path.read_text() for job in jobs if job.log_path.exists()]
    assert not any("Exception while sending command" in log for log in logs)
    _assert_all_gone(context)


def test_the_death_of_workers_and_daemons_does_not_harm_the_context(start: Start) -> None:
    context = start().wait_ready()
    config = {"input": {"string": "a b a"}}
    assert context.run("work.WordCount", config).value == {"a": 2, "b": 1}
    for pid in family(context)["workers"]:
        processes.kill(pid)
    first = context.run(
        "work.WordCount", config
    )  # Spark may try a worker that it thinks idle: one failed task
    assert first.outcome.failure in (None, FailureKind.RAISED)
    assert context.run("work.WordCount", config).value == {"a": 2, "b": 1}
    for pid in family(context)["runners"]:
        processes.kill(pid)
    assert context.run("work.WordCount", config).value == {"a": 2, "b": 1}


def test_the_death_of_a_daemon_frees_the_cores_of_its_workers(start: Start) -> None:
    context = start().wait_ready()
    job = context.running("trouble.SleepingTasks")
    wait_until(lambda: len(family(context)["workers"]) > 2)
    workers = family(context)["workers"]
    for pid in workers:
        if b"pyspark.daemon" not in command(parent(pid)):
            processes.kill(pid)
    assert context.listener.outcome(job.id, timeout=15.0).failure is FailureKind.RAISED
    wait_until(lambda: not any(processes.start_time(pid) for pid in workers))
    assert context.run("work.WordCount", {"input": {"string": "a b a"}}).value == {"a": 2, "b": 1}


JOBS: list[tuple[str, dict[str, Any]]] = [("contract.Endless", {}), ("trouble.Families", {"stay": True})]


def test_killing_the_server_with_sigkill_ends_its_contexts(tmp_path: Path, code: JobCode) -> None:
    server = ServerProcess.start(tmp_path, code, {}, JOBS).wait()
    assert carrying(server.context_id)
    [record] = leftover_records(tmp_path)
    assert len(record.directories) == 2
    assert all(directory.exists() for directory in record.directories)
    server.kill()
    wait_until(lambda: not carrying(server.context_id), timeout=15.0)
    wait_until(lambda: not any(map(Path.exists, record.directories)), timeout=15.0)


def test_processes_that_outlive_their_server_and_host_are_swept(tmp_path: Path, code: JobCode) -> None:
    server = ServerProcess.start(tmp_path, code, {}, JOBS).wait()
    hosts = [pid for pid in carrying(server.context_id) if b"-m\0jobserver_pyspark.host\0" in command(pid)]
    for pid in hosts:
        os.kill(pid, signal.SIGSTOP)  # it will not notice anything
    server.kill()
    assert carrying(server.context_id)
    launcher = make_launcher(tmp_path)
    launcher.sweep()
    assert not carrying(server.context_id)
    assert not server.work_dir.exists()
    wait_until(lambda: not list((tmp_path / "pyspark" / "contexts").iterdir()))
    launcher.close()
