"""The metadata contract's part about servers: leases, requests, notices, and the epochs of records."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import attrs
import pytest

from jobserver_core.errors import DuplicateId, StaleOwner, StaleState
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.models.servers import ServerRequest
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_context, a_delivery, a_job, at
from jobserver_core.testing.contract import wait_until
from jobserver_core.testing.metadata.access import HOUR, ODD_TEXTS, StoreAccess, add, added, register
from jobserver_core.testing.metadata.races import ROUNDS, WRITERS, race, winner


def _ids(store: MetadataStore, *, expired: bool | None = None) -> list[str]:
    return [server.id for server in store.servers(expired=expired)]


def _request(request_id: str, **fields: Any) -> ServerRequest:
    fields = {"recipient": "server", "created_at": at(), "payload": "{}", **fields}
    return ServerRequest(id=request_id, **fields)


class ServersContract(StoreAccess):
    """Servers: leases that the store judges, requests to other servers, and notices."""

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
            register(store, server_id, seconds=seconds)
        assert _ids(store) == ["c", "a", "b", "d"]

    def test_registering_a_known_server_replaces_its_record(self, store: MetadataStore) -> None:
        register(store, "a", lease=0)
        register(store, "a", seconds=5)
        [server] = store.servers(expired=False)
        assert server.started_at == at(5)
        assert _ids(store) == ["a"]

    def test_a_lease_of_no_time_has_expired_and_a_long_one_has_not(self, store: MetadataStore) -> None:
        register(store, "dead", lease=0)
        register(store, "alive")
        assert _ids(store, expired=True) == ["dead"]
        assert _ids(store, expired=False) == ["alive"]
        assert _ids(store) == ["alive", "dead"]

    def test_a_lease_ends_as_many_seconds_after_now_as_asked_for(self, store: MetadataStore) -> None:
        register(store, "a", lease=100)
        register(store, "b", lease=300)
        first, second = store.servers()
        apart = (second.lease_until - first.lease_until).total_seconds()
        assert 190 < apart < 260, f"leases of 100 and 300 seconds end {apart} seconds apart"

    def test_renewing_revives_a_server_whose_lease_has_expired(self, store: MetadataStore) -> None:
        register(store, "a", lease=0)
        assert store.renew_server("a", lease=HOUR)
        assert _ids(store, expired=False) == ["a"]
        assert store.renew_server("a", lease=0)
        assert _ids(store, expired=True) == ["a"]

    def test_renewing_changes_nothing_but_the_lease_of_that_server(self, store: MetadataStore) -> None:
        register(store, "a", seconds=3)
        register(store, "b", lease=0, seconds=4)
        assert store.renew_server("a", lease=2 * HOUR)
        first, second = store.servers()
        assert (first.id, first.started_at, first.address) == ("a", at(3), "host-1")
        assert _ids(store, expired=True) == [second.id] == ["b"]

    def test_a_server_that_is_not_registered_cannot_be_renewed(self, store: MetadataStore) -> None:
        assert not store.renew_server("a", lease=HOUR)
        register(store, "a")
        store.remove_server("a")
        assert not store.renew_server("a", lease=HOUR)
        assert store.servers() == []

    def test_a_server_is_removed_once(self, store: MetadataStore) -> None:
        register(store, "a")
        register(store, "b")
        assert store.remove_server("a")
        assert not store.remove_server("a")
        assert _ids(store) == ["b"]

    def test_only_an_expired_server_can_be_removed_as_expired(self, store: MetadataStore) -> None:
        register(store, "alive")
        register(store, "dead", lease=0)
        assert not store.remove_server("alive", only_expired=True)
        assert not store.remove_server("unknown", only_expired=True)
        assert store.remove_server("dead", only_expired=True)
        assert _ids(store) == ["alive"]

    def test_of_many_that_remove_an_expired_server_one_wins(self, store: MetadataStore) -> None:
        for _ in range(ROUNDS):
            register(store, "a", lease=0)
            removed = race(*[partial(store.remove_server, "a", only_expired=True)] * WRITERS)
            assert removed.count(True) == 1
            assert removed.count(False) == WRITERS - 1

    def test_a_renewal_and_a_removal_of_an_expired_server_never_both_win(self, store: MetadataStore) -> None:
        for _ in range(ROUNDS):
            register(store, "a", lease=0)
            renewed, removed = race(
                partial(store.renew_server, "a", lease=HOUR),
                partial(store.remove_server, "a", only_expired=True),
            )
            assert renewed is not removed
            assert _ids(store) == (["a"] if renewed else [])

    def test_a_server_has_the_version_that_it_was_registered_with(self, store: MetadataStore) -> None:
        store.register_server("a", started_at=at(), address="", lease=HOUR, version="1.2")
        register(store, "b", seconds=1)
        assert [server.version for server in store.servers()] == ["1.2", ""]

    def test_a_server_drains_until_it_is_registered_again(self, store: MetadataStore) -> None:
        assert not store.drain_server("a")
        for server_id in ("a", "b"):
            register(store, server_id)
        assert store.drain_server("a")
        assert store.renew_server("a", lease=HOUR)
        assert [(server.id, server.draining) for server in store.servers()] == [("a", True), ("b", False)]
        register(store, "a")
        assert {server.draining for server in store.servers()} == {False}

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
        received: list[list[str | None]] = [[], []]
        for heard in received:
            store.listen(heard.append)
        notices = [f"notice {number}" for number in range(3)] + ["x" * 7000]

        def all_listen() -> bool:
            store.notify("ready")  # a store may need a moment before it listens
            return all("ready" in heard for heard in received)

        wait_until(all_listen)
        for notice in [*notices, "last"]:
            store.notify(notice)
        for heard in received:
            wait_until(partial(heard.__contains__, "last"))
            assert [text for text in heard if text not in ("ready", None)] == [*notices, "last"]


class EpochsContract(StoreAccess):
    """A record is written only by the holder of its epoch, which grows when the record changes hands."""

    def test_a_context_is_advanced_only_by_the_holder_of_its_epoch(self, store: MetadataStore) -> None:
        first = added(store, a_context("c", owner="a", epoch=3))
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
        first = added(store, a_job(epoch=3))
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
        job = added(store, a_job())
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
        add(store, context, job)
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
            add(store, context, job)
            claims = [attrs.evolve(context, owner=str(n), epoch=1) for n in range(WRITERS)]
            taken = [partial(store.advance_context, c, expected=context.state, epoch=0) for c in claims]
            won = winner(race(*taken), StaleOwner)
            assert store.context(context.id) == claims[won]
            moved = [attrs.evolve(job, context_id=str(n), epoch=1) for n in range(WRITERS)]
            taken = [partial(store.advance_job, j, expected=job.state, epoch=0) for j in moved]
            won = winner(race(*taken), StaleOwner)
            assert store.job(job.id) == moved[won]

    def test_deliveries_of_some_owners_can_be_left_out(self, store: MetadataStore) -> None:
        job = added(store, a_job())
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
