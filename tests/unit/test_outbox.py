"""Notifications wait until the disk has the change; nothing else waits for the disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from conditions import wait_until
from jobserver_core import JobHandle, JobState, Settings, errors
from jobserver_core.events import JobChanged
from jobserver_core.memory import MemoryMetadataStore
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.lifecycle import DeliveryState
from jobserver_core.ports import SystemClock
from serving import WAIT, Scene, a_request

URL = "memory://receiver/x"


class Disk(MemoryMetadataStore):
    """A store whose writes of jobs are on the disk only after a sync: they last until ``open``."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Semaphore(0)
        self.syncs = 0
        self.failing = 0

    def defer_syncs(self) -> bool:
        return True

    def sync(self) -> None:
        self.begun.release()
        assert self.open.wait(WAIT)
        if self.failing:
            self.failing -= 1
            raise errors.StorageError(message="the disk is on fire")
        self.syncs += 1

    def advance_delivery(
        self, delivery: Delivery, *, expected: DeliveryState, epoch: int | None = None
    ) -> None:
        super().advance_delivery(delivery, expected=expected, epoch=epoch)
        self.sync()

    def close(self) -> None:
        self.open.set()
        super().close()


class DiskScene(Scene):
    """A server with a context of one slot, whose launcher is controlled by the test."""

    def __init__(self) -> None:
        self.disk = Disk()
        limits = Settings.from_mapping({"jobserver": {"jobs": {"max-jobs-per-context": 1}}})
        super().__init__(metadata=self.disk, clock=SystemClock(), settings=limits)

    def submit(self, *, durable: bool = True, callback_url: str | None = None) -> JobHandle:
        request = a_request("w.Any", context="shared", callback_url=callback_url)
        with self.server.begin_submit(request, durable=durable) as preparation:
            return preparation.finish()

    def stop_syncs(self) -> None:
        while self.disk.begun.acquire(blocking=False):
            pass
        self.disk.open.clear()

    def submitted(self) -> list[str]:
        return [job_id for call, job_id in self.launcher.handles[0].calls if call == "submit"]

    def close(self) -> None:
        self.disk.open.set()
        self.launcher.close()
        self.server.close(0)


@pytest.fixture
def scene() -> Iterator[DiskScene]:
    scene = DiskScene()
    yield scene
    scene.close()


def test_an_outcome_is_stored_at_once_but_published_after_the_sync(scene: DiskScene) -> None:
    job = scene.submit(callback_url=URL)
    scene.listener.job_running(job.id)
    scene.stop_syncs()
    scene.finish(job)
    assert scene.disk.begun.acquire(timeout=WAIT)
    stored = scene.disk.job(job.id)
    assert stored is not None
    assert stored.state is JobState.FINISHED
    assert not job.done()
    assert scene.states(job.id)[-1] is JobState.RUNNING
    assert scene.transport.messages == []
    scene.disk.open.set()
    assert job.result(WAIT) == 1
    assert scene.states(job.id)[-1] is JobState.FINISHED
    wait_until(lambda: len(scene.transport.messages) == 1)


def test_a_slot_is_used_again_before_the_sync(scene: DiskScene) -> None:
    first, second = scene.submit(), scene.submit()
    scene.stop_syncs()
    scene.finish(first)
    assert scene.submitted() == [first.id, second.id]
    assert not first.done()


def test_many_ends_share_a_sync_and_are_published_in_order(scene: DiskScene) -> None:
    jobs = [scene.submit() for _ in range(6)]
    scene.stop_syncs()
    before = scene.disk.syncs
    scene.finish(jobs[0])
    assert scene.disk.begun.acquire(timeout=WAIT)
    for job in jobs[1:]:
        scene.finish(job)
    scene.disk.open.set()
    for job in jobs:
        assert job.result(WAIT) == 1
    assert scene.disk.syncs == before + 2
    ends = [e.job.id for e in scene.events if isinstance(e, JobChanged) and e.job.state.final]
    assert ends == [job.id for job in jobs]


def test_an_end_is_published_after_the_sync_that_a_caller_needs_too(scene: DiskScene) -> None:
    job = scene.submit()
    scene.stop_syncs()
    before = scene.disk.syncs
    barrier = scene.server._services.syncer._barrier
    assert barrier is not None
    with ThreadPoolExecutor(2) as threads:
        submissions = [threads.submit(scene.submit)]
        assert scene.disk.begun.acquire(timeout=WAIT)
        scene.finish(job)  # during the first sync, so both this and the next submission need the second one
        submissions.append(threads.submit(scene.submit))
        wait_until(lambda: len(barrier._next.changed._waiters) == 2)  # type: ignore[attr-defined]  # its own
        scene.disk.open.set()
        for submission in submissions:
            submission.result(WAIT)
        assert job.result(WAIT) == 1
    assert scene.disk.syncs == before + 2


def test_a_job_is_accepted_once_the_disk_has_it(scene: DiskScene) -> None:
    scene.stop_syncs()
    with ThreadPoolExecutor(1) as threads:
        submission = threads.submit(scene.submit)
        assert scene.disk.begun.acquire(timeout=WAIT)
        assert not submission.done()
        scene.disk.open.set()
        assert submission.result(WAIT).id == scene.submitted()[0]


def test_a_caller_that_waits_for_the_end_does_not_wait_for_the_disk_before(scene: DiskScene) -> None:
    scene.stop_syncs()
    job = scene.submit(durable=False)
    assert scene.submitted() == [job.id]
    scene.disk.open.set()
    syncs = scene.disk.syncs
    scene.finish(job)
    assert job.result(WAIT) == 1
    assert scene.disk.syncs == syncs + 1


def test_a_sync_that_fails_is_repeated_until_it_works(scene: DiskScene) -> None:
    job = scene.submit()
    scene.disk.failing = 2
    scene.finish(job)
    assert job.result(WAIT) == 1
    assert scene.disk.failing == 0


def test_a_job_that_the_disk_does_not_take_is_refused_and_killed(scene: DiskScene) -> None:
    scene.disk.failing = 1
    with pytest.raises(errors.StorageError, match="on fire"):
        scene.submit()
    (job_id,) = scene.submitted()
    assert ("kill_job", job_id) in scene.launcher.handles[0].calls
    assert scene.server.job(job_id).kill_requested


def test_closing_the_server_notifies_callers_that_wait_for_the_disk(scene: DiskScene) -> None:
    job = scene.submit()
    scene.stop_syncs()
    scene.finish(job)
    assert scene.disk.begun.acquire(timeout=WAIT)
    scene.disk.open.set()
    scene.launcher.close()
    scene.server.close(0)
    assert job.result(WAIT) == 1
    assert "jobserver-sync" not in {thread.name for thread in threading.enumerate()}


def test_a_job_with_a_free_slot_is_accepted_and_dispatched_with_one_write(scene: DiskScene) -> None:
    job, waiting = scene.submit(), scene.submit()
    stored = [scene.disk.job(each.id) for each in (job, waiting)]
    assert [record.waiting for record in stored if record] == [False, True]
    events = [e.job for e in scene.events if isinstance(e, JobChanged) and e.job.id == job.id]
    assert [record.waiting for record in events] == [True, False]
