"""A job server in memory behind a real socket, and a client for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
import httpx

from conditions import wait_until
from jobserver_core import JobServer

__all__ = ["JAR", "TIME", "WHEEL", "Site", "Start", "error", "error_object", "ok"]

JAR = {"Content-Type": "application/java-archive"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d:\d\d)")


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
        """Wait until a job is in one of some states, and return its record."""
        records: list[dict[str, Any]] = []

        def reached() -> bool:
            records.append(self.client.get(f"/jobs/{job_id}").json())
            return records[-1]["status"] in states

        wait_until(reached, lambda: records[-1])
        return records[-1]

    def sleeping(self, **params: Any) -> str:
        """Return the id of a job that runs and does nothing."""
        job_id: str = self.submit("w.Sleep", **params).json()["jobId"]
        self.until(job_id, "RUNNING")
        return job_id


Start = Callable[..., Site]


def ok(response: httpx.Response, status: int, body: Any) -> None:
    assert (response.status_code, response.json()) == (status, body)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["content-length"] == str(len(response.content))


def error(response: httpx.Response, status: int, text: str) -> None:
    """Check a response that is a failure in the contract's plain shape, with our members beside it."""
    body = response.json()
    for extension in ("fields", "jobId", "detail"):
        body.pop(extension, None)
    assert re.fullmatch(r"[a-z_]+", body.pop("code"))
    assert (response.status_code, body) == (status, {"status": "ERROR", "result": text})
    assert response.headers["content-type"] == "application/json"


def error_object(response: httpx.Response, status: int, label: str) -> dict[str, str]:
    assert response.status_code == status
    body = response.json()
    assert body["status"] == label
    assert set(body["result"]) == {"message", "errorClass", "stack"}
    result: dict[str, str] = body["result"]
    return result
