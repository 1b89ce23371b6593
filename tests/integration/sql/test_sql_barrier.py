"""One sync of the disk serves all earlier waiters, but never a waiter that arrived after it began."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import attrs
import pytest

from conditions import wait_until
from jobserver_core.models.lifecycle import JobState
from jobserver_core.testing.builders import a_job, a_result, at
from jobserver_sql import SqlMetadataStore
from jobserver_sql.durability import Barrier

PATIENCE = 60.0


class SlowDisk:
    """A disk whose syncs last until they are let go; ``outcomes`` says which of them fail."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self._outcomes = iter(outcomes)

    def sync(self) -> None:
        outcome = next(self._outcomes)
        self.begun.release()
        assert self.go.acquire(timeout=PATIENCE)
        if outcome is not None:
            raise outcome


def join(barrier: Barrier, count: int, threads: ThreadPoolExecutor) -> list[Future[None]]:
    """Let this many threads wait for the sync after the current one; return once all are waiting."""
    futures = [threads.submit(barrier.wait) for _ in range(count)]
    wait_until(lambda: len(barrier._changed._waiters) >= count)  # type: ignore[attr-defined]  # its own list
    return futures


def test_a_sync_covers_earlier_callers_only() -> None:
    disk = SlowDisk(None, None)
    barrier = Barrier(disk.sync)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(barrier.wait)
        assert disk.begun.acquire(timeout=PATIENCE)
        later = join(barrier, 6, threads)
        disk.go.release()
        first.result(PATIENCE)
        assert disk.begun.acquire(timeout=PATIENCE)
        assert not any(each.done() for each in later)
        disk.go.release()
        for each in later:
            each.result(PATIENCE)
    assert barrier.count == 2


def test_a_failed_sync_fails_for_every_caller_it_covers() -> None:
    disk = SlowDisk(None, OSError("the disk is gone"))
    barrier = Barrier(disk.sync)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(barrier.wait)
        assert disk.begun.acquire(timeout=PATIENCE)
        later = join(barrier, 3, threads)
        disk.go.release(2)
        first.result(PATIENCE)
        for each in later:
            with pytest.raises(OSError, match="the disk is gone"):
                each.result(PATIENCE)


def test_a_barrier_works_again_after_a_sync_that_failed() -> None:
    disk = SlowDisk(OSError("full"), None)
    disk.go.release(2)
    barrier = Barrier(disk.sync)
    with pytest.raises(OSError, match="full"):
        barrier.wait()
    barrier.wait()
    assert barrier.count == 2


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
