"""The clients of the torture, and the journal of what servers promised them."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import httpx
from torture_fleet import Fleet, Server
from torture_jobs import KINDS

__all__ = ["FINAL", "NAMES", "Client", "Journal", "Submit"]

NAMES = ("red", "green", "blue")
"""The names of contexts: red is supervised, green is supervised and on the cluster, blue is neither."""
FINAL = ("FINISHED", "ERROR", "KILLED")
_NOT_FOR_CLIENTS = ("?", "internal_error", "on_another_server", "stale_state", "stale_owner")
"""Codes of errors that must not reach clients that ask for contexts and jobs; ``?`` is no code at all."""
TIMEOUT = 15.0
"""Seconds for which a client waits for a response."""


@attrs.define(kw_only=True)
class Submit:
    """What a client asks for. ``ids`` are the jobs that the responses name."""

    number: int
    kind: str
    seconds: float
    context: str | None
    query: dict[str, str]
    key: str | None
    ids: set[str] = attrs.field(factory=set)
    answered: bool = False

    @property
    def result(self) -> object:
        """What the job returns if it finishes: a JSON value, or the bytes of a stream."""
        return KINDS[self.kind].result(self.number)


class Journal:
    """What was promised: accepted jobs, and the final states that were seen. Thread-safe."""

    def __init__(self) -> None:
        self.submits: dict[int, Submit] = {}
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._final: dict[str, tuple[str, float]] = {}
        self._accepted: dict[str, int] = {}

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def fault(self, text: str) -> None:
        with self._lock:
            self.faults.append(text)

    def new(self, dice: random.Random, callback: str) -> Submit:
        """Make up a request."""
        kind = dice.choice([*KINDS, "rows", "sleep"])
        query = {"callbackUrl": callback} if dice.random() < 0.5 else {}
        context = "red" if kind == "gated" else dice.choice([*NAMES, *NAMES, None])
        if dice.random() < 0.5:
            query["restartable"] = "true"
        if dice.random() < 0.3:
            query["priority"] = str(dice.randint(-5, 5))
        if dice.random() < 0.1 and kind == "sleep":
            query["maxRunTime"] = "2"
        if dice.random() < 0.1:
            query["maxQueueTime"] = str(dice.choice([1, 20]))
        with self._lock:
            number = len(self.submits) + 1
            submit = Submit(
                number=number,
                kind=kind,
                seconds=dice.choice([0.0, 0.2, 1.0, 4.0]),
                context=context,
                query=query,
                key=f"key-{number}" if dice.random() < 0.4 else None,
            )
            self.submits[number] = submit
            return submit

    def accepted(self, submit: Submit, job_id: str) -> None:
        """A server has answered that the submit is this job."""
        with self._lock:
            submit.answered = True
            submit.ids.add(job_id)
            self._accepted[job_id] = submit.number

    @property
    def jobs(self) -> list[str]:
        """The accepted jobs, in the order of the responses."""
        with self._lock:
            return list(self._accepted)

    @property
    def final(self) -> dict[str, str]:
        """The final states that were seen."""
        with self._lock:
            return {job_id: state for job_id, (state, _) in self._final.items()}

    def seen(self, job_id: str, state: str, asked_at: float, where: str) -> None:
        """A server has answered with the state of a job, when it was asked at ``asked_at``."""
        with self._lock:
            before = self._final.get(job_id)
            if state in FINAL:
                self.counts["final states read"] += 1
                if before is None:
                    self._final[job_id] = (state, time.monotonic())
                elif before[0] != state:
                    self.faults.append(f"job {job_id} was {before[0]}, and is {state} on {where}")
            elif before is not None and before[1] < asked_at:
                self.faults.append(f"job {job_id} was {before[0]}, and is {state} on {where}")


class Client(threading.Thread):
    """Asks all servers for everything at random, and keeps the journal."""

    def __init__(self, name: str, seed: int, fleet: Fleet, journal: Journal) -> None:
        super().__init__(name=name, daemon=True)
        self._dice = random.Random(seed)
        self._fleet = fleet
        self._journal = journal
        self._stopped = threading.Event()
        self._unanswered: list[Submit] = []

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        actions: list[tuple[int, Callable[[], object]]] = [
            (30, self._submit),
            (8, self._submit_and_wait),
            (6, self._submit_everywhere),
            (6, self._kill),
            (10, self._create),
            (2, self._stop_context),
            (1, self._kill_context),
            (16, self._read),
            (6, self._list),
        ]
        weights = [weight for weight, _ in actions]
        with httpx.Client(timeout=TIMEOUT) as self._http:
            while not self._stopped.wait(self._dice.uniform(0.0, 0.6)):
                [(_, action)] = self._dice.choices(actions, weights)
                try:
                    action()
                except Exception as error:
                    self._journal.fault(f"client {self.name}: {error!r} in {action.__name__}")
            for submit in self._unanswered:
                self._post(submit)

    # -- requests ----------------------------------------------------------------------------------

    def ask(self, method: str, path: str, server: Server | None = None, **rest: Any) -> httpx.Response | None:
        """Return the response of a server, by default of any, or None without one."""
        server = server or self._dice.choice(self._fleet.servers)
        url = server.url
        if url is None:
            return None
        self._journal.count("requests")
        try:
            response = self._http.request(method, url + path, **rest)
        except httpx.HTTPError as error:
            self._journal.count(f"no response: {type(error).__name__}")
            return None
        if response.status_code >= 400:
            code = _json(response).get("code", "?")
            self._journal.count(f"refused: {method} {path.split('/')[1]} {response.status_code} {code}")
            if code in _NOT_FOR_CLIENTS:
                self._journal.fault(f"{method} {path} on {server.name}: {response.text[:500]}")
        return response

    def _post(self, submit: Submit, server: Server | None = None, **more: str) -> httpx.Response | None:
        query = {**submit.query, **more, "cp": "jobs", "mainClass": "torture_jobs.Work"}
        if submit.context is not None:
            query["context"] = submit.context
        config = {
            "kind": submit.kind,
            "number": submit.number,
            "seconds": submit.seconds,
            "runs": str(self._fleet.runs),
            "gate": str(self._fleet.directory / "gate"),
        }
        headers = {"Idempotency-Key": submit.key} if submit.key is not None else {}
        self._journal.count("submits")
        response = self.ask("POST", "/jobs", server, params=query, json=config, headers=headers)
        body = {} if response is None else _json(response)
        if "jobId" in body:
            self._journal.accepted(submit, body["jobId"])
            self._journal.count("accepted")
        return response

    def _submit(self) -> None:
        again = self._unanswered and self._dice.random() < 0.5
        submit = self._unanswered.pop() if again else self._new()
        if self._post(submit) is None and submit.key is not None:
            self._unanswered.append(submit)

    def _new(self) -> Submit:
        return self._journal.new(self._dice, self._fleet.receiver.url)

    def _submit_and_wait(self) -> None:
        submit = self._new()
        if submit.kind in ("gated", "stream"):
            return
        asked_at = time.monotonic()
        response = self._post(submit, sync="true", timeout="10")
        body = {} if response is None else _json(response)
        if response is None or response.status_code != 200 or "jobId" not in body:
            return
        self._journal.count("synchronous responses")
        state = body.get("status", "FINISHED")
        self._journal.seen(body["jobId"], state, asked_at, "a synchronous response")
        if state == "FINISHED" and body.get("result") != submit.result:
            self._journal.fault(f"submit {submit.number} was answered with {response.text[:200]}")

    def _submit_everywhere(self) -> None:
        """Submit one request with its key to all servers at once."""
        submit = self._new()
        submit.key = f"key-{submit.number}"
        threads = [
            threading.Thread(target=self._post, args=(submit, server), daemon=True)
            for server in self._fleet.servers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._journal.count("submits to all servers at once")

    def _kill(self) -> None:
        if jobs := self._journal.jobs:
            job_id, asked_at = self._dice.choice(jobs[-40:]), time.monotonic()
            force = {"force": "true"} if self._dice.random() < 0.1 else {}
            response = self.ask("DELETE", f"/jobs/{job_id}", params=force)
            if response is not None and response.status_code == 200:
                self._journal.count("kills of jobs")
                self._journal.seen(job_id, _json(response)["status"], asked_at, "a response to a kill")

    def _create(self) -> None:
        name = self._dice.choice(NAMES)
        settings = {} if name == "blue" else {"supervise": "true"}
        if name == "green" and self._fleet.cluster is not None:
            settings |= {"spark.master": self._fleet.cluster.master}
        response = self.ask("POST", f"/contexts/{name}", params=settings)
        if response is not None and response.status_code == 200:
            self._journal.count("contexts created")

    def _stop_context(self) -> None:
        response = self.ask("DELETE", f"/contexts/{self._dice.choice(NAMES)}")
        if response is not None and response.status_code in (200, 202):
            self._journal.count("contexts stopped")

    def _kill_context(self) -> None:
        path = f"/contexts/{self._dice.choice(NAMES)}"
        response = self.ask("DELETE", path, params={"force": "true"})
        if response is not None and response.status_code in (200, 202):
            self._journal.count("contexts killed by users")

    def _read(self) -> None:
        if jobs := self._journal.jobs:
            job_id, asked_at = self._dice.choice(jobs), time.monotonic()
            server = self._dice.choice(self._fleet.servers)
            response = self.ask("GET", f"/jobs/{job_id}", server, params={"result": "false"})
            if response is not None and response.status_code == 200:
                self._journal.seen(job_id, _json(response)["status"], asked_at, server.name)
            elif response is not None and response.status_code == 404:
                self._journal.fault(f"server {server.name} does not know job {job_id}, which was accepted")

    def _list(self) -> None:
        server, asked_at = self._dice.choice(self._fleet.servers), time.monotonic()
        response = self.ask("GET", "/jobs", server, params={"limit": "200"})
        if response is not None and response.status_code == 200:
            for record in response.json():
                self._journal.seen(record["jobId"], record["status"], asked_at, server.name)


def _json(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object of a response; empty if it has none."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
