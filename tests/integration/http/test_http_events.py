"""Events and logs in real time."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_site import Site, Start

from jobserver_core import Settings, Unavailable
from jobserver_core.events import JobChanged
from jobserver_core.memory import MemoryBlobStore
from jobserver_core.running.notices import POLL
from jobserver_http import Authenticator, Credentials, Identity, running
from jobserver_http.application import create_app
from jobserver_http.events import Listener
from serving import WAIT, a_request, a_server, report_result, upload
from several_servers import Member
from torture import shared_memory


def sent(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parse server-sent events; a comment is an event without a name."""
    name, data = "", ""
    for line in lines:
        if line.startswith(":"):
            yield "", {}
        elif line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data = line[6:]
        elif not line and name:
            yield name, json.loads(data)
            name = ""


def test_the_events_of_a_job_begin_with_its_record_and_end_with_its_outcome(start: Start) -> None:
    gate = threading.Event()

    def gated(job: Any) -> int:
        gate.wait(WAIT)
        from jobserver_core.models.jobs import JobProgress

        job.report(JobProgress(tasks_done=3, tasks_total=4))
        return 1

    site = start(functions={"w.Gated": gated})
    job_id = site.submit("w.Gated").json()["jobId"]
    site.until(job_id, "RUNNING")
    with site.client.stream("GET", f"/jobs/{job_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = sent(response.iter_lines())
        name, first = next(events)
        assert (name, first["jobId"], first["status"]) == ("job", job_id, "RUNNING")
        gate.set()
        rest = list(events)
    progress = [data["progress"] for name, data in rest if name == "progress"]
    assert {"stagesDone": 0, "stagesTotal": 0, "tasksDone": 3, "tasksTotal": 4} in progress
    assert (rest[-1][0], rest[-1][1]["status"]) == ("job", "FINISHED")


def test_the_events_of_a_job_that_ended_are_its_record(site: Site) -> None:
    job_id = site.submit("w.Fail", sync="true").json()["jobId"]
    (event,) = sent(iter(site.client.get(f"/jobs/{job_id}/events").text.split("\n")))
    assert (event[0], event[1]["status"]) == ("job", "ERROR")


def test_the_event_stream_covers_contexts_and_jobs(site: Site) -> None:
    with site.client.stream("GET", "/events") as response:
        events = sent(response.iter_lines())
        assert next(events)[0] == ""
        with httpx.Client(base_url=site.url) as other:
            other.post("/contexts/etl")
            other.post("/jobs?appName=words&classPath=w.Echo&context=etl&sync=true")
        seen = []
        for name, data in events:
            seen.append((name, data.get("state") or data.get("status")))
            if seen[-1] == ("job", "FINISHED"):
                break
    assert ("context", "STARTED") in seen
    assert ("context", "RUNNING") in seen
    assert seen.index(("job", "STARTED")) < seen.index(("job", "RUNNING"))


def test_a_quiet_stream_is_kept_alive_and_ends_with_the_client(start: Start) -> None:
    server = a_server().start()
    try:
        app = create_app(server)
        app.state.heartbeat = 0.05

        async def listen() -> list[bytes]:
            received: list[bytes] = []
            left = asyncio.Event()
            scope = {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.3"},
                "http_version": "1.1",
                "method": "GET",
                "path": "/events",
                "raw_path": b"/events",
                "root_path": "",
                "scheme": "http",
                "query_string": b"",
                "headers": [],
                "client": ("127.0.0.1", 1),
                "server": ("127.0.0.1", 2),
            }

            async def receive() -> Any:
                await left.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                received.append(message.get("body", b""))
                if received.count(b": still here\n\n") == 3:
                    left.set()

            await asyncio.wait_for(app(scope, receive, send), WAIT)
            return received

        assert asyncio.run(listen())[1] == b": listening\n\n"
        assert not server._services.bus._subscribers.keys() - {0, 1}
    finally:
        server.close()


class _Revocable(Authenticator):
    """Accepts every caller until access is revoked."""

    revoked = False
    failing = False

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> _Revocable:
        return cls()

    def authenticate(self, credentials: Credentials) -> Identity | None:
        self._check_source()
        return None if self.revoked else Identity(name="u", permissions=frozenset({"*"}))

    def current(self, identity: Identity) -> bool:
        self._check_source()
        return not self.revoked

    def _check_source(self) -> None:
        if self.failing:
            raise Unavailable(message="the directory of users does not respond")


@pytest.mark.parametrize("path", ["/events", "/jobs/{}/events", "/jobs/{}/logs?follow=true"])
def test_a_quiet_stream_ends_when_the_credentials_are_revoked(path: str) -> None:
    authenticator = _Revocable()
    with a_server().start() as server:
        upload(server)
        job = server.submit(a_request("w.Sleep"))
        app = create_app(server, authenticator=authenticator)
        app.state.heartbeat = 0.05

        async def revoking(scope: Any, receive: Any, send: Any) -> None:
            async def begin(message: Any) -> None:
                authenticator.revoked = True
                await send(message)

            await app(scope, receive, begin)

        async def follow() -> int:
            transport = httpx.ASGITransport(revoking)  # it returns a response once that has ended
            async with httpx.AsyncClient(transport=transport, base_url="http://h", auth=("u", "p")) as client:
                response = await asyncio.wait_for(client.get(path.format(job.id)), WAIT)
            return response.status_code

        assert asyncio.run(follow()) == 200
        assert not job.done()
        server.kill_job(job.id)


def test_an_event_after_the_credentials_were_revoked_is_not_sent(start: Start) -> None:
    authenticator = _Revocable()
    site = start(authenticator=authenticator, credentials=("u", "p"))
    with site.client.stream("GET", "/events") as response:
        events = sent(response.iter_lines())
        assert next(events)[0] == ""
        authenticator.revoked = True
        site.server.create_context("etl")
        assert next(events, None) is None


def test_while_users_cannot_be_read_requests_get_503_and_streams_end(start: Start) -> None:
    authenticator = _Revocable()
    site = start(authenticator=authenticator, credentials=("u", "p"))
    with site.client.stream("GET", "/events") as response:
        events = sent(response.iter_lines())
        assert next(events)[0] == ""
        authenticator.failing = True
        site.server.create_context("etl")
        assert next(events, None) is None
    for credentials in (("u", "p"), ("u", "never checked before")):
        refused = site.client.get("/contexts", auth=credentials)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert refused.json()["result"] == "the directory of users does not respond"
    authenticator.failing = False
    assert site.client.get("/contexts").status_code == 200


def test_a_slow_listener_loses_the_oldest_events_and_learns_how_many() -> None:
    async def slow() -> tuple[int, int, str]:
        loop = asyncio.get_running_loop()
        with a_server() as server:
            upload(server)
            with Listener(server, lambda event: isinstance(event, JobChanged), size=4) as listener:

                def work() -> None:
                    for _ in range(5):
                        server.submit(a_request("w.Echo")).finished.result(WAIT)

                await loop.run_in_executor(None, work)
                await listener.wait()
                await asyncio.sleep(0.05)
                lost, events = listener.take()
                assert listener.take() == (0, [])
                last = events[-1]
                assert isinstance(last, JobChanged)
                return lost, len(events), last.job.state.value

    lost, kept, last = asyncio.run(slow())
    assert kept == 4
    assert lost >= 10
    assert last == "FINISHED"


# -- several servers -------------------------------------------------------------------------------


@pytest.fixture
def members() -> Iterator[list[Member]]:
    """Two servers that share a store."""
    open_store, _ = shared_memory()
    blobs = MemoryBlobStore()
    members = [Member(open_store(), blobs) for _ in range(2)]
    for member in members:
        member.server.start()
    yield members
    for member in members:
        member.close()


def test_the_events_of_a_job_of_another_server_end_with_its_outcome(members: list[Member]) -> None:
    runs, other = members
    upload(runs.server)
    runs.server.create_context("shared")
    runs.ready()
    job_id = runs.running_job("shared")
    with (
        running(other.server) as url,
        httpx.stream("GET", f"{url}/jobs/{job_id}/events", timeout=WAIT) as response,
    ):
        events = sent(response.iter_lines())
        assert next(events)[1]["jobId"] == job_id
        report_result(runs.launcher.listeners[0], job_id, b"1")
        other.clock.advance(POLL)
        assert [(name, data.get("status")) for name, data in events if name] == [("job", "FINISHED")]


def test_a_log_on_another_server_is_followed_until_the_job_has_ended(members: list[Member]) -> None:
    runs, other = members
    upload(runs.server)
    runs.server.create_context("shared")
    runs.ready()
    job_id = runs.running_job("shared")
    path = runs.server._services.data_directory.job_log(job_id)
    path.write_text("line 0\n")
    with running(other.server) as url, httpx.Client(base_url=url, timeout=WAIT) as client:
        response = client.get(f"/jobs/{job_id}/logs")
        assert (response.text, response.headers["content-length"]) == ("line 0\n", "7")
        assert client.get(f"/jobs/{job_id}/logs?tail=3").text == " 0\n"
        with client.stream("GET", f"/jobs/{job_id}/logs?follow=true") as response:
            lines = response.iter_lines()
            assert next(lines) == "line 0"
            with path.open("a") as file:
                file.write("line 1\n")
            assert next(lines) == "line 1"
            with path.open("a") as file:
                file.write("last line\n")
            report_result(runs.launcher.listeners[0], job_id, b"1")
            other.clock.advance(POLL)
            assert list(lines) == ["last line"]
        context = runs.server._services.data_directory.context_log(runs.server.context("shared").id)
        context.write_text("driver\n")
        assert client.get("/contexts/shared/logs").text == "driver\n"
        runs.server._services.metadata.remove_server(runs.id)
        for query in ("", "?follow=true"):
            response = client.get(f"/contexts/shared/logs{query}")
            assert (response.status_code, response.json()["code"]) == (503, "unavailable")


# -- logs ------------------------------------------------------------------------------------------


def test_a_jobs_log_is_what_it_printed(start: Start) -> None:
    site = start(functions={"w.Print": lambda job: job.print("Grüße")})
    job_id = site.submit("w.Print", sync="true").json()["jobId"]
    response = site.client.get(f"/jobs/{job_id}/logs")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == "Grüße\n"
    assert response.headers["content-length"] == str(len(response.content))


def test_the_log_of_a_job_that_wrote_nothing_is_empty(site: Site) -> None:
    job_id = site.submit("w.Echo", sync="true").json()["jobId"]
    for query in ("", "?tail=3", "?follow=true"):
        response = site.client.get(f"/jobs/{job_id}/logs{query}")
        assert (response.status_code, response.text) == (200, "")


def test_a_log_is_followed_until_the_job_has_ended(start: Start) -> None:
    steps = [threading.Event() for _ in range(3)]

    def talk(job: Any) -> None:
        for number, step in enumerate(steps):
            step.wait(WAIT)
            job.print(f"line {number}")

    site = start(functions={"w.Talk": talk})
    job_id = site.submit("w.Talk").json()["jobId"]
    with site.client.stream("GET", f"/jobs/{job_id}/logs?follow=true") as response:
        lines = response.iter_lines()
        for number, step in enumerate(steps):
            step.set()
            assert next(lines) == f"line {number}"
        assert list(lines) == []
    assert site.client.get(f"/jobs/{job_id}").json()["status"] == "FINISHED"


def test_a_contexts_log_is_shown_and_followed(site: Site) -> None:
    site.client.post("/contexts/etl")
    assert site.client.get("/contexts/etl/logs").text == "context etl runs inline\n"
    with site.client.stream("GET", "/contexts/etl/logs?follow=true") as response:
        lines = response.iter_lines()
        assert next(lines) == "context etl runs inline"
        with httpx.Client(base_url=site.url) as other:
            other.delete("/contexts/etl")
        assert list(lines) == []
    assert site.client.get("/contexts/none/logs").status_code == 404


def test_the_end_of_a_log_is_sent_alone(site: Site) -> None:
    site.client.post("/contexts/etl")
    log = "/contexts/etl/logs"
    for tail, text in [(7, "inline\n"), (0, ""), (1000, "context etl runs inline\n")]:
        assert site.client.get(log, params={"tail": tail}).text == text
    with site.client.stream("GET", log, params={"tail": 7, "follow": True}) as response:
        lines = response.iter_lines()
        assert next(lines) == "inline"


def test_a_log_is_sent_as_long_as_it_was_when_it_was_asked_for(start: Start) -> None:
    stop = threading.Event()

    def chatter(job: Any) -> None:
        while not stop.is_set():
            job.print("x" * 100)
            job.sleep(0.0005)  # fast enough to write between two reads, and the log stays small

    site = start(functions={"w.Chatter": chatter})
    job_id = site.submit("w.Chatter").json()["jobId"]
    time.sleep(0.1)
    try:
        for _ in range(20):
            response = site.client.get(f"/jobs/{job_id}/logs")
            assert len(response.content) == int(response.headers["content-length"])
    finally:
        stop.set()


@pytest.mark.parametrize("path", ["/jobs/{}/logs", "/jobs/{}/events", "/jobs/{}/logs?follow=true"])
def test_head_of_a_stream_has_no_body_and_ends(site: Site, path: str) -> None:
    job_id = site.sleeping()
    response = site.client.head(path.format(job_id))
    assert (response.status_code, response.content) == (200, b"")
