"""The examples of the HTTP front-end, run as a reader would run them."""

from __future__ import annotations

import runpy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from conditions import wait_until
from jobserver_core import Settings
from jobserver_core.ports import ContextEnd
from jobserver_core.testing.server import InMemoryJobServer
from jobserver_http import create_app
from serving import WAIT, ScriptedLauncher, a_server, count

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def slow(job: Any) -> Any:
    if "slowly" in job.config["input"]["string"]:
        job.sleep(0.5)
    if "wrong" in job.config["input"]["string"]:
        raise ValueError("no such word")
    return count(job)


def words_server() -> InMemoryJobServer:
    settings = Settings.from_mapping({"spark": {"contexts": {"warm": {}}}})
    server = InMemoryJobServer.in_memory(settings=settings)
    server.define("wordcount.WordCount", slow)
    return server


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name / "app.py"))


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an ASGI application on a thread, with its life, as uvicorn does."""
    web = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=web.run)
    thread.start()
    try:
        wait_until(lambda: web.started)
        yield f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
    finally:
        web.should_exit = True
        thread.join()


def test_the_job_server_is_mounted_below_a_path_of_a_fastapi_service() -> None:
    server = words_server()
    service = example("fastapi_mount")["build"](server)
    with served(service) as url, httpx.Client(base_url=url, timeout=WAIT) as client:
        assert client.get("/words", params={"text": "a b a"}).json() == {"a": 2, "b": 1}
        assert client.get("/words", params={"text": "wrong"}).status_code == 502
        assert {job.context_name for job in server.jobs().jobs} == {"warm"}
        assert client.get("/openapi.json").json()["info"]["title"] == "Reports"
        spark = "/spark"
        assert set(client.get(f"{spark}/binaries").json()) == {"wordcount"}
        response = client.post(
            f"{spark}/jobs?appName=wordcount&classPath=wordcount.WordCount&sync=true",
            content="input.string = a a",
        )
        assert response.json()["result"] == {"a": 2}
        assert client.get(f"{spark}/openapi.json").json()["servers"] == [{"url": "."}]
        assert client.get(f"{spark}/").headers["content-type"].startswith("text/html")
        assert client.get(f"{spark}/ui/app.js").status_code == 200
        page = client.get(f"{spark}/docs").text
        assert 'src="docs/docs.js"' in page
        assert client.get(f"{spark}/docs/docs.js").status_code == 200
        for number in range(3):
            client.post(
                f"{spark}/jobs?appName=wordcount&classPath=wordcount.WordCount",
                content=f"input.string = {number}",
            )
        first = client.get(f"{spark}/jobs?limit=1")
        assert len(client.get(first.url.join(first.links["next"]["url"])).json()) == 1
        assert client.get(f"{spark}/nothing").json()["status"] == "ERROR"
        assert client.get("/binaries").status_code == 404


def test_a_context_that_stops_slowly_is_located_below_the_mount() -> None:
    settings = Settings.from_mapping({"jobserver": {"contexts": {"deletion-timeout": "100 ms"}}})
    launcher = ScriptedLauncher(at_start=lambda told: told.context_ready(application_id=None, url=None))
    outer = FastAPI()
    with a_server(settings=settings, launcher=launcher) as server:
        outer.mount("/deep/spark", create_app(server))
        with served(outer) as url, httpx.Client(base_url=url, timeout=WAIT) as client:
            client.post("/deep/spark/contexts/etl")
            response = client.delete("/deep/spark/contexts/etl")
            assert (response.status_code, response.content) == (202, b"")
            assert client.get(response.url.join(response.headers["location"])).json()["state"] == "STOPPING"
        launcher.listeners[0].context_ended(ContextEnd.STOPPED)


@pytest.mark.parametrize(
    ("routes", "there", "missing"),
    [
        (["binaries"], "/binaries", "/jobs"),
        (["jobs"], "/jobs", "/binaries"),
        (["list_contexts"], "/contexts", "/contexts/etl"),
    ],
)
def test_an_application_can_have_some_of_the_routes_only(routes: list[str], there: str, missing: str) -> None:
    with words_server() as server, served(create_app(server, routes=routes)) as url:
        assert httpx.get(url + there).status_code == 200
        assert httpx.get(url + missing).status_code == 404
        assert httpx.get(f"{url}/openapi.json").status_code == 404


def test_a_flask_service_runs_jobs_through_the_library() -> None:
    with words_server() as server:
        client = example("flask_service")["build"](server, timeout=0.1).test_client()
        assert client.post("/words", data="a b a").get_json() == {"a": 2, "b": 1}
        slow_answer = client.post("/words", data="slowly")
        assert slow_answer.status_code == 202
        job_id = slow_answer.get_json()["job"]
        assert client.get(f"/words/{job_id}").status_code == 202
        server.job_handle(job_id).result(WAIT)
        assert client.get(f"/words/{job_id}").get_json() == {"slowly": 1}
        failed = client.post("/words", data="wrong")
        assert (failed.status_code, failed.get_json()) == (502, {"error": "no such word"})
        assert client.get("/words/none").status_code == 404
        assert {job.context_name for job in server.jobs().jobs} == {"warm"}
