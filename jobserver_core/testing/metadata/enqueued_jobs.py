"""The metadata contract's part about jobs that any server enqueues in a context with room for them."""

from __future__ import annotations

from functools import partial

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
)
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job, QueueLimits
from jobserver_core.models.lifecycle import ContextState, JobState
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_context, a_job, at
from jobserver_core.testing.metadata.access import StoreAccess, add, added, register
from jobserver_core.testing.metadata.races import ROUNDS, WRITERS, race

ROOM = QueueLimits(slots=9, places=9)


class EnqueuedJobsContract(StoreAccess):
    """Jobs are enqueued in a context that accepts jobs and has room, also by servers that do not own it."""

    def test_an_enqueued_job_is_stored_with_its_configuration(self, store: MetadataStore) -> None:
        context = added(store, a_context("c"))
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
        context = added(store, a_context("c", state=state, ended_at=at(1) if state.final else None))
        job = a_job(context_id=context.id, context_name="c")
        if state.final or state is ContextState.STOPPING:
            with pytest.raises(ContextNotFound if state.final else ContextStopping) as caught:
                store.enqueue_job(job, config="{}", limits=ROOM)
            assert "context c " in str(caught.value), f"the error has to name the context c: {caught.value}"
            assert store.job(job.id) is None
        else:
            store.enqueue_job(job, config="{}", limits=ROOM)
            assert store.job(job.id) == job

    def test_no_job_is_enqueued_in_a_context_that_is_about_to_be_ended(self, store: MetadataStore) -> None:
        context = added(store, a_context("c", stop_requested=True))
        job = a_job(context_id=context.id, context_name="c")
        with pytest.raises(ContextStopping):
            store.enqueue_job(job, config="{}", limits=ROOM)
        assert store.job(job.id) is None

    def test_no_job_is_enqueued_for_a_server_that_drains(self, store: MetadataStore) -> None:
        for server_id in ("a", "b"):
            register(store, server_id)
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
        add(store, context, other)
        limits = QueueLimits(slots=1, places=1)
        for number in range(3):
            add(store, a_job(context_id=context.id, state=JobState.KILLED, ended_at=at(number)))
            add(store, a_job(context_id=other.id))
        store.add_job(a_job(context_id=context.id, dispatched_at=at(1)), config="{}")
        store.enqueue_job(a_job(context_id=context.id), config="{}", limits=limits)
        refused = a_job(context_id=context.id, context_name="c")
        with pytest.raises(NoSlots) as caught:
            store.enqueue_job(refused, config="{}", limits=limits)
        assert (caught.value.context, caught.value.running) == ("c", 1)
        assert store.job(refused.id) is None

    def test_a_user_may_not_take_the_room_of_others(self, store: MetadataStore) -> None:
        context = added(store, a_context("c"))
        limits = QueueLimits(slots=0, places=3)
        store.enqueue_job(a_job(context_id=context.id, submitted_by="alice"), config="{}", limits=limits)
        store.enqueue_job(a_job(context_id=context.id, submitted_by="alice"), config="{}", limits=limits)
        with pytest.raises(NoSlots, match="user alice already has one user's share of the queue"):
            store.enqueue_job(a_job(context_id=context.id, submitted_by="alice"), config="{}", limits=limits)
        store.enqueue_job(a_job(context_id=context.id, submitted_by="bob"), config="{}", limits=limits)

    def test_of_many_that_enqueue_a_job_as_many_succeed_as_there_is_room(self, store: MetadataStore) -> None:
        limits = QueueLimits(slots=1, places=2)
        for number in range(ROUNDS):
            context = added(store, a_context(f"c{number}"))
            jobs = [a_job(context_id=context.id) for _ in range(WRITERS)]
            outcomes = race(*[partial(store.enqueue_job, job, config="{}", limits=limits) for job in jobs])
            assert outcomes.count(None) == 3
            assert sum(type(outcome) is NoSlots for outcome in outcomes) == WRITERS - 3

    def test_a_job_is_never_enqueued_after_the_end_of_its_context(self, store: MetadataStore) -> None:
        for number in range(ROUNDS):
            context = added(store, a_context(f"c{number}"))
            job = a_job(context_id=context.id)
            ended = attrs.evolve(context, state=ContextState.ERROR, ended_at=at(1))

            def end_and_look(
                context: Context = context, ended: Context = ended, job: Job = job
            ) -> tuple[Job | None]:
                store.advance_context(ended, expected=context.state)
                return (store.job(job.id),)

            enqueued, (seen,) = race(partial(store.enqueue_job, job, config="{}", limits=ROOM), end_and_look)
            assert store.job(job.id) == seen == (job if enqueued is None else None)
