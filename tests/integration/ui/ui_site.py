"""A running server, as the tests of the web UI use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import httpx

from conditions import wait_until

__all__ = ["Open", "Site", "forward_below_a_prefix", "section"]

Open = Callable[..., Any]
"""Opens a URL in a new browser context, whose options follow, and returns the page."""


def section(page: Any, name: str) -> Any:
    """Return a section of a page by its heading."""
    return page.get_by_role("region", name=name, exact=True)


def forward_below_a_prefix(page: Any) -> list[Any]:
    """Serve /spark/ from the server's root, as a reverse proxy does; return the requests, which grow."""
    asked: list[Any] = []

    def forward(route: Any) -> None:
        request = route.request
        asked.append(request)
        if "/spark/" not in request.url:
            route.abort()
        elif request.url.endswith("/events"):
            route.fulfill(content_type="text/event-stream", body=": listening\n\n")
        else:
            url = request.url.replace("/spark/", "/")
            response = httpx.request(request.method, url, headers=request.headers)
            route.fulfill(status=response.status_code, headers=dict(response.headers), body=response.content)

    page.route("http://**/*", forward)
    return asked


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
