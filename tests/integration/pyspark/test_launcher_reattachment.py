"""A context, its jobs and its processes over the restarts of a real server. The tests run in this order."""

from __future__ import annotations

import os
import signal
import sys
import tarfile
from collections.abc import Iterator

import pytest
from served_world import World, until

from jobserver_core.ports import JobCode

pytestmark = [pytest.mark.spark, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, code: JobCode, jar: JobCode) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("reattachment"))
    world.serve()
    try:
        for name, binary, kind in (("jobs", code, "python-wheel"), ("jar", jar, "java-archive")):
            world.upload(name, binary, kind)
        preload = {"python.preload": "colorsys"}
        assert world.client.post("/contexts/shared", params=preload).status_code == 200
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
    assert world.result(world.submit("launcher_jobs.preload.Loaded", modules=["colorsys"])) == ["colorsys"]
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


def test_a_context_outlives_the_archive_of_its_environment(world: World) -> None:
    archive = world.folder / "env.tar.gz"  # Spark refuses absolute links in a plain tar
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("bin/python")
        link.type, link.linkname = tarfile.SYMTYPE, os.path.realpath(sys.executable)
        tar.addfile(link)
    settings = {"spark.archives": f"{archive}#env", "python.executable": "env/bin/python"}
    response = world.client.post("/contexts/packed", params=settings)
    assert response.status_code == 200, response.text
    before = world.context("packed")
    world.end()
    archive.unlink()
    world.serve()
    after = world.context("packed")
    assert (after["id"], after["state"]) == (before["id"], "RUNNING")
    assert world.result(world.submit("launcher_jobs.gated.Value", context="packed", value=3)) == 3


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
