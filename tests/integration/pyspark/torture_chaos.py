"""What goes wrong in the torture: kills, pauses, stops and restarts of everything, at random moments."""

from __future__ import annotations

import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable

from torture_clients import Journal
from torture_fleet import ContextProcess, Fleet, Server

__all__ = ["Chaos"]

_BEYOND = 4.0
"""Seconds for which a server stays away beyond a lease that is meant to end."""


class Chaos:
    """Breaks one thing after the other. Whatever it breaks, it repairs some time later, by its *debts*."""

    def __init__(self, seed: int, fleet: Fleet, journal: Journal) -> None:
        self.disturbed_at: list[float] = []
        """When a server was killed, paused or stopped, and when its debt was paid."""
        self.processes_broken_at: dict[str, list[float]] = defaultdict(list)
        """By the ids of contexts, when one of its processes was killed, paused, or resumed."""
        self.database_broken_at: list[float] = []
        """When the database was stopped, paused or cut off, and when it was there again."""
        self.most_jvms = 0
        self._dice = random.Random(seed)
        self._fleet = fleet
        self._journal = journal
        self._for_long = _BEYOND + max(server.lease for server in fleet.servers)
        self._debts: list[tuple[float, Callable[[], object]]] = []
        self._next_at = 0.0
        self._actions: list[tuple[int, Callable[[], None]]] = [
            (6, self._kill_server),
            (5, self._pause_server),
            (3, self._stop_server),
            (2, self._restart_database),
            (2, self._pause_database),
            (2, self._cut_database),
        ]
        if fleet.cluster is not None:
            self._cluster = fleet.cluster
            self._actions += [
                (6, self._kill_process),
                (5, self._pause_process),
                (2, self._kill_worker),
                (2, self._kill_executor),
            ]

    def tend(self) -> None:
        """Pay the debts that are due, and break something else every now and then."""
        self._pay(time.monotonic())
        if time.monotonic() >= self._next_at:
            weights = [weight for weight, _ in self._actions]
            [(_, action)] = self._dice.choices(self._actions, weights)
            action()
            self.most_jvms = max(self.most_jvms, self._jvms())
            self._next_at = time.monotonic() + self._dice.uniform(0.5, 4.0)

    def _jvms(self) -> int:
        return len([process for process in self._fleet.context_processes() if process.role == "JVM"])

    def repair(self) -> None:
        """Repair everything at once."""
        self._pay(float("inf"))

    def _pay(self, until: float) -> None:
        due = [debt for debt in self._debts if debt[0] <= until]
        self._debts = [debt for debt in self._debts if debt[0] > until]
        for _, repair in sorted(due, key=lambda debt: debt[0]):
            repair()

    def _owe(self, after: float, repair: Callable[[], object]) -> None:
        self._debts.append((time.monotonic() + after, repair))

    def _did(self, what: str) -> None:
        self._journal.count(what)

    # -- servers -----------------------------------------------------------------------------------

    def _server(self) -> Server | None:
        living = [server for server in self._fleet.servers if server.alive and server.wanted]
        return self._dice.choice(living) if living else None

    def _want(self, server: Server) -> None:
        self.disturbed_at.append(time.monotonic())
        server.wanted = True

    def _kill_server(self) -> None:
        server, after = self._server(), self._dice.choice([0.0, 0.0, 1.0, 4.0, self._for_long])
        if server is not None:
            self.disturbed_at.append(time.monotonic())
            server.kill()
            self._did(
                "kills of servers that stay away past their lease"
                if after == self._for_long
                else "kills of servers"
            )
            self._owe(after, lambda: self._want(server))

    def _stop_server(self) -> None:
        server, after = self._server(), self._dice.choice([0.0, 2.0, self._for_long])
        if server is not None:
            self.disturbed_at.append(time.monotonic())
            server.stop()
            self._did("orderly stops of servers")
            self._owe(after, lambda: self._want(server))

    def _pause_server(self) -> None:
        server = self._server()
        if server is None or server.paused:
            return
        past_lease = self._dice.random() < 0.5
        after = server.lease + _BEYOND if past_lease else self._dice.uniform(0.5, 3.0)
        self.disturbed_at.append(time.monotonic())
        server.pause()
        self._did("pauses of servers past their lease" if past_lease else "pauses of servers")
        self._owe(after, lambda: self._resume(server))

    def _resume(self, server: Server) -> None:
        self.disturbed_at.append(time.monotonic())
        server.resume()

    # -- processes of contexts ---------------------------------------------------------------------

    def _kill_process(self) -> None:
        role = self._dice.choice(["host", "JVM", "runner", "runner", "worker"])
        found = [process for process in self._fleet.context_processes() if process.role == role]
        if found:
            self._signal(self._dice.choice(found), signal.SIGKILL)
            self._did(f"kills of processes: {role}")

    def _pause_process(self) -> None:
        role = self._dice.choice(["host", "JVM", "runner"])
        found = [process for process in self._fleet.context_processes() if process.role == role]
        if found:
            process = self._dice.choice(found)
            self._signal(process, signal.SIGSTOP)
            self._did(f"pauses of processes: {role}")
            self._owe(self._dice.uniform(0.5, 6.0), lambda: self._signal(process, signal.SIGCONT))

    def _signal(self, process: ContextProcess, number: signal.Signals) -> None:
        self.processes_broken_at[process.context_id].append(time.monotonic())
        process.signal(number)

    # -- the database ------------------------------------------------------------------------------

    def _restart_database(self) -> None:
        if self._fleet.database.running:
            abruptly = self._dice.random() < 0.5
            self._database_breaks()
            self._fleet.database.stop(abruptly=abruptly)
            self._did("crashes of PostgreSQL" if abruptly else "restarts of PostgreSQL")
            self._owe(self._dice.uniform(0.2, 5.0), self._start_database)

    def _start_database(self) -> None:
        self._fleet.database.start()
        self._database_breaks()

    def _database_breaks(self) -> None:
        self.database_broken_at.append(time.monotonic())

    def _pause_database(self) -> None:
        if self._fleet.database.running:
            self._database_breaks()
            self._fleet.database.server.pause()
            self._did("pauses of PostgreSQL")
            time.sleep(self._dice.uniform(0.5, 5.0))
            self._fleet.database.server.resume()
            self._database_breaks()

    def _cut_database(self) -> None:
        if self._fleet.database.running:
            self._database_breaks()
            self._fleet.database.cut()
            self._did("cuts of all connections to PostgreSQL")

    # -- the cluster -------------------------------------------------------------------------------

    def _kill_worker(self) -> None:
        self._cluster.kill_workers()
        self._did("kills of standalone workers")
        self._owe(self._dice.uniform(0.5, 5.0), self._start_worker)

    def _start_worker(self) -> None:
        self._cluster.kill_workers()  # of another debt
        self._cluster.start_worker()

    def _kill_executor(self) -> None:
        if executors := self._cluster.executors():
            self._kill(self._dice.choice(executors))
            self._did("kills of executors")

    @staticmethod
    def _kill(pid: int) -> None:
        from jobserver_pyspark.processes import kill

        kill(pid)
