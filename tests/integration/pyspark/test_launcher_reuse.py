"""Python jobs in reused processes: they start fast and do not notice earlier jobs."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from launcher_world import Context, Start

from conditions import wait_until
from jobserver_core.ports import JobCode
from jobserver_pyspark.host.runner_pool import EXIT_TIMEOUT

pytestmark = pytest.mark.spark


def _look(context: Context) -> dict[str, object]:
    found = context.run("reuse.Look").value
    assert isinstance(found, dict)
    return found


def _warm(context: Context) -> int:
    """Run jobs until one finds a process that has served another; return that process."""
    seen: set[int] = set()

    def used_again() -> bool:
        pid = int(str(_look(context)["pid"]))
        again = pid in seen
        seen.add(pid)
        return again

    wait_until(used_again)
    return next(iter(seen))


def test_a_process_runs_the_next_job_with_freshly_imported_modules(context: Context) -> None:
    _warm(context)
    found = [_look(context) for _ in range(5)]
    assert len({each["pid"] for each in found}) < 5
    assert {each["count"] for each in found} == {1}


def test_a_job_sees_no_leftovers_of_another_job_in_spark_or_its_process(context: Context) -> None:
    before = _look(context)
    leaking = {context.run("reuse.Leak").value for _ in range(3)}
    wait_until(lambda: _look(context)["pid"] in leaking)
    found = _look(context)
    for name in ("leak", "description", "own", "attribute", "active"):
        assert found[name] == before[name]
    assert str(found["tag"]).startswith("jobserver-runner-")


def test_each_job_of_a_process_gets_the_profiles_of_its_own_functions_in_sql(
    context: Context, tmp_path: Path
) -> None:
    _warm(context)
    found = [context.run("reuse.Profile", {"directory": str(tmp_path / name)}).value for name in "abcde"]
    assert len({each["pid"] for each in found}) < 5
    assert {each["profiles"] for each in found} == {1}


def test_a_job_that_leaves_a_thread_is_the_last_of_its_process(context: Context, tmp_path: Path) -> None:
    file = tmp_path / "written"
    pid = context.run("reuse.LeaveThread", {"file": str(file)}).value
    size = file.stat().st_size
    assert not Path(f"/proc/{pid}").exists()
    assert pid not in {_look(context)["pid"] for _ in range(5)}
    assert file.stat().st_size == size


def test_a_job_that_imports_names_in_the_jvm_is_the_last_of_its_process(context: Context) -> None:
    _warm(context)
    pid = context.run("reuse.ImportNames").value
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_job_class_can_ask_for_a_fresh_process(context: Context) -> None:
    _warm(context)
    used = {_look(context)["pid"] for _ in range(4)}
    begun = time.monotonic()
    fresh = [context.run("reuse.Fresh").value]
    assert (
        time.monotonic() - begun < EXIT_TIMEOUT
    )  # not even the first one waits for the end of a used process
    fresh += [context.run("reuse.Fresh").value for _ in range(2)]
    assert len(set(fresh)) == 3
    assert used.isdisjoint(fresh)


def test_a_context_can_ask_for_fresh_processes(start: Start) -> None:
    context = start({"python": {"process": "fresh"}}).wait_ready()
    assert len({_look(context)["pid"] for _ in range(4)}) == 4


def test_a_process_serves_one_class_path_only(context: Context, other_code: JobCode) -> None:
    _warm(context)
    mine = {_look(context)["pid"] for _ in range(4)}
    theirs = {context.run("reuse.Look", code=other_code).value["pid"] for _ in range(4)}
    assert mine.isdisjoint(theirs)


def test_a_job_whose_process_dies_before_it_has_read_the_job_runs_in_another_one(
    context: Context, other_code: JobCode
) -> None:
    _warm(context)
    idle = {_look(context)["pid"] for _ in range(6)}
    for pid in idle:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    job = context.submit("reuse.Look")
    assert (
        context.run("reuse.Look", code=other_code).value["pid"] not in idle
    )  # the other one was sent before
    for pid in idle:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert context.end_of(job).value["pid"] not in idle


def test_every_log_has_the_lines_of_its_own_job_and_all_of_them(context: Context) -> None:
    _warm(context)
    for word in ("first", "second", "third"):
        log = context.run("reuse.Talk", {"word": word, "lines": 2000}).log
        assert log.splitlines() == [f"{word} {number}" for number in range(2000)]


def test_progress_counts_the_spark_jobs_of_one_job_only(context: Context) -> None:
    _warm(context)
    for tasks in (7, 3):
        job = context.submit("reuse.Count", {"tasks": tasks, "seconds": 3})
        context.end_of(job)
        assert context.listener.progress[job.id][-1].tasks_done == tasks


def test_a_failed_job_is_the_last_of_its_process(context: Context) -> None:
    _warm(context)
    pids = {_look(context)["pid"] for _ in range(3)}
    for _ in range(len(pids) + 2):
        context.run("trouble.SysExit")
    assert pids.isdisjoint({_look(context)["pid"]})
