"""A job server in memory behind a real socket, and a client for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import attrs
import httpx
import pytest

from jobserver_core import JobServer, Settings
from jobserver_http import Authenticator, running
from serving import WAIT, a_server, archive

WHEEL = {"Content-Type": "application/python-wheel"}


@attrs.frozen
class Site:
    """A running server, its base URL, and a client."""

    server: JobServer
    url: str
    client: httpx.Client

    def submit(self, class_name: str, body: str = "", **params: Any) -> httpx.Response:
        """Submit one of the jobs of ``serving``."""
        query = {"appName": "words", "classPath": class_name, **params}
        return self.client.post("/jobs", params=query, content=body)

    def until(self, job_id: str, *states: str) -> dict[str, Any]:
        """Wait until a job is in one of some states, and return its report."""
        deadline = time.monotonic() + WAIT
        while True:
            report: dict[str, Any] = self.client.get(f"/jobs/{job_id}").json()
            if report["status"] in states:
                return report
            assert time.monotonic() < deadline, report
            time.sleep(0.01)

    def sleeping(self, **params: Any) -> str:
        """Return the id of a job that runs and does nothing."""
        job_id: str = self.submit("w.Sleep", **params).json()["jobId"]
        self.until(job_id, "RUNNING")
        return job_id


Start = Callable[..., Site]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that are gone after the test."""
    with ExitStack() as stack:

        def begin(
            settings: Mapping[str, Any] | None = None,
            *,
            authenticator: Authenticator | None = None,
            credentials: tuple[str, str] | None = None,
            functions: Mapping[str, Any] | None = None,
            **rest: Any,
        ) -> Site:
            given = dict(settings or {})
            # No test waits for jobs that it left running.
            http = {"port": 0, "drain-timeout": "0 s", **given.pop("http", {})}
            mapping = {"jobserver": {**given, "http": http}}
            server = a_server(settings=Settings.from_mapping(mapping), **rest)
            for name, function in (functions or {}).items():
                server._services.launcher.register(name, function)
            url = stack.enter_context(running(server, authenticator=authenticator))
            client = stack.enter_context(httpx.Client(base_url=url, timeout=WAIT, auth=credentials))
            site = Site(server, url, client)
            if credentials is None or "words" not in credentials:
                answer = client.post("/binaries/words", content=archive(), headers=WHEEL)
                assert answer.status_code == 201, answer.text
            return site

        yield begin


@pytest.fixture
def site(start: Start) -> Site:
    """A server with default settings, and the binary ``words``."""
    return start()
