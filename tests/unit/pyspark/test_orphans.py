"""Which orphans of a context end with a job. Each test has its own process that adopts them."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PROLOGUE = """
import os, subprocess, time
from jobserver_pyspark import processes
from jobserver_pyspark.host.driver import JVM_VARIABLE
from jobserver_pyspark.host.orphans import end_orphans

processes.adopt_orphans()
os.environ[processes.MARKER] = "x"  # as in a host

def orphan(**environment):
    'Start a process whose parent ends at once; return its id once this process has adopted it.'
    return orphan_in({**os.environ, **environment})

def orphan_in(environment):
    known = set(processes.children(os.getpid()))
    subprocess.run(["sh", "-c", "setsid sleep 600 & exit 0"], env=environment, check=True)
    deadline = time.monotonic() + 10
    while not (found := set(processes.children(os.getpid())) - known):
        assert time.monotonic() < deadline
    pid, = found
    while b"sleep" not in open(f"/proc/{pid}/cmdline", "rb").read():
        assert time.monotonic() < deadline
    return pid

def lives(pid):
    return processes.start_time(pid) is not None

def tick():
    'Wait for the next tick of the clock that starts of processes are counted by.'
    now = processes.boot_ticks()
    while processes.boot_ticks() <= now + 1:
        time.sleep(0.001)
    return processes.boot_ticks()

jvm, worker = {JVM_VARIABLE: "x"}, {JVM_VARIABLE: "x", "PYTHON_WORKER_FACTORY_SECRET": "x"}
try:
    before = orphan(**jvm)
    begun = tick()
BODY
finally:
    for child in processes.children(os.getpid()):
        processes.kill_all([child])
"""


def run(body: str) -> None:
    code = PROLOGUE.replace("BODY", "\n".join(f"    {line}" for line in body.strip().splitlines()))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_orphan_of_the_jvm_ends_with_the_only_job_that_ran_when_it_was_started() -> None:
    run("""
mine, tasks, own = orphan(**jvm), orphan(**worker), orphan()
end_orphans(begun, [], of_tasks=False)
assert [lives(pid) for pid in (before, mine, tasks, own)] == [True, False, True, True]
""")


def test_an_orphan_of_a_task_ends_with_a_python_job() -> None:
    run("""
mine, tasks, own = orphan(**jvm), orphan(**worker), orphan()
end_orphans(begun, [], of_tasks=True)
assert [lives(pid) for pid in (before, mine, tasks, own)] == [True, True, False, True]
""")


@pytest.mark.parametrize("of_tasks", [False, True])
def test_an_orphan_without_the_environment_of_the_context_ends_with_any_job(of_tasks: bool) -> None:
    run(f"""
early = orphan_in({{}})
begun = tick()
mine = orphan_in({{}})
end_orphans(begun, [], of_tasks={of_tasks})
assert [lives(pid) for pid in (early, mine)] == [True, False]
processes.kill_unmarked()
assert [lives(pid) for pid in (before, early)] == [True, False]
""")


def test_an_orphan_that_may_be_another_jobs_is_left_alone() -> None:
    run("""
mine = orphan(**jvm)
other = tick()
shared = orphan(**jvm)
end_orphans(begun, [other], of_tasks=False)
assert [lives(pid) for pid in (before, mine, shared)] == [True, False, True]
""")
