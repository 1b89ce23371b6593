"""One sync of the disk serves all earlier waiters, but never a waiter that arrived after it began."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from conditions import WAIT, wait_until
from jobserver_core.ports.durability import Barrier


class SlowDisk:
    """A disk whose syncs last until they are let go; ``outcomes`` says which of them fail."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self._outcomes = iter(outcomes)

    def sync(self) -> None:
        outcome = next(self._outcomes)
        self.begun.release()
        assert self.go.acquire(timeout=WAIT)
        if outcome is not None:
            raise outcome


def join(barrier: Barrier, count: int, threads: ThreadPoolExecutor) -> list[Future[None]]:
    """Let this many threads wait for the sync after the current one; return once all are waiting."""
    futures = [threads.submit(barrier.wait) for _ in range(count)]
    wait_until(lambda: len(barrier._next.changed._waiters) >= count)  # type: ignore[attr-defined]  # its own list
    return futures


def test_a_sync_covers_earlier_callers_only() -> None:
    disk = SlowDisk(None, None)
    barrier = Barrier(disk.sync)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(barrier.wait)
        assert disk.begun.acquire(timeout=WAIT)
        later = join(barrier, 6, threads)
        disk.go.release()
        first.result(WAIT)
        assert disk.begun.acquire(timeout=WAIT)
        assert not any(each.done() for each in later)
        disk.go.release()
        for each in later:
            each.result(WAIT)
    assert barrier.count == 2


def test_a_failed_sync_fails_for_every_caller_it_covers() -> None:
    disk = SlowDisk(None, OSError("the disk is gone"))
    barrier = Barrier(disk.sync)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(barrier.wait)
        assert disk.begun.acquire(timeout=WAIT)
        later = join(barrier, 3, threads)
        disk.go.release(2)
        first.result(WAIT)
        for each in later:
            with pytest.raises(OSError, match="the disk is gone"):
                each.result(WAIT)


def test_a_barrier_works_again_after_a_sync_that_failed() -> None:
    disk = SlowDisk(OSError("full"), None)
    disk.go.release(2)
    barrier = Barrier(disk.sync)
    with pytest.raises(OSError, match="full"):
        barrier.wait()
    barrier.wait()
    assert barrier.count == 2


def test_a_number_is_covered_by_the_sync_that_begins_after_it_was_taken() -> None:
    disk = SlowDisk(None, None)
    barrier = Barrier(disk.sync)
    with ThreadPoolExecutor(2) as threads:
        early = barrier.next
        first = threads.submit(barrier.wait)
        assert disk.begun.acquire(timeout=WAIT)
        late = barrier.next
        assert not barrier.succeeded
        waiting = threads.submit(barrier.wait, early)
        disk.go.release(2)
        first.result(WAIT)
        waiting.result(WAIT)
        assert early <= barrier.succeeded < late
        barrier.wait(early)
        assert barrier.count == 1
        barrier.wait(late)
    assert barrier.count == 2
    assert barrier.succeeded >= late


def test_a_number_whose_sync_has_failed_needs_another_one() -> None:
    disk = SlowDisk(OSError("full"), None)
    disk.go.release(2)
    barrier = Barrier(disk.sync)
    number = barrier.next
    with pytest.raises(OSError, match="full"):
        barrier.wait(number)
    assert barrier.succeeded < number
    barrier.wait(number)
    assert barrier.succeeded >= number
    assert barrier.count == 2
