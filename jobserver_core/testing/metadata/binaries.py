"""The metadata contract's part about binaries."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from jobserver_core.errors import BinaryInUse, BinaryNotFound, DuplicateId
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.lifecycle import JobState
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_job, an_entry, at
from jobserver_core.testing.contract import raising
from jobserver_core.testing.metadata.access import (
    FINAL_JOBS,
    LIVE_JOBS,
    ODD_TEXTS,
    StoreAccess,
    add,
    added,
    present,
    states,
)


class BinariesContract(StoreAccess):
    """Versions of binaries: separate, ordered, and not deleted while a job uses them."""

    @pytest.mark.parametrize("kind", list(BinaryType))
    def test_a_binary_comes_back_equal_in_full(self, store: MetadataStore, kind: BinaryType) -> None:
        fields = {"uploaded_at": at(microseconds=1), "size": 2**40, "package": f"Wörter {'a' * 190} 1.0"}
        binary = added(store, a_binary("my job_1.0-rc+x@y~z", type=kind, **fields))
        assert store.binary(binary.name) == binary
        assert store.binary_versions(binary.name) == [binary]
        assert store.binaries() == [binary]

    def test_an_empty_binary_and_one_with_an_empty_id_come_back_unchanged(self, store: MetadataStore) -> None:
        binary = added(store, a_binary(id="", size=0))
        assert store.binary(binary.name) == binary
        assert binary.package is None

    def test_an_upload_time_comes_back_in_utc(self, store: MetadataStore) -> None:
        local = datetime(2016, 6, 19, 16, 27, 12, 196001, tzinfo=timezone(timedelta(hours=5, minutes=30)))
        store.add_binary(a_binary("b", uploaded_at=local))
        stored = present(store.binary("b"))
        assert stored.uploaded_at == local
        assert stored.uploaded_at.utcoffset() == timedelta(0)

    def test_times_of_any_century_keep_their_microseconds(self, store: MetadataStore) -> None:
        utc = timezone.utc
        early, late = datetime(1, 1, 2, tzinfo=utc), datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=utc)
        before_1970 = datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=utc)
        for time in (late, early, before_1970):
            store.add_binary(a_binary("b", uploaded_at=time))
        assert [b.uploaded_at for b in store.binary_versions("b")] == [late, before_1970, early]

    def test_an_unknown_name_has_no_binary_and_no_versions(self, store: MetadataStore) -> None:
        store.add_binary(a_binary("other"))
        assert store.binary("word-count") is None
        assert store.binary_versions("word-count") == []

    @pytest.mark.parametrize("text", ODD_TEXTS)
    def test_a_name_that_cannot_be_uploaded_is_not_found(self, store: MetadataStore, text: str) -> None:
        store.add_binary(a_binary("b"))
        assert store.binary(text) is None
        assert store.binary_versions(text) == []
        with raising(BinaryNotFound(name=text)):
            store.delete_binary(text)

    def test_an_empty_store_has_no_binaries(self, store: MetadataStore) -> None:
        assert store.binaries() == []

    def test_the_newest_version_is_the_one_uploaded_last_and_not_the_one_added_last(
        self, store: MetadataStore
    ) -> None:
        newest = a_binary("b", uploaded_at=at(2, microseconds=1))
        older = [a_binary("b", uploaded_at=at(2)), a_binary("b", uploaded_at=at(1))]
        add(store, older[1], newest, older[0])
        assert store.binary("b") == newest
        assert store.binaries() == [newest]
        assert store.binary_versions("b") == [newest, *older]

    def test_among_versions_uploaded_at_once_the_newest_is_the_one_added_last(
        self, store: MetadataStore
    ) -> None:
        ids = ["m", "z", "a", "q"]
        for binary_id in ids:
            store.add_binary(a_binary("b", id=binary_id))
        assert present(store.binary("b")).id == "q"
        assert [b.id for b in store.binaries()] == ["q"]
        assert [b.id for b in store.binary_versions("b")] == ids[::-1]

    def test_binaries_are_the_newest_of_each_name_sorted_by_code_points(self, store: MetadataStore) -> None:
        names = ["b", "a b", "B", "_a", "a", "a-b", "Z", "9", "a.b", "a~"]
        newest = {name: a_binary(name, uploaded_at=at(5)) for name in names}
        for name in names:
            add(store, a_binary(name, uploaded_at=at(1)), newest[name], a_binary(name, uploaded_at=at(3)))
        assert store.binaries() == [newest[name] for name in sorted(names)]

    def test_names_that_differ_in_case_are_two_binaries(self, store: MetadataStore) -> None:
        lower, upper = a_binary("job"), a_binary("JOB")
        add(store, lower, upper)
        assert (store.binary("job"), store.binary("JOB"), store.binary("Job")) == (lower, upper, None)

    def test_adding_a_known_id_raises_duplicate_id_and_changes_nothing(self, store: MetadataStore) -> None:
        first = added(store, a_binary("b", id="same"))
        with raising(DuplicateId(kind="binary", id="same", holder="same")):
            store.add_binary(a_binary("c", id="same"))
        assert store.binaries() == [first]
        assert self.raw_counts(store)["binaries"] == 1

    def test_deleting_removes_every_version_of_the_name_and_returns_them_newest_first(
        self, store: MetadataStore
    ) -> None:
        versions = [a_binary("b", uploaded_at=at(n)) for n in (2, 3, 1)]
        other = a_binary("c", digest=versions[0].digest)
        add(store, *versions, other)
        assert store.delete_binary("b") == [versions[1], versions[0], versions[2]]
        assert store.binary("b") is None
        assert store.binaries() == [other]
        assert self.raw_counts(store)["binaries"] == 1

    def test_a_deleted_name_can_be_uploaded_again(self, store: MetadataStore) -> None:
        store.add_binary(a_binary("b", uploaded_at=at(9)))
        store.delete_binary("b")
        again = added(store, a_binary("b", uploaded_at=at(1)))
        assert store.binary_versions("b") == [again]

    def test_deleting_an_unknown_name_raises_binary_not_found(self, store: MetadataStore) -> None:
        with raising(BinaryNotFound(name="b")):
            store.delete_binary("b")

    @states(LIVE_JOBS)
    def test_a_binary_of_a_live_job_cannot_be_deleted(self, store: MetadataStore, state: JobState) -> None:
        binary = added(store, a_binary("b"))
        job = added(store, a_job(a_binary("x"), class_path=(an_entry(), an_entry(binary)), state=state))
        with raising(BinaryInUse(name="b", job_ids=(job.id,))):
            store.delete_binary("b")
        assert store.binary("b") == binary

    @states(FINAL_JOBS)
    def test_a_binary_of_a_final_job_can_be_deleted(self, store: MetadataStore, state: JobState) -> None:
        ended, ending = a_binary("ended"), a_binary("ending")
        add(store, ended, ending, a_job(ended, state=state))
        job = added(store, a_job(ending, state=JobState.RUNNING))
        store.advance_job(a_job(ending, id=job.id, state=state), expected=JobState.RUNNING)
        assert store.delete_binary("ended") == [ended]
        assert store.delete_binary("ending") == [ending]
        assert store.job(job.id) is not None

    def test_a_refused_delete_names_the_jobs_in_submission_order_and_removes_nothing(
        self, store: MetadataStore
    ) -> None:
        old, new = a_binary("b", uploaded_at=at(1)), a_binary("b", uploaded_at=at(2))
        add(store, old, new)
        submitted = {"z": 1, "d": 3, "B": 3, "a": 2}
        for number, (job_id, seconds) in enumerate(submitted.items()):
            add(store, a_job((old, new)[number % 2], id=job_id, submitted_at=at(seconds)))
        with pytest.raises(BinaryInUse) as caught:
            store.delete_binary("b")
        assert caught.value.job_ids == ("z", "a", "B", "d")
        assert store.binary_versions("b") == [new, old]

    def test_a_job_that_names_a_binary_twice_is_listed_once(self, store: MetadataStore) -> None:
        binary = added(store, a_binary("b"))
        job = added(store, a_job(binary, binary))
        with pytest.raises(BinaryInUse) as caught:
            store.delete_binary("b")
        assert caught.value.job_ids == (job.id,)

    def test_a_job_of_equal_bytes_under_another_name_does_not_use_a_binary(
        self, store: MetadataStore
    ) -> None:
        mine, other = a_binary("mine"), a_binary("other")
        copy = a_binary("copy", digest=mine.digest)
        add(store, mine, other, copy, a_job(copy, other))
        assert store.delete_binary("mine") == [mine]

    def test_a_job_that_is_live_again_uses_its_binary_again(self, store: MetadataStore) -> None:
        binary = added(store, a_binary("b"))
        job = added(store, a_job(binary, state=JobState.FINISHED))
        store.advance_job(a_job(binary, id=job.id, state=JobState.RUNNING), expected=JobState.FINISHED)
        with pytest.raises(BinaryInUse):
            store.delete_binary("b")

    def test_an_advance_can_change_which_binaries_a_job_uses(self, store: MetadataStore) -> None:
        before, after = a_binary("before"), a_binary("after")
        add(store, before, after)
        job = added(store, a_job(before))
        store.advance_job(a_job(after, id=job.id, state=JobState.RUNNING), expected=JobState.STARTED)
        assert store.delete_binary("before") == [before]
        with pytest.raises(BinaryInUse):
            store.delete_binary("after")
