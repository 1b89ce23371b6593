"""Only promises wait for the disk, and an advance writes only what changes."""

from __future__ import annotations

from contextlib import closing

import attrs

from jobserver_core.models.lifecycle import JobState
from jobserver_core.testing.builders import a_job, a_result, at
from jobserver_sql import SqlMetadataStore


def test_only_durable_writes_are_synced(sqlite_url: str) -> None:
    with closing(SqlMetadataStore(sqlite_url)) as store:
        barrier = store._database.barrier

        def syncs() -> int:
            before, barrier.count = barrier.count, 0
            return before

        job = a_job()
        store.add_job(job, config="{}")
        assert syncs() == 1
        job = attrs.evolve(job, dispatched_at=at(1))
        store.advance_job(job, expected=JobState.STARTED)
        running = attrs.evolve(job, state=JobState.RUNNING, running_at=at(2))
        store.advance_job(running, expected=JobState.STARTED)
        assert syncs() == 0
        store.advance_job(attrs.evolve(running, kill_requested=True), expected=JobState.RUNNING)
        assert syncs() == 1
        ended = attrs.evolve(running, state=JobState.FINISHED, has_result=True)
        store.advance_job(ended, expected=JobState.RUNNING, result=a_result())
        assert syncs() == 1


def test_an_advance_writes_only_the_columns_that_change(sqlite_url: str) -> None:
    with closing(SqlMetadataStore(sqlite_url)) as store:
        job = a_job()
        store.add_job(job, config="{}")
        seen: list[str] = []
        with store._database._writing(None, durable=False) as connection:
            connection.driver.set_trace_callback(seen.append)
        running = attrs.evolve(job, state=JobState.RUNNING, running_at=at(2))
        store.advance_job(running, expected=JobState.STARTED)
        store.advance_job(running, expected=JobState.RUNNING)
    (update,) = [statement for statement in seen if statement.startswith("UPDATE")]
    assert update.startswith("UPDATE jobs SET state='RUNNING', running_at=")
    assert update.count("=") == 3
    assert not [statement for statement in seen if "job_holds" in statement]
