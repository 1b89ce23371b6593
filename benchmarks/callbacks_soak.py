"""Soak callbacks: thousands of jobs, bad receivers, and a server that is killed with SIGKILL.

    python benchmarks/callbacks_soak.py [--jobs 5000] [--kills 3] [--limit 900]

A job server (SQLite, inline launcher, HTTP transport) runs as a separate process. Receivers on loopback are
fast, slow, failing half the time, refusing, hanging, and restarted on the way. In the end every
delivery is compared with the requests of the receivers and the records of the database; the counts
are printed as JSON. Exits with 1 if a callback was lost, was wrong, or was sent after a kill.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter, defaultdict, deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from jobserver_core.config.settings import Settings
from jobserver_core.errors import ContextExists, JobUnsuccessful
from jobserver_core.memory import InlineLauncher, MemoryFetcher
from jobserver_core.models.binaries import BinaryType, parse_class_path
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.jobs import Job, JobQuery, JobRequest
from jobserver_core.models.lifecycle import DELIVERIES, DeliveryState, JobState
from jobserver_core.server import JobServer
from jobserver_fsspec import FsspecBlobStore
from jobserver_httpx import HttpxTransport
from jobserver_sql import SqlMetadataStore

ATTEMPTS = 5
SETTINGS = {
    "jobserver": {
        "callbacks": {
            "max-attempts": ATTEMPTS,
            "retry-delay": "1 s",
            "timeout": "500 ms",
            "max-payload": "2 KiB",
            "public-url": "http://jobs.example",
        },
        "jobs": {"max-jobs-per-context": 8, "max-queued-jobs": 10_000},
    }
}
WINDOW = 32
"""How many jobs are submitted before the first of them has to be acknowledged, and to be done."""


# -- the server's process --------------------------------------------------------------------------


def run_value(job: Any) -> Any:
    return {"n": job.config["n"]}


def run_failure(job: Any) -> Any:
    raise ValueError(f"job {job.config['n']} fails on purpose")


def run_stream(job: Any) -> Any:
    return (b"%d" % job.config["n"] for _ in range(3))


def run_large(job: Any) -> Any:
    return "x" * 5000


def run_forever(job: Any) -> Any:
    job.sleep(600)


FUNCTIONS = {
    "soak.Value": run_value,
    "soak.Failure": run_failure,
    "soak.Stream": run_stream,
    "soak.Large": run_large,
    "soak.Killed": run_forever,
}


def serve(data_dir: Path) -> None:
    """Submit the jobs that are asked for on standard input, a JSON object a line, and acknowledge each."""
    settings = Settings.from_mapping(SETTINGS)
    server = JobServer(
        metadata=SqlMetadataStore.from_settings(settings, data_dir),
        blobs=FsspecBlobStore.from_settings(settings, data_dir),
        fetcher=MemoryFetcher(),
        launcher=InlineLauncher(FUNCTIONS),
        transports=[HttpxTransport.from_settings(settings, data_dir)],
        settings=settings,
        data_dir=data_dir,
    )
    with server:
        if not server.binaries():
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr("soak.py", "")
            server.upload("soak", BinaryType.WHEEL, archive.getvalue())
        with suppress(ContextExists):  # a job that waited over a restart has brought its context back
            server.create_context("soak").result(30)
        say({"ready": True})
        pending: deque[Any] = deque()
        for line in sys.stdin:
            order = json.loads(line)
            if order.get("what") == "left":
                say({"left": left(server)})
                continue
            handle = server.submit(
                JobRequest(
                    class_name=order["class"],
                    class_path=parse_class_path("soak"),
                    config={"n": order["n"]},
                    context="soak",
                    callback_url=order["url"],
                    idempotency_key=f"soak-{order['n']}",
                )
            )
            if order["class"] == "soak.Killed" and not server.job(handle.id).state.final:
                server.kill_job(handle.id).result(30)
            pending.append(handle)
            if len(pending) > WINDOW:
                with suppress(JobUnsuccessful):
                    pending.popleft().result(60)
            say({"n": order["n"], "job": handle.id})


def left(server: JobServer) -> int:
    """Count the jobs and deliveries that are not final yet."""
    page = server.jobs(JobQuery(states=(JobState.STARTED, JobState.RUNNING), limit=10_000))
    metadata = server._services.metadata
    live = [metadata.deliveries_in(state, limit=10_000) for state in DELIVERIES.live_states]
    return len(page.jobs) + sum(map(len, live))


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


class ServerProcess:
    """The server as a process that can be killed and started again over the same data."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        command = [sys.executable, __file__, "--serve", str(self._data_dir)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, bufsize=1
        )
        if not self.read().get("ready"):
            raise RuntimeError("the server did not start")

    def write(self, order: dict[str, Any]) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order) + "\n")

    def read(self) -> dict[str, Any]:
        """Return the next line, an empty object when the process has ended."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else {}

    def left(self) -> int:
        self.write({"what": "left"})
        return int(self.read()["left"])

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                if pipe:
                    pipe.close()

    def close(self) -> None:
        """End the server in good order, unless it has ended already."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            with suppress(OSError):
                pipe.close()
            self.process.wait(60)


# -- the receivers ---------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Arrival:
    """An attempt as a receiver saw it, and its response."""

    receiver: str
    delivery: str
    body: dict[str, Any]
    status: int
    at: float


class Receivers:
    """HTTP receivers on loopback, on a separate event loop."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.ports: dict[str, int] = {}
        self._servers: dict[str, asyncio.Server] = {}
        self._loop = asyncio.new_event_loop()
        self._random = random.Random(20240101)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}/{name}"

    def open(self, name: str) -> None:
        """Open a receiver, at the port that it had before if it was open once."""
        asyncio.run_coroutine_threadsafe(self._open(name), self._loop).result(10)

    async def _open(self, name: str) -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
                await self._handle(name, reader, writer)
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", self.ports.get(name, 0))
        self._servers[name] = server
        self.ports[name] = server.sockets[0].getsockname()[1]

    async def _handle(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
        body = await reader.readexactly(int(headers["content-length"]))
        kind = name.partition("-")[0]
        status = 503 if kind == "half" and self._random.random() < 0.5 else 200
        if kind == "hanging":
            await asyncio.wait_for(reader.read(), 30)
            status = 0
        if kind == "slow":
            await asyncio.sleep(0.2)
        arrival = Arrival(
            receiver=name,
            delivery=headers["webhook-id"],
            body=json.loads(body),
            status=status,
            at=time.time(),
        )
        self.arrivals.append(arrival)
        if status:
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
            await writer.drain()

    def shut(self, name: str) -> None:
        """Close a receiver's port, so that it refuses connections."""
        self._loop.call_soon_threadsafe(self._servers.pop(name).close)

    def close(self) -> None:
        for name in list(self._servers):
            self.shut(name)
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# -- the plan --------------------------------------------------------------------------------------

SHARES = {
    "fast-1": 250,
    "fast-2": 250,
    "fast-3": 150,
    "half-1": 80,
    "half-2": 80,
    "slow-1": 20,
    "slow-2": 20,
    "refusing-1": 30,
    "refusing-2": 30,
    "hanging-1": 5,
    "hanging-2": 5,
    "restarted-1": 50,
    "": 30,
}
"""Of 1000 jobs, how many call back to each receiver; the last to none."""
CLASSES = {"soak.Value": 850, "soak.Failure": 60, "soak.Stream": 30, "soak.Large": 30, "soak.Killed": 30}


@attrs.frozen(kw_only=True)
class Plan:
    """One job to submit."""

    n: int
    receiver: str
    class_name: str


def make_plan(count: int) -> list[Plan]:
    """Mix receivers and classes by their shares, the same way every time."""
    dice = random.Random(count)
    receivers = dice.choices(list(SHARES), list(SHARES.values()), k=count)
    classes = dice.choices(list(CLASSES), list(CLASSES.values()), k=count)
    pairs = enumerate(zip(receivers, classes, strict=True))
    return [Plan(n=n, receiver=receiver, class_name=name) for n, (receiver, name) in pairs]


class Soak:
    """One run."""

    def __init__(self, data_dir: Path, *, jobs: int, kills: int, limit: float) -> None:
        self._data_dir = data_dir
        self._plan = make_plan(jobs)
        self._kill_at = [jobs * (number + 1) // (kills + 1) for number in range(kills)]
        self._restart_at = {
            jobs // 5: "shut",
            jobs // 5 * 2: "open",
            jobs // 5 * 3: "shut",
            jobs // 5 * 4: "open",
        }
        self._deadline = time.monotonic() + limit
        self._ids: dict[int, str] = {}
        self._killed_at: list[float] = []
        self._receivers = Receivers()

    def run(self) -> dict[str, Any]:
        """Submit everything, kill on the way, wait for the last delivery, and account for all of it."""
        began = time.monotonic()
        for name in SHARES:
            if name:
                self._receivers.open(name)
                if name.startswith("refusing"):
                    self._receivers.shut(name)
        server = ServerProcess(self._data_dir)
        try:
            self._submit_all(server)
            submitted = time.monotonic()
            while server.left():
                if time.monotonic() > self._deadline:
                    raise TimeoutError(f"{server.left()} jobs and deliveries are not done in time")
                time.sleep(0.2)
            done = time.monotonic()
        finally:
            server.close()
            self._receivers.close()
        seconds = {"submitting": round(submitted - began, 1), "all": round(done - began, 1)}
        return {"seconds": seconds, "servers": server.starts, **self._account()}

    def _submit_all(self, server: ServerProcess) -> None:
        waiting: deque[Plan] = deque(self._plan)
        sent: deque[Plan] = deque()
        while waiting or sent:
            while waiting and len(sent) < WINDOW:
                sent.append(waiting.popleft())
                self._order(server, sent[-1])
            answer = server.read()
            self._ids[answer["n"]] = answer["job"]
            sent.popleft()
            self._switch(len(self._ids))
            if self._kill_at and len(self._ids) >= self._kill_at[0]:
                self._kill_at.pop(0)
                self._killed_at.append(time.time())
                server.kill()
                server.start()
                for plan in sent:  # whether these were accepted is not known; their keys make it once
                    self._order(server, plan)

    def _order(self, server: ServerProcess, plan: Plan) -> None:
        url = self._receivers.url(plan.receiver) if plan.receiver else None
        server.write({"n": plan.n, "class": plan.class_name, "url": url})

    def _switch(self, count: int) -> None:
        step = self._restart_at.pop(count, None)
        if step == "shut":
            self._receivers.shut("restarted-1")
        elif step == "open":
            self._receivers.open("restarted-1")

    # -- accounting --------------------------------------------------------------------------------

    def _account(self) -> dict[str, Any]:
        store = SqlMetadataStore.from_settings(Settings.from_mapping(SETTINGS), self._data_dir)
        try:
            jobs = {n: store.job(job_id) for n, job_id in self._ids.items()}
            deliveries = {n: store.deliveries_of(job_id) for n, job_id in self._ids.items()}
        finally:
            store.close()
        by_delivery: dict[str, list[Arrival]] = defaultdict(list)
        for arrival in self._receivers.arrivals:
            by_delivery[arrival.delivery].append(arrival)
        wrong: list[str] = []
        fates: Counter[str] = Counter()
        for plan in self._plan:
            job = jobs.get(plan.n)
            if job is None or not job.state.final:
                wrong.append(f"job {plan.n} was lost or is not final")
                continue
            fates[f"jobs {job.state.value}"] += 1
            wrong += self._check_job(plan, job, deliveries[plan.n], by_delivery, fates)
        known = {delivery.id for made in deliveries.values() for delivery in made}
        wrong += [f"receivers saw delivery {one}, which nobody recorded" for one in set(by_delivery) - known]
        accepted = [a for a in self._receivers.arrivals if a.status == 200]
        return {
            "kills": len(self._killed_at),
            "fates": dict(sorted(fates.items())),
            "attempts seen": len(self._receivers.arrivals),
            "accepted": len(accepted),
            "accepted more than once": len(accepted) - len({a.delivery for a in accepted}),
            "overtakings at fast receivers": self._overtakings(deliveries),
            "seconds from end to arrival, fast receivers": self._latency(jobs, deliveries),
            "wrong": wrong,
        }

    def _check_job(
        self,
        plan: Plan,
        job: Job,
        made: list[Delivery],
        arrivals: dict[str, list[Arrival]],
        fates: Counter[str],
    ) -> list[str]:
        told = job.state is not JobState.KILLED and bool(plan.receiver)
        if len(made) != int(told):
            return [f"job {plan.n} is {job.state.value} and has {len(made)} deliveries"]
        if not told:
            fates["killed, so not called back" if plan.receiver else "without callback"] += 1
            return []
        (delivery,) = made
        kind = plan.receiver.partition("-")[0]
        fates[f"{kind}: {delivery.state.value}"] += 1
        return check_delivery(plan, job, delivery, arrivals[delivery.id])

    def _overtakings(self, deliveries: dict[int, list[Delivery]]) -> int:
        """Count adjacent first arrivals that are not in the order of creation."""
        ages = {d.id: (d.created_at, d.id) for made in deliveries.values() for d in made}
        count = 0
        for name in ("fast-1", "fast-2", "fast-3"):
            first = list(dict.fromkeys(a.delivery for a in self._receivers.arrivals if a.receiver == name))
            order = [ages[one] for one in first]
            count += sum(earlier > later for earlier, later in itertools.pairwise(order))
        return count

    def _latency(self, jobs: dict[int, Any], deliveries: dict[int, list[Delivery]]) -> dict[str, float]:
        """How long fast receivers waited, except for jobs that ended around a kill."""
        ended = {d.id: jobs[n].ended_at.timestamp() for n, made in deliveries.items() for d in made}
        calm = [
            arrival.at - ended[arrival.delivery]
            for arrival in self._receivers.arrivals
            if arrival.receiver.startswith("fast")
            and not any(at - 3 < ended[arrival.delivery] < at + 10 for at in self._killed_at)
        ]
        if len(calm) < 2:
            return {}
        cuts = statistics.quantiles(calm, n=100)
        return {"median": round(cuts[49], 3), "99 %": round(cuts[98], 3), "most": round(max(calm), 3)}


def check_delivery(plan: Plan, job: Job, delivery: Delivery, seen: list[Arrival]) -> list[str]:
    """Describe the faults of one delivery, given the requests that its receiver got."""
    name = f"delivery of job {plan.n} to {plan.receiver}"
    accepted = [arrival for arrival in seen if arrival.status == 200]
    wrong = []
    if delivery.state is DeliveryState.DELIVERED and not accepted:
        wrong.append(f"{name} is DELIVERED, and its receiver never took it")
    if delivery.state is DeliveryState.ABANDONED and delivery.attempts != ATTEMPTS:
        wrong.append(f"{name} was abandoned after {delivery.attempts} attempts")
    if not delivery.state.final:
        wrong.append(f"{name} is {delivery.state.value}")
    if plan.receiver.startswith(("fast", "slow")) and delivery.state is not DeliveryState.DELIVERED:
        wrong.append(f"{name} is {delivery.state.value}, and its receiver was well")
    wrong += [f"{name} said {a.body!r}" for a in seen if a.body != expected_body(plan, job)]
    return wrong


def expected_body(plan: Plan, job: Job) -> dict[str, Any]:
    """What the contract says that this job's callback says."""
    if job.state is not JobState.FINISHED:
        assert job.error
        told = {"message": job.error.message, "errorClass": job.error.error_class, "stack": job.error.stack}
        return {"jobId": job.id, "status": "ERROR", "result": told}
    if plan.class_name == "soak.Value":
        return {"jobId": job.id, "result": {"n": plan.n}}
    link = {"resultUrl": f"http://jobs.example/jobs/{job.id}"} if plan.class_name == "soak.Large" else {}
    return {"jobId": job.id, "result": "<Stream result>", **link}


def soak(data_dir: Path, *, jobs: int, kills: int, limit: float) -> dict[str, Any]:
    """Run one soak in a directory and return its counts; ``wrong`` is empty on success."""
    return Soak(data_dir, jobs=jobs, kills=kills, limit=limit).run()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds until it is given up")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    with tempfile.TemporaryDirectory(prefix="callbacks-soak-") as directory:
        counts = soak(Path(directory), jobs=options.jobs, kills=options.kills, limit=options.limit)
    print(json.dumps(counts, indent=2))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
