"""The metadata contract's part about removing old contexts and old versions of binaries."""

from __future__ import annotations

from functools import partial

import attrs
import pytest

from jobserver_core.models.contexts import Context
from jobserver_core.models.lifecycle import ContextState, JobState
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_context, a_job, at
from jobserver_core.testing.metadata.access import (
    FINAL_CONTEXTS,
    FINAL_JOBS,
    LIVE_CONTEXTS,
    LIVE_JOBS,
    StoreAccess,
    states,
)
from jobserver_core.testing.metadata.races import race

__all__ = ["RetentionContract"]


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
        context = a_context(name, state=state, ended_at=at(ended_at))
        store.add_context(context)
        return context

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
        context = a_context(state=state, ended_at=at(1))
        store.add_context(context)
        assert store.delete_contexts(ended_before=at(100), limit=10) == []
        assert store.context(context.id) == context

    @states([*LIVE_JOBS, *FINAL_JOBS])
    def test_a_context_is_kept_as_long_as_a_job_that_ran_in_it(
        self, store: MetadataStore, state: JobState
    ) -> None:
        served, free = self._ended_context(store, 1), self._ended_context(store, 2)
        job = a_job(context_id=served.id, state=state, ended_at=at(1) if state.final else None)
        store.add_job(job, config="{}")
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

    # -- binaries --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("keep", [1, 2, 3, 4])
    def test_versions_before_a_time_are_removed_except_the_newest_of_each_name(
        self, store: MetadataStore, keep: int
    ) -> None:
        kept = [a_binary("b", uploaded_at=at(n)) for n in (5, 3, 2)]
        others = [a_binary("other", uploaded_at=at(n)) for n in (1, 0)]
        for binary in [*kept, *others]:
            store.add_binary(binary)
        removed = store.delete_old_binaries(uploaded_before=at(5), keep=keep, limit=10)
        assert removed == sorted([*kept[keep:], *others[keep:]], key=lambda binary: binary.uploaded_at)
        assert store.binary_versions("b") == kept[:keep]
        assert store.binary_versions("other") == others[:keep]
        assert self.raw_counts(store)["binaries"] == len(kept[:keep]) + len(others[:keep])

    def test_a_version_that_is_not_old_is_kept_however_many_are_newer(self, store: MetadataStore) -> None:
        versions = [a_binary("b", uploaded_at=at(n)) for n in (9, 8, 7)]
        for binary in versions:
            store.add_binary(binary)
        assert store.delete_old_binaries(uploaded_before=at(7), keep=1, limit=10) == []
        assert store.delete_old_binaries(uploaded_before=at(8), keep=1, limit=10) == [versions[2]]

    def test_of_versions_of_one_time_the_last_is_the_newest(self, store: MetadataStore) -> None:
        first, second = a_binary("b", uploaded_at=at(1)), a_binary("b", uploaded_at=at(1))
        store.add_binary(first)
        store.add_binary(second)
        assert store.delete_old_binaries(uploaded_before=at(9), keep=1, limit=10) == [first]
        assert store.binary("b") == second

    @states(LIVE_JOBS)
    def test_a_version_that_a_live_job_uses_is_kept_until_the_job_ends(
        self, store: MetadataStore, state: JobState
    ) -> None:
        old, new = a_binary("b", uploaded_at=at(1)), a_binary("b", uploaded_at=at(2))
        for binary in (old, new):
            store.add_binary(binary)
        job = a_job(old, state=state)
        store.add_job(job, config="{}")
        assert store.delete_old_binaries(uploaded_before=at(9), keep=1, limit=10) == []
        assert store.unreferenced([old.digest]) == []
        store.advance_job(attrs.evolve(job, state=JobState.ERROR, ended_at=at(3)), expected=state)
        assert store.delete_old_binaries(uploaded_before=at(9), keep=1, limit=10) == [old]
        assert store.unreferenced([old.digest]) == [old.digest]

    def test_the_oldest_versions_are_removed_first_and_no_more_than_the_limit(
        self, store: MetadataStore
    ) -> None:
        versions = {n: a_binary("b", uploaded_at=at(n)) for n in (3, 1, 9, 2)}
        for binary in versions.values():
            store.add_binary(binary)
        remove = partial(store.delete_old_binaries, uploaded_before=at(9), keep=1)
        assert remove(limit=0) == []
        assert remove(limit=2) == [versions[1], versions[2]]
        assert remove(limit=10) == [versions[3]]

    def test_a_removal_and_a_submit_never_both_win(self, store: MetadataStore) -> None:
        for number in range(20):
            old = a_binary(f"b{number}", uploaded_at=at(1))
            store.add_binary(old)
            store.add_binary(a_binary(f"b{number}", uploaded_at=at(2)))
            job = a_job(old)
            removed, added = race(
                partial(store.delete_old_binaries, uploaded_before=at(9), keep=1, limit=10),
                partial(store.add_job, job, config="{}"),
            )
            if added is None:
                assert removed == []
                assert old in store.binary_versions(old.name)
                store.advance_job(attrs.evolve(job, state=JobState.ERROR), expected=job.state)
                store.delete_old_binaries(uploaded_before=at(9), keep=1, limit=10)
            else:
                assert removed == [old]
                assert store.job(job.id) is None
