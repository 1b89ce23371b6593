from __future__ import annotations

import os
import subprocess
import sys

from jobserver_pyspark import processes
from jobserver_pyspark.host.class_paths import WorkerPools
from jobserver_pyspark.processes import WORKER_POOL_VARIABLE


class World:
    def __init__(self, keep: int = 2) -> None:
        self.time = 0.0
        self.killed: list[str] = []
        self.pools = WorkerPools(
            1,
            keep=keep,
            idle=100.0,
            now=lambda: self.time,
            kill=lambda _driver, pool: self.killed.append(pool),
        )

    def use(self, *pools: str | None) -> None:
        for pool in pools:
            self.pools.begin(pool)
            self.pools.end(pool)


def test_pools_up_to_the_limit_are_kept() -> None:
    world = World(keep=2)
    world.use("a", "b")
    world.time = 1000
    world.use("b", "a")
    assert world.killed == []


def test_the_least_recently_used_pool_is_removed_first() -> None:
    world = World(keep=2)
    world.use("a", "b", "a")
    world.time = 101
    world.use("c")
    assert world.killed == ["b"]


def test_a_pool_that_was_used_lately_is_never_ended() -> None:
    world = World(keep=1)
    for number in range(10):
        world.time += 1
        world.use(str(number))
    assert world.killed == []
    world.time += 200
    world.use("last")
    assert world.killed == [str(number) for number in range(10)]


def test_a_pool_in_use_is_never_ended() -> None:
    world = World(keep=0)
    world.pools.begin("a")
    world.pools.begin("a")
    world.time = 1000
    world.pools.end("a")
    world.use("b")
    assert world.killed == []
    world.pools.end("a")
    world.time = 2000
    world.use("c")
    assert set(world.killed) == {"a", "b"}


def test_the_initial_warm_pool_is_kept() -> None:
    world = World(keep=0)
    world.use(None, None)
    world.time = 1000
    world.use(None)
    assert world.killed == []


def test_the_processes_of_a_pool_are_killed_and_no_others() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    mine, other = (
        subprocess.Popen(command, env={WORKER_POOL_VARIABLE: name}, start_new_session=True)
        for name in ("mine", "other")
    )
    try:
        pools = WorkerPools(os.getpid(), keep=0, idle=-1.0)
        while not all(WORKER_POOL_VARIABLE.encode() in _environment(p.pid) for p in (mine, other)):
            pass
        pools.begin("mine")
        pools.end("mine")
        assert mine.wait(5.0) == -9
        assert processes.start_time(other.pid) is not None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()


def _environment(pid: int) -> bytes:
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read()
