"""Real servers with Spark, in processes of their own, over HTTP."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from context_processes import command, marker, processes_in

from conditions import SPARK_WAIT, wait_until
from jobserver_core.models.json_values import JsonObject
from jobserver_core.ports import JobCode
from jobserver_pyspark.launcher.context_settings import flattened
from jobserver_sql.testing import PostgresqlServer
from spark_server import remove_leftovers

_numbers = itertools.count(1)
until = partial(wait_until, timeout=SPARK_WAIT, pause=0.05)
CONFIG = """
spark.master = "local[2]"
jobserver {
  http.port = 0
  contexts { reattach-timeout = %s, on-shutdown = %s }
  jobs.max-jobs-per-context = 4
  launcher.options.spare-runners = 1
}
%s
"""


SHARED = """
jobserver {{
  metadata.url = "{url}"
  blobs.url = "{blobs}"
  servers {{ lease = {lease} s, address = "{name}" }}
}}
"""


class World:
    """A data directory, and the servers on it. ``more`` is added to their configuration."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder = folder
        self._more = more
        self.client: httpx.Client
        self._process: subprocess.Popen[bytes] | None = None

    def serve(self, *, reattach_timeout: str = "2 minutes", on_shutdown: str = "stop") -> None:
        """Start a server and wait until it listens."""
        config = self.folder / "server.conf"
        config.write_text(CONFIG % (reattach_timeout, on_shutdown, self._more))
        environment = {key: value for key, value in os.environ.items() if not key.startswith("JOBSERVER_")}
        serve = [sys.executable, "-m", "jobserver_cli", "serve"]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*serve, "--config", str(config), "--data-dir", str(self.folder / "data")],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        url = self._process.stdout.readline().decode().strip()
        self.client = httpx.Client(base_url=url, timeout=SPARK_WAIT)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the server with a signal, and wait for its process."""
        if self._process is not None:
            self.client.close()
            self._process.send_signal(number)
            self._process.wait(SPARK_WAIT)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def upload(self, name: str, binary: JobCode, kind: str) -> None:
        headers = {"Content-Type": f"application/{kind}"}
        response = self.client.post(f"/binaries/{name}", content=binary.path.read_bytes(), headers=headers)
        assert response.status_code == 201, response.text

    def submit(
        self, name: str, binary: str = "jobs", *, context: str = "shared", again: bool = False, **config: Any
    ) -> str:
        query = {
            "cp": binary,
            "mainClass": name,
            "context": context,
            "restartable": "true" if again else None,
        }
        params = {key: value for key, value in query.items() if value is not None}
        response = self.client.post("/jobs", params=params, json=config)
        assert response.status_code == 202, response.text
        return str(response.json()["jobId"])

    def state(self, job_id: str) -> str:
        jobs = self.client.get("/jobs").json()
        return next(str(job["status"]) for job in jobs if job["jobId"] == job_id)

    def wait_for(self, job_id: str, state: str) -> None:
        until(lambda: self.state(job_id) in (state, "ERROR", "KILLED"))
        assert self.state(job_id) == state, self.client.get(f"/jobs/{job_id}").text

    def result(self, job_id: str) -> Any:
        self.wait_for(job_id, "FINISHED")
        response = self.client.get(f"/jobs/{job_id}")
        return response.json()["result"]

    def context(self, name: str = "shared") -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/contexts/{name}").json()
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        assert self._process is not None
        self._process.send_signal(number)

    def processes(self) -> list[str]:
        """Return the commands of all processes of contexts."""
        return list(self.commands().values())

    def commands(self) -> dict[int, str]:
        """Return the commands of all processes of contexts by their ids."""
        return {
            pid: command(pid).replace(b"\0", b" ").decode()
            for pid in processes_in(self.folder)
            if marker(pid) is not None
        }


@contextmanager
def worlds_over_one_database(
    folder: Path, server: PostgresqlServer, *, lease: float = 4.0, more: str = ""
) -> Iterator[tuple[World, World]]:
    """Two worlds whose servers share a database and know each other; what is left of them ends."""
    database = f"worlds{next(_numbers)}"
    worlds = []
    for name in ("first", "second"):
        directory = folder / name
        directory.mkdir()
        shared = SHARED.format(url=server.url(database), blobs=folder / "blobs", name=name, lease=lease)
        worlds.append(World(directory, shared + more))
    first, second = worlds
    server.database(database)
    try:
        yield first, second
    finally:
        for world in worlds:
            world.end()
    until(lambda: not (first.processes() or second.processes()))
    for world in worlds:
        remove_leftovers(world.folder / "data")
    server.drop(database)


def check_a_context_outlives_its_server(
    directory: Path, settings: JsonObject, code: JobCode, *, left: Callable[[str], Sequence[object]]
) -> None:
    """Kill the server of a context while tasks of a job run, and let the next one take it over."""
    world, gate = World(directory, "jobserver.contexts.creation-timeout = 4 minutes"), directory / "gate"
    world.serve()
    try:
        world.upload("jobs", code, "python-wheel")
        response = world.client.post("/contexts/shared", params=flattened(settings))
        assert response.status_code == 200, response.text
        before = world.context()
        job = world.submit("launcher_jobs.gated.Shuffles", gate=str(gate))
        until(lambda: len(list(directory.glob("gate-*"))) == 2)
        world.end()
        world.serve()
        after = world.context()
        assert (after["id"], after["applicationId"]) == (before["id"], before["applicationId"])
        gate.touch()
        assert world.result(job) == 4
    finally:
        world.end()
        world.serve(reattach_timeout="0 s")
        world.end(signal.SIGTERM)
    until(lambda: not left(before["applicationId"]))
