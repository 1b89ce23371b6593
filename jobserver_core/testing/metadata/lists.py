"""The metadata contract's part about pages of jobs, and about deleting old ones."""

from __future__ import annotations

import random
from datetime import datetime
from itertools import product
from typing import Any

import attrs
import pytest

from jobserver_core.errors import InvalidRequest
from jobserver_core.models.jobs import Job, JobQuery
from jobserver_core.models.lifecycle import DeliveryState, JobState
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_delivery, a_job, a_result, at
from jobserver_core.testing.metadata.access import (
    LIVE_DELIVERIES,
    LIVE_JOBS,
    ODD_TEXTS,
    StoreAccess,
    add,
    added,
    present,
    states,
)

_ENDLESS = 1000
"""More jobs than any test here stores."""


def _fill(store: MetadataStore, jobs: list[Job]) -> list[Job]:
    """Store the jobs in random order, and return them as a page lists them."""
    add(store, *random.Random(7).sample(jobs, len(jobs)))
    return sorted(jobs, key=lambda job: (job.submitted_at, job.id), reverse=True)


def _follow(store: MetadataStore, query: JobQuery, between: Any = lambda: None) -> list[str]:
    """Return the ids on every page, from the first to the one without a ``next``."""
    page = store.jobs(query)
    seen = [job.id for job in page.jobs]
    while page.next is not None:
        between()
        page = store.jobs(attrs.evolve(query, after=page.next, offset=0))
        assert page.jobs, "a cursor led to an empty page"
        assert len(seen) < _ENDLESS, "the pages have no end"
        seen += [job.id for job in page.jobs]
    return seen


def _varied(count: int) -> list[Job]:
    dice = random.Random(11)
    return [
        a_job(
            state=dice.choice(list(JobState)),
            context_id=f"id-{dice.randrange(3)}",
            context_name=f"name-{dice.randrange(3)}",
            class_name=f"jobs.C{dice.randrange(3)}",
            submitted_at=at(dice.randrange(6), microseconds=dice.randrange(2)),
        )
        for _ in range(count)
    ]


class ListsContract(StoreAccess):
    """Pages of jobs: sorted, filtered, and complete, even if jobs are added in the meantime."""

    def test_an_empty_store_has_one_empty_page(self, store: MetadataStore) -> None:
        page = store.jobs(JobQuery())
        assert (page.jobs, page.next) == ((), None)

    def test_jobs_come_newest_first_and_among_equals_by_id_descending(self, store: MetadataStore) -> None:
        jobs = [a_job(id=job_id) for job_id in ("B", "a", "b", "A", "_", "0", "é", "z", "~", "🙂", "￿")]
        jobs += [a_job(id="late", submitted_at=at(0, microseconds=1)), a_job(id="early", submitted_at=at(-1))]
        listed = _fill(store, jobs)
        assert store.jobs(JobQuery()).jobs == tuple(listed)
        assert _follow(store, JobQuery(limit=1)) == [job.id for job in listed]

    def test_a_page_has_fifty_jobs_by_default(self, store: MetadataStore) -> None:
        listed = _fill(store, [a_job() for _ in range(51)])
        first = store.jobs(JobQuery())
        assert first.jobs == tuple(listed[:50])
        last = store.jobs(JobQuery(after=first.next))
        assert (last.jobs, last.next) == ((listed[50],), None)

    @pytest.mark.parametrize("limit", [1, 2, 3, 5, 9, 10, 11, 10_000])
    def test_following_next_visits_every_job_once(self, store: MetadataStore, limit: int) -> None:
        listed = _fill(store, [a_job(submitted_at=at(number // 4)) for number in range(10)])
        assert _follow(store, JobQuery(limit=limit)) == [job.id for job in listed]

    def test_a_page_that_is_just_full_has_no_next(self, store: MetadataStore) -> None:
        _fill(store, [a_job() for _ in range(3)])
        assert store.jobs(JobQuery(limit=3)).next is None
        assert store.jobs(JobQuery(limit=2)).next is not None

    def test_a_page_of_no_jobs_is_empty_and_the_last(self, store: MetadataStore) -> None:
        _fill(store, [a_job()])
        page = store.jobs(JobQuery(limit=0))
        assert (page.jobs, page.next) == ((), None)

    @pytest.mark.parametrize("limit", [1, 2, 7])
    def test_following_next_visits_every_job_once_whatever_is_added_meanwhile(
        self, store: MetadataStore, limit: int
    ) -> None:
        jobs = [a_job(id=f"m{number}", submitted_at=at(number // 3)) for number in range(12)]
        listed = [job.id for job in _fill(store, jobs)]
        dice = random.Random(3)

        def add() -> None:
            for prefix in "az":
                fresh = f"{prefix}{dice.random()}"
                store.add_job(a_job(id=fresh, submitted_at=at(dice.randrange(-1, 6))), config="{}")

        seen = _follow(store, JobQuery(limit=limit), add)
        assert [job_id for job_id in seen if job_id in listed] == listed
        assert len(seen) == len(set(seen))

    def test_a_job_that_advances_between_two_pages_is_still_visited_once(self, store: MetadataStore) -> None:
        listed = _fill(store, [a_job(submitted_at=at(number // 2)) for number in range(6)])
        waiting = list(listed)

        def advance() -> None:
            for job in (waiting.pop(0), waiting.pop()) if len(waiting) > 1 else ():
                store.advance_job(attrs.evolve(job, state=JobState.RUNNING), expected=JobState.STARTED)

        assert _follow(store, JobQuery(limit=2), advance) == [job.id for job in listed]

    def test_a_cursor_outlives_the_job_it_was_made_from(self, store: MetadataStore) -> None:
        ended = [
            a_job(state=JobState.FINISHED, submitted_at=at(n), ended_at=at(10 * (n == 2))) for n in range(4)
        ]
        listed = _fill(store, ended)
        page = store.jobs(JobQuery(limit=1))
        assert page.jobs == (listed[0],)
        assert store.delete_jobs(ended_before=at(5), limit=10) == 3
        assert store.jobs(JobQuery(after=page.next)).jobs == (listed[1],)

    def test_jobs_are_selected_by_any_combination_of_filters(self, store: MetadataStore) -> None:
        listed = _fill(store, _varied(120))
        for chosen_states, context_id, context_name, class_name, since, until in product(
            (None, (JobState.RUNNING,), (JobState.ERROR, JobState.KILLED)),
            (None, "id-1"),
            (None, "name-2"),
            (None, "jobs.C0"),
            (None, at(2)),
            (None, at(4, microseconds=1)),
        ):
            query = JobQuery(
                states=chosen_states,
                context_id=context_id,
                context_name=context_name,
                class_name=class_name,
                since=since,
                until=until,
                limit=3,
            )
            expected = [job.id for job in listed if self._selects(query, job)]
            assert _follow(store, query) == expected, query

    @staticmethod
    def _selects(query: JobQuery, job: Job) -> bool:
        named = ("context_id", "context_name", "class_name")
        return (
            (query.states is None or job.state in query.states)
            and all(getattr(query, name) in (None, getattr(job, name)) for name in named)
            and (query.since is None or job.submitted_at >= query.since)
            and (query.until is None or job.submitted_at < query.until)
        )

    def test_no_states_select_no_job_and_a_repeated_state_selects_none_twice(
        self, store: MetadataStore
    ) -> None:
        listed = _fill(store, _varied(30))
        assert store.jobs(JobQuery(states=())).jobs == ()
        twice = store.jobs(JobQuery(states=(JobState.RUNNING, JobState.RUNNING))).jobs
        assert twice == tuple(job for job in listed if job.state is JobState.RUNNING)
        assert store.jobs(JobQuery(states=tuple(JobState))).jobs == tuple(listed)

    def test_since_is_inclusive_and_until_is_exclusive_to_the_microsecond(self, store: MetadataStore) -> None:
        jobs = [a_job(id=str(number), submitted_at=at(1, microseconds=number)) for number in range(5)]
        _fill(store, jobs)
        query = JobQuery(since=at(1, microseconds=1), until=at(1, microseconds=3))
        assert [job.id for job in store.jobs(query).jobs] == ["2", "1"]

    @pytest.mark.parametrize("offset", [0, 1, 4, 5, 6, 7, 100])
    def test_an_offset_skips_that_many_jobs(self, store: MetadataStore, offset: int) -> None:
        chosen = (JobState.STARTED, JobState.RUNNING)
        jobs = [a_job(state=chosen[n == 0], submitted_at=at(n)) for n in range(6)]
        ids = [job.id for job in _fill(store, jobs)]
        for filter_states in (None, chosen):
            query = JobQuery(states=filter_states, offset=offset, limit=2)
            assert [job.id for job in store.jobs(query).jobs] == ids[offset : offset + 2]
            assert _follow(store, query) == ids[offset:]

    def test_an_offset_counts_from_the_cursor(self, store: MetadataStore) -> None:
        listed = _fill(store, [a_job(submitted_at=at(n)) for n in range(6)])
        first = store.jobs(JobQuery(limit=2))
        assert store.jobs(JobQuery(after=first.next, offset=1, limit=2)).jobs == tuple(listed[3:5])

    @pytest.mark.parametrize("text", ODD_TEXTS)
    def test_a_filter_that_no_job_can_match_selects_none(self, store: MetadataStore, text: str) -> None:
        _fill(store, [a_job()])
        for query in (JobQuery(context_id=text), JobQuery(context_name=text), JobQuery(class_name=text)):
            assert store.jobs(query).jobs == ()

    def test_a_cursor_that_the_store_did_not_make_is_an_invalid_request(self, store: MetadataStore) -> None:
        _fill(store, [a_job(submitted_at=at(n)) for n in range(3)])
        cursor = present(store.jobs(JobQuery(limit=1)).next)
        flipped = [
            cursor[:n] + ("A" if cursor[n] != "A" else "B") + cursor[n + 1 :] for n in range(len(cursor))
        ]
        cut = [cursor[:n] for n in range(len(cursor))]
        strange = [
            *ODD_TEXTS,
            "nonsense",
            "MTIzNA",
            "é",
            cursor + "A",
            cursor + "=",
            " " + cursor,
            "[]",
            "\n",
        ]
        for text in [*flipped, *cut, *strange]:
            with pytest.raises(InvalidRequest):
                store.jobs(JobQuery(after=text))
        assert len(store.jobs(JobQuery(after=cursor)).jobs) == 2

    # -- deleting old jobs -----------------------------------------------------------------------------

    def _ended(self, store: MetadataStore, ended_at: datetime | None, **fields: Any) -> Job:
        return added(store, a_job(state=JobState.FINISHED, ended_at=ended_at, **fields))

    def test_deleting_removes_final_jobs_that_ended_before_a_time_and_returns_how_many(
        self, store: MetadataStore
    ) -> None:
        old = [self._ended(store, at(1)), self._ended(store, at(2), idempotency_key="key")]
        kept = [self._ended(store, at(2, microseconds=1)), self._ended(store, None)]
        assert store.delete_jobs(ended_before=at(2, microseconds=1), limit=10) == 2
        assert [store.job(job.id) for job in old + kept] == [None, None, *kept]
        assert store.job_with_key("key") is None
        assert {job.id for job in store.jobs(JobQuery()).jobs} == {job.id for job in kept}
        assert store.delete_jobs(ended_before=at(2, microseconds=1), limit=10) == 0

    @states(LIVE_JOBS)
    def test_a_live_job_is_never_deleted(self, store: MetadataStore, state: JobState) -> None:
        job = added(store, a_job(state=state, ended_at=at(1)))
        assert store.delete_jobs(ended_before=at(100), limit=10) == 0
        assert store.job(job.id) == job

    def test_the_oldest_jobs_are_deleted_first_and_no_more_than_the_limit(self, store: MetadataStore) -> None:
        ends = [5, 1, 4, 2, 3]
        jobs = {end: self._ended(store, at(end), submitted_at=at(-end)) for end in ends}
        assert store.delete_jobs(ended_before=at(9), limit=0) == 0
        assert store.delete_jobs(ended_before=at(9), limit=2) == 2
        assert [end for end, job in jobs.items() if store.job(job.id)] == [5, 4, 3]
        assert store.delete_jobs(ended_before=at(9), limit=10_000) == 3

    def test_configurations_results_and_final_deliveries_are_deleted_with_their_job(
        self, store: MetadataStore
    ) -> None:
        gone, kept = self._ended(store, at(1)), self._ended(store, at(9))
        for job in (gone, kept):
            for state in (DeliveryState.DELIVERED, DeliveryState.ABANDONED):
                delivery = a_delivery(job, state=state)
                store.advance_job(job, expected=job.state, result=a_result(), delivery=delivery)
        assert store.delete_jobs(ended_before=at(5), limit=10) == 1
        assert (store.job_config(gone.id), store.job_result(gone.id), store.deliveries_of(gone.id)) == (
            None,
            None,
            [],
        )
        assert store.job_result(kept.id) == a_result()
        expected = {"binaries": 0, "contexts": 0, "jobs": 1, "configs": 1, "results": 1, "deliveries": 2}
        assert self.raw_counts(store) == expected

    @states(LIVE_DELIVERIES)
    def test_a_job_with_a_delivery_that_is_not_final_stays_and_does_not_count(
        self, store: MetadataStore, state: DeliveryState
    ) -> None:
        held, free = self._ended(store, at(1)), self._ended(store, at(2))
        for delivery in (a_delivery(held, state=state), a_delivery(held, state=DeliveryState.DELIVERED)):
            store.advance_job(held, expected=held.state, delivery=delivery)
        assert store.delete_jobs(ended_before=at(9), limit=1) == 1
        assert (store.job(held.id), store.job(free.id)) == (held, None)
        assert len(store.deliveries_of(held.id)) == 2

    def test_many_jobs_are_deleted_in_one_call(self, store: MetadataStore) -> None:
        binary = added(store, a_binary("b"))
        for number in range(300):
            store.add_job(a_job(binary, state=JobState.KILLED, ended_at=at(number)), config="{}")
        assert store.delete_jobs(ended_before=at(250), limit=100_000) == 250
        assert self.raw_counts(store)["jobs"] == 50
