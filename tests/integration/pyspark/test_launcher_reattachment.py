"""A context, its jobs and its processes over the restarts of a real server. The tests run in this order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobserver_core.ports import JobCode

pytestmark = [pytest.mark.spark, pytest.mark.timeout(600)]

WAIT = 120.0
CONFIG = """
spark.master = "local[2]"
jobserver {
  http.port = 0
  contexts { reattach-timeout = %s, on-shutdown = %s }
  jobs.max-jobs-per-context = 4
  launcher.options.spare-runners = 1
}
"""


class World:
    """A data directory, and the servers on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client: httpx.Client
        self._process: subprocess.Popen[bytes] | None = None

    def serve(self, *, reattach_timeout: str = "2 minutes", on_shutdown: str = "stop") -> None:
        """Start a server and wait until it listens."""
        config = self.folder / "server.conf"
        config.write_text(CONFIG % (reattach_timeout, on_shutdown))
        environment = {key: value for key, value in os.environ.items() if not key.startswith("JOBSERVER_")}
        command = [sys.executable, "-m", "jobserver_cli", "serve"]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--config", str(config), "--data-dir", str(self.folder / "data")],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        url = self._process.stdout.readline().decode().strip()
        self.client = httpx.Client(base_url=url, timeout=WAIT)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the server with a signal, and wait for its process."""
        if self._process is not None:
            self.client.close()
            self._process.send_signal(number)
            self._process.wait(WAIT)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

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
        answer = self.client.post("/jobs", params=params, json=config)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["jobId"])

    def state(self, job_id: str) -> str:
        jobs = self.client.get("/jobs").json()
        return next(str(job["status"]) for job in jobs if job["jobId"] == job_id)

    def wait_for(self, job_id: str, state: str) -> None:
        until(lambda: self.state(job_id) in (state, "ERROR", "KILLED"))
        assert self.state(job_id) == state, self.client.get(f"/jobs/{job_id}").text

    def result(self, job_id: str) -> Any:
        self.wait_for(job_id, "FINISHED")
        answer = self.client.get(f"/jobs/{job_id}")
        return answer.json()["result"]

    def context(self, name: str = "shared") -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/contexts/{name}").json()
        return found

    def processes(self) -> list[str]:
        """Return the commands of all processes of contexts."""
        return list(self.commands().values())

    def commands(self) -> dict[int, str]:
        """Return the commands of all processes of contexts by their ids."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                marked = b"JOBSERVER_CONTEXT=" in (process / "environ").read_bytes()
                if marked and os.readlink(process / "cwd").startswith(str(self.folder)):
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(process.name)] = command
            except OSError:
                continue
        return found


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, code: JobCode, jar: JobCode) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("reattachment"))
    world.serve()
    try:
        for name, binary, kind in (("jobs", code, "python-wheel"), ("jar", jar, "java-archive")):
            headers = {"Content-Type": f"application/{kind}"}
            answer = world.client.post(f"/binaries/{name}", content=binary.path.read_bytes(), headers=headers)
            assert answer.status_code == 201, answer.text
        assert world.client.post("/contexts/shared").status_code == 200
        yield world
    finally:
        world.end()
        world.serve(reattach_timeout="0 s")
        world.end(signal.SIGTERM)


def test_everything_goes_on_after_the_server_was_killed(world: World) -> None:
    gate = world.folder / "gate"
    before = world.context()
    python = world.submit("launcher_jobs.gated.Count", gate=str(gate), rows=12)
    stream = world.submit("launcher_jobs.gated.Stream", gate=str(gate))
    jvm = world.submit("launcherjobs.Gated", "jar", gate=str(gate))
    killed = world.submit("launcher_jobs.gated.Count", gate=str(gate), rows=1)
    for job_id in (python, stream, jvm, killed):
        world.wait_for(job_id, "RUNNING")
    queued = [world.submit("launcher_jobs.gated.Value", value=number) for number in (1, 2)]
    world.end()
    assert world.processes()

    world.serve()
    assert world.client.get("/contexts").json() == ["shared"]
    after = world.context()
    assert (after["id"], after["applicationId"]) == (before["id"], before["applicationId"])
    assert world.state(python) == "RUNNING"
    assert world.client.delete(f"/jobs/{killed}").status_code == 200
    world.wait_for(killed, "KILLED")
    gate.touch()
    assert world.result(python) == 12
    assert world.result(jvm) == 1000
    assert [world.result(job_id) for job_id in queued] == [1, 2]
    world.wait_for(stream, "FINISHED")
    data = world.client.get(f"/jobs/{stream}/result").content
    assert data == b"before" * 200_000 + b"after"
    log = world.client.get(f"/jobs/{python}/logs").text
    assert log.index("before the restart") < log.index("after the restart")


def test_a_server_that_shuts_down_can_leave_its_contexts_to_the_next_one(world: World) -> None:
    before = world.context()
    world.end()
    world.serve(on_shutdown="detach")
    gate = world.folder / "second gate"
    job = world.submit("launcher_jobs.gated.Count", gate=str(gate), rows=7)
    world.wait_for(job, "RUNNING")
    world.end(signal.SIGTERM)
    gate.touch()
    world.serve()
    assert world.context()["id"] == before["id"]
    assert world.result(job) == 7


def test_a_server_without_reattachment_ends_what_it_finds(world: World) -> None:
    world.end()
    assert world.processes()
    world.serve(reattach_timeout="0 s")
    assert world.context()["state"] == "ERROR"
    until(lambda: not world.processes())


def test_a_supervised_context_whose_jvm_was_killed_comes_back_with_its_jobs(world: World) -> None:
    settings = {"supervise": "true", "restart-backoff": "100 ms"}
    assert world.client.post("/contexts/team", params=settings).status_code == 200
    before, gate = world.context("team"), world.folder / "third gate"
    count = "launcher_jobs.gated.Count"
    again = world.submit(count, context="team", again=True, gate=str(gate), rows=12)
    plain = [world.submit(count, context="team", gate=str(gate), rows=1) for _ in range(3)]
    for job_id in (again, *plain):
        world.wait_for(job_id, "RUNNING")
    queued = [world.submit("launcher_jobs.gated.Value", context="team", value=number) for number in (1, 2)]
    [jvm] = [pid for pid, command in world.commands().items() if "java" in command.split(" ")[0]]
    os.kill(jvm, signal.SIGKILL)

    until(lambda: world.context("team").get("restarts"))
    until(lambda: world.context("team")["state"] == "RUNNING")
    after = world.context("team")
    assert after["restarts"] == 1
    assert after["id"] != before["id"]
    for job_id in plain:
        until(lambda job_id=job_id: world.state(job_id) == "ERROR")  # type: ignore[misc]
    assert [world.result(job_id) for job_id in queued] == [1, 2]
    world.wait_for(again, "RUNNING")
    gate.touch()
    assert world.result(again) == 12
    assert world.client.get(f"/jobs/{again}").json()["restarts"] == 1
    assert world.client.get(f"/jobs/{again}/logs").text.count("before the restart") == 2


def test_the_next_server_starts_a_supervised_context_again(world: World) -> None:
    gate = world.folder / "fourth gate"
    again = world.submit("launcher_jobs.gated.Count", context="team", again=True, gate=str(gate), rows=5)
    world.wait_for(again, "RUNNING")
    world.end()
    gate.touch()
    world.serve(reattach_timeout="0 s")
    assert world.context("team")["restarts"] == 2
    assert world.result(again) == 5
    assert world.client.delete("/contexts/team").status_code == 200
    assert world.context("team")["state"] == "FINISHED"
    until(lambda: not world.processes())
