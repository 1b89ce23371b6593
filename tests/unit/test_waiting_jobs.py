"""Whose turn it is in the queue of a context, and who may take a place in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from jobserver_core import JobHandle, JobServer, JobState, Settings, errors
from jobserver_core.ports import JobOutcome
from jobserver_core.running.waiting_jobs import WaitingJobs
from jobserver_core.testing.clock import ManualClock
from serving import ScriptedLauncher, Successors, a_request, a_server, upload


class World(Successors):
    """A server with one slot, which one job keeps until the test ends it."""

    def __init__(self, places: int = 100) -> None:
        limits = {"max-jobs-per-context": 1, "max-queued-jobs": places}
        self.clock = ManualClock()
        super().__init__(clock=self.clock, settings=Settings.from_mapping({"jobserver.jobs": limits}))
        self.boot()
        upload(self.server)

    @property
    def server(self) -> JobServer:
        return self.servers[-1]

    def begin(self) -> str:
        """Start the context with a job that occupies its slot, and return the job's id."""
        self.server.create_context("shared")
        self.launchers[-1].listeners[0].context_ready(application_id=None, url=None)
        return self.submit().id

    def submit(self, user: str = "", priority: int = 0, **rest: Any) -> JobHandle:
        self.clock.advance(0.001)
        request = a_request("w.Any", context="shared", submitted_by=user, priority=priority, **rest)
        return self.server.submit(request)

    def run_all(self) -> list[str]:
        """End each job as soon as it runs, and return their ids in that order."""
        calls, listener = self.launchers[-1].handles[0].calls, self.launchers[-1].listeners[0]
        done = 0
        while done < len(calls):
            listener.job_ended(calls[done][1], JobOutcome(killed=True))
            done += 1
        return [job_id for _, job_id in calls]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_jobs_of_one_user_start_in_the_order_in_which_they_came(world: World) -> None:
    for user in ("", "ann"):
        first = world.begin() if not user else world.submit(user).id
        jobs = [world.submit(user).id for _ in range(5)]
        assert world.run_all()[-6:] == [first, *jobs]


def test_users_take_turns(world: World) -> None:
    first = world.begin()
    ann = [world.submit("ann").id for _ in range(4)]
    bob = [world.submit("bob").id for _ in range(2)]
    cid = [world.submit("cid").id]
    assert world.run_all() == [first, ann[0], bob[0], cid[0], ann[1], bob[1], ann[2], ann[3]]


def test_a_user_who_comes_back_with_one_job_waits_for_one_turn_of_the_others(world: World) -> None:
    first = world.begin()
    ann = [world.submit("ann").id for _ in range(3)]
    bob = world.submit("bob").id
    listener = world.launchers[0].listeners[0]
    for job_id in (first, ann[0], bob):
        listener.job_ended(job_id, JobOutcome(killed=True))
    late = world.submit("bob").id
    assert world.run_all()[3:] == [ann[1], late, ann[2]]


def test_higher_priorities_start_first_and_users_take_turns_in_each(world: World) -> None:
    first = world.begin()
    low = world.submit("ann", -100).id
    usual = [world.submit("ann").id, world.submit("ann").id, world.submit("bob").id]
    high = [world.submit("ann", 100).id, world.submit("ann", 100).id, world.submit("bob", 100).id]
    expected = [first, high[0], high[2], high[1], usual[2], usual[0], usual[1], low]
    assert world.run_all() == expected


def test_a_job_that_is_killed_while_it_waits_takes_no_turn(world: World) -> None:
    first = world.begin()
    ann = [world.submit("ann") for _ in range(3)]
    bob = world.submit("bob")
    world.server.kill_job(ann[0].id)
    assert world.server.job(ann[0].id).state is JobState.KILLED
    assert world.run_all() == [first, ann[1].id, bob.id, ann[2].id]


def test_priorities_and_turns_hold_after_a_restart(world: World) -> None:
    world.server.create_context("shared")  # not ready: its jobs wait
    ann = [world.submit("ann").id for _ in range(3)]
    bob = world.submit("bob").id
    high = world.submit("bob", 5).id
    world.boot()
    assert world.server.job(high).priority == 5
    assert world.server.job(bob).submitted_by == "bob"
    world.launchers[-1].listeners[0].context_ready(application_id=None, url=None)
    assert world.run_all() == [high, ann[0], bob, ann[1], ann[2]]


def test_a_flood_of_one_user_leaves_places_for_others() -> None:
    world = World(places=99)
    try:
        world.begin()
        accepted = {"ann": 0, "bob": 0, "cid": 0}
        for user in accepted:
            for _ in range(100):
                with suppress(errors.NoSlots):
                    world.submit(user)
                    accepted[user] += 1
            with pytest.raises(
                errors.NoSlots,
                match=rf"user {user} already has one user's share of the queue "
                rf"\(\d+ waiting, jobserver.jobs.max-queued-jobs = 99\)",
            ):
                world.submit(user)
        assert accepted == {"ann": 50, "bob": 25, "cid": 12}
    finally:
        world.close()


def test_while_a_context_starts_one_user_may_have_as_many_jobs_as_it_has_slots() -> None:
    jobs = {"jobserver.jobs.max-jobs-per-context": 8, "jobserver.jobs.max-queued-jobs": 0}
    launcher = ScriptedLauncher()
    with a_server(launcher=launcher, settings=Settings.from_mapping(jobs)) as server:
        upload(server)
        server.create_context("shared")
        for _ in range(8):
            server.submit(a_request("w.Any", context="shared", submitted_by="ann"))
        with pytest.raises(errors.NoSlots, match="no job may wait"):
            server.submit(a_request("w.Any", context="shared", submitted_by="ann"))
        launcher.close()


def test_without_users_a_queue_can_be_filled_to_its_last_place() -> None:
    world = World(places=10)
    try:
        world.begin()
        for _ in range(10):
            world.submit()
        with pytest.raises(errors.NoSlots, match="10 waiting"):
            world.submit()
    finally:
        world.close()


@pytest.mark.parametrize("priority", [-101, 101, True])
def test_a_priority_out_of_bounds_is_refused(priority: int) -> None:
    with pytest.raises(errors.InvalidRequest, match="priority must be -100 to 100"):
        a_request("w.Any", priority=priority)


def test_a_repeated_request_with_another_priority_is_another_request(world: World) -> None:
    world.begin()
    job = world.submit(priority=1, idempotency_key="once")
    assert world.submit(priority=1, idempotency_key="once").id == job.id
    with pytest.raises(errors.IdempotencyMismatch):
        world.submit(priority=2, idempotency_key="once")


def test_a_user_who_always_has_one_job_waiting_does_not_hold_up_the_others(world: World) -> None:
    world.begin()
    ann = [world.submit("ann").id for _ in range(3)]
    calls, listener = world.launchers[0].handles[0].calls, world.launchers[0].listeners[0]
    bob = [world.submit("bob").id]
    for turn in range(6):
        listener.job_ended(calls[turn][1], JobOutcome(killed=True))
        if calls[-1][1] == bob[-1]:
            bob.append(world.submit("bob").id)
    assert [job_id for _, job_id in calls][1:7] == [ann[0], bob[0], ann[1], bob[1], ann[2], bob[2]]


def test_an_empty_queue_has_no_next_job() -> None:
    waiting = WaitingJobs()
    assert not waiting
    assert list(waiting) == []
    with pytest.raises(ValueError, match="empty"):
        waiting.next()
