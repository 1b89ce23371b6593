"""Python workers, in local mode, of class paths that have been unused for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from jobserver_pyspark import processes
from jobserver_pyspark.processes import POOL_VARIABLE

__all__ = ["WorkerPools"]

_IDLE = 120.0


class WorkerPools:
    """Ends the daemons of idle pools if there are more than ``keep`` pools.

    Spark ends workers that have been idle for a minute, but keeps the daemon that forks them forever. If the
    daemon has ended, Spark starts another one. A worker that Spark considers idle must not be killed, so a
    pool must have been idle for twice that time.
    """

    def __init__(
        self,
        driver: int,
        *,
        keep: int = 8,
        idle: float = _IDLE,
        now: Callable[[], float] = time.monotonic,
        kill: Callable[[int, str], None] | None = None,
    ) -> None:
        self._driver = driver
        self._keep = keep
        self._idle = idle
        self._now = now
        self._kill = kill or _kill_daemons
        self._lock = threading.Lock()
        self._users: dict[str, int] = {}
        self._used: dict[str, float] = {}

    def begin(self, pool: str | None) -> None:
        """Record that a job uses a pool; None is the pool that is never ended."""
        if pool is not None:
            with self._lock:
                self._users[pool] = self._users.get(pool, 0) + 1
                self._used.pop(pool, None)

    def end(self, pool: str | None) -> None:
        """Record that a job no longer uses a pool, and end surplus pools that have been idle for long."""
        if pool is None:
            return
        with self._lock:
            self._users[pool] -= 1
            if self._users[pool] == 0:
                del self._users[pool]
                self._used[pool] = self._now()
            surplus = list(self._used)[: max(0, len(self._used) - self._keep)]
            ended = [idle for idle in surplus if self._now() - self._used[idle] > self._idle]
            for idle in ended:
                del self._used[idle]
        for idle in ended:
            self._kill(self._driver, idle)


def _kill_daemons(driver: int, pool: str) -> None:
    """Kill the JVM's children that belong to a pool, and the processes that they forked."""
    wanted = f"{POOL_VARIABLE}={pool}".encode()
    for child in processes.children(driver):
        try:
            with open(f"/proc/{child}/environ", "rb") as file:
                mine = wanted in file.read().split(b"\0")
        except OSError:
            continue  # it has ended already
        if mine:
            processes.kill_group(child)
