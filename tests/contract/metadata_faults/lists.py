"""Faults in lists and their pages."""

from datetime import timedelta

import attrs

from jobserver_core.errors import InvalidRequest
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.jobs import JobPage, JobQuery
from metadata_faults.fault import Fault


class ListsOldestFirst(Fault):
    caught_by = "test_jobs_come_newest_first_and_among_equals_by_id_descending"

    def jobs(self, query: JobQuery) -> JobPage:
        found = super().jobs(query)
        return attrs.evolve(found, jobs=found.jobs[::-1])


class OrdersEqualsByIdAscending(Fault):
    caught_by = "test_jobs_come_newest_first_and_among_equals_by_id_descending"

    def jobs(self, query: JobQuery) -> JobPage:
        found = super().jobs(query)
        by_id = sorted(found.jobs, key=lambda job: job.id)
        return attrs.evolve(found, jobs=tuple(sorted(by_id, key=lambda job: job.submitted_at, reverse=True)))


class SkipsOneAtEachCursor(Fault):
    caught_by = "test_following_next_visits_every_job_once"

    def jobs(self, query: JobQuery) -> JobPage:
        return super().jobs(attrs.evolve(query, offset=query.offset + (query.after is not None)))


class RepeatsTheLastJobOfAPage(Fault):
    caught_by = "test_following_next_visits_every_job_once"

    def jobs(self, query: JobQuery) -> JobPage:
        found = super().jobs(query)
        if query.after is None:
            return found
        before = super().jobs(JobQuery(limit=10_000)).jobs
        first = next((n for n, job in enumerate(before) if found.jobs and job.id == found.jobs[0].id), 1)
        return attrs.evolve(found, jobs=(before[first - 1], *found.jobs))


class PagesByNumber(Fault):
    caught_by = "test_following_next_visits_every_job_once_whatever_is_added_meanwhile"

    def jobs(self, query: JobQuery) -> JobPage:
        try:
            offset = int(query.after or 0) + query.offset
        except ValueError:
            raise InvalidRequest(message="no") from None
        found = super().jobs(attrs.evolve(query, after=None, offset=offset))
        return attrs.evolve(found, next=str(offset + query.limit) if found.next else None)


class NamesANextThatIsEmpty(Fault):
    caught_by = "test_a_page_that_is_just_full_has_no_next"

    def jobs(self, query: JobQuery) -> JobPage:
        found = super().jobs(query)
        return attrs.evolve(found, next=found.next or ("more" if len(found.jobs) == query.limit else None))


class TakesAnyCursor(Fault):
    caught_by = "test_a_cursor_that_the_store_did_not_make_is_an_invalid_request"

    def jobs(self, query: JobQuery) -> JobPage:
        try:
            return super().jobs(query)
        except InvalidRequest:
            return JobPage(jobs=())


class TakesSinceForExclusive(Fault):
    caught_by = "test_since_is_inclusive_and_until_is_exclusive_to_the_microsecond"

    def jobs(self, query: JobQuery) -> JobPage:
        since = query.since and query.since + timedelta(microseconds=1)
        return super().jobs(attrs.evolve(query, since=since))


class TakesUntilForInclusive(Fault):
    caught_by = "test_since_is_inclusive_and_until_is_exclusive_to_the_microsecond"

    def jobs(self, query: JobQuery) -> JobPage:
        until = query.until and query.until + timedelta(microseconds=1)
        return super().jobs(attrs.evolve(query, until=until))


class TakesNoStatesForAll(Fault):
    caught_by = "test_no_states_select_no_job_and_a_repeated_state_selects_none_twice"

    def jobs(self, query: JobQuery) -> JobPage:
        return super().jobs(attrs.evolve(query, states=query.states or None))


class IgnoresTheClassOfAQueryWithAContext(Fault):
    caught_by = "test_jobs_are_selected_by_any_combination_of_filters"

    def jobs(self, query: JobQuery) -> JobPage:
        class_name = None if query.context_name and query.since else query.class_name
        return super().jobs(attrs.evolve(query, class_name=class_name))


class ListsContextsOldestFirst(Fault):
    caught_by = "test_contexts_are_selected_by_states_name_and_owner_newest_first"

    def contexts(self, query: ContextQuery) -> list[Context]:
        return super().contexts(query)[::-1]


class FindsTheContextStartedLast(Fault):
    caught_by = "test_a_live_context_is_found_by_its_name_even_if_others_were_started_later"

    def context_named(self, name: str) -> Context | None:
        return next(iter(self.contexts(ContextQuery(name=name, limit=1))), None)


class FindsTheContextAddedLast(Fault):
    caught_by = "test_the_newest_context_of_a_name_is_the_one_started_last"

    def context_named(self, name: str) -> Context | None:
        return [context for context in self._contexts.values() if context.name == name][-1]
