"""A job server in memory behind a real socket, and a client for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import httpx

from conditions import wait_until
from jobserver_core import JobServer

__all__ = ["WHEEL", "Site", "Start"]

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
        reports: list[dict[str, Any]] = []

        def reached() -> bool:
            reports.append(self.client.get(f"/jobs/{job_id}").json())
            return reports[-1]["status"] in states

        wait_until(reached, lambda: reports[-1])
        return reports[-1]

    def sleeping(self, **params: Any) -> str:
        """Return the id of a job that runs and does nothing."""
        job_id: str = self.submit("w.Sleep", **params).json()["jobId"]
        self.until(job_id, "RUNNING")
        return job_id


Start = Callable[..., Site]
