"""The metadata contract's part about concurrent writers, of which one wins."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import pytest

from jobserver_core.errors import (
    BinaryInUse,
    BinaryNotFound,
    ContextExists,
    DuplicateId,
    JobServerError,
    StaleState,
)
from jobserver_core.models.binaries import Binary
from jobserver_core.models.jobs import JobProgress, JobQuery
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_context, a_delivery, a_job, a_result, at
from jobserver_core.testing.metadata.access import StoreAccess, add, added, present

WRITERS = 8
"""How many threads race: more than many machines have cores, so that some are interrupted."""
ROUNDS = 10
"""How often a race is repeated, because few rounds hit the critical moment."""
DEADLINE = 60.0
"""Seconds for a race, which takes milliseconds unless a call waits forever."""


def race(*calls: Callable[[], object]) -> list[Any]:
    """Make all calls at once, each on its own thread, and return what each returned or raised.

    An exception that is not a JobServerError fails the test, as does a call that takes over a minute.
    """
    late = f"a call waits forever, or takes over {DEADLINE:g} s on this machine"
    outcomes: list[Any] = [TimeoutError(late)] * len(calls)
    start = threading.Barrier(len(calls))

    def run(number: int) -> None:
        start.wait(DEADLINE)
        try:
            outcomes[number] = calls[number]()
        except Exception as error:  # noqa: BLE001 - the test looks at every outcome
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in random.sample(threads, len(threads)):  # the thread that starts last often runs first
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    strange = [o for o in outcomes if isinstance(o, Exception) and not isinstance(o, JobServerError)]
    assert not strange, strange
    return outcomes


def winner(outcomes: Sequence[object], lost: type[JobServerError]) -> int:
    """Return the index of the call that won; all others must have raised ``lost``."""
    won = [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)]
    assert len(won) == 1, f"{len(won)} calls won: {outcomes}"
    assert all(type(o) is lost for n, o in enumerate(outcomes) if n != won[0]), outcomes
    return won[0]


class RacesContract(StoreAccess):
    """Calls from many threads at once, which must agree on the outcome."""

    def test_of_many_writers_that_end_a_job_one_wins_with_all_it_wrote(self, store: MetadataStore) -> None:
        for _ in range(ROUNDS):
            job = added(store, a_job(state=JobState.RUNNING))
            ends = (JobState.FINISHED, JobState.ERROR, JobState.KILLED)
            records = [
                attrs.evolve(job, state=ends[n % 3], ended_at=at(n), fingerprint=str(n))
                for n in range(WRITERS)
            ]
            deliveries = [a_delivery(job) for _ in records]
            outcomes = race(
                *(
                    partial(
                        store.advance_job,
                        record,
                        expected=JobState.RUNNING,
                        result=a_result(str(n)),
                        delivery=deliveries[n],
                    )
                    for n, record in enumerate(records)
                )
            )
            won = winner(outcomes, StaleState)
            assert store.job(job.id) == records[won]
            assert store.job_result(job.id) == a_result(str(won))
            assert store.deliveries_of(job.id) == [deliveries[won]]
            assert {o.found for n, o in enumerate(outcomes) if n != won} == {records[won].state.value}

    def test_of_many_writers_that_advance_a_context_one_wins(self, store: MetadataStore) -> None:
        for _ in range(ROUNDS):
            context = added(store, a_context(state=ContextState.RUNNING))
            ends = (ContextState.FINISHED, ContextState.ERROR)
            records = [attrs.evolve(context, state=ends[n % 2], url=str(n)) for n in range(WRITERS)]
            outcomes = race(
                *(partial(store.advance_context, record, expected=ContextState.RUNNING) for record in records)
            )
            assert store.context(context.id) == records[winner(outcomes, StaleState)]

    def test_of_many_couriers_that_claim_a_delivery_one_wins(self, store: MetadataStore) -> None:
        for _ in range(ROUNDS):
            job = added(store, a_job())
            delivery = a_delivery(job)
            store.advance_job(job, expected=JobState.STARTED, delivery=delivery)
            claims = [
                attrs.evolve(delivery, state=DeliveryState.SENDING, attempts=n + 1) for n in range(WRITERS)
            ]
            outcomes = race(
                *(partial(store.advance_delivery, claim, expected=DeliveryState.PENDING) for claim in claims)
            )
            assert store.delivery(delivery.id) == claims[winner(outcomes, StaleState)]

    def test_of_many_contexts_of_one_name_one_is_stored(self, store: MetadataStore) -> None:
        for number in range(ROUNDS):
            contexts = [a_context(f"c{number}") for _ in range(WRITERS)]
            outcomes = race(*(partial(store.add_context, context) for context in contexts))
            assert store.context_named(f"c{number}") == contexts[winner(outcomes, ContextExists)]
        assert self.raw_counts(store)["contexts"] == ROUNDS

    def test_of_many_jobs_with_one_idempotency_key_one_is_stored_and_the_errors_name_it(
        self, store: MetadataStore
    ) -> None:
        for number in range(ROUNDS):
            jobs = [a_job(idempotency_key=f"key{number}") for _ in range(WRITERS)]
            outcomes = race(*(partial(store.add_job, job, config="{}") for job in jobs))
            won = winner(outcomes, DuplicateId)
            assert {o.holder for n, o in enumerate(outcomes) if n != won} == {jobs[won].id}
            assert store.job_with_key(f"key{number}") == jobs[won]
        assert self.raw_counts(store)["jobs"] == ROUNDS

    def test_of_many_jobs_with_one_id_one_is_stored(self, store: MetadataStore) -> None:
        jobs = [a_job(id="same", class_name=f"jobs.C{n}") for n in range(WRITERS)]
        outcomes = race(*(partial(store.add_job, job, config=str(n)) for n, job in enumerate(jobs)))
        won = winner(outcomes, DuplicateId)
        assert (store.job("same"), store.job_config("same")) == (jobs[won], str(won))

    def test_a_delete_and_a_submit_of_one_binary_never_both_win(self, store: MetadataStore) -> None:
        for number in range(2 * ROUNDS):
            binary = added(store, a_binary(f"b{number}"))
            job = a_job(binary)
            deleted, submitted = race(
                partial(store.delete_binary, binary.name),
                partial(store.add_job, job, config="{}"),
            )
            if deleted == [binary]:
                assert submitted == BinaryNotFound(name=binary.name)
                assert (store.binary(binary.name), store.job(job.id)) == (None, None)
            else:
                assert deleted == BinaryInUse(name=binary.name, job_ids=(job.id,))
                assert (submitted, store.binary(binary.name), store.job(job.id)) == (None, binary, job)

    def test_many_submits_and_many_deletes_of_one_binary_agree(self, store: MetadataStore) -> None:
        for number in range(ROUNDS):
            binary = added(store, a_binary(f"b{number}"))
            jobs = [a_job(binary) for _ in range(WRITERS // 2)]
            outcomes = race(
                *(partial(store.add_job, job, config="{}") for job in jobs),
                *([partial(store.delete_binary, binary.name)] * (WRITERS // 2)),
            )
            submitted = [job for job, outcome in zip(jobs, outcomes, strict=False) if outcome is None]
            deletes = [outcome for outcome in outcomes[len(jobs) :] if isinstance(outcome, list)]
            assert (len(deletes), len(submitted)) in [(1, 0), (0, len(jobs))], outcomes
            assert (store.binary(binary.name) is None) == bool(deletes)

    def test_uploads_racing_a_delete_are_either_returned_by_it_or_kept(self, store: MetadataStore) -> None:
        for number in range(ROUNDS):
            name = f"b{number}"
            store.add_binary(a_binary(name))
            uploads = [a_binary(name, uploaded_at=at(n)) for n in range(WRITERS)]
            *_, deleted = race(
                *(partial(store.add_binary, binary) for binary in uploads),
                partial(store.delete_binary, name),
            )
            kept = store.binary_versions(name)
            assert len(deleted) + len(kept) == WRITERS + 1
            assert not {binary.id for binary in kept} & {binary.id for binary in deleted}, (
                "a version was reported as deleted, but is still there"
            )

    def test_of_two_deletes_of_one_binary_one_wins(self, store: MetadataStore) -> None:
        for number in range(ROUNDS):
            versions = [a_binary(f"b{number}", uploaded_at=at(-n)) for n in range(3)]
            add(store, *versions)
            outcomes: list[list[Binary]] = race(*[partial(store.delete_binary, f"b{number}")] * 2)
            assert outcomes[winner(outcomes, BinaryNotFound)] == versions

    def test_progress_racing_the_end_of_a_job_never_brings_it_back(self, store: MetadataStore) -> None:
        for _ in range(ROUNDS):
            job = added(store, a_job(state=JobState.RUNNING))
            ended = attrs.evolve(job, state=JobState.FINISHED, ended_at=at(1))
            race(
                partial(store.advance_job, ended, expected=JobState.RUNNING),
                *[partial(store.record_progress, job.id, JobProgress(tasks_done=1))] * 3,
            )
            assert attrs.evolve(present(store.job(job.id)), progress=None) == ended

    def test_deletes_of_old_jobs_at_once_remove_each_job_once(self, store: MetadataStore) -> None:
        for number in range(40):
            store.add_job(a_job(state=JobState.FINISHED, ended_at=at(number)), config="{}")
        counts = race(*[partial(store.delete_jobs, ended_before=at(30), limit=8)] * 5)
        counts.append(store.delete_jobs(ended_before=at(30), limit=100))
        assert sum(counts) == 30
        assert self.raw_counts(store)["jobs"] == 10

    @pytest.mark.parametrize("limit", [1, 7])
    def test_paging_beside_writers_visits_every_old_job_once(self, store: MetadataStore, limit: int) -> None:
        old = [a_job(id=f"m{number:02}", submitted_at=at(number // 5)) for number in range(20)]
        add(store, *old)
        done = threading.Event()

        def page() -> list[str]:
            seen, after = [], None
            try:
                while True:
                    found = store.jobs(JobQuery(limit=limit, after=after))
                    seen += [job.id for job in found.jobs]
                    assert len(seen) < 10_000, "the pages have no end"
                    if (after := found.next) is None:
                        return seen
            finally:
                done.set()

        def write(prefix: str) -> None:
            number = 0
            while not done.is_set() and number < 100:
                store.add_job(a_job(id=f"{prefix}{number}", submitted_at=at(number % 5)), config="{}")
                number += 1

        seen, *_ = race(page, partial(write, "a"), partial(write, "z"))
        newest_first = sorted(old, key=lambda job: (job.submitted_at, job.id), reverse=True)
        assert [job_id for job_id in seen if job_id.startswith("m")] == [job.id for job in newest_first]
        assert len(seen) == len(set(seen))
