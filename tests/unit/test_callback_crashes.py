"""Callbacks of a server that crashes or restarts, and whose storage fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from callback_world import (
    ABANDONED,
    DELIVERED,
    PENDING,
    SENDING,
    URL,
    FailingMetadata,
    World,
    callback_threads,
    url_of,
)

from conditions import wait_until


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world
    assert callback_threads() == []


# -- crashes and restarts --------------------------------------------------------------------------


def test_a_recorded_delivery_that_was_never_tried_is_sent_after_a_restart() -> None:
    before = World()
    delivery = before.end_job(told=False)
    with before.after_crash() as world:
        world.settle()
        assert world.stored(delivery).state is DELIVERED


def test_an_attempt_interrupted_by_a_crash_is_repeated_and_not_counted() -> None:
    crashed = World()
    delivery = crashed.end_job(told=False)
    cut = attrs.evolve(crashed.stored(delivery), state=SENDING, attempts=5)
    crashed.metadata.advance_delivery(cut, expected=PENDING)
    with crashed.after_crash() as world:
        world.settle()
        (message,) = world.transport.messages
        assert message.attempt == 5
        assert (world.stored(delivery).state, world.stored(delivery).attempts) == (DELIVERED, 5)
        assert [event.state for event in world.events] == [PENDING, SENDING, DELIVERED]


def test_a_crash_keeps_the_order_of_a_receiver() -> None:
    crashed = World()
    made = []
    for _ in range(5):
        made.append(crashed.end_job(told=False))
        crashed.clock.advance(1)
    cut = attrs.evolve(crashed.stored(made[0]), state=SENDING, attempts=1)
    crashed.metadata.advance_delivery(cut, expected=PENDING)
    with crashed.after_crash() as world:
        world.settle()
        assert [m.delivery_id for m in world.transport.messages] == [d.id for d in made if d]


def test_retries_of_an_earlier_run_come_when_they_are_due() -> None:
    with World() as before:
        before.transport.answer(URL, 500)
        delivery = before.end_job()
        before.run_for(3)
    with before.after_crash() as world:
        world.run_for(6)
        assert world.transport.messages == []
        world.run_for(1)
        assert world.stored(delivery).state is DELIVERED


def test_many_that_were_being_sent_are_all_recovered() -> None:
    crashed = World()
    for receiver in range(250):
        delivery = crashed.end_job(url_of(receiver), told=False)
        cut = attrs.evolve(crashed.stored(delivery), state=SENDING, attempts=1)
        crashed.metadata.advance_delivery(cut, expected=PENDING)
    with crashed.after_crash() as world:
        world.settle()
        assert world.states() == {DELIVERED: 250}


def test_close_waits_for_an_attempt_that_is_under_way() -> None:
    world = World()
    world.service.start()
    world.transport.hang(URL)
    delivery = world.end_job()
    assert world.transport.wait_for(lambda t: len(t.under_way) == 1)
    threading.Timer(0.1, world.transport.release, args=(URL,)).start()
    world.service.close(5)
    assert world.stored(delivery).state is DELIVERED
    assert callback_threads() == []


def test_close_leaves_pending_what_it_could_not_wait_for() -> None:
    world = World()
    world.service.start()
    world.transport.hang(URL)
    made = [world.end_job() for _ in range(3)]
    assert world.transport.wait_for(lambda t: len(t.under_way) == 1)
    began = time.monotonic()
    world.service.close(0.1)
    assert time.monotonic() - began < 15
    left = [(world.stored(delivery).state, world.stored(delivery).attempts) for delivery in made]
    assert left == [(PENDING, 0)] * 3
    world.transport.release(URL)
    wait_until(lambda: not callback_threads())
    # The outcome of the attempt does not overwrite the record of close, so the next start repeats it.
    assert world.stored(made[0]).state is PENDING
    assert len(world.transport.messages) == 1


def test_deliveries_still_being_prepared_at_close_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    asked, go_on = threading.Event(), threading.Event()
    ask = world.metadata.job

    def job(job_id: str) -> Any:
        asked.set()
        go_on.wait(10)
        return ask(job_id)

    monkeypatch.setattr(world.metadata, "job", job)
    world.service.start()
    delivery = world.end_job()
    assert asked.wait(5)
    world.service.close(0.05)
    go_on.set()
    wait_until(lambda: not callback_threads())
    assert world.stored(delivery).state is PENDING
    assert world.transport.messages == []


def test_close_begins_nothing_more_and_can_be_repeated() -> None:
    world = World()
    world.service.start()
    world.service.close(1)
    world.service.close(1)
    delivery = world.end_job()
    world.clock.advance(100)
    assert world.stored(delivery).state is PENDING
    assert world.transport.messages == []


def test_nothing_is_sent_before_start() -> None:
    world = World()
    delivery = world.end_job()
    world.clock.advance(100)
    assert world.stored(delivery).state is PENDING
    assert [event.state for event in world.events] == [PENDING]


def test_an_idle_service_has_no_thread_and_no_timer() -> None:
    with World() as world:
        world.settle()
        assert world.clock.timers == []
        assert len(callback_threads()) <= 1  # the one that checked once for leftovers of an earlier run
    assert callback_threads() == []


def test_a_waiting_retry_uses_one_timer_and_no_thread(world: World) -> None:
    for receiver in range(50):
        world.transport.always_answer(url_of(receiver), 500)
        world.end_job(url_of(receiver))
    world.settle()
    assert world.clock.timers == [10.0]
    assert len(callback_threads()) <= 16


# -- others, and storage that fails ----------------------------------------------------------------


def test_a_delivery_that_another_server_settles_first_is_left_alone(world: World) -> None:
    world.transport.hang(URL)
    delivery = world.end_job()
    assert world.transport.wait_for(lambda t: len(t.under_way) == 1)
    theirs = attrs.evolve(world.stored(delivery), state=ABANDONED, ended_at=world.clock.now())
    world.metadata.advance_delivery(theirs, expected=SENDING)
    world.transport.release(URL)
    world.settle()
    assert world.stored(delivery) == theirs


def test_only_one_of_two_servers_on_the_same_store_sends() -> None:
    one = World()
    two = one.after_crash()
    for _ in range(100):
        one.end_job(told=False)
    with one, two:
        for world in (one, two, one):
            world.service.drain(10)
    sent = [message.delivery_id for message in one.transport.messages + two.transport.messages]
    assert len(sent) == len(set(sent)) == 100
    assert one.states() == {DELIVERED: 100}


def await_timer(world: World) -> None:
    wait_until(lambda: world.clock.timers, "a timer")


@pytest.mark.parametrize(
    "failing",
    [
        {"due_deliveries": 3},
        {"advance_delivery": 1},
        {"advance_delivery": 3},
        {"advance_delivery": 1, "delivery": 2},
        {"job": 2},
        {"job_result": 1, "advance_delivery": 2},
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_storage_that_fails_for_a_while_loses_and_repeats_nothing(
    failing: dict[str, int], after: bool
) -> None:
    metadata = FailingMetadata()
    with World(metadata=metadata) as world:
        world.settle()
        made = [world.end_job(told=False) for _ in range(3)]
        metadata.after = after
        metadata.failing = dict(failing)
        for delivery in made:
            assert delivery
            world.service.publish_new(delivery)

        def delivered() -> bool:
            world.clock.advance(1)
            return world.states() == {DELIVERED: 3}

        wait_until(delivered, world.states)
        metadata.failing = {}
        assert len(world.transport.messages) == 3
        assert [world.stored(delivery).attempts for delivery in made] == [1, 1, 1]


def test_an_outcome_is_stored_when_storage_works_again() -> None:
    metadata = FailingMetadata()
    with World(metadata=metadata) as world:
        world.transport.hang(URL)
        delivery = world.end_job()
        assert world.transport.wait_for(lambda t: len(t.under_way) == 1)
        metadata.failing = {"advance_delivery": 4}
        world.transport.release(URL)
        for _ in range(4):
            await_timer(world)
            assert world.stored(delivery).state is SENDING
            world.clock.advance(5)
        world.settle()
        assert (world.stored(delivery).state, len(world.transport.messages)) == (DELIVERED, 1)


def test_close_does_not_wait_for_storage_that_never_comes_back() -> None:
    metadata = FailingMetadata()
    world = World(metadata=metadata)
    world.service.start()
    metadata.failing = {"advance_delivery": 1_000_000}
    world.end_job()
    await_timer(world)
    began = time.monotonic()
    world.service.close(60)
    assert time.monotonic() - began < 15
    assert callback_threads() == []


def test_a_delivery_whose_result_was_deleted_is_abandoned_with_the_reason(world: World) -> None:
    from jobserver_core.models.jobs import JobResult, ResultKind

    delivery = world.end_job(result=JobResult(kind=ResultKind.STORED, size=10, digest="a" * 64))
    world.settle()
    given_up = world.stored(delivery)
    assert (given_up.state, given_up.attempts) == (ABANDONED, 0)
    assert "cannot be read" in (given_up.last_error or "")
    assert world.transport.messages == []


def test_a_delivery_whose_job_was_deleted_is_abandoned_with_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.metadata, "job", lambda _job_id: None)
    delivery = world.end_job()
    world.settle()
    assert delivery is not None
    given_up = world.stored(delivery)
    assert (given_up.state, given_up.attempts) == (ABANDONED, 0)
    assert given_up.last_error == f"the result cannot be read: job {delivery.job_id} not found"


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
def test_a_failure_to_build_the_payload_is_retried_without_blocking_others(
    world: World, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    broken = world.end_job(told=False)
    assert broken is not None
    ask = world.metadata.job

    def job(job_id: str) -> Any:
        if job_id == broken.job_id:
            raise error("a bug")
        return ask(job_id)

    monkeypatch.setattr(world.metadata, "job", job)
    world.service.publish_new(broken)
    fine = world.end_job()
    world.settle()
    assert world.stored(fine).state is DELIVERED
    waiting = world.stored(broken)
    assert (waiting.state, waiting.attempts) == (PENDING, 0)
    monkeypatch.undo()
    world.run_for(10)
    assert world.stored(broken).state is DELIVERED
