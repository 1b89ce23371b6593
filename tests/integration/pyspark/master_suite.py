"""What jobs can rely on with every master: local mode, standalone, YARN, Kubernetes."""

from __future__ import annotations

import getpass
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from context_processes import ServerProcess, carrying, family
from launcher_world import Context, Start, make_launcher
from package_checks import Wheel, see

from conditions import wait_until
from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import ContextEnd, JobCode
from jobserver_pyspark.processes import kill

DYNAMIC = {
    "dynamicAllocation": {
        "enabled": "true",
        "minExecutors": 0,
        "initialExecutors": 0,
        "executorIdleTimeout": "1s",
        "shuffleTracking": {"enabled": "true", "timeout": "2s"},
    }
}
"""Executors end after seconds, also if they have shuffle files."""
CALLED = {"driver": [42, 42], "sql": [0, 2, 4, 6], "rdd": [0, 2, 4, 6]}


class MasterSuite:
    """The tests; a subclass has the fixture ``on_master``, a context with two cores that they share."""

    def test_words_are_counted(self, on_master: Context) -> None:
        counted = on_master.run("work.WordCount", {"input": {"string": "a b c a b see"}})
        assert counted.value == {"a": 2, "b": 2, "c": 1, "see": 1}

    def test_two_versions_of_a_package_run_side_by_side(
        self, on_master: Context, code: JobCode, other_code: JobCode
    ) -> None:
        for each, version in ((code, "1.0"), (other_code, "2.0"), (code, "1.0")):
            seen = on_master.run("work.Version", code=each).value
            assert seen == {"driver": version, "executors": version}
            assert on_master.run("work.UdfVersion", code=each).value == [version]
        assert on_master.run("work.DataFile").value == ["data of version 1.0"] * 3

    def test_further_packages_of_a_job_reach_all_kinds_of_tasks(
        self, on_master: Context, rates: Wheel
    ) -> None:
        for version in ("1.0", "2.0", "1.0"):
            seen = see(on_master, rates(version, f"of {version}"), pandas=True)
            assert seen["values"] == [f"of {version}"] * 4

    def test_two_versions_of_a_jvm_class_run_side_by_side(
        self, on_master: Context, releases: tuple[JobCode, JobCode]
    ) -> None:
        # Tasks of other threads and of Python jobs have no session: executors must not keep their classes.
        for number, config in ((1, {"thread": True}), (1, {}), (2, {}), (1, {})):
            job = on_master.submit_jvm(releases[number - 1], "TellRelease", config)
            seen = on_master.end_of(job, timeout=200.0)
            assert seen.value == [f"release {number}"] * 2
            counted = on_master.run("work.WordCount", {"input": {"string": "a"}})
            assert counted.value == {"a": 1}

    def test_packages_reach_python_jobs_while_there_are_named_objects_made_of_classes_of_a_jar(
        self, on_master: Context, releases: tuple[JobCode, JobCode], rates: Wheel
    ) -> None:
        assert see(on_master, rates("5.0", "of 5.0"))["values"] == ["of 5.0"] * 3  # executors are ready
        share = on_master.submit_jvm(releases[0], "ShareRelease", {"name": "of 1"})
        assert on_master.end_of(share, timeout=200.0).value == "shared"
        try:
            assert see(on_master, rates("6.0", "of 6.0"))["values"] == ["of 6.0"] * 3
        finally:
            on_master.run("results.Forget", {"name": "of 1"})

    def test_python_jobs_read_named_objects_made_of_classes_of_a_jar(
        self, on_master: Context, releases: tuple[JobCode, JobCode]
    ) -> None:
        for number in (1, 2):
            share = on_master.submit_jvm(releases[number - 1], "ShareRelease", {"name": f"of {number}"})
            assert on_master.end_of(share, timeout=200.0).value == "shared"
            if number == 1:
                read = on_master.run("results.ReadNamed", {"name": "of 1"})
                assert read.value == ["release 1"] * 2
            told = on_master.end_of(on_master.submit_jvm(releases[number - 1], "TellRelease"), timeout=200.0)
            assert told.value == [f"release {number}"] * 2
        # Both versions cannot be in one task, but other jobs go on.
        counted = on_master.run("work.WordCount", {"input": {"string": "a"}})
        assert counted.value == {"a": 1}
        on_master.run("results.Forget", {"name": "of 1"})
        assert on_master.run("results.ReadNamed", {"name": "of 2"}).value == ["release 2"] * 2
        on_master.run("results.Forget", {"name": "of 2"})

    def test_output_of_jobs_is_in_their_logs_and_their_progress_is_reported(
        self, on_master: Context, jar: JobCode, tmp_path: Path
    ) -> None:
        counted = on_master.end_of(on_master.submit_jvm(jar, "Count", {"rows": 7}), timeout=200.0)
        assert counted.value == 7
        assert "counting in the JVM" in counted.log
        assert "said on stdout" in on_master.run("work.Talk").log
        assert on_master.progress_of_stages(tmp_path / "gate")[-1].stages_total == 2

    def test_a_kill_ends_running_tasks(self, on_master: Context, jar: JobCode) -> None:
        for job in (
            on_master.submit("trouble.SleepingTasks"),
            on_master.submit_jvm(jar, "Sleep"),
        ):
            on_master.listener.wait_for("job_running", job.id, timeout=60.0)
            wait_until(lambda job=job: on_master.listener.progress.get(job.id), "the job has tasks")
            on_master.handle.kill_job(job.id)
            assert on_master.listener.outcome(job.id, timeout=30.0).killed
        counted = on_master.end_of(on_master.submit("work.WordCount", {"input": {"string": "a"}}), 30.0)
        assert counted.value == {"a": 1}

    def test_a_killed_job_whose_calls_end_later_than_its_spark_jobs_waits_for_their_tasks(
        self, on_master: Context
    ) -> None:
        for _ in range(3):  # a task may be quick to end by chance
            job = on_master.running("trouble.TasksAndACall")
            wait_until(lambda: on_master.run("trouble.ActiveTasks").value == 2, timeout=60.0)
            port = int(job.log_path.read_text().split("port")[1].split()[0])
            on_master.handle.kill_job(job.id)
            socket.create_connection(("127.0.0.1", port)).close()
            assert on_master.end_of(job, timeout=30.0).outcome.killed
            assert on_master.run("trouble.ActiveTasks").value == 0

    def test_a_job_whose_process_is_killed_fails_alone(self, on_master: Context) -> None:
        job = on_master.running("trouble.SleepingTasks")
        wait_until(lambda: on_master.listener.progress.get(job.id), "the job has tasks")
        for pid in family(on_master)["runners"]:  # of the job, and those that wait for one
            kill(pid)
        outcome = on_master.listener.outcome(job.id, timeout=30.0)
        assert outcome.failure is FailureKind.CRASHED
        assert outcome.error is not None
        assert "was ended by SIGKILL" in outcome.error.message
        counted = on_master.end_of(on_master.submit("work.WordCount", {"input": {"string": "a"}}))
        assert counted.value == {"a": 1}

    def test_named_objects_are_shared(self, on_master: Context) -> None:
        assert {"frame", "rdd"} <= set(on_master.run("results.Share").value)
        assert on_master.run("results.UseShared").value["rdd"] == [0, 1, 4, 9]

    def test_a_result_of_100_megabytes_arrives_whole(self, on_master: Context) -> None:
        assert len(on_master.run("results.LargeStream", {"megabytes": 100}).data) == 100 * 2**20

    def test_a_failing_task_is_reported_with_its_traceback(self, on_master: Context) -> None:
        outcome = on_master.run("trouble.SparkFailure").outcome
        assert outcome.failure is FailureKind.RAISED
        assert outcome.error is not None
        assert "ValueError: bad row 1" in outcome.error.stack

    def test_a_python_job_calls_a_jar_in_its_class_path(self, on_master: Context, jar: JobCode) -> None:
        called = on_master.end_of(on_master.submit("work.CallsJar", before=jar))
        assert called.value == CALLED


def check_another_user(context: Context) -> None:
    """Spark, Hadoop and SQL take a context with the proxy user alice for hers."""
    users = {"spark": "alice", "hadoop": ["alice"] * 2, "sql": "alice", "real": getpass.getuser()}
    found = context.end_of(context.submit("work.Users"), timeout=120.0).value
    assert found == {**users, "counted": 3}


def check_idle_executors_are_given_back(context: Context, executors: Callable[[], object]) -> None:
    """Executors of a context with the settings ``DYNAMIC`` end, and others come for the next job."""
    for _ in range(2):
        job = context.submit("work.Stages")  # with a shuffle, whose files would keep executors
        wait_until(executors, "executors for the job", timeout=120.0)
        assert context.end_of(job, timeout=120.0).value == 6
        wait_until(lambda: not executors(), "idle executors end", timeout=120.0)


def check_loss_of_executors(context: Context, gate: Path, executors: Callable[[], list[int]]) -> None:
    """Kill the executors in the middle of a job: new ones fetch its package, and it has its result."""
    lost: list[int] = []

    def lose() -> None:
        lost.extend(executors())
        assert lost
        for pid in lost:
            os.kill(pid, signal.SIGKILL)

    check_loss_of_a_machine(context, gate, lose)
    assert not set(lost) & set(executors())


def check_loss_of_a_machine(context: Context, gate: Path, lose: Callable[[], object]) -> None:
    """Lose executors with their worker or node in the middle of a job: others repeat what was lost."""
    job = context.submit("gated.Shuffles", {"gate": str(gate)})
    wait_until(lambda: len(list(gate.parent.glob(f"{gate.name}-*"))) == 2, "two tasks run", timeout=120.0)
    lose()
    assert context.listener.of_job(job.id) == ["job_running"]
    gate.touch()
    assert context.end_of(job, timeout=200.0).value == 4


def check_deaths(
    start: Start,
    settings: dict[str, Any],
    directory: Path,
    code: JobCode,
    *,
    executors: Callable[[str], Sequence[object]],
    left: Callable[[str], Sequence[object]],
) -> None:
    """Kill a server, a host and a JVM while they have executors: nothing is left of their applications.

    ``executors`` and ``left`` return what the cluster has of an application: its executors, and everything.
    """
    directory.mkdir()
    server = ServerProcess.start(directory, code, settings, [("trouble.SleepingTasks", {})])
    try:
        victims = {"host": start(settings), "jvm": start(settings)}
        for context in victims.values():
            context.wait_ready(240.0).running("trouble.SleepingTasks")
        applications = [context.application_id for context in victims.values()]
        applications.append(server.wait().application_id)
        for application in applications:
            wait_until(lambda id_=application: executors(id_), f"{application} has executors", 120.0)
        for victim, context in victims.items():
            (pid,) = family(context)[victim]
            os.kill(pid, signal.SIGKILL)
            end, error = context.wait_end()
            assert end is ContextEnd.KILLED_OUTSIDE
            assert "was killed from outside (signal 9)" in error.message
    finally:
        server.kill()
    wait_until(lambda: not carrying(server.context_id), "the processes of the server's context end")
    next_server = make_launcher(directory)
    next_server.sweep()
    next_server.close()
    for application in applications:
        wait_until(lambda id_=application: not left(id_), lambda id_=application: left(id_))
