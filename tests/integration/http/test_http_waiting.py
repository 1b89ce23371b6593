"""Waiting clients cost no threads, lose nothing when they disconnect, and learn nothing once locked out."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from http_site import WHEEL, Site, Start

from conditions import wait_until
from jobserver_core import JobState, Settings
from jobserver_http import Authenticator, Credentials, Identity
from serving import WAIT, archive

CLIENTS = 200


def test_two_hundred_clients_that_wait_cost_no_threads(start: Start) -> None:
    gate = threading.Event()

    def gated(_job: object) -> str:
        gate.wait(WAIT * 3)
        return "open"

    # One job runs; the others wait for its slot, so that jobs do not cost threads either.
    site = start(
        {"jobs": {"max-jobs-per-context": 1, "max-queued-jobs": CLIENTS}}, functions={"w.Gated": gated}
    )
    site.client.post("/contexts/etl")
    before = threading.active_count()

    async def all_of_them() -> tuple[int, list[httpx.Response]]:
        limits = httpx.Limits(max_connections=CLIENTS + 10)
        async with httpx.AsyncClient(base_url=site.url, timeout=60, limits=limits) as client:
            query = "/jobs?appName=words&classPath=w.Gated&context=etl&sync=true&timeout=50"
            waiting = [asyncio.ensure_future(client.post(query)) for _ in range(CLIENTS)]
            deadline = time.monotonic() + 30
            while len((await client.get("/jobs?limit=1000")).json()) < CLIENTS:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
            most = threading.active_count()
            gate.set()
            return most, await asyncio.gather(*waiting)

    most, responses = asyncio.run(all_of_them())
    assert [response.status_code for response in responses] == [200] * CLIENTS
    assert {response.json()["result"] for response in responses} == {"open"}
    assert most - before < 50, f"{most - before} threads more for {CLIENTS} clients"


def test_a_client_that_disconnects_does_not_end_its_job(site: Site) -> None:
    url = httpx.URL(site.url)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(
            b"POST /jobs?appName=words&classPath=w.Sleep&sync=true&timeout=1000 HTTP/1.1\r\n"
            b"Host: localhost\r\nContent-Length: 0\r\n\r\n"
        )
        while not (jobs := site.client.get("/jobs").json()):
            time.sleep(0.01)
        site.until(jobs[0]["jobId"], "RUNNING")
    abandoned = 'route="submit_job",status="499"'
    wait_until(lambda: abandoned in site.client.get("/metrics").text, "the server waits for no client")
    assert site.client.get(f"/jobs/{jobs[0]['jobId']}").json()["status"] == "RUNNING"
    assert site.client.delete(f"/jobs/{jobs[0]['jobId']}").json() == {"status": "KILLED"}


def test_an_asynchronous_submit_waits_for_the_validation_no_longer_than_configured(start: Start) -> None:
    site = start({"jobs": {"start-timeout": "100 ms"}}, start_delay=3.0)
    response = site.submit("w.Refuse")
    assert response.status_code == 202  # one that waited would have been refused
    record = site.until(response.json()["jobId"], "ERROR")
    assert record["result"]["message"] == "input.string is missing"


def test_a_job_that_runs_longer_than_the_client_allows_ends_with_that_reason(site: Site) -> None:
    response = site.submit("w.Sleep", sync="true", timeout=30, maxRunTime=1)
    assert response.status_code == 200
    assert response.json()["status"] == "ERROR"
    assert response.json()["result"]["message"].endswith("ran longer than its limit of 1 s")
    record = site.client.get(f"/jobs/{response.json()['jobId']}").json()
    assert (record["status"], record["maxRunTime"]) == ("ERROR", 1)


def test_a_job_that_waits_longer_than_the_client_allows_is_refused_as_without_a_slot(start: Start) -> None:
    site = start({"jobs": {"max-jobs-per-context": 1}})
    site.client.post("/contexts/etl")
    site.sleeping(context="etl")
    response = site.submit("w.Echo", context="etl", sync="true", timeout=30, maxQueueTime=1)
    assert response.status_code == 503
    assert response.json()["status"] == "NO SLOTS AVAILABLE"
    assert response.json()["code"] == "queue_time_exceeded"


def test_limits_of_time_are_refused_unless_they_are_whole_positive_seconds(site: Site) -> None:
    for value in ("0", "-1", "1.5", "1h", "99999999999"):
        assert site.submit("w.Echo", maxRunTime=value).status_code == 400
        assert site.submit("w.Echo", maxQueueTime=value).status_code == 400
    assert site.client.post("/contexts/c?idle-timeout=60").status_code == 400
    assert site.client.post("/contexts/c?idle-timeout=1h").status_code == 200


def test_a_server_that_sheds_load_says_so_and_stays_ready(start: Start) -> None:
    site = start({"jobs": {"max-jobs-per-context": 1, "max-queued-jobs": 1}})
    site.client.post("/contexts/etl")
    site.sleeping(context="etl")
    assert site.submit("w.Echo", context="etl").json()["waiting"] is True
    assert site.client.get("/readyz").json() == {"status": "SUCCESS"}
    refused = site.submit("w.Echo", context="etl")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert refused.json()["detail"] == (
        "the queue is full (1 waiting, jobserver.jobs.max-queued-jobs = 1), and so are the slots "
        "(jobserver.jobs.max-jobs-per-context = 1); try again when a job has ended"
    )
    ready = site.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["result"].startswith("shedding load")
    metrics = site.client.get("/metrics").text
    assert "jobserver_jobs_refused_total 1.0" in metrics
    assert "jobserver_shedding_load 1.0" in metrics
    assert "jobserver_jobs_waiting 1.0" in metrics
    assert "jobserver_jobs_running 1.0" in metrics


# -- callers who are locked out while they wait --------------------------------------------------------


class _Lockable(Authenticator):
    """Knows one caller, whose permissions can change; without any, nobody is known."""

    permissions = frozenset({"*"})
    checks = 0

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> _Lockable:
        return cls()

    def authenticate(self, credentials: Credentials) -> Identity | None:
        return Identity(name="u", permissions=self.permissions) if self.permissions else None

    def current(self, identity: Identity) -> bool:
        current = identity.permissions == self.permissions
        self.checks += 1
        return current


@pytest.mark.parametrize(
    ("permissions", "status", "code"),
    [
        ((), 401, "unauthenticated"),
        (("jobs:read",), 403, "permission_denied"),
        (("jobs:read", "jobs:start"), 200, None),
    ],
)
def test_a_result_goes_only_to_a_caller_who_might_still_ask_for_it(
    start: Start, permissions: tuple[str, ...], status: int, code: str | None
) -> None:
    gate, authenticator = threading.Event(), _Lockable()

    def gated(_job: object) -> str:
        gate.wait(WAIT)
        return "the result"

    site = start(authenticator=authenticator, credentials=("u", "p"), functions={"w.Gated": gated})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(site.submit, "w.Gated", sync="true", timeout=60)
        wait_until(lambda: any(job.state is JobState.RUNNING for job in site.server.jobs().jobs))
        authenticator.permissions = frozenset(permissions)
        gate.set()
        response = waiting.result(WAIT)
    assert (response.status_code, response.json().get("code")) == (status, code)
    assert ("the result" in response.text) == (status == 200)
    assert ("www-authenticate" in response.headers) == (status == 401)
    (job,) = site.server.jobs().jobs
    assert response.json()["jobId"] == job.id
    assert (f"job {job.id} continues" in response.text) == (status != 200)
    wait_until(lambda: site.server.job(job.id).state is JobState.FINISHED)


def test_a_caller_who_is_locked_out_before_its_job_runs_learns_the_name_of_the_job(start: Start) -> None:
    authenticator = _Lockable()
    site = start(authenticator=authenticator, credentials=("u", "p"), start_delay=2.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(site.submit, "w.Echo")
        wait_until(lambda: site.server.jobs().jobs)
        authenticator.permissions = frozenset()
        response = waiting.result(WAIT)
    (job,) = site.server.jobs().jobs
    assert (response.status_code, response.json()["jobId"]) == (401, job.id)


def test_a_caller_who_is_locked_out_does_not_learn_how_a_context_starts_or_ends(start: Start) -> None:
    authenticator = _Lockable()
    site = start(authenticator=authenticator, credentials=("u", "p"), start_delay=2.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(site.client.post, "/contexts/etl")
        wait_until(site.server.contexts)
        authenticator.permissions = frozenset()
        assert waiting.result(WAIT).json()["code"] == "unauthenticated"
    assert [context.name for context in site.server.contexts()] == ["etl"]


@pytest.mark.parametrize("path", ["/binaries/late", "/data/late", "/jobs?appName=words&classPath=w.Echo"])
def test_a_body_that_is_complete_only_after_its_caller_was_locked_out_changes_nothing(
    start: Start, path: str
) -> None:
    authenticator = _Lockable()
    site = start(authenticator=authenticator, credentials=("u", "p"))
    before = authenticator.checks

    def body() -> Iterator[bytes]:
        yield archive()[:10]
        wait_until(lambda: authenticator.checks > before, "the server begins the call")
        authenticator.permissions = frozenset()
        yield archive()[10:]

    response = site.client.post(path, content=body(), headers=WHEEL)
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
    assert [binary.name for binary in site.server.binaries()] == ["words"]
    assert site.server.data_files() == []
    assert site.server.jobs().jobs == ()
