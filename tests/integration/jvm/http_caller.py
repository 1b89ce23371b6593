"""A server with real Spark over HTTP, and the requests of its clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from conditions import SPARK_WAIT, wait_until
from jobserver_core import JobServer
from jobserver_core.config.loading import load_settings
from jobserver_http import running

FACTORIES = "spark.jobserver.context"


class Caller:
    """A client of a server that has the sample jars."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def upload(self, name: str, jar: Path) -> None:
        headers = {"Content-Type": "application/java-archive"}
        response = self.client.post(f"/binaries/{name}", content=jar.read_bytes(), headers=headers)
        assert response.status_code == 201, response.text

    def send(self, main_class: str, config: str = "", app: str = "old", **params: Any) -> httpx.Response:
        """Submit a job; a class of no package is one of the old samples'."""
        name = main_class if "." in main_class else f"spark.jobserver.{main_class}"
        query = {"appName": app, "classPath": name, **params}
        return self.client.post("/jobs", params=query, content=config)

    def submit(self, main_class: str, config: str = "", app: str = "old", **params: Any) -> Any:
        response = self.send(main_class, config, app, **params)
        assert response.status_code in (200, 202), response.text
        return response.json()

    def result(self, main_class: str, config: str = "", app: str = "old", **params: Any) -> Any:
        body = self.submit(main_class, config, app, sync="true", timeout=int(SPARK_WAIT), **params)
        assert "status" not in body, body
        return body["result"]

    @contextmanager
    def context(self, name: str, factory: str | None = None, **settings: Any) -> Iterator[str]:
        """A context for a while."""
        if factory is not None:
            settings["context-factory"] = f"{FACTORIES}.{factory}"
        response = self.client.post(f"/contexts/{name}", params=settings)
        assert response.status_code == 200, response.text
        yield name
        response = self.client.delete(f"/contexts/{name}")
        assert response.status_code == 200, response.text

    def record(self, job_id: str) -> Any:
        return self.client.get(f"/jobs/{job_id}").json()

    def log(self, job_id: str) -> str:
        return self.client.get(f"/jobs/{job_id}/logs").text

    def running(self, main_class: str, config: str = "", app: str = "old", **params: Any) -> str:
        """Submit a job and wait until it runs; its id."""
        job_id: str = self.submit(main_class, config, app, **params)["jobId"]
        self.until(lambda: self.record(job_id)["status"] == "RUNNING", f"{main_class} running")
        return job_id

    def ended(self, job_id: str) -> Any:
        """The record of a job, once it is final."""
        self.until(lambda: self.record(job_id)["status"] in ("FINISHED", "ERROR", "KILLED"), "the job's end")
        return self.record(job_id)

    @staticmethod
    def until(condition: Callable[[], object], what: str) -> None:
        wait_until(condition, what, SPARK_WAIT)


@contextmanager
def calling(data: Path, jars: dict[str, Path], **settings: Any) -> Iterator[Caller]:
    """A server that has these jars, in this process."""
    merged = {
        "jobserver.data-dir": str(data),
        "jobserver.http.port": 0,
        "jobserver.contexts.creation-timeout": f"{SPARK_WAIT} s",
        "spark.master": "local[2]",
        **settings,
    }
    server = JobServer.from_settings(load_settings(overrides=merged))
    with running(server) as url, httpx.Client(base_url=url, timeout=SPARK_WAIT) as client:
        caller = Caller(client)
        for name, jar in jars.items():
            caller.upload(name, jar)
        yield caller
