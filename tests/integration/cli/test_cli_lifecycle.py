"""Many contexts at once, and the shutdown of a server whose JVMs hang, on real Spark."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import Serving

from conditions import wait_until
from jobserver_cli.exits import ExitCode
from jobserver_pyspark.demo import CLASS_NAME, build_example_wheel
from spark_server import remove_leftovers

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(600)]

LONG = 400.0


@pytest.fixture
def server(environment: dict[str, str], tmp_path: Path) -> Iterator[Serving]:
    config = tmp_path / "server.conf"
    config.write_text('spark.master = "local[1]"\njobserver.contexts.concurrent-starts = 2\n')
    one = Serving(["--config", str(config), "--data-dir", str(tmp_path / "data"), "--port", "0"], environment)
    yield one
    one.close()
    remove_leftovers(tmp_path / "data")


@pytest.fixture
def client(server: Serving, tmp_path: Path) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=LONG) as client:
        body = build_example_wheel(tmp_path).read_bytes()
        kind = {"Content-Type": "application/python-wheel"}
        assert client.post("/binaries/words", content=body, headers=kind).status_code == 201
        yield client


def processes_below(directory: Path) -> dict[int, str]:
    """Return the processes of contexts whose data is in a directory, with their command lines."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            where = os.readlink(process / "cwd")
        except OSError:
            continue
        if b"JOBSERVER_CONTEXT=" in environment and where.startswith(str(directory)):
            found[int(process.name)] = line
    return found


def test_many_jobs_with_contexts_of_their_own_at_once_all_finish(client: httpx.Client) -> None:
    responses: list[httpx.Response] = []
    query = {"appName": "words", "classPath": CLASS_NAME, "sync": "true", "timeout": str(int(LONG))}

    def submit() -> None:
        responses.append(client.post("/jobs", params=query, content="input.string = a b a"))

    threads = [threading.Thread(target=submit) for _ in range(6)]
    for thread in threads:
        thread.start()
    queued = "jobserver_contexts_queued 4.0"
    wait_until(lambda: queued in client.get("/metrics").text, "two contexts start, the others wait")
    for thread in threads:
        thread.join(LONG)
    results: list[Any] = [response.json()["result"] for response in responses]
    assert results == [{"a": 2, "b": 1}] * 6


def test_hosts_and_jvms_that_hang_do_not_delay_the_shutdown(
    server: Serving, client: httpx.Client, tmp_path: Path
) -> None:
    assert client.post("/contexts/hung").status_code == 200
    hung = processes_below(tmp_path)
    assert any("java" in line for line in hung.values())
    for pid in hung:
        os.kill(pid, signal.SIGSTOP)
    try:
        server.signal(signal.SIGTERM)
        assert server.wait() is ExitCode.OK, "it ended by itself, not because its time was over"
        assert "stopping contexts takes too long" not in server.errors
        wait_until(lambda: not processes_below(tmp_path), lambda: processes_below(tmp_path))
    finally:
        for pid in processes_below(tmp_path):
            os.kill(pid, signal.SIGKILL)
