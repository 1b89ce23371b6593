"""The metadata contract's part about removing old contexts and old versions of binaries."""

from __future__ import annotations

from functools import partial

import attrs
import pytest

from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job
from jobserver_core.models.lifecycle import ContextState, JobState
from jobserver_core.models.storage import MetadataUsage
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_context, a_delivery, a_job, a_result, at
from jobserver_core.testing.metadata.access import (
    FINAL_CONTEXTS,
    FINAL_JOBS,
    LIVE_CONTEXTS,
    LIVE_JOBS,
    StoreAccess,
    add,
    added,
    states,
)
from jobserver_core.testing.metadata.races import race


class RetentionContract(StoreAccess):
    """Removing old contexts and old versions of binaries; for old jobs see :class:`ListsContract`."""

    # -- contexts --------------------------------------------------------------------------------------

    def _ended_context(
        self,
        store: MetadataStore,
        ended_at: float,
        *,
        name: str = "c",
        state: ContextState = ContextState.FINISHED,
    ) -> Context:
        return added(store, a_context(name, state=state, ended_at=at(ended_at)))

    @states(FINAL_CONTEXTS)
    def test_contexts_that_ended_before_a_time_are_removed(
        self, store: MetadataStore, state: ContextState
    ) -> None:
        old, young = self._ended_context(store, 1, state=state), self._ended_context(store, 2, state=state)
        assert store.delete_contexts(ended_before=at(2), limit=10) == [old.id]
        assert (store.context(old.id), store.context(young.id)) == (None, young)
        assert store.context_named("c") == young
        assert self.raw_counts(store)["contexts"] == 1
        assert store.delete_contexts(ended_before=at(2), limit=10) == []

    @states(LIVE_CONTEXTS)
    def test_a_live_context_is_never_removed(self, store: MetadataStore, state: ContextState) -> None:
        context = added(store, a_context(state=state, ended_at=at(1)))
        assert store.delete_contexts(ended_before=at(100), limit=10) == []
        assert store.context(context.id) == context

    @states([*LIVE_JOBS, *FINAL_JOBS])
    def test_a_context_is_kept_as_long_as_a_job_that_ran_in_it(
        self, store: MetadataStore, state: JobState
    ) -> None:
        served, free = self._ended_context(store, 1), self._ended_context(store, 2)
        add(store, a_job(context_id=served.id, state=state, ended_at=at(1) if state.final else None))
        assert store.delete_contexts(ended_before=at(9), limit=1) == [free.id]
        assert store.context(served.id) == served
        if state.final:
            assert store.delete_jobs(ended_before=at(9), limit=1) == 1
            assert store.delete_contexts(ended_before=at(9), limit=1) == [served.id]

    def test_the_oldest_contexts_are_removed_first_and_no_more_than_the_limit(
        self, store: MetadataStore
    ) -> None:
        contexts = {end: self._ended_context(store, end) for end in (5, 1, 4, 2, 3)}
        assert store.delete_contexts(ended_before=at(9), limit=0) == []
        assert store.delete_contexts(ended_before=at(9), limit=2) == [contexts[1].id, contexts[2].id]
        left = [contexts[end].id for end in (3, 4, 5)]
        assert store.delete_contexts(ended_before=at(9), limit=1000) == left

    def test_many_contexts_are_removed_in_one_call(self, store: MetadataStore) -> None:
        for number in range(300):
            self._ended_context(store, number, name=f"c{number}")
        assert len(store.delete_contexts(ended_before=at(250), limit=100_000)) == 250
        assert self.raw_counts(store)["contexts"] == 50

    # -- limits of count and bytes, and what they are about ------------------------------------------

    def _ended_job(self, store: MetadataStore, ended_at: float, text: str | None = None) -> Job:
        job = added(store, a_job(submitted_at=at(ended_at)))
        ended = attrs.evolve(job, state=JobState.FINISHED, ended_at=at(ended_at), has_result=text is not None)
        store.advance_job(ended, expected=job.state, result=None if text is None else a_result(text))
        return ended

    def test_the_newest_job_beyond_a_number_of_ended_jobs_is_found(self, store: MetadataStore) -> None:
        for end in (3, 1, 2):
            self._ended_job(store, end)
        store.add_job(a_job(state=JobState.RUNNING), config="{}")
        found = [store.newest_excess_job(jobs=jobs, result_bytes=None) for jobs in (0, 1, 2, 3, 100)]
        assert found == [at(3), at(2), at(1), None, None]

    def test_the_newest_job_beyond_the_bytes_of_results_is_found(self, store: MetadataStore) -> None:
        for end, text in ((4, None), (1, "x" * 100), (3, "x" * 10), (2, "x" * 20)):
            self._ended_job(store, end, text)
        found = [
            store.newest_excess_job(jobs=None, result_bytes=most) for most in (0, 9, 10, 29, 30, 129, 130)
        ]
        assert found == [at(3), at(3), at(2), at(2), at(1), at(1), None]

    def test_results_of_jobs_that_ended_at_the_same_time_count_together(self, store: MetadataStore) -> None:
        for text in ("x" * 10, "x" * 10, "x" * 10):
            self._ended_job(store, 1, text)
        assert store.newest_excess_job(jobs=None, result_bytes=29) == at(1)
        assert store.newest_excess_job(jobs=None, result_bytes=30) is None

    def test_the_stricter_of_two_limits_applies(self, store: MetadataStore) -> None:
        for end in (1, 2, 3):
            self._ended_job(store, end, "x" * 10)
        assert store.newest_excess_job(jobs=1, result_bytes=20) == at(2)
        assert store.newest_excess_job(jobs=2, result_bytes=10) == at(2)
        assert store.newest_excess_job(jobs=None, result_bytes=None) is None

    def test_usage_counts_the_records_and_the_bytes(self, store: MetadataStore) -> None:
        assert store.usage() == MetadataUsage()
        add(store, a_binary(size=2**40), a_binary(size=1), a_context())
        job = self._ended_job(store, 1, "x" * 10)
        self._ended_job(store, 2, "")
        store.advance_job(job, expected=job.state, delivery=a_delivery(job))
        assert store.usage() == MetadataUsage(
            binaries=2, binary_bytes=2**40 + 1, contexts=1, jobs=2, results=2, result_bytes=10, deliveries=1
        )

    # -- binaries --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("keep", [1, 2, 3, 4])
    def test_versions_before_a_time_are_removed_except_the_newest_of_each_name(
        self, store: MetadataStore, keep: int
    ) -> None:
        kept = [a_binary("b", uploaded_at=at(n)) for n in (5, 3, 2)]
        others = [a_binary("other", uploaded_at=at(n)) for n in (1, 0)]
        add(store, *kept, *others)
        removed = store.delete_old_binaries(uploaded_before=at(5), keep=keep, limit=10)
        assert removed == sorted([*kept[keep:], *others[keep:]], key=lambda binary: binary.uploaded_at)
        assert store.binary_versions("b") == kept[:keep]
        assert store.binary_versions("other") == others[:keep]
        assert self.raw_counts(store)["binaries"] == len(kept[:keep]) + len(others[:keep])

    def test_a_version_that_is_not_old_is_kept_however_many_are_newer(self, store: MetadataStore) -> None:
        versions = [a_binary("b", uploaded_at=at(n)) for n in (9, 8, 7)]
        add(store, *versions)
        assert store.delete_old_binaries(uploaded_before=at(7), keep=1, limit=10) == []
        assert store.delete_old_binaries(uploaded_before=at(8), keep=1, limit=10) == [versions[2]]

    def test_of_versions_of_one_time_the_last_is_the_newest(self, store: MetadataStore) -> None:
        first, second = a_binary("b", uploaded_at=at(1)), a_binary("b", uploaded_at=at(1))
        add(store, first, second)
        assert store.delete_old_binaries(uploaded_before=at(9), keep=1, limit=10) == [first]
        assert store.binary("b") == second

    @states(LIVE_JOBS)
    def test_a_version_that_a_live_job_uses_is_kept_until_the_job_ends(
        self, store: MetadataStore, state: JobState
    ) -> None:
        old, new = a_binary("b", uploaded_at=at(1)), a_binary("b", uploaded_at=at(2))
        add(store, old, new)
        job = added(store, a_job(old, state=state))
        assert store.delete_old_binaries(uploaded_before=at(9), keep=1, limit=10) == []
        assert store.unreferenced([old.digest]) == []
        store.advance_job(attrs.evolve(job, state=JobState.ERROR, ended_at=at(3)), expected=state)
        assert store.delete_old_binaries(uploaded_before=at(9), keep=1, limit=10) == [old]
        assert store.unreferenced([old.digest]) == [old.digest]

    def test_the_oldest_versions_are_removed_first_and_no_more_than_the_limit(
        self, store: MetadataStore
    ) -> None:
        versions = {n: a_binary("b", uploaded_at=at(n)) for n in (3, 1, 9, 2)}
        add(store, *versions.values())
        remove = partial(store.delete_old_binaries, uploaded_before=at(9), keep=1)
        assert remove(limit=0) == []
        assert remove(limit=2) == [versions[1], versions[2]]
        assert remove(limit=10) == [versions[3]]

    def test_a_removal_and_a_submit_never_both_win(self, store: MetadataStore) -> None:
        for number in range(20):
            old = added(store, a_binary(f"b{number}", uploaded_at=at(1)))
            store.add_binary(a_binary(f"b{number}", uploaded_at=at(2)))
            job = a_job(old)
            removed, submitted = race(
                partial(store.delete_old_binaries, uploaded_before=at(9), keep=1, limit=10),
                partial(store.add_job, job, config="{}"),
            )
            if submitted is None:
                assert removed == []
                assert old in store.binary_versions(old.name), "the version of a job that was added is gone"
                store.advance_job(attrs.evolve(job, state=JobState.ERROR), expected=job.state)
                store.delete_old_binaries(uploaded_before=at(9), keep=1, limit=10)
            else:
                assert removed == [old]
                assert store.job(job.id) is None
