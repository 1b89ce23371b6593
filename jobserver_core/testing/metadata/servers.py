"""The metadata contract's part about servers, their leases, and the epochs of what they own."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import attrs
import pytest

from jobserver_core.errors import (
    BinaryInUse,
    BinaryNotFound,
    ContextNotFound,
    ContextStopping,
    DuplicateId,
    NoSlots,
    ServerClosed,
    StaleOwner,
    StaleState,
)
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job, QueueLimits
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.models.servers import ServerRequest
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_context, a_delivery, a_job, at
from jobserver_core.testing.metadata.access import ODD_TEXTS, StoreAccess
from jobserver_core.testing.metadata.races import DEADLINE, ROUNDS, WRITERS, race, winner

__all__ = ["ServersContract"]

HOUR = 3600.0
ROOM = QueueLimits(slots=9, places=9)


def _register(store: MetadataStore, server_id: str, *, lease: float = HOUR, seconds: float = 0) -> None:
    store.register_server(server_id, started_at=at(seconds), address="host-1", lease=lease)


def _ids(store: MetadataStore, *, expired: bool | None = None) -> list[str]:
    return [server.id for server in store.servers(expired=expired)]


def _request(request_id: str, **fields: Any) -> ServerRequest:
    fields = {"recipient": "server", "created_at": at(), "payload": "{}", **fields}
    return ServerRequest(id=request_id, **fields)


def _hear(heard: list[str], notice: str | None) -> None:
    if notice is not None:
        heard.append(notice)


def _sends(store: MetadataStore, notice: str, heard: list[str]) -> bool:
    """Send a notice, and return whether one arrived: a store may need a moment before it listens."""
    store.notify(notice)
    return notice in heard


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class ServersContract(StoreAccess):
    """Servers: leases that the store judges, and epochs that fence off earlier owners."""

    def test_a_new_store_has_no_servers(self, store: MetadataStore) -> None:
        assert store.servers() == []

    @pytest.mark.parametrize("text", ODD_TEXTS)
    def test_a_registered_server_comes_back_with_what_was_stored(
        self, store: MetadataStore, text: str
    ) -> None:
        local = datetime(2016, 6, 19, 16, 27, 12, 1, tzinfo=timezone(timedelta(hours=-7)))
        store.register_server(text, started_at=local, address=text, lease=HOUR)
        [server] = store.servers()
        assert (server.id, server.started_at, server.address) == (text, local, text)
        assert server.started_at.utcoffset() == server.lease_until.utcoffset() == timedelta(0)

    def test_servers_are_listed_oldest_first(self, store: MetadataStore) -> None:
        for server_id, seconds in (("b", 1), ("a", 1), ("c", 0), ("d", 2)):
            _register(store, server_id, seconds=seconds)
        assert _ids(store) == ["c", "a", "b", "d"]

    def test_registering_a_known_server_replaces_its_record(self, store: MetadataStore) -> None:
        _register(store, "a", lease=0)
        _register(store, "a", seconds=5)
        [server] = store.servers(expired=False)
        assert server.started_at == at(5)
        assert _ids(store) == ["a"]

    def test_a_lease_of_no_time_has_expired_and_a_long_one_has_not(self, store: MetadataStore) -> None:
        _register(store, "dead", lease=0)
        _register(store, "alive")
        assert _ids(store, expired=True) == ["dead"]
        assert _ids(store, expired=False) == ["alive"]
        assert _ids(store) == ["alive", "dead"]

    def test_a_lease_ends_as_many_seconds_after_now_as_asked_for(self, store: MetadataStore) -> None:
        _register(store, "a", lease=100)
        _register(store, "b", lease=300)
        first, second = store.servers()
        assert 190 < (second.lease_until - first.lease_until).total_seconds() < 260

    def test_renewing_revives_a_server_whose_lease_has_expired(self, store: MetadataStore) -> None:
        _register(store, "a", lease=0)
        assert store.renew_server("a", lease=HOUR)
        assert _ids(store, expired=False) == ["a"]
        assert store.renew_server("a", lease=0)
        assert _ids(store, expired=True) == ["a"]

    def test_renewing_changes_nothing_but_the_lease_of_that_server(self, store: MetadataStore) -> None:
        _register(store, "a", seconds=3)
        _register(store, "b", lease=0, seconds=4)
        assert store.renew_server("a", lease=2 * HOUR)
        first, second = store.servers()
        assert (first.id, first.started_at, first.address) == ("a", at(3), "host-1")
        assert _ids(store, expired=True) == [second.id] == ["b"]

    def test_a_server_that_is_not_registered_cannot_be_renewed(self, store: MetadataStore) -> None:
        assert not store.renew_server("a", lease=HOUR)
        _register(store, "a")
        store.remove_server("a")
        assert not store.renew_server("a", lease=HOUR)
        assert store.servers() == []

    def test_a_server_is_removed_once(self, store: MetadataStore) -> None:
        _register(store, "a")
        _register(store, "b")
        assert store.remove_server("a")
        assert not store.remove_server("a")
        assert _ids(store) == ["b"]

    def test_only_an_expired_server_can_be_removed_as_expired(self, store: MetadataStore) -> None:
        _register(store, "alive")
        _register(store, "dead", lease=0)
        assert not store.remove_server("alive", only_expired=True)
        assert not store.remove_server("unknown", only_expired=True)
        assert store.remove_server("dead", only_expired=True)
        assert _ids(store) == ["alive"]

    def test_of_many_that_remove_an_expired_server_one_wins(self, store: MetadataStore) -> None:
        for _ in range(ROUNDS):
            _register(store, "a", lease=0)
            removed = race(*[partial(store.remove_server, "a", only_expired=True)] * WRITERS)
            assert removed.count(True) == 1
            assert removed.count(False) == WRITERS - 1

    def test_a_renewal_and_a_removal_of_an_expired_server_never_both_win(self, store: MetadataStore) -> None:
        for _ in range(ROUNDS):
            _register(store, "a", lease=0)
            renewed, removed = race(
                partial(store.renew_server, "a", lease=HOUR),
                partial(store.remove_server, "a", only_expired=True),
            )
            assert renewed is not removed
            assert _ids(store) == (["a"] if renewed else [])

    def test_a_server_has_the_version_that_it_was_registered_with(self, store: MetadataStore) -> None:
        store.register_server("a", started_at=at(), address="", lease=HOUR, version="1.2")
        _register(store, "b", seconds=1)
        assert [server.version for server in store.servers()] == ["1.2", ""]

    def test_a_server_drains_until_it_is_registered_again(self, store: MetadataStore) -> None:
        assert not store.drain_server("a")
        for server_id in ("a", "b"):
            _register(store, server_id)
        assert store.drain_server("a")
        assert store.renew_server("a", lease=HOUR)
        assert [(server.id, server.draining) for server in store.servers()] == [("a", True), ("b", False)]
        _register(store, "a")
        assert not any(server.draining for server in store.servers())

    # -- jobs for contexts of other servers --------------------------------------------------------

    def test_an_enqueued_job_is_stored_with_its_configuration(self, store: MetadataStore) -> None:
        context = a_context("c")
        store.add_context(context)
        job = a_job(context_id=context.id, idempotency_key="key", submitted_by="alice")
        store.enqueue_job(job, config='{"a":1}', limits=ROOM)
        assert store.job(job.id) == job
        assert store.job_config(job.id) == '{"a":1}'
        for duplicate in (job, a_job(context_id=context.id, idempotency_key="key")):
            with pytest.raises(DuplicateId) as caught:
                store.enqueue_job(duplicate, config="{}", limits=ROOM)
            assert caught.value.holder == job.id

    def test_a_job_is_enqueued_only_with_the_binaries_of_its_class_path(self, store: MetadataStore) -> None:
        context, binary = a_context("c"), a_binary("b")
        store.add_context(context)
        with pytest.raises(BinaryNotFound):
            store.enqueue_job(a_job(binary, context_id=context.id), config="{}", limits=ROOM)
        store.add_binary(binary)
        store.enqueue_job(a_job(binary, context_id=context.id), config="{}", limits=ROOM)
        with pytest.raises(BinaryInUse):
            store.delete_binary("b")

    @pytest.mark.parametrize("state", ContextState, ids=lambda state: state.value)
    def test_a_job_is_enqueued_only_in_a_context_that_accepts_jobs(
        self, store: MetadataStore, state: ContextState
    ) -> None:
        context = a_context("c", state=state, ended_at=at(1) if state.final else None)
        store.add_context(context)
        job = a_job(context_id=context.id, context_name="c")
        if state.final or state is ContextState.STOPPING:
            with pytest.raises(ContextNotFound if state.final else ContextStopping) as caught:
                store.enqueue_job(job, config="{}", limits=ROOM)
            assert "context c " in str(caught.value)
            assert store.job(job.id) is None
        else:
            store.enqueue_job(job, config="{}", limits=ROOM)
            assert store.job(job.id) == job

    def test_no_job_is_enqueued_in_a_context_that_is_about_to_be_ended(self, store: MetadataStore) -> None:
        context = a_context("c", stop_requested=True)
        store.add_context(context)
        job = a_job(context_id=context.id, context_name="c")
        with pytest.raises(ContextStopping):
            store.enqueue_job(job, config="{}", limits=ROOM)
        assert store.job(job.id) is None

    def test_no_job_is_enqueued_for_a_server_that_drains(self, store: MetadataStore) -> None:
        for server_id in ("a", "b"):
            _register(store, server_id)
            store.add_context(a_context(server_id, owner=server_id))
        store.drain_server("a")
        refused, accepted = (
            a_job(context_id=context.id) for name in "ab" if (context := store.context_named(name))
        )
        with pytest.raises(ServerClosed):
            store.enqueue_job(refused, config="{}", limits=ROOM)
        assert store.job(refused.id) is None
        store.enqueue_job(accepted, config="{}", limits=ROOM)
        store.remove_server("a")
        store.enqueue_job(refused, config="{}", limits=ROOM)

    def test_no_job_is_enqueued_in_an_unknown_context(self, store: MetadataStore) -> None:
        job = a_job(context_id="unknown", context_name="c")
        with pytest.raises(ContextNotFound) as caught:
            store.enqueue_job(job, config="{}", limits=ROOM)
        assert caught.value.name == "c"
        assert store.job(job.id) is None

    def test_only_living_jobs_of_the_context_take_its_room(self, store: MetadataStore) -> None:
        context, other = a_context("c"), a_context("d")
        store.add_context(context)
        store.add_context(other)
        limits = QueueLimits(slots=1, places=1)
        for number in range(3):
            ended = a_job(context_id=context.id, state=JobState.KILLED, ended_at=at(number))
            store.add_job(ended, config="{}")
            store.add_job(a_job(context_id=other.id), config="{}")
        store.add_job(a_job(context_id=context.id, dispatched_at=at(1)), config="{}")
        store.enqueue_job(a_job(context_id=context.id), config="{}", limits=limits)
        refused = a_job(context_id=context.id, context_name="c")
        with pytest.raises(NoSlots) as caught:
            store.enqueue_job(refused, config="{}", limits=limits)
        assert (caught.value.context, caught.value.running) == ("c", 1)
        assert store.job(refused.id) is None

    def test_a_user_may_not_take_the_room_of_others(self, store: MetadataStore) -> None:
        context = a_context("c")
        store.add_context(context)
        limits = QueueLimits(slots=0, places=3)
        store.enqueue_job(a_job(context_id=context.id, submitted_by="alice"), config="{}", limits=limits)
        store.enqueue_job(a_job(context_id=context.id, submitted_by="alice"), config="{}", limits=limits)
        with pytest.raises(NoSlots, match="user alice has the share of one user"):
            store.enqueue_job(a_job(context_id=context.id, submitted_by="alice"), config="{}", limits=limits)
        store.enqueue_job(a_job(context_id=context.id, submitted_by="bob"), config="{}", limits=limits)

    def test_of_many_that_enqueue_a_job_as_many_succeed_as_there_is_room(self, store: MetadataStore) -> None:
        limits = QueueLimits(slots=1, places=2)
        for number in range(ROUNDS):
            context = a_context(f"c{number}")
            store.add_context(context)
            jobs = [a_job(context_id=context.id) for _ in range(WRITERS)]
            outcomes = race(*[partial(store.enqueue_job, job, config="{}", limits=limits) for job in jobs])
            assert outcomes.count(None) == 3
            assert sum(type(outcome) is NoSlots for outcome in outcomes) == WRITERS - 3

    def test_a_job_is_never_enqueued_after_the_end_of_its_context(self, store: MetadataStore) -> None:
        for number in range(ROUNDS):
            context = a_context(f"c{number}")
            store.add_context(context)
            job = a_job(context_id=context.id)
            ended = attrs.evolve(context, state=ContextState.ERROR, ended_at=at(1))

            def end_and_look(
                context: Context = context, ended: Context = ended, job: Job = job
            ) -> tuple[Job | None]:
                store.advance_context(ended, expected=context.state)
                return (store.job(job.id),)

            enqueued, (seen,) = race(partial(store.enqueue_job, job, config="{}", limits=ROOM), end_and_look)
            assert store.job(job.id) == seen == (job if enqueued is None else None)

    # -- requests to other servers -----------------------------------------------------------------

    @pytest.mark.parametrize("text", ODD_TEXTS)
    def test_a_request_comes_back_with_what_was_stored(self, store: MetadataStore, text: str) -> None:
        request = _request("r", recipient=text, payload=text)
        store.add_request(request)
        assert store.request("r") == request
        assert store.requests_to(text) == [request]
        assert store.answer_request("r", text)
        assert store.request("r") == attrs.evolve(request, answer=text)
        with pytest.raises(DuplicateId) as caught:
            store.add_request(_request("r"))
        assert (caught.value.kind, caught.value.holder) == ("request", "r")

    def test_a_server_gets_its_requests_without_an_answer_oldest_first(self, store: MetadataStore) -> None:
        for request_id, seconds in (("b", 1), ("a", 1), ("c", 0), ("answered", 0)):
            store.add_request(_request(request_id, created_at=at(seconds)))
        store.add_request(_request("other", recipient="other"))
        store.answer_request("answered", "yes")
        assert [request.id for request in store.requests_to("server")] == ["c", "a", "b"]

    def test_a_request_is_answered_once(self, store: MetadataStore) -> None:
        store.add_request(_request("r"))
        assert store.answer_request("r", "first")
        assert not store.answer_request("r", "second")
        assert not store.answer_request("unknown", "first")
        assert store.remove_request("r") == _request("r", answer="first")
        assert store.remove_request("r") is None
        assert store.request("r") is None

    def test_an_answer_and_a_removal_never_miss_each_other(self, store: MetadataStore) -> None:
        for number in range(ROUNDS):
            store.add_request(_request(str(number)))
            answered, removed = race(
                partial(store.answer_request, str(number), "yes"), partial(store.remove_request, str(number))
            )
            assert removed == _request(str(number), answer="yes" if answered else None)

    def test_old_requests_are_deleted(self, store: MetadataStore) -> None:
        for number in range(3):
            store.add_request(_request(str(number), created_at=at(number)))
        assert store.delete_requests(created_before=at(2)) == 2
        assert [request.id for request in store.requests_to("server")] == ["2"]

    # -- notices -----------------------------------------------------------------------------------

    def test_all_that_listen_receive_every_notice(self, store: MetadataStore) -> None:
        received: list[list[str]] = [[], []]
        for heard in received:
            store.listen(partial(_hear, heard))
        notices = [f"notice {number}" for number in range(3)] + ["x" * 7000]
        for heard in received:
            _wait_until(partial(_sends, store, "ready", heard))
        for notice in [*notices, "last"]:
            store.notify(notice)
        for heard in received:
            _wait_until(partial(heard.__contains__, "last"))
            assert [text for text in heard if text != "ready"] == [*notices, "last"]

    # -- epochs ------------------------------------------------------------------------------------

    def test_a_context_is_advanced_only_by_the_holder_of_its_epoch(self, store: MetadataStore) -> None:
        first = a_context("c", owner="a", epoch=3)
        store.add_context(first)
        taken = attrs.evolve(first, owner="b", epoch=4)
        for wrong in (2, 4, None):
            with pytest.raises(StaleOwner) as caught:
                store.advance_context(taken, expected=first.state, epoch=wrong)
            assert (caught.value.kind, caught.value.id) == ("context", first.id)
            assert caught.value.found == first.state.value
        store.advance_context(taken, expected=first.state, epoch=3)
        with pytest.raises(StaleOwner):
            store.advance_context(attrs.evolve(first, url="late"), expected=first.state)
        assert store.context(first.id) == taken

    def test_a_job_is_advanced_only_by_the_holder_of_its_epoch(self, store: MetadataStore) -> None:
        first = a_job(epoch=3)
        store.add_job(first, config="{}")
        taken = attrs.evolve(first, context_id="another", epoch=4)
        for wrong in (2, 4, None):
            with pytest.raises(StaleOwner) as caught:
                store.advance_job(taken, expected=first.state, epoch=wrong)
            assert (caught.value.kind, caught.value.id) == ("job", first.id)
        store.advance_job(taken, expected=first.state, epoch=3)
        ended = attrs.evolve(first, state=JobState.FINISHED, ended_at=at(1))
        with pytest.raises(StaleOwner):
            store.advance_job(ended, expected=first.state, delivery=a_delivery(first))
        assert store.job(first.id) == taken
        assert store.deliveries_of(first.id) == []

    def test_a_delivery_is_advanced_only_by_the_holder_of_its_epoch(self, store: MetadataStore) -> None:
        job = a_job()
        store.add_job(job, config="{}")
        first = a_delivery(job, owner="a", epoch=1)
        ended = attrs.evolve(job, state=JobState.FINISHED, ended_at=at(1))
        store.advance_job(ended, expected=job.state, delivery=first)
        taken = attrs.evolve(first, state=DeliveryState.SENDING, owner="b", epoch=2)
        store.advance_delivery(taken, expected=DeliveryState.PENDING, epoch=1)
        late = attrs.evolve(first, state=DeliveryState.DELIVERED, ended_at=at(2))
        with pytest.raises(StaleOwner):
            store.advance_delivery(late, expected=DeliveryState.SENDING)
        assert store.delivery(first.id) == taken

    def test_a_wrong_state_is_reported_before_a_wrong_epoch(self, store: MetadataStore) -> None:
        context, job = a_context("c", state=ContextState.RUNNING, epoch=2), a_job(epoch=2)
        store.add_context(context)
        store.add_job(job, config="{}")
        for advance in (
            partial(store.advance_context, context, expected=ContextState.STARTED, epoch=1),
            partial(store.advance_job, job, expected=JobState.RUNNING, epoch=1),
        ):
            with pytest.raises(StaleState) as caught:
                advance()
            assert type(caught.value) is StaleState

    def test_of_many_servers_that_take_a_record_over_one_wins(self, store: MetadataStore) -> None:
        for number in range(ROUNDS):
            context, job = a_context(f"c{number}"), a_job()
            store.add_context(context)
            store.add_job(job, config="{}")
            claims = [attrs.evolve(context, owner=str(n), epoch=1) for n in range(WRITERS)]
            taken = [partial(store.advance_context, c, expected=context.state, epoch=0) for c in claims]
            won = winner(race(*taken), StaleOwner)
            assert store.context(context.id) == claims[won]
            moved = [attrs.evolve(job, context_id=str(n), epoch=1) for n in range(WRITERS)]
            taken = [partial(store.advance_job, j, expected=job.state, epoch=0) for j in moved]
            won = winner(race(*taken), StaleOwner)
            assert store.job(job.id) == moved[won]

    def test_deliveries_of_some_owners_can_be_left_out(self, store: MetadataStore) -> None:
        job = a_job()
        store.add_job(job, config="{}")
        sending = DeliveryState.SENDING
        owners = ["a", None, "b", "a", "c"]
        stored = [a_delivery(job, state=sending, owner=o, created_at=at(n)) for n, o in enumerate(owners)]
        for delivery in stored:
            store.advance_job(job, expected=job.state, delivery=delivery)
        assert store.deliveries_in(sending, limit=9) == stored
        left = [stored[1], stored[4]]
        assert store.deliveries_in(sending, limit=9, excluding=["a", "b"]) == left
        assert store.deliveries_in(sending, limit=1, excluding=iter(["a", "b"])) == left[:1]
        assert store.deliveries_in(DeliveryState.PENDING, limit=9, excluding=["a"]) == []
