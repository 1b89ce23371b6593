from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launcher_world import Context, Start, make_launcher

from conditions import wait_until
from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import ContextEnd, JobCode
from jobserver_pyspark import processes

pytestmark = pytest.mark.spark


def _family(context: Context) -> dict[str, list[int]]:
    """The processes of a context by role."""
    needle = context.spec.id.encode()
    found: dict[str, list[int]] = {"host": [], "jvm": [], "zygote": [], "runners": [], "workers": []}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if needle not in (entry / "environ").read_bytes():
                continue
            command = (entry / "cmdline").read_bytes()
            parent = _parent(int(entry.name))
        except (OSError, IndexError, ValueError):
            continue
        pid = int(entry.name)
        if command.partition(b"\0")[0].endswith(b"java"):
            found["jvm"].append(pid)
        elif b"runner.zygote" in command:
            found[
                "zygote" if parent in found["host"] or b"runner.zygote" not in _command(parent) else "runners"
            ].append(pid)
        elif b"pyspark.daemon" in command:
            found["workers"].append(pid)
        elif b"jobserver_pyspark.host" in command:
            found["host"].append(pid)
    return found


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _assert_all_gone(context: Context) -> None:
    wait_until(lambda: not any(_family(context).values()), timeout=10.0)
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
    wait_until(lambda: len(_family(context)["workers"]) > 0)
    family = _family(context)
    assert len(family[victim]) == 1
    begun = time.monotonic()
    os.kill(family[victim][0], signal.SIGKILL)
    end, error = context.wait_end(10.0)
    assert time.monotonic() - begun < 10.0
    assert end is expected
    assert ("was killed from outside (signal 9)" in error.message) is (end is ContextEnd.KILLED_OUTSIDE)
    told = [context.listener.of_job(job.id) for job in jobs]
    assert told == [["running"]] * 3, "what broke was the context, and no job of its own"
    _assert_all_gone(context)


@pytest.mark.parametrize(
    ("killer", "text"),
    [
        ("trouble.KillsJvm", "JVM ended by itself"),
        ("trouble.StopsApplication", "the SparkContext was stopped, by a job or by Spark itself"),
    ],
)
def test_a_job_that_ends_the_application_ends_the_context_quietly(
    start: Start, caplog: pytest.LogCaptureFixture, killer: str, text: str
) -> None:
    context = start().wait_ready()
    context.running("trouble.SleepingTasks")
    context.running("contract.Endless")
    context.submit(killer)
    end, error = context.wait_end(15.0)
    assert end is ContextEnd.FAILED
    assert text in error.message
    assert caplog.messages == []
    assert "Py4JJavaError" not in context.spec.log_path.read_text()
    _assert_all_gone(context)


def test_the_death_of_workers_and_daemons_does_not_harm_the_context(start: Start) -> None:
    context = start().wait_ready()
    config = {"input": {"string": "a b a"}}
    assert context.run("work.WordCount", config).value == {"a": 2, "b": 1}
    for pid in _family(context)["workers"]:
        processes.kill(pid)
    first = context.run(
        "work.WordCount", config
    )  # Spark may try a worker that it thinks idle: one failed task
    assert first.outcome.failure in (None, FailureKind.RAISED)
    assert context.run("work.WordCount", config).value == {"a": 2, "b": 1}
    for pid in _family(context)["runners"]:
        processes.kill(pid)
    assert context.run("work.WordCount", config).value == {"a": 2, "b": 1}


def test_the_death_of_a_daemon_frees_the_cores_of_its_workers(start: Start) -> None:
    context = start().wait_ready()
    job = context.running("trouble.SleepingTasks")
    wait_until(lambda: len(_family(context)["workers"]) > 2)
    workers = _family(context)["workers"]
    for pid in workers:
        if b"pyspark.daemon" not in _command(_parent(pid)):
            processes.kill(pid)
    assert context.listener.outcome(job.id, timeout=15.0).failure is FailureKind.RAISED
    wait_until(lambda: not any(processes.start_time(pid) for pid in workers))
    assert context.run("work.WordCount", {"input": {"string": "a b a"}}).value == {"a": 2, "b": 1}


SERVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from launcher_world import code_of, make_launcher, starter
directory = Path(sys.argv[2])
launcher = make_launcher(directory)
context = starter(launcher, directory, code_of(Path(sys.argv[3])))().wait_ready()
context.running("contract.Endless")
context.running("trouble.Families", {"stay": True})
print(context.spec.id, context.spec.work_dir, flush=True)
sys.stdin.read()
"""


def _server(directory: Path, code: JobCode) -> tuple[subprocess.Popen[str], str, Path]:
    """Another process with a launcher, a context and running jobs in it."""
    here = str(Path(__file__).parent)
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, here, str(directory), str(code.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    context_id, work_dir = server.stdout.readline().split()
    return server, context_id, Path(work_dir)


def _kill_server(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.wait()
    for stream in (server.stdin, server.stdout):
        assert stream is not None
        stream.close()


def test_killing_the_server_with_sigkill_ends_its_contexts(tmp_path: Path, code: JobCode) -> None:
    server, context_id, work_dir = _server(tmp_path, code)
    assert _carrying(context_id)
    _kill_server(server)
    wait_until(lambda: not _carrying(context_id), timeout=15.0)
    wait_until(lambda: not work_dir.exists(), timeout=15.0)


def test_processes_that_outlive_their_server_and_host_are_swept(tmp_path: Path, code: JobCode) -> None:
    server, context_id, work_dir = _server(tmp_path, code)
    hosts = [pid for pid in _carrying(context_id) if b"-m\0jobserver_pyspark.host\0" in _command(pid)]
    for pid in hosts:
        os.kill(pid, signal.SIGSTOP)  # it will not notice anything
    _kill_server(server)
    assert _carrying(context_id)
    launcher = make_launcher(tmp_path)
    launcher.sweep()
    assert not _carrying(context_id)
    assert not work_dir.exists()
    assert not list((tmp_path / "pyspark" / "contexts").iterdir())
    launcher.close()


def _carrying(context_id: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if context_id.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if processes.start_time(pid) is not None]
