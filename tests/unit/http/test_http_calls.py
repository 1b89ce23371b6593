"""What all handlers share: waiting, and parsing what was posted."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from jobserver_core import Context, InvalidRequest
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.running.fetching import FetchedFiles, Preparation
from jobserver_core.running.waiting import Waiter
from jobserver_http.application import create_app
from jobserver_http.authentication import Authenticator, Credentials
from jobserver_http.calls import Call
from jobserver_http.routes import GROUPS
from jobserver_http.thread_pools import ThreadPools
from serving import WAIT, a_server


async def post_while_another_configuration_is_parsed() -> httpx.Response:
    """Post a large configuration that has to wait for its turn, and close the application meanwhile."""
    other_ends = threading.Event()
    with a_server() as server:
        application = create_app(server)
        parsing = application.state.threads.parsing
        other = asyncio.ensure_future(parsing.run(other_ends.wait, WAIT))
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            url = "/jobs?appName=words&classPath=w.Echo"
            request = asyncio.ensure_future(client.post(url, content="value = 1\n" * 10_000))
            deadline = time.monotonic() + WAIT
            while parsing._limiter is None or not parsing._limiter.statistics().tasks_waiting:
                assert time.monotonic() < deadline, "the request never waits for its turn"
                await asyncio.sleep(0.01)
            application.close()
            response = await request
        other_ends.set()
        await other
    return response


def test_a_request_whose_configuration_was_not_parsed_when_the_server_stops_gets_503() -> None:
    response = asyncio.run(post_while_another_configuration_is_parsed())
    assert response.status_code == 503
    assert response.json()["code"] == "server_closed"


def test_an_operation_without_a_value_is_finished_once() -> None:
    finished: list[str] = []

    async def wait(*_arguments: object) -> None: ...

    def begin(_config: JsonMapping) -> Preparation[None]:
        return Preparation(FetchedFiles((), lambda _files: None), lambda: finished.append("once"))

    with a_server() as server:
        call: Any = SimpleNamespace(server=server, threads=ThreadPools(), wait=wait)
        asyncio.run(Call.run_prepared(call, "", begin))
    assert finished == ["once"]


async def read_while_other_servers_do_not_answer() -> httpx.Response:
    """Read the contexts while as many kills as there are threads wait for other servers."""
    answered = threading.Event()
    with a_server() as server:
        kill = server.kill_context

        def kill_late(name: str) -> Waiter[Context]:
            answered.wait(WAIT)
            return kill(name)

        server.kill_context = kill_late  # type: ignore[method-assign]
        transport = httpx.ASGITransport(create_app(server))
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=WAIT) as client:
            kills = [asyncio.ensure_future(client.delete("/contexts/x?force=true")) for _ in range(16)]
            await asyncio.sleep(0)
            try:
                return await asyncio.wait_for(client.get("/contexts"), WAIT / 2)
            finally:
                answered.set()
                await asyncio.gather(*kills)


@pytest.mark.parametrize("guarded", [False, True])
def test_a_mounted_application_is_ready_while_its_server_accepts_jobs(guarded: bool) -> None:
    server = a_server()
    app = create_app(server, authenticator=Nobody() if guarded else None)
    transport = httpx.ASGITransport(app)

    def readiness() -> tuple[int, str | None]:
        async def get() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.get("/readyz")

        response = asyncio.run(get())
        return response.status_code, response.json().get("result")

    def refused(why: str) -> tuple[int, str]:
        return 503, "the job server does not accept jobs" if guarded else why

    not_started = "the job server is not started; use it in a with block, or call start() first"
    assert readiness() == refused(not_started)
    with server:
        assert readiness() == (200, None)
        server.drain()
        assert readiness() == refused("the job server is shutting down and accepts no new work")
    assert readiness() == refused("the job server is closed; create a new one")


class Nobody(Authenticator):
    """Lets nobody log in."""

    def authenticate(self, credentials: Credentials) -> None:
        return None


@pytest.mark.parametrize(
    ("routes", "problem"),
    [
        ("jobs", "routes must be a list of names of groups or routes, such as 'jobs', not str"),
        (["jobs", 3], "routes must be a list of names of groups or routes, such as 'jobs', but one is int"),
        (["job"], "unknown route or group 'job'; the groups are "),
    ],
)
def test_routes_that_do_not_exist_are_refused_in_words(routes: Any, problem: str) -> None:
    with a_server() as server, pytest.raises(InvalidRequest, match=f"^{re.escape(problem)}"):
        create_app(server, routes=routes)


def test_the_guide_names_every_group_of_routes() -> None:
    guide = (Path(__file__).parents[3] / "docs/howto/mount-in-fastapi.md").read_text(encoding="utf-8")
    found = re.search(r"`routes` selects groups \(([^)]*)\)", guide)
    assert found is not None
    assert sorted(re.findall(r"`(\w+)`", found[1])) == sorted(GROUPS)


def test_reads_do_not_wait_behind_kills_that_wait_for_other_servers() -> None:
    assert asyncio.run(read_while_other_servers_do_not_answer()).status_code == 200
