"""The metadata contract's parts about callback deliveries, and about blobs in use."""

from __future__ import annotations

import attrs
import pytest

from jobserver_core.errors import StaleState
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.jobs import JobResult, ResultKind
from jobserver_core.models.lifecycle import DeliveryState, JobState
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_delivery, a_job, an_entry, at, digest_of
from jobserver_core.testing.contract import raising
from jobserver_core.testing.metadata.access import (
    FINAL_JOBS,
    LIVE_JOBS,
    ODD_TEXTS,
    StoreAccess,
    add,
    added,
    states,
)


def _add(store: MetadataStore, *deliveries: Delivery) -> None:
    """Store deliveries, and their jobs if they are missing."""
    for delivery in deliveries:
        job = store.job(delivery.job_id)
        if job is None:
            job = added(store, a_job(id=delivery.job_id))
        store.advance_job(job, expected=job.state, delivery=delivery)


def _full() -> Delivery:
    return a_delivery(
        job_id="job-full",
        state=DeliveryState.ABANDONED,
        attempts=5,
        created_at=at(1, microseconds=1),
        due_at=at(2, microseconds=2),
        ended_at=at(3, microseconds=3),
        last_status=503,
        last_error="no \0 \ud800 🙂",
    )


class DeliveriesContract(StoreAccess):
    """Deliveries: sorted by when they are due, claimed by compare-and-set."""

    @pytest.mark.parametrize("delivery", [a_delivery(job_id="job-bare"), _full()], ids=["bare", "full"])
    def test_a_delivery_comes_back_equal_in_full(self, store: MetadataStore, delivery: Delivery) -> None:
        _add(store, delivery)
        assert store.delivery(delivery.id) == delivery
        assert store.deliveries_of(delivery.job_id) == [delivery]
        assert store.deliveries_in(delivery.state, limit=1) == [delivery]

    @pytest.mark.parametrize("text", ODD_TEXTS)
    def test_strings_of_a_delivery_come_back_unchanged(self, store: MetadataStore, text: str) -> None:
        delivery = a_delivery(job_id="job", url=text, receiver=text, last_error=text)
        _add(store, delivery)
        assert store.delivery(delivery.id) == delivery
        assert store.delivery(text) is None
        assert store.deliveries_of(text) == []
        assert store.due_deliveries(now=at(9), limit=9, excluding=[text]) == []
        assert store.due_deliveries(now=at(9), limit=9, excluding=[text + "x"]) == [delivery]

    def test_deliveries_of_a_job_come_oldest_first(self, store: MetadataStore) -> None:
        order = [("z", 1), ("B", 2), ("a", 2), ("A", 3)]
        deliveries = [a_delivery(id=name, job_id="job", created_at=at(seconds)) for name, seconds in order]
        _add(store, *deliveries[::-1], a_delivery(job_id="other"))
        assert store.deliveries_of("job") == deliveries

    def test_due_deliveries_are_pending_and_not_later_than_now(self, store: MetadataStore) -> None:
        due = a_delivery(due_at=at(5), job_id="due")
        later = a_delivery(due_at=at(5, microseconds=1), job_id="later")
        others = [
            a_delivery(state=s, job_id=s.value) for s in DeliveryState if s is not DeliveryState.PENDING
        ]
        _add(store, due, later, *others)
        assert store.due_deliveries(now=at(5), limit=10) == [due]
        assert store.due_deliveries(now=at(4), limit=10) == []

    def test_due_deliveries_come_by_due_time_then_creation_then_id(self, store: MetadataStore) -> None:
        order = [("z", 1, 9), ("y", 2, 1), ("B", 2, 2), ("a", 2, 2), ("A", 3, 0)]
        deliveries = [a_delivery(id=i, job_id="job", due_at=at(d), created_at=at(c)) for i, d, c in order]
        _add(store, *deliveries[::-1])
        assert store.due_deliveries(now=at(9), limit=10) == deliveries
        for limit in range(len(order)):
            assert store.due_deliveries(now=at(9), limit=limit) == deliveries[:limit]

    def test_a_busy_receiver_hides_no_other(self, store: MetadataStore) -> None:
        crowd = [a_delivery(job_id="job", receiver="https://full:443", due_at=at(0)) for _ in range(30)]
        other = [a_delivery(job_id="job", receiver=f"https://free{n}:443", due_at=at(n)) for n in range(3)]
        _add(store, *crowd, *other)
        assert store.due_deliveries(now=at(9), limit=2, excluding={"https://full:443"}) == other[:2]
        excluding = (name for name in ("https://full:443", "https://free0:443", "https://unknown"))
        assert store.due_deliveries(now=at(9), limit=9, excluding=excluding) == other[1:]

    def test_advancing_a_delivery_stores_the_whole_record(self, store: MetadataStore) -> None:
        full = _full()
        _add(store, a_delivery(id=full.id, job_id="before"))
        store.advance_delivery(full, expected=DeliveryState.PENDING)
        assert store.delivery(full.id) == full
        assert (store.deliveries_of("before"), store.deliveries_of(full.job_id)) == ([], [full])
        bare = a_delivery(id=full.id, job_id="after")
        store.advance_delivery(bare, expected=DeliveryState.ABANDONED)
        assert store.delivery(full.id) == bare
        assert self.raw_counts(store)["deliveries"] == 1

    @pytest.mark.parametrize("stored", list(DeliveryState))
    @pytest.mark.parametrize("expected", list(DeliveryState))
    def test_a_delivery_is_advanced_if_and_only_if_its_state_is_the_expected_one(
        self, store: MetadataStore, stored: DeliveryState, expected: DeliveryState
    ) -> None:
        before = a_delivery(state=stored)
        _add(store, before)
        after = attrs.evolve(before, state=DeliveryState.DELIVERED, attempts=1, last_status=200)
        if stored is expected:
            store.advance_delivery(after, expected=expected)
            assert store.delivery(before.id) == after
            return
        with raising(
            StaleState(kind="callback delivery", id=before.id, expected=expected.value, found=stored.value)
        ):
            store.advance_delivery(after, expected=expected)
        assert store.delivery(before.id) == before

    def test_advancing_an_unknown_delivery_raises_stale_state_that_found_none(
        self, store: MetadataStore
    ) -> None:
        with pytest.raises(StaleState) as caught:
            store.advance_delivery(a_delivery(id="nobody"), expected=DeliveryState.PENDING)
        expected = StaleState(kind="callback delivery", id="nobody", expected="PENDING", found=None)
        assert caught.value == expected
        assert self.raw_counts(store)["deliveries"] == 0

    def test_deliveries_in_a_state_come_oldest_first_up_to_the_limit(self, store: MetadataStore) -> None:
        order = [("z", 1), ("B", 2), ("a", 2), ("A", 3)]
        sending = [
            a_delivery(id=name, job_id="job", created_at=at(c), due_at=at(-c), state=DeliveryState.SENDING)
            for name, c in order
        ]
        _add(store, *sending[::-1], a_delivery(job_id="job"))
        assert store.deliveries_in(DeliveryState.SENDING, limit=100) == sending
        assert store.deliveries_in(DeliveryState.SENDING, limit=2) == sending[:2]
        assert store.deliveries_in(DeliveryState.DELIVERED, limit=100) == []


class BlobsInUseContract(StoreAccess):
    """Blobs that can be deleted, because nothing refers to them."""

    def test_a_digest_that_nothing_refers_to_is_unreferenced(self, store: MetadataStore) -> None:
        unknown = digest_of("unknown")
        assert store.unreferenced([unknown]) == [unknown]
        assert store.unreferenced([]) == []

    def test_every_version_of_a_binary_refers_to_its_blob_until_it_is_deleted(
        self, store: MetadataStore
    ) -> None:
        versions = [a_binary("b", uploaded_at=at(n)) for n in range(3)]
        add(store, *versions, a_binary("copy", digest=versions[0].digest))
        digests = [binary.digest for binary in versions]
        assert store.unreferenced(digests) == []
        store.delete_binary("b")
        assert store.unreferenced(digests) == digests[1:]

    @states(LIVE_JOBS)
    def test_a_live_job_refers_to_the_blobs_of_its_class_path(
        self, store: MetadataStore, state: JobState
    ) -> None:
        entries = tuple(an_entry(source=f"file:///{n}", digest=digest_of(str(n))) for n in range(3))
        store.add_job(a_job(class_path=entries, state=state), config="{}")
        assert store.unreferenced([entry.digest for entry in entries]) == []

    @states(FINAL_JOBS)
    def test_a_final_job_does_not_refer_to_its_class_path(
        self, store: MetadataStore, state: JobState
    ) -> None:
        entry = an_entry(digest=digest_of("shared"))
        jobs = [a_job(class_path=(entry, entry)), a_job(class_path=(entry,))]
        add(store, *jobs, a_job(class_path=(entry,), state=state))
        for job, left in zip(jobs, ([], [entry.digest]), strict=True):
            store.advance_job(attrs.evolve(job, state=state), expected=JobState.STARTED)
            assert store.unreferenced([entry.digest]) == left

    @pytest.mark.parametrize("kind", [ResultKind.STORED, ResultKind.STREAM])
    def test_a_result_refers_to_its_blob_until_its_job_is_deleted(
        self, store: MetadataStore, kind: ResultKind
    ) -> None:
        job = added(store, a_job(state=JobState.FINISHED, ended_at=at(1)))
        result = JobResult(kind=kind, size=1, digest=digest_of("result"))
        store.advance_job(job, expected=JobState.FINISHED, result=result)
        assert store.unreferenced([digest_of("result")]) == []
        store.delete_jobs(ended_before=at(2), limit=1)
        assert store.unreferenced([digest_of("result")]) == [digest_of("result")]

    def test_unreferenced_takes_any_number_of_digests_and_keeps_their_order(
        self, store: MetadataStore
    ) -> None:
        binary = added(store, a_binary("b"))
        digests = [digest_of(str(number)) for number in range(3000)]
        asked = (digest for digest in [*digests, binary.digest, digests[0]])
        assert store.unreferenced(asked) == digests

    @pytest.mark.parametrize("text", ODD_TEXTS)
    def test_a_string_that_is_not_a_digest_is_unreferenced(self, store: MetadataStore, text: str) -> None:
        assert store.unreferenced([text]) == [text]
