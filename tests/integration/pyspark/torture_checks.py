"""What must hold in each quiet moment of the torture: a table of checks, each of which returns faults."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from torture_chaos import Chaos
from torture_clients import FINAL, NAMES, Journal, Submit
from torture_fleet import Attempt, Fleet

from conditions import wait_until

__all__ = ["CHECKS", "Scene"]

_OWNERSHIP = {"owner", "owned_since", "epoch"}
"""What a server may change of a final context whose jobs it deals with."""
_DISTURBANCE = 25.0
"""Seconds for which a fault explains what is near it: a callback that is sent twice, a job that is lost."""
_DEATHS = ("Py4J", "py4j", "Connection", "ExecutorLost", "SparkContext")
"""What errors of jobs name whose JVM or executor was killed."""
_REFUSED = "the request was refused: storage failed while it was being recorded"
"""The error of a job that was stored although its client was told that it was not."""
_DEADLINE = 60.0


class Scene:
    """The fleet in a quiet moment: what the database, the servers, the clients and the receiver know."""

    def __init__(self, fleet: Fleet, journal: Journal, chaos: Chaos, dice: random.Random) -> None:
        self.fleet, self.journal, self.chaos, self.dice = fleet, journal, chaos, dice
        self._clock_offset = time.time() - time.monotonic()
        rows = fleet.database.rows
        self.jobs = {row["id"]: row for row in rows("SELECT * FROM jobs")}
        self.contexts = {row["id"]: row for row in rows("SELECT * FROM contexts")}
        self.deliveries: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows("SELECT * FROM deliveries"):
            self.deliveries[row["job_id"]].append(row)
        self.notes = rows("SELECT * FROM torture_notes ORDER BY n")
        configs = rows("SELECT job_id, config FROM job_configs")
        self.numbers: dict[str, int] = {row["job_id"]: json.loads(row["config"])["number"] for row in configs}

    def submit(self, job_id: str) -> Submit:
        """Return what a client had asked for."""
        return self.journal.submits[self.numbers[job_id]]

    def runs(self, job_id: str) -> int:
        """Return how often the code of a job has begun to run."""
        path = self.fleet.runs / job_id
        return len(path.read_text().splitlines()) if path.exists() else 0

    def monotonic(self, at: float) -> float:
        """Return a moment of the system's clock, in seconds, as one of the monotonic clock."""
        return at - self._clock_offset

    def servers_were_disturbed(self, at: float) -> bool:
        """Whether a server was killed, paused or stopped near a moment of the monotonic clock."""
        return _near(at, self.chaos.disturbed_at)

    def context_was_stopped(self, job: Mapping[str, Any]) -> bool:
        """Whether a user stopped the context of a job."""
        return bool(self.contexts.get(job["context_id"], {}).get("stop_requested"))

    def process_was_broken(self, job: Mapping[str, Any]) -> bool:
        """Whether a process of its context was killed or paused near the end of a job."""
        return _near(self._end_of(job), self.chaos.processes_broken_at[job["context_id"]])

    def context_was_broken(self, job: Mapping[str, Any]) -> bool:
        """Whether something was broken near the end of a job that can end its context.

        That is a process of the context, or whatever makes a server lose its contexts: its own death or
        pause, what it finds when it starts, and the database, without which it cannot renew its lease.
        """
        starts = [at for server in self.fleet.servers for at in server.listens]
        servers = [*self.chaos.disturbed_at, *self.chaos.database_broken_at, *starts]
        return self.process_was_broken(job) or _near(self._end_of(job), servers)

    def _end_of(self, job: Mapping[str, Any]) -> float:
        """The end of a job by the monotonic clock."""
        return self.monotonic(job["ended_at"] / 1e6)

    def described(self, job_id: str) -> str:
        """Return what is known about a job, for the report of a fault."""
        job, submit = self.jobs[job_id], self.submit(job_id)
        context = self.contexts.get(job["context_id"], {})
        notes = [f"{n['old']}>{n['new']}({n['what']})" for n in self.notes if n["id"] == job_id]
        picked = {key: value for key, value in job.items() if key not in ("class_path", "fingerprint")}
        where = {key: context.get(key) for key in ("name", "state", "owner", "stop_requested", "epoch")}
        return f"{submit}: {picked} in {where}, {self.runs(job_id)} runs, notes {notes}"


def _near(at: float, moments: Iterable[float]) -> bool:
    return any(abs(moment - at) < _DISTURBANCE for moment in moments)


def accepted_jobs_are_recorded_and_final(scene: Scene) -> Iterable[str]:
    for job_id in scene.journal.jobs:
        if job_id not in scene.jobs:
            yield f"accepted job {job_id} is not recorded"
        elif _REFUSED in (scene.jobs[job_id]["error"] or ""):
            yield f"accepted, but refused later: {scene.described(job_id)}"
    for job_id, job in scene.jobs.items():
        if job["state"] not in FINAL:
            yield f"job {job_id} is not final: {scene.described(job_id)}"


def each_submit_is_one_job(scene: Scene) -> Iterable[str]:
    found: dict[int, set[str]] = defaultdict(set)
    for job_id, number in scene.numbers.items():
        if _REFUSED not in (scene.jobs[job_id]["error"] or ""):
            found[number].add(job_id)
    for number, submit in scene.journal.submits.items():
        if len(found[number] | submit.ids) > 1:
            yield f"submit {submit} is several jobs: {found[number] | submit.ids}"


def final_states_happen_once_and_never_change(scene: Scene) -> Iterable[str]:
    ends: dict[str, int] = defaultdict(int)
    final = {"jobs": FINAL, "contexts": FINAL, "deliveries": ("DELIVERED", "ABANDONED")}
    for note in scene.notes:
        changed = set(note["what"].split())
        if note["old"] in final[note["record"]]:
            if note["record"] != "contexts" or not changed <= _OWNERSHIP:
                yield f"final {note['record']} {note['id']} changed: {note}"
        elif note["new"] in final[note["record"]]:
            ends[note["id"]] += 1
    for job_id, job in scene.jobs.items():
        if job["state"] in FINAL and ends[job_id] != 1:
            yield f"job {job_id} has ended {ends[job_id]} times: {scene.described(job_id)}"
    for job_id, state in scene.journal.final.items():
        if job_id in scene.jobs and scene.jobs[job_id]["state"] != state:
            yield f"clients saw {state}: {scene.described(job_id)}"


def code_runs_once(scene: Scene) -> Iterable[str]:
    for job_id, job in scene.jobs.items():
        runs = scene.runs(job_id)
        if runs > 1 + job["restarts"] or (job["restarts"] and not job["restartable"]):
            yield f"ran {runs} times: {scene.described(job_id)}"
        if job["state"] == "FINISHED" and not runs:
            yield f"finished without a run: {scene.described(job_id)}"


def results_are_right(scene: Scene) -> Iterable[str]:
    finished = [job_id for job_id, job in scene.jobs.items() if job["state"] == "FINISHED"]
    with httpx.Client(timeout=30.0) as http:
        for job_id in finished:
            submit, server = scene.submit(job_id), scene.dice.choice(scene.fleet.servers)
            response = http.get(f"{server.url}/jobs/{job_id}/result")
            wanted = submit.result
            got = response.content if isinstance(wanted, bytes) else response.json()
            scene.journal.count("results checked")
            if submit.kind == "fail" or response.status_code != 200 or got != wanted:
                yield f"wrong result {response.text[:100]} from {server.name}: {scene.described(job_id)}"


_EXPLAINED: dict[str, Callable[[Scene, Mapping[str, Any]], object]] = {
    "raised": lambda scene, job: scene.submit(job["id"]).kind == "fail" or _spark_died(job),
    "crashed": lambda scene, job: scene.process_was_broken(job),
    "context-lost": lambda scene, job: scene.context_was_stopped(job) or scene.context_was_broken(job),
    "context-init": lambda scene, job: job["context_name"] not in NAMES,
    "queue-time": lambda scene, job: job["max_queue_time"] is not None and job["dispatched_at"] is None,
    "run-time": lambda scene, job: job["max_run_time"] is not None,
}
"""Whether a job may have failed in a way. Without Spark, chaos breaks no process, so no job may crash."""


def failures_have_a_reason(scene: Scene) -> Iterable[str]:
    for job_id, job in scene.jobs.items():
        failure = job["failure"]
        if job["state"] == "ERROR":
            scene.journal.count(f"failures: {failure}")
        if job["state"] == "KILLED" and not job["kill_requested"]:
            yield f"killed by nobody: {scene.described(job_id)}"
        if job["state"] != "ERROR" and failure is None:
            continue
        explained = _EXPLAINED.get(failure)
        if explained is None or not explained(scene, job):
            yield f"failed for no good reason: {scene.described(job_id)}"


def _spark_died(job: Mapping[str, Any]) -> bool:
    """Whether the code of a job saw that its JVM or an executor was killed."""
    return any(word in (job["error"] or "") for word in _DEATHS)


def callbacks_are_accounted_for(scene: Scene) -> Iterable[str]:
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in scene.fleet.receiver.attempts:
        attempts[attempt.delivery].append(attempt)
    for job_id, job in scene.jobs.items():
        found = scene.deliveries[job_id]
        cancelled = job["kill_requested"] or scene.context_was_stopped(job)
        owed = job["callback_url"] is not None and (job["state"] == "FINISHED" or not cancelled)
        if len(found) > 1 or (owed and not found):
            yield f"{len(found)} deliveries: {scene.described(job_id)}"
        for delivery in found:
            yield from _delivery(scene, delivery, attempts[delivery["id"]], job)


def _delivery(
    scene: Scene, delivery: Mapping[str, Any], attempts: list[Attempt], job: Mapping[str, Any]
) -> Iterable[str]:
    scene.journal.count("callbacks checked")
    taken = [attempt for attempt in attempts if attempt.status == 200]
    if delivery["state"] != "DELIVERED" or not taken:
        yield f"delivery {dict(delivery)} had {attempts}"
    wanted = scene.submit(job["id"]).result
    for attempt in taken:
        result = attempt.body["result"]
        finished = result in (wanted, "<Stream result>")
        if finished != (job["state"] == "FINISHED"):
            yield f"the callback had {str(result)[:200]}: {scene.described(job['id'])}"
    if len(taken) > 1:
        scene.journal.count("callbacks that were delivered more than once")
    for first, second in pairwise(attempts):
        if first.ended is None or second.began < first.ended:
            scene.journal.count("callbacks that were sent twice at a time")
            if not scene.servers_were_disturbed(second.began):
                yield f"two servers sent at a time: {first} and {second}"


def servers_agree(scene: Scene) -> Iterable[str]:
    sample = scene.dice.sample(sorted(scene.jobs), min(15, len(scene.jobs)))
    with httpx.Client(timeout=30.0) as http:
        for server in scene.fleet.servers:
            for job_id in sample:
                told = http.get(f"{server.url}/jobs/{job_id}", params={"result": "false"}).json()["status"]
                if told != scene.jobs[job_id]["state"]:
                    yield f"server {server.name} says {told}: {scene.described(job_id)}"


def leases_are_those_of_living_servers(scene: Scene) -> Iterable[str]:
    registered = {row["id"] for row in scene.fleet.database.rows("SELECT id FROM servers")}
    living = {server.id for server in scene.fleet.servers if server.alive}
    if registered != living:
        yield f"registered are {registered}, but {living} live"
    for context in scene.contexts.values():
        if context["state"] not in FINAL and context["owner"] not in living:
            yield f"nobody owns {context}"


def nothing_is_left(scene: Scene) -> Iterable[str]:
    try:
        wait_until(lambda: not _left(scene), timeout=_DEADLINE, pause=0.5)
    except AssertionError:
        yield from _left(scene)


def _left(scene: Scene) -> list[str]:
    """Return what is there beside what belongs to living contexts."""
    fleet = scene.fleet
    rows = fleet.database.rows
    live = {
        row["id"]: row for row in rows("SELECT id, owner FROM contexts WHERE NOT state = ANY(%s)", [*FINAL])
    }
    found = [f"process {p}" for p in fleet.context_processes() if p.context_id not in live]
    for server in fleet.servers:
        own = {key for key, row in live.items() if row["owner"] == server.id}
        for path in [*server.data.glob("pyspark/contexts/*"), *server.data.glob("contexts/*")]:
            if path.stem not in own and fleet.cluster is not None:  # else nobody knows of them
                found.append(f"file {path}")
    if not live:
        found += [f"temporary file {path}" for path in (fleet.directory / "tmp").iterdir()]
        found += [f"executor {pid}" for pid in (fleet.cluster.executors() if fleet.cluster else ())]
    found += [
        f"hold {r}"
        for r in rows(
            "SELECT h.* FROM job_holds h JOIN jobs j ON j.id = h.job_id WHERE j.state = ANY(%s)", [*FINAL]
        )
    ]
    found += [f"request {r}" for r in rows("SELECT * FROM requests WHERE answer IS NULL")]
    found += [f"unfinished blob {path}" for path in fleet.blobs.rglob("*") if _is_unfinished(path, scene)]
    return found


def _is_unfinished(path: Path, scene: Scene) -> bool:
    """Whether a server that lives did not finish a blob; the rest of one that died is removed a day later."""
    if not path.is_file() or len(path.name) == 64:  # of a SHA-256
        return False
    return not scene.servers_were_disturbed(scene.monotonic(path.stat().st_mtime))


def no_server_ended_by_itself(scene: Scene) -> Iterable[str]:
    for server in scene.fleet.servers:
        yield from server.unexpected


CHECKS: dict[str, Callable[[Scene], Iterable[str]]] = {
    "every accepted job is recorded and final": accepted_jobs_are_recorded_and_final,
    "every submit is one job, however often it is repeated": each_submit_is_one_job,
    "every final state happened once and never changed": final_states_happen_once_and_never_change,
    "the code of a job ran once, and once more for each restart": code_runs_once,
    "every result is right": results_are_right,
    "every failure has a reason": failures_have_a_reason,
    "every callback was delivered, by one server at a time": callbacks_are_accounted_for,
    "all servers say the same": servers_agree,
    "leases belong to living servers": leases_are_those_of_living_servers,
    "no process, file, hold or request is left over": nothing_is_left,
    "no server ended by itself": no_server_ended_by_itself,
}
