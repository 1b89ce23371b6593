"""What is asked beyond the contract of a metadata store that outlives its process."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import attrs
import pytest

from jobserver_core.errors import BinaryInUse, BinaryNotFound, ContextExists, DuplicateId, StaleState
from jobserver_core.models.contexts import ContextQuery
from jobserver_core.models.jobs import JobQuery
from jobserver_core.models.lifecycle import ContextState, JobState
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_context, a_delivery, a_job, a_result, at
from jobserver_core.testing.metadata.access import StoreAccess
from jobserver_core.testing.metadata.jobs import full_job
from jobserver_core.testing.metadata.races import race, winner

__all__ = ["PersistenceContract"]


class PersistenceContract(StoreAccess):
    """A store that is opened again, or twice at once, is the same store."""

    def open_again(self, store: MetadataStore) -> MetadataStore:
        """Return another store on the same data; the contract closes it, and may have closed the first."""
        raise NotImplementedError("open the data of the store once more")

    def test_every_kind_of_record_is_there_after_opening_again(self, store: MetadataStore) -> None:
        binary, context, job = a_binary("b"), a_context("c", settings={"a": [1]}), full_job()
        delivery = a_delivery(job)
        store.add_binary(binary)
        store.add_context(context)
        store.add_job(a_job(id=job.id), config="config")
        store.advance_job(job, expected=JobState.STARTED, result=a_result(), delivery=delivery)
        store.close()
        with closing(self.open_again(store)) as again:
            assert again.binaries() == [binary]
            assert again.contexts(ContextQuery()) == [context]
            assert (again.job(job.id), again.job_config(job.id)) == (job, "config")
            assert (again.job_result(job.id), again.delivery(delivery.id)) == (a_result(), delivery)

    def test_what_is_unique_stays_so_after_opening_again(self, store: MetadataStore) -> None:
        context, job = a_context("c"), a_job(idempotency_key="key")
        store.add_context(context)
        store.add_job(job, config="{}")
        store.close()
        with closing(self.open_again(store)) as again:
            with pytest.raises(ContextExists):
                again.add_context(a_context("c"))
            with pytest.raises(DuplicateId) as caught:
                again.add_job(a_job(idempotency_key="key"), config="{}")
            assert caught.value.holder == job.id

    def test_the_order_in_which_records_were_added_goes_on_after_opening_again(
        self, store: MetadataStore
    ) -> None:
        store.add_binary(a_binary("b", id="first"))
        store.close()
        with closing(self.open_again(store)) as again:
            again.add_binary(a_binary("b", id="second"))
            assert [binary.id for binary in again.binary_versions("b")] == ["second", "first"]

    def test_a_cursor_is_good_after_opening_again(self, store: MetadataStore) -> None:
        for number in range(3):
            store.add_job(a_job(id=str(number), submitted_at=at(number)), config="{}")
        cursor = store.jobs(JobQuery(limit=1)).next
        store.close()
        with closing(self.open_again(store)) as again:
            assert [job.id for job in again.jobs(JobQuery(after=cursor)).jobs] == ["1", "0"]

    def test_two_stores_on_the_same_data_see_each_other_at_once(self, store: MetadataStore) -> None:
        with closing(self.open_again(store)) as other:
            job = a_job()
            store.add_job(job, config="{}")
            assert other.job(job.id) == job
            running = attrs.evolve(job, state=JobState.RUNNING)
            other.advance_job(running, expected=JobState.STARTED)
            assert store.job(job.id) == running
            with pytest.raises(StaleState):
                store.advance_job(running, expected=JobState.STARTED)

    def test_of_writers_through_two_stores_one_wins(self, store: MetadataStore) -> None:
        with closing(self.open_again(store)) as other:
            for number in range(10):
                contexts = [a_context(f"c{number}") for _ in range(4)]
                outcomes = race(
                    *(partial((store, other)[n % 2].add_context, c) for n, c in enumerate(contexts))
                )
                won = contexts[winner(outcomes, ContextExists)]
                ends = [attrs.evolve(won, state=ContextState.ERROR, url=str(n)) for n in range(4)]
                outcomes = race(
                    *(
                        partial((store, other)[n % 2].advance_context, end, expected=ContextState.STARTED)
                        for n, end in enumerate(ends)
                    )
                )
                assert store.context(won.id) == ends[winner(outcomes, StaleState)] == other.context(won.id)

    def test_a_delete_and_a_submit_through_two_stores_never_both_win(self, store: MetadataStore) -> None:
        with closing(self.open_again(store)) as other:
            for number in range(20):
                binary = a_binary(f"b{number}")
                store.add_binary(binary)
                job = a_job(binary)
                deleted, added = race(
                    partial(store.delete_binary, binary.name), partial(other.add_job, job, config="{}")
                )
                lost = [BinaryInUse(name=binary.name, job_ids=(job.id,)), BinaryNotFound(name=binary.name)]
                assert (deleted, added) in [([binary], lost[1]), (lost[0], None)]
