"""Three real servers with Spark over one PostgreSQL database, and a random history of everything that breaks.

Theory
======

The problem: what the servers promise together (an accepted job ends once, with the right result, and its
callback is sent) must hold whatever dies, hangs or restarts, at any moment. Tests of single faults do not
show what two of them do to each other.

The idea: a history is a *storm* and a *quiet moment*, again and again. In the storm, clients ask all servers
for everything, and keep a journal of each promise (:mod:`torture_clients`), while chaos kills, pauses and
restarts servers, processes of contexts, the database and the cluster (:mod:`torture_chaos`). Then everything
is repaired, and the history waits until all jobs are final, or really run: a job that waits for a file has to
have a living process, and ends once the file is there. Then the journal, the answers of all servers, the
database and the machine must agree (:mod:`torture_checks`). Triggers in the database have noted each change
of a state, so a final state that changed and changed back is seen as well.

Each moment ends with two measurements without any other fault: a server is killed and started again, and must
have its contexts back; and a server is killed and stays away, and another one must take its context over.

The seed decides what clients and chaos choose, in which order. Processes and clocks are real, so the same
seed is a similar history, not the same one.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from torture_chaos import Chaos
from torture_checks import CHECKS, Scene
from torture_clients import FINAL, Client, Journal
from torture_fleet import Fleet, Server

from conditions import wait_until
from jobserver_pyspark import processes
from jobserver_pyspark.demo import build_wheel

__all__ = ["SparkTorture"]

CLIENTS = 5
DEADLINE = 240.0
"""Seconds for everything to come to rest."""


class SparkTorture:
    """One history on a fleet, in rounds of a storm and a quiet moment each."""

    def __init__(self, seed: int, fleet: Fleet) -> None:
        self.fleet = fleet
        self.journal = Journal()
        self.reattachments: list[float] = []
        """Seconds from the moment in which a new server listens until it has its contexts back."""
        self.failovers: list[float] = []
        """Seconds after the end of a lease until another server has taken over."""
        self.faults: list[str] = []
        self._dice = random.Random(seed)
        self._chaos = Chaos(self._dice.randrange(2**32), fleet, self.journal)
        self._rounds = 0

    def start(self) -> None:
        """Start the servers, and give them the code of the jobs."""
        for server in self.fleet.servers:
            server.wanted = True
        self._wait(self._all_ready, "all servers are ready")
        self.fleet.database.watch()
        wheel = build_wheel(Path(__file__).with_name("torture_jobs.py"), self.fleet.directory, version="1")
        headers = {"Content-Type": "application/python-wheel"}
        url = f"{self.fleet.servers[0].url}/binaries/jobs"
        httpx.post(url, content=wheel.read_bytes(), headers=headers, timeout=60.0).raise_for_status()

    def round(self, seconds: float, *, measured: bool = True) -> None:
        """Run a storm, then check the result.

        Raises:
            AssertionError: Something did not hold, or did not happen in time.
        """
        self._rounds += 1
        (self.fleet.directory / "gate").unlink(missing_ok=True)
        clients = [
            Client(f"{self._rounds}-{number}", self._dice.randrange(2**32), self.fleet, self.journal)
            for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            self._chaos.tend()
            self._tend()
        for client in clients:
            client.stop()
        self._chaos.repair()
        self._wait(lambda: not any(client.is_alive() for client in clients), "the clients end")
        self._settle()
        self._check()
        if measured:
            self._measure_reattachment()
            self._measure_failover()

    def repair(self) -> None:
        """Repair what a storm that failed has left broken."""
        self._chaos.repair()

    def end(self) -> None:
        """End all contexts, then all servers in order, and check that nothing is left."""
        self._each_context(lambda http, name: http.delete(f"{self._url()}/contexts/{name}"))
        for server in self.fleet.servers:
            server.stop()
        self._wait(lambda: all(server.status is not None for server in self.fleet.servers), "servers end")
        faults = [f"{s.name} ended with {s.status}" for s in self.fleet.servers if s.status != 0]
        faults += [f"lease {row}" for row in self.fleet.database.rows("SELECT * FROM servers")]
        faults += [f"fault of a round: {fault}" for fault in self.faults]
        faults += [f"file {path}" for path in (self.fleet.directory / "tmp").iterdir()]
        assert not faults, "\n".join(faults)

    # -- waiting -----------------------------------------------------------------------------------

    def _tend(self) -> None:
        self.fleet.tend()
        time.sleep(0.02)

    def _wait(self, condition: Callable[[], object], what: str | Callable[[], str]) -> None:
        def met() -> object:
            self.fleet.tend()
            return condition()

        wait_until(met, what, DEADLINE, pause=0.1)

    def _all_ready(self) -> bool:
        return all(self._ready(server) for server in self.fleet.servers)

    @staticmethod
    def _ready(server: Server) -> bool:
        try:
            return server.url is not None and httpx.get(f"{server.url}/readyz", timeout=5.0).is_success
        except httpx.HTTPError:
            return False

    def _url(self) -> str:
        return str(self._dice.choice(self.fleet.servers).url)

    def _settle(self) -> None:
        """Wait until everything is final; what runs meanwhile must really run."""
        self._wait(self._all_ready, "all servers are ready again")
        self._wait(
            lambda: not self._pretenders(), lambda: f"jobs run without a process: {self._pretenders()}"
        )
        (self.fleet.directory / "gate").touch()
        self._wait(lambda: not self._unsettled(), lambda: f"left: {self._unsettled()[:5]}")

    def _pretenders(self) -> list[str]:
        """Return the jobs that are said to run their code and have no process."""
        if self.fleet.cluster is None:
            return []
        running = self.fleet.database.rows("SELECT id, context_id FROM jobs WHERE state = 'RUNNING'")
        found = []
        for row in running:
            path = self.fleet.runs / row["id"]
            pid = int(path.read_text().split()[-1]) if path.exists() else 0
            known = [p for p in self.fleet.context_processes() if p.pid == pid]
            if not known or known[0].context_id != row["context_id"] or processes.start_time(pid) is None:
                found.append(row["id"])
        return found

    def _unsettled(self) -> list[str]:
        rows = self.fleet.database.rows
        jobs = rows("SELECT * FROM jobs WHERE NOT state = ANY(%s)", [*FINAL])
        deliveries = rows("SELECT * FROM deliveries WHERE state IN ('PENDING', 'SENDING')")
        return [str(row) for row in [*jobs, *deliveries]]

    def _check(self) -> None:
        scene = Scene(self.fleet, self.journal, self._chaos, self._dice)
        for name, check in CHECKS.items():
            found = list(check(scene))
            self.faults += [f"{name}: {fault}" for fault in found]
            self.journal.count("checks")
        self.faults += self.journal.faults
        self.journal.faults = []
        assert not self.faults, "\n".join(self.faults[:10])

    # -- measurements ------------------------------------------------------------------------------

    def _context_of(self, servers: list[Server]) -> Server:
        """Return one of these servers that has the supervised context, which is started if need be."""
        url = self._url()
        self._each_context(lambda http, name: http.delete(f"{url}/contexts/{name}"))
        server = self._dice.choice(servers)
        response = httpx.post(f"{server.url}/contexts/red", params={"supervise": "true"}, timeout=120.0)
        assert response.status_code == 200, response.text
        return server

    def _each_context(self, call: Callable[[httpx.Client, str], httpx.Response]) -> None:
        with httpx.Client(timeout=60.0) as http:
            for name in http.get(f"{self._url()}/contexts").json():
                call(http, name)
        self._wait(lambda: not self._live_contexts(), "all contexts end")

    def _live_contexts(self) -> list[dict[str, Any]]:
        return self.fleet.database.rows("SELECT * FROM contexts WHERE NOT state = ANY(%s)", [*FINAL])

    def _measure_reattachment(self) -> None:
        keeping = [server for server in self.fleet.servers if server.kind.reattach]
        if not keeping:
            return
        server = self._context_of(keeping)
        [before] = self._live_contexts()
        words = "context red was taken over"
        taken_over = server.said(words)
        server.kill()
        server.wanted = True
        self._wait_closely(lambda: server.listened_at is not None)
        self._wait_closely(lambda: server.said(words) > taken_over)
        assert server.listened_at is not None
        self.reattachments.append(time.monotonic() - server.listened_at)
        [after] = self._live_contexts()
        assert (before["id"], before["application_id"]) == (after["id"], after["application_id"])

    def _measure_failover(self) -> None:
        server = self._context_of(self.fleet.servers)
        server.kill()
        died_at = time.monotonic()
        self._wait_closely(lambda: any(c["owner"] != server.id for c in self._live_contexts()))
        self.failovers.append(time.monotonic() - died_at - server.lease)
        server.wanted = True
        self._wait(self._all_ready, "the server that was killed is back")

    def _wait_closely(self, condition: Callable[[], object]) -> None:
        def met() -> object:
            self.fleet.tend()
            return condition()

        wait_until(met, timeout=DEADLINE, pause=0.01)

    # -- the report --------------------------------------------------------------------------------

    @property
    def most_jvms(self) -> int:
        """The most JVMs of contexts that were seen at once."""
        return self._chaos.most_jvms

    @property
    def counts(self) -> Counter[str]:
        """What was done, what happened, and what was checked."""
        counts = Counter(self.journal.counts)
        said = {
            "re-attached contexts": " was taken over\n",
            "servers declared dead": "did not renew its lease: taking over",
            "servers that woke up as dead": "this server did not renew its lease in time",
            "supervised restarts": "died and is started again",
        }
        for what, words in said.items():
            counts[what] = sum(server.said(words) for server in self.fleet.servers)
        counts["starts of servers"] = sum(server.starts for server in self.fleet.servers)
        for row in self.fleet.database.rows("SELECT state, count(*) AS n FROM jobs GROUP BY state"):
            counts[f"jobs {row['state']}"] = row["n"]
        [restarts] = self.fleet.database.rows("SELECT coalesce(sum(restarts), 0) AS n FROM jobs")
        counts["jobs that ran again"] = int(restarts["n"])
        return counts
