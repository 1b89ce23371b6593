"""Callbacks: delivery, retries, abandonment and recovery."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Any

import pytest
from callback_world import (
    ABANDONED,
    DELIVERED,
    PENDING,
    SENDING,
    URL,
    World,
    callback_threads,
    url_of,
)
from hypothesis import given
from hypothesis import strategies as st

from conditions import wait_until
from jobserver_core.callbacks.dispatcher import STORAGE_PAUSE
from jobserver_core.callbacks.service import retry_delay
from jobserver_core.callbacks.transports import CallableTransport
from jobserver_core.config.settings import CallbackSettings
from jobserver_core.errors import InvalidCallbackUrl, InvalidRequest, TransportError
from jobserver_core.memory import MemoryMetadataStore, MemoryTransport
from jobserver_core.models.callbacks import Answer, Delivery
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.lifecycle import DELIVERIES, DeliveryEvent, DeliveryState
from jobserver_core.ports import Message, Transport
from jobserver_core.testing.clock import ManualClock


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world
    assert callback_threads() == []


def was_sent(delivery_id: str, transport: MemoryTransport) -> bool:
    return any(message.delivery_id == delivery_id for message in transport.messages)


def attempts_at(world: World) -> list[float]:
    """When each attempt was made, in seconds since the world began."""
    began = World().clock.now().timestamp()
    return [message.timestamp - began for message in world.transport.messages]


# -- one delivery ----------------------------------------------------------------------------------


def test_a_result_is_delivered(world: World) -> None:
    delivery = world.end_job()
    world.settle()
    (message,) = world.transport.messages
    assert delivery is not None
    assert json.loads(message.body) == {"jobId": delivery.job_id, "result": 42}
    assert (message.url, message.delivery_id, message.attempt) == (URL, delivery.id, 1)
    done = world.stored(delivery)
    assert (done.state, done.attempts, done.last_status, done.last_error) == (DELIVERED, 1, 200, None)
    assert done.ended_at == world.clock.now()


def test_a_failure_is_delivered(world: World) -> None:
    error = ErrorInfo(message="boom", error_class="ValueError", stack="Traceback …")
    delivery = world.end_job(error=error)
    world.settle()
    assert delivery is not None
    assert json.loads(world.transport.messages[0].body) == {
        "jobId": delivery.job_id,
        "status": "ERROR",
        "result": {"message": "boom", "errorClass": "ValueError", "stack": "Traceback …"},
    }


def test_a_job_without_callback_has_no_delivery(world: World) -> None:
    assert world.end_job(None) is None
    world.settle()
    assert world.transport.messages == []


def test_a_new_delivery_is_due_at_once_and_named_by_its_receiver(world: World) -> None:
    delivery = world.end_job("https://user:secret@Receiver.Example:443/done?x=1", told=False)
    assert delivery is not None
    assert delivery.receiver == "https://receiver.example"
    assert delivery.created_at == delivery.due_at == world.clock.now()
    assert delivery.state is PENDING


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299, 304, 399])
def test_an_answer_below_400_is_a_delivery(world: World, status: int) -> None:
    world.transport.answer(URL, status)
    delivery = world.end_job()
    world.settle()
    assert (world.stored(delivery).state, world.stored(delivery).last_status) == (DELIVERED, status)


@pytest.mark.parametrize("answer", [400, 404, 410, 429, 500, 599, Answer(error="timed out")])
def test_anything_else_is_tried_again(world: World, answer: Answer | int) -> None:
    world.transport.answer(URL, answer)
    delivery = world.end_job()
    world.settle()
    waiting = world.stored(delivery)
    assert (waiting.state, waiting.attempts) == (PENDING, 1)
    assert waiting.due_at == world.clock.now() + timedelta(seconds=10)
    world.run_for(10)
    assert (world.stored(delivery).state, world.stored(delivery).attempts) == (DELIVERED, 2)


def test_the_last_answer_is_recorded(world: World) -> None:
    world.transport.answer(URL, 503, Answer(error="connection refused"), 200)
    delivery = world.end_job()
    seen = []
    for _ in range(3):
        world.settle()
        seen.append((world.stored(delivery).last_status, world.stored(delivery).last_error))
        world.clock.advance(10)
    assert seen == [(503, None), (None, "connection refused"), (200, None)]


def test_events_report_every_step_in_order(world: World) -> None:
    world.transport.answer(URL, 500)
    world.end_job()
    world.run_for(10)
    steps = [(event.state, event.attempts) for event in world.events]
    assert steps == [(PENDING, 0), (SENDING, 1), (PENDING, 1), (SENDING, 2), (DELIVERED, 2)]


def test_every_step_follows_the_lifecycle(world: World) -> None:
    world.transport.always_answer(URL, 500)
    world.end_job()
    world.run_for(100)
    states = [event.state for event in world.events]
    for before, after in itertools.pairwise(states):
        assert any(
            DELIVERIES.allows(before, event) and DELIVERIES.next(before, event) is after
            for event in DeliveryEvent
        )


# -- retries and their end -------------------------------------------------------------------------


def test_a_delivery_is_abandoned_after_five_attempts_at_ten_second_intervals(world: World) -> None:
    world.transport.always_answer(URL, 500)
    delivery = world.end_job()
    world.run_for(1000)
    assert attempts_at(world) == [0, 10, 20, 30, 40]
    given_up = world.stored(delivery)
    assert (given_up.state, given_up.attempts, given_up.last_status) == (ABANDONED, 5, 500)
    assert given_up.ended_at is not None
    assert world.clock.timers == []


def test_an_abandoned_delivery_is_never_sent_by_another_server() -> None:
    with World(max_attempts=1) as world:
        world.transport.always_answer(URL, 500)
        world.end_job()
        world.settle()
    with world.after_crash() as later:
        later.run_for(100_000)
        assert later.transport.messages == []
        assert later.states() == {ABANDONED: 1}


def test_every_attempt_has_the_same_id_and_body_and_its_own_number(world: World) -> None:
    world.transport.answer(URL, 500, 500)
    world.end_job()
    world.run_for(20)
    messages = world.transport.messages
    assert [message.attempt for message in messages] == [1, 2, 3]
    assert len({(message.delivery_id, message.body) for message in messages}) == 1


def test_backoff_lengthens_the_delay_up_to_its_limit() -> None:
    with World(max_attempts=6, retry_delay=1.0, backoff=3.0, max_retry_delay=20.0) as world:
        world.transport.always_answer(URL, 500)
        world.end_job()
        world.run_for(1000)
        assert attempts_at(world) == [0, 1, 4, 13, 33, 53]


def test_retry_after_is_honoured_within_the_limit() -> None:
    with World(max_retry_delay=60.0) as world:
        wishes = (Answer(status=429, retry_after=25), Answer(status=503, retry_after=9999))
        world.transport.answer(URL, *wishes, Answer(status=503, retry_after=1))
        world.end_job()
        world.run_for(1000)
        assert attempts_at(world) == [0, 25, 85, 95]


@given(
    attempts=st.integers(1, 10_000),
    delay=st.floats(0, 1e6),
    backoff=st.floats(1, 100),
    limit=st.floats(0, 1e6),
    wish=st.none() | st.floats(0, 1e12),
)
def test_a_delay_is_never_shorter_than_configured_nor_longer_than_its_limit(
    attempts: int, delay: float, backoff: float, limit: float, wish: float | None
) -> None:
    settings = CallbackSettings(retry_delay=delay, backoff=backoff, max_retry_delay=limit)
    found = retry_delay(attempts, Answer(status=503, retry_after=wish), settings)
    assert settings.retry_delay <= found <= max(settings.retry_delay, settings.max_retry_delay)
    assert found <= retry_delay(attempts + 1, Answer(status=503, retry_after=wish), settings)


def test_a_zero_delay_still_ends_after_the_attempts_that_are_allowed() -> None:
    with World(retry_delay=0.0) as world:
        world.transport.always_answer(URL, 500)
        world.end_job()
        world.run_for(0)
        assert len(world.transport.messages) == 5


# -- order and fairness ----------------------------------------------------------------------------


def test_one_receiver_gets_its_callbacks_in_order(world: World) -> None:
    made = [world.end_job() for _ in range(100)]
    world.settle()
    sent = [message.delivery_id for message in world.transport.messages]
    assert sent == [delivery.id for delivery in made if delivery]


def test_a_backlog_of_an_earlier_run_drains_in_order_per_receiver() -> None:
    before = World()
    made = [before.end_job(url_of(n % 7), told=False) for n in range(350)]
    with before.after_crash(concurrency=4) as world:
        world.settle()
        for receiver in range(7):
            expected = [d.id for d in made if d and d.url == url_of(receiver)]
            sent = [m.delivery_id for m in world.transport.messages if m.url == url_of(receiver)]
            assert sent == expected


def test_a_retry_does_not_delay_later_deliveries(world: World) -> None:
    world.transport.answer(URL, 500)
    first, second = world.end_job(), world.end_job()
    world.settle()
    assert world.stored(first).state is PENDING
    assert world.stored(second).state is DELIVERED


def test_one_receiver_is_not_sent_two_at_once(world: World) -> None:
    world.transport.hang(URL)
    for _ in range(5):
        world.end_job()
    assert world.transport.wait_for(lambda t: len(t.under_way) == 1)
    assert not world.transport.wait_for(lambda t: len(t.under_way) > 1, 0.1)
    world.transport.release(URL)
    world.settle()
    assert world.states() == {DELIVERED: 5}


def test_more_at_once_can_be_configured() -> None:
    with World(per_receiver=3) as world:
        world.transport.hang(URL)
        for _ in range(8):
            world.end_job()
        assert world.transport.wait_for(lambda t: len(t.under_way) == 3)
        assert not world.transport.wait_for(lambda t: len(t.under_way) > 3, 0.1)
        world.transport.release(URL)
        world.settle()
        assert world.states() == {DELIVERED: 8}


def test_never_more_than_the_configured_number_is_under_way() -> None:
    with World(concurrency=4) as world:
        for receiver in range(40):
            world.transport.hang(url_of(receiver))
            world.end_job(url_of(receiver))
        assert world.transport.wait_for(lambda t: len(t.under_way) == 3)  # a quarter is kept free
        assert not world.transport.wait_for(lambda t: len(t.under_way) > 3, 0.1)
        assert len(callback_threads()) <= 4
        for receiver in range(40):
            world.transport.release(url_of(receiver))
        world.settle()
        assert world.states() == {DELIVERED: 40}


def test_a_receiver_that_hangs_does_not_delay_another(world: World) -> None:
    world.transport.hang(url_of(1))
    for _ in range(50):
        world.end_job(url_of(1))
    living = world.end_job(url_of(2))
    assert world.transport.wait_for(lambda t: any(m.url == url_of(2) for m in t.messages))
    world.transport.release(url_of(1))
    world.settle()
    assert world.stored(living).state is DELIVERED


def test_receivers_that_hang_leave_slots_for_prompt_ones() -> None:
    with World(concurrency=8) as world:
        prompt = url_of(0)
        world.end_job(prompt)
        world.settle()
        for receiver in range(1, 60):
            world.transport.hang(url_of(receiver))
            world.end_job(url_of(receiver))
        assert world.transport.wait_for(lambda t: len(t.under_way) == 6)
        late = [world.end_job(prompt) for _ in range(20)]
        assert world.transport.wait_for(lambda t: sum(m.url == prompt for m in t.messages) == 21)
        assert all(world.stored(delivery).attempts == 1 for delivery in late)
        for receiver in range(1, 60):
            world.transport.release(url_of(receiver))
        world.settle()
        assert world.states() == {DELIVERED: 80}


def test_receivers_known_to_hang_leave_slots_for_new_ones() -> None:
    with World(concurrency=8, timeout=0.02, retry_delay=1.0, max_attempts=100) as world:
        slow = [url_of(receiver) for receiver in range(12)]
        for url in slow:
            world.transport.always_answer(url, 500)
            world.end_job(url)
        world.settle()
        for url in slow:
            world.transport.hang(url)
        for _ in range(3):  # all of them are due now, and there are more than places
            world.clock.advance(1)
            assert world.transport.wait_for(lambda t: len(t.under_way) >= 1)
            new = world.end_job(f"https://new-{world.ids.new()}.example/")
            assert new is not None
            assert world.transport.wait_for(partial(was_sent, new.id))
            world.settle()


class Dawdling(MemoryTransport):
    """Accepts every message, and advances the clock by five seconds each time."""

    clock = ManualClock()

    def send(self, message: Message, *, timeout: float) -> Answer:
        self.clock.advance(5)
        return super().send(message, timeout=timeout)


@pytest.mark.parametrize(("transport", "at_once"), [(Dawdling, 1), (MemoryTransport, 2)])
def test_a_receiver_that_accepts_slowly_counts_as_slow(
    transport: type[MemoryTransport], at_once: int
) -> None:
    receivers = transport()
    with World(transports=[receivers], clock=Dawdling.clock, concurrency=4) as world:
        for url in (url_of(1), url_of(2)):
            world.end_job(url)
            world.settle()
            receivers.hang(url)
        for url in (url_of(1), url_of(2)):
            world.end_job(url)
        assert receivers.wait_for(lambda t: len(t.under_way) == at_once)
        assert not receivers.wait_for(lambda t: len(t.under_way) > at_once, 0.1)
        for url in (url_of(1), url_of(2)):
            receivers.release(url)
        world.settle()
        assert world.states() == {DELIVERED: 4}


def test_a_large_backlog_is_read_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    before = World()
    for _ in range(600):
        before.end_job(told=False)
    pages = []
    ask = before.metadata.due_deliveries

    def due_deliveries(**kwargs: Any) -> Any:
        found = ask(**kwargs)
        pages.append(len(found))
        return found

    monkeypatch.setattr(before.metadata, "due_deliveries", due_deliveries)
    with before.after_crash(concurrency=4) as world:
        assert world.service.drain(60)
        assert world.states() == {DELIVERED: 600}
    assert max(pages) < 50


# -- transports ------------------------------------------------------------------------------------


class Rude(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        raise RuntimeError(f"cannot reach {message.url}")


class AnyAnswer(Transport):
    """Returns what a function returns, whatever its type is."""

    schemes = ("https",)

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer

    def send(self, message: Message, *, timeout: float) -> Answer:
        answer: Answer = self._answer()
        return answer


def _refused() -> Answer:
    raise InvalidCallbackUrl(url="https://h", reason="no")


def _cancelled() -> Answer:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: None, "send of the transport AnyAnswer returned None instead of Answer"),
        (lambda: 200, "send of the transport AnyAnswer returned int instead of Answer"),
        (lambda: Answer, "send of the transport AnyAnswer returned type instead of Answer"),
        (
            lambda: Answer(error=OSError("x")),  # type: ignore[arg-type]
            "send of the transport AnyAnswer raised InvalidRequest",
        ),
        (_refused, "callback URL 'https://h' is not allowed: no"),
        (_cancelled, "send of the transport AnyAnswer raised CancelledError"),
        (lambda: sys.exit(3), "send of the transport AnyAnswer raised SystemExit"),
    ],
)
def test_a_malformed_answer_is_a_failed_attempt(answer: Callable[[], Any], error: str) -> None:
    with World(transports=[AnyAnswer(answer)], max_attempts=2, concurrency=1) as world:
        delivery = world.end_job()
        world.settle()
        waiting = world.stored(delivery)
        assert (waiting.state, waiting.attempts, waiting.last_error) == (PENDING, 1, error)
        world.run_for(10)
        assert (world.stored(delivery).state, world.stored(delivery).last_error) == (ABANDONED, error)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"status": "200"}, "the status of an Answer must be an HTTP status from 0 to 999, not str"),
        ({"status": True}, "the status of an Answer must be an HTTP status from 0 to 999, not bool"),
        ({"status": 2.0}, "the status of an Answer must be an HTTP status from 0 to 999, not float"),
        ({"status": 10**20}, f"the status of an Answer must be an HTTP status from 0 to 999, not {10**20}"),
        ({"status": -1}, "the status of an Answer must be an HTTP status from 0 to 999, not -1"),
        ({"error": OSError("x")}, "the error of an Answer must be a string, not OSError"),
        ({"status": 503, "retry_after": "5"}, "retry_after must be a number of seconds"),
        ({"status": 503, "retry_after": True}, "retry_after must be a number of seconds"),
        ({"status": 503, "retry_after": math.nan}, "retry_after must be a number of seconds"),
    ],
)
def test_an_answer_checks_its_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        Answer(**fields)


def test_the_status_of_an_answer_is_a_plain_integer() -> None:
    assert type(Answer(status=HTTPStatus.ACCEPTED).status) is int


def test_an_outcome_for_which_the_store_raises_any_exception_is_stored_without_another_attempt() -> None:
    class CarelessMetadata(MemoryMetadataStore):
        faults = 2

        def advance_delivery(
            self, delivery: Delivery, *, expected: DeliveryState, epoch: int | None = None
        ) -> None:
            if delivery.state is DELIVERED and self.faults:
                self.faults -= 1
                raise OverflowError("too much")
            super().advance_delivery(delivery, expected=expected, epoch=epoch)

    with World(metadata=CarelessMetadata()) as world:
        delivery = world.end_job()

        def delivered() -> bool:
            world.clock.advance(STORAGE_PAUSE)
            return world.stored(delivery).state is DELIVERED

        wait_until(delivered)
        assert len(world.transport.messages) == 1


@pytest.mark.parametrize("answer", ["503", None, 2.5])
def test_planning_an_answer_of_another_type_is_refused_at_the_call(answer: Any) -> None:
    for plan in (MemoryTransport().answer, MemoryTransport().always_answer):
        with pytest.raises(InvalidRequest, match="an answer must be an Answer or an HTTP status"):
            plan(URL, answer)


def test_planning_for_what_is_not_a_url_is_refused_at_the_call() -> None:
    transport = MemoryTransport()
    plans: list[Callable[[Any], object]] = [
        partial(transport.pass_on, function=lambda _message: None),
        transport.hang,
        transport.release,
        lambda url: transport.answer(url, 503),
        lambda url: transport.always_answer(url, 503),
    ]
    for plan in plans:
        with pytest.raises(InvalidRequest, match=r"url must be a callback URL, such as call:billing, not"):
            plan("billing")
        with pytest.raises(InvalidRequest, match="url must be a callback URL"):
            plan(None)


def test_a_transport_that_raises_is_a_failed_attempt(caplog: pytest.LogCaptureFixture) -> None:
    with World(transports=[Rude()]) as world:
        delivery = world.end_job("https://user:geheim@receiver.example/?token=geheim")
        world.settle()
        waiting = world.stored(delivery)
        error = "send of the transport Rude raised RuntimeError"
        assert (waiting.state, waiting.last_error) == (PENDING, error)  # remote callers see it
    words = "cannot reach https://***@receiver.example/?…"
    assert f"{error}: {words}\nTraceback (most recent call last)" in caplog.text
    assert "in send" in caplog.text
    assert "geheim" not in caplog.text


@pytest.mark.parametrize("error", [KeyError, asyncio.CancelledError])
def test_a_store_that_fails_in_an_unexpected_way_does_not_end_the_search_for_due_callbacks(
    error: type[BaseException],
) -> None:
    class Careless(MemoryMetadataStore):
        faults = 2

        def due_deliveries(self, **query: Any) -> list[Delivery]:
            if self.faults:
                self.faults -= 1
                raise error("due")
            return super().due_deliveries(**query)

    with World(metadata=Careless(), concurrency=1) as world:
        delivery = world.end_job()
        world.run_for(2 * STORAGE_PAUSE)
        assert world.stored(delivery).state is DELIVERED


def test_logs_name_the_receiver_but_no_secrets(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = "https://user:geheim@receiver.example:8443/geheim?token=geheim#geheim"
    world.transport.answer(url, Answer(error=f"cannot reach {url}"))
    delivery = world.end_job(url)
    world.run_for(10)
    assert "https://receiver.example:8443" in caplog.text
    assert "geheim" not in caplog.text
    assert all("geheim" not in (event.last_error or "") for event in world.events)
    assert world.stored(delivery).url == url


def test_a_scheme_that_is_not_served_any_more_is_a_failed_attempt() -> None:
    with World(transports=[CallableTransport(lambda _: None)], max_attempts=1) as world:
        delivery = world.end_job()
        world.settle()
        given_up = world.stored(delivery)
        assert (given_up.state, given_up.last_error) == (
            ABANDONED,
            "no transport is configured for https: URLs",
        )


@pytest.mark.parametrize("schemes", [(), "t3", None, ("T3",), (3,), {"t3": 1}])
def test_a_transport_that_does_not_name_its_schemes_is_refused(schemes: Any) -> None:
    class Unnamed(MemoryTransport):
        pass

    transport = Unnamed()
    transport.schemes = schemes
    with pytest.raises(TransportError) as refused:
        World(transports=[transport])
    expected = "the transport Unnamed must name its URL schemes, in lower case: schemes = ('queue',), not "
    assert str(refused.value) == f"{expected}{schemes!r}"


def test_two_transports_for_one_scheme_are_refused() -> None:
    with pytest.raises(TransportError, match="two transports serve http"):
        World(transports=[MemoryTransport(), MemoryTransport()])


def test_a_function_can_be_the_transport() -> None:
    got: list[bytes] = []
    with World(transports=[CallableTransport(lambda message: got.append(message.body))]) as world:
        delivery = world.end_job("call:billing")
        world.settle()
        assert world.stored(delivery).state is DELIVERED
        assert len(got) == 1


# -- checks at submit ------------------------------------------------------------------------------


def test_a_url_of_a_served_scheme_is_allowed(world: World) -> None:
    world.service.check(URL)
    world.service.check("HTTP://receiver.example")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://receiver.example/", "http, https, memory"),
        ("javascript:alert(1)", "http, https, memory"),
        ("receiver.example/done", "not an absolute URL"),
        ("/done", "not an absolute URL"),
        ("", "not an absolute URL"),
        ("memory:", "nothing follows its scheme"),
        ("http://", "nothing follows its scheme"),
        ("http://receiver.example/a b", "white space"),
        ("http://receiver.example/\r\nHost: other", "white space"),
        ("http://receiver.example/\x00", "control characters"),
        ("http://receiver.example/" + "x" * 9000, "longer than"),
    ],
)
def test_a_url_that_can_never_be_called_is_refused_with_the_reason(
    world: World, url: str, reason: str
) -> None:
    with pytest.raises(InvalidCallbackUrl) as refused:
        world.service.check(url)
    assert reason in str(refused.value)


def test_without_a_transport_every_url_is_refused() -> None:
    with pytest.raises(InvalidCallbackUrl, match=r"has no transport for callbacks; .*CallableTransport for"):
        World(transports=[]).service.check(URL)


@given(st.text(max_size=60))
def test_checking_any_string_passes_or_refuses(url: str) -> None:
    try:
        World().service.check(url)
    except InvalidCallbackUrl:
        return
    assert url.lower().startswith(("http:", "https:", "memory:"))
