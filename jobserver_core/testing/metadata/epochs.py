"""The metadata contract's part about owners of records, and the epochs that fence off earlier ones."""

from __future__ import annotations

from functools import partial

import attrs
import pytest

from jobserver_core.errors import StaleOwner, StaleState
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_context, a_delivery, a_job, at
from jobserver_core.testing.metadata.access import StoreAccess, added
from jobserver_core.testing.metadata.races import ROUNDS, WRITERS, race, winner


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
