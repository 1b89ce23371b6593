"""What uses how much storage, and removing what is beyond the limits, over HTTP."""

from __future__ import annotations

from importlib.metadata import version

import httpx
from http_site import Start

from jobserver_core import HttpSettings, Settings
from jobserver_core.memory import MemoryBlobStore
from jobserver_http import running
from serving import WAIT
from several_servers import Member
from torture import shared_memory


def test_servers_are_listed_with_the_state_of_their_leases() -> None:
    open_store, expire = shared_memory()
    blobs = MemoryBlobStore()
    settings = Settings(http=HttpSettings(port=0))
    members = [Member(open_store(), blobs, settings=settings) for _ in range(3)]
    try:
        for member in members:
            member.server.start()
        alive, draining, dead = members
        alive.server.create_context("etl")
        draining.server.drain()
        expire(dead.id)
        with running(alive.server) as url:
            found = {server["id"]: server for server in httpx.get(f"{url}/servers", timeout=WAIT).json()}
        states = {
            member.id: state for member, state in zip(members, ("alive", "draining", "expired"), strict=True)
        }
        assert {key: server["state"] for key, server in found.items()} == states
        assert {key: server["contexts"] for key, server in found.items()} == {
            alive.id: 1,
            draining.id: 0,
            dead.id: 0,
        }
        assert {server["version"] for server in found.values()} == {version("jobserver-core")}
        assert all(server["address"] and server["startTime"] for server in found.values())
    finally:
        for member in members:
            member.close()


def test_storage_lists_kinds_and_limits_and_prune_says_what_it_removed(start: Start) -> None:
    site = start({"jobs": {"max-kept": 1}})
    site.client.post("/contexts/etl")
    ids = [site.submit("w.Echo", context="etl", sync="true").json()["jobId"] for _ in range(3)]
    before = {kind["kind"]: kind for kind in site.client.get("/storage").json()}
    assert before["jobs"]["count"] == 3
    assert before["jobs"]["limits"] == {
        "jobserver.jobs.retention": "30 days",
        "jobserver.jobs.max-kept": 1,
    }
    assert before["binaries"]["bytes"] > 0
    response = site.client.post("/storage/prune", timeout=WAIT)
    assert response.status_code == 200
    assert response.json()["removed"]["jobs"] == 2
    assert [job["jobId"] for job in site.client.get("/jobs").json()] == ids[-1:]
    assert site.client.post("/storage/prune", timeout=WAIT).json() == {"removed": {}}
