"""A running server, as the tests of the web UI use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import httpx

from conditions import wait_until

__all__ = ["Open", "Site"]

Open = Callable[..., Any]
"""Opens a URL in a new browser context, whose options follow, and returns the page."""


@attrs.frozen
class Site:
    """A server's base URL, and a client of its API."""

    url: str
    client: httpx.Client

    def page(self, path: str = "") -> str:
        """Return the URL of a page of the UI."""
        return f"{self.url}/#/{path}"

    def submit(self, class_name: str, body: str = "", **params: Any) -> str:
        """Submit one of the jobs of ``serving``, and return its ID."""
        query = {"appName": "words", "classPath": class_name, "context": "warm", **params}
        if params.get("context", "warm") not in self.client.get("/contexts").json():
            self.client.post(f"/contexts/{query['context']}")
        job_id: str = self.client.post("/jobs", params=query, content=body).json()["jobId"]
        return job_id

    def until(self, job_id: str, state: str) -> None:
        """Wait until a job is in a state."""
        wait_until(lambda: self.client.get(f"/jobs/{job_id}").json()["status"] == state, f"{job_id} {state}")
