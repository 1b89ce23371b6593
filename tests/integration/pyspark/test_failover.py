"""Two real servers with Spark over one PostgreSQL database; the one that has the context is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served_world import World, until, worlds_over_one_database

from jobserver_core.ports import JobCode
from jobserver_sql.testing import PostgresqlServer

pytestmark = [pytest.mark.spark, pytest.mark.postgresql, pytest.mark.timeout(600)]


@pytest.fixture
def worlds(tmp_path: Path, postgresql_server: PostgresqlServer) -> Iterator[tuple[World, World]]:
    with worlds_over_one_database(tmp_path, postgresql_server) as worlds:
        yield worlds


def test_a_supervised_context_of_a_killed_server_comes_up_on_another_one(
    worlds: tuple[World, World], code: JobCode
) -> None:
    first, second = worlds
    for world in worlds:
        world.serve(reattach_timeout="0 s")
    first.upload("jobs", code, "python-wheel")
    assert first.client.post("/contexts/team", params={"supervise": "true"}).status_code == 200
    gate, count = first.folder / "gate", "launcher_jobs.gated.Count"
    again = first.submit(count, context="team", again=True, gate=str(gate), rows=12)
    plain = first.submit(count, context="team", gate=str(gate), rows=1)
    for job_id in (again, plain):
        first.wait_for(job_id, "RUNNING")
    before = second.context("team")
    first.end()

    until(lambda: second.context("team")["id"] != before["id"])
    assert second.context("team")["restarts"] == 1
    until(lambda: second.context("team")["state"] == "RUNNING")
    assert second.state(plain) == "ERROR"
    second.wait_for(again, "RUNNING")
    gate.touch()
    assert second.result(again) == 12
    assert second.client.delete("/contexts/team").status_code == 200
