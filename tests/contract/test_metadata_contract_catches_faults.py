"""A metadata store with any of these faults fails the contract.

Each class is the in-memory store with one fault, which lives in its dictionaries only, and names
a test of the contract that fails for it.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import attrs
import pytest
from faults import DEADLINE, Rendezvous, cases
from test_metadata import TestMemoryMetadataStore as Suite

from jobserver_core.errors import (
    BinaryNotFound,
    ContextNotFound,
    ContextStopping,
    DuplicateId,
    InvalidRequest,
    JobServerError,
    StaleState,
    StorageError,
)
from jobserver_core.memory import MemoryMetadataStore
from jobserver_core.models.binaries import Binary
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.jobs import Job, JobPage, JobProgress, JobQuery, JobResult, QueueLimits
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.models.servers import Server, ServerRequest
from jobserver_core.models.storage import MetadataUsage
from jobserver_core.ports import MetadataStore
from jobserver_core.testing.builders import at
from jobserver_core.testing.metadata import MetadataStoreContract, PersistentMetadataStoreContract


class Fault(MemoryMetadataStore):
    caught_by: ClassVar[str]


# -- retention ---------------------------------------------------------------------------------------


class RemovesContextsOfJobsThatAreKept(Fault):
    caught_by = "test_a_context_is_kept_as_long_as_a_job_that_ran_in_it"

    def delete_contexts(self, *, ended_before: datetime, limit: int) -> list[str]:
        jobs, self._jobs = self._jobs, {}
        try:
            return super().delete_contexts(ended_before=ended_before, limit=limit)
        finally:
            self._jobs = jobs


class RemovesContextsAtTheTime(Fault):
    caught_by = "test_contexts_that_ended_before_a_time_are_removed"

    def delete_contexts(self, *, ended_before: datetime, limit: int) -> list[str]:
        return super().delete_contexts(ended_before=ended_before + timedelta(microseconds=1), limit=limit)


class RemovesLiveContexts(Fault):
    caught_by = "test_a_live_context_is_never_removed"

    def delete_contexts(self, *, ended_before: datetime, limit: int) -> list[str]:
        old = [c.id for c in self._contexts.values() if c.ended_at and c.ended_at < ended_before][:limit]
        for context_id in old:
            del self._contexts[context_id]
        return old


class RemovesTheNewestVersions(Fault):
    caught_by = "test_versions_before_a_time_are_removed_except_the_newest_of_each_name"

    def delete_old_binaries(self, *, uploaded_before: datetime, keep: int, limit: int) -> list[Binary]:
        return super().delete_old_binaries(uploaded_before=uploaded_before, keep=keep - 1, limit=limit)


class RemovesVersionsInUse(Fault):
    caught_by = "test_a_version_that_a_live_job_uses_is_kept_until_the_job_ends"

    def delete_old_binaries(self, *, uploaded_before: datetime, keep: int, limit: int) -> list[Binary]:
        live, self._live = self._live, set()
        try:
            return super().delete_old_binaries(uploaded_before=uploaded_before, keep=keep, limit=limit)
        finally:
            self._live = live


class RemovesTheYoungestVersionsFirst(Fault):
    caught_by = "test_the_oldest_versions_are_removed_first_and_no_more_than_the_limit"

    def delete_old_binaries(self, *, uploaded_before: datetime, keep: int, limit: int) -> list[Binary]:
        every = super().delete_old_binaries(uploaded_before=uploaded_before, keep=keep, limit=1000)
        for binary in every[: len(every) - limit]:
            self._binaries[binary.id] = binary
        return every[len(every) - limit :]


# -- compare-and-set ---------------------------------------------------------------------------------


class AdvancesJobsWhateverTheState(Fault):
    caught_by = "test_a_job_is_advanced_if_and_only_if_its_state_is_the_expected_one"

    def advance_job(self, job: Job, *, expected: JobState, **rest: Any) -> None:
        stored = self._jobs.get(job.id)
        super().advance_job(job, expected=stored.state if stored else expected, **rest)


class AdvancesContextsWhateverTheState(Fault):
    caught_by = "test_a_context_is_advanced_if_and_only_if_its_state_is_the_expected_one"

    def advance_context(self, context: Context, *, expected: ContextState, **rest: Any) -> None:
        stored = self._contexts.get(context.id)
        super().advance_context(context, expected=stored.state if stored else expected, **rest)


class AdvancesAContextThatCannotBeReplaced(Fault):
    caught_by = "test_a_context_whose_successor_cannot_be_stored_is_not_advanced"

    def advance_context(self, context: Context, *, successor: Context | None = None, **rest: Any) -> None:
        super().advance_context(context, **rest)
        if successor is not None:
            self.add_context(successor)


class ReplacesAContextThatIsNotAdvanced(Fault):
    caught_by = "test_a_context_that_is_not_advanced_gets_no_successor"

    def advance_context(self, context: Context, *, successor: Context | None = None, **rest: Any) -> None:
        if successor is not None:
            self._contexts[successor.id] = successor
        super().advance_context(context, **rest)


class ForgetsSuccessors(Fault):
    caught_by = "test_a_context_that_ends_and_its_successor_are_stored_together"

    def advance_context(self, context: Context, *, successor: Context | None = None, **rest: Any) -> None:
        super().advance_context(context, **rest)


class AdvancesDeliveriesWhateverTheState(Fault):
    caught_by = "test_a_delivery_is_advanced_if_and_only_if_its_state_is_the_expected_one"

    def advance_delivery(
        self, delivery: Delivery, *, expected: DeliveryState, epoch: int | None = None
    ) -> None:
        stored = self._deliveries.get(delivery.id)
        super().advance_delivery(delivery, expected=stored.state if stored else expected, epoch=epoch)


class ComparesBeforeItLocks(Fault):
    caught_by = "test_of_many_writers_that_end_a_job_one_wins_with_all_it_wrote"

    def __init__(self) -> None:
        super().__init__()
        self._compared = Rendezvous(2)

    def advance_job(self, job: Job, *, expected: JobState, **rest: Any) -> None:
        stored = self._jobs.get(job.id)
        if stored is None or stored.state is not expected:
            super().advance_job(job, expected=expected, **rest)
        self._compared.wait()
        with self._lock:
            super().advance_job(job, expected=self._jobs[job.id].state, **rest)


class KeepsResultsOfLosers(Fault):
    caught_by = "test_a_job_is_advanced_if_and_only_if_its_state_is_the_expected_one"

    def advance_job(self, job: Job, *, result: JobResult | None = None, **rest: Any) -> None:
        if result is not None:
            self._results[job.id] = result
        super().advance_job(job, **rest)


class KeepsDeliveriesOfLosers(Fault):
    caught_by = "test_a_job_is_advanced_if_and_only_if_its_state_is_the_expected_one"

    def advance_job(self, job: Job, *, delivery: Delivery | None = None, **rest: Any) -> None:
        if delivery is not None:
            self._deliveries[delivery.id] = delivery
        super().advance_job(job, **rest)


class AdvancesInTwoSteps(Fault):
    caught_by = "test_a_taken_delivery_id_refuses_the_whole_advance"

    def advance_job(
        self, job: Job, *, expected: JobState, delivery: Delivery | None = None, **rest: Any
    ) -> None:
        super().advance_job(job, expected=expected, **rest)
        if delivery is not None:
            super().advance_job(job, expected=job.state, delivery=delivery)


class AddsUnknownJobsByAdvance(Fault):
    caught_by = "test_advancing_an_unknown_job_raises_stale_state_that_found_none"

    def advance_job(self, job: Job, **rest: Any) -> None:
        if job.id not in self._jobs:
            self.add_job(job, config="{}")
        else:
            super().advance_job(job, **rest)


class FindsNoStateInAStaleWrite(Fault):
    caught_by = "test_a_job_is_advanced_if_and_only_if_its_state_is_the_expected_one"

    def advance_job(self, job: Job, **rest: Any) -> None:
        try:
            super().advance_job(job, **rest)
        except StaleState as error:
            raise StaleState(**{**error.fields, "found": None}) from None


class StoresOnlyTheState(Fault):
    caught_by = "test_advancing_a_job_stores_the_whole_record"

    def advance_job(self, job: Job, **rest: Any) -> None:
        stored = self._jobs.get(job.id, job)
        super().advance_job(attrs.evolve(stored, state=job.state), **rest)


# -- unique values -----------------------------------------------------------------------------------


class SharesLiveNames(Fault):
    caught_by = "test_a_name_is_taken_while_its_context_is_live"

    def _put_context(self, context: Context) -> None:
        self._contexts[context.id] = context


class NeverFreesNames(Fault):
    caught_by = "test_a_name_is_free_again_once_its_context_is_final"

    def add_context(self, context: Context) -> None:
        if any(other.name == context.name for other in self._contexts.values()):
            raise DuplicateId(kind="context", id=context.id, holder="")
        super().add_context(context)


class LooksForNamesBeforeItLocks(Fault):
    caught_by = "test_of_many_contexts_of_one_name_one_is_stored"

    def __init__(self) -> None:
        super().__init__()
        self._looked = Rendezvous(2)

    def _put_context(self, context: Context) -> None:
        super()._put_context(context)
        del self._contexts[context.id]
        self._lock.release()
        self._looked.wait()
        self._lock.acquire()
        self._contexts[context.id] = context


class OverwritesKnownJobs(Fault):
    caught_by = "test_adding_a_job_with_a_known_id_raises_duplicate_id_and_changes_nothing"

    def add_job(self, job: Job, *, config: str) -> None:
        if job.id in self._jobs:
            self._forget(self._jobs[job.id])
        super().add_job(job, config=config)


class OverwritesKnownBinaries(Fault):
    caught_by = "test_adding_a_known_id_raises_duplicate_id_and_changes_nothing"

    def add_binary(self, binary: Binary) -> None:
        self._binaries[binary.id] = binary


class SharesIdempotencyKeys(Fault):
    caught_by = "test_adding_a_job_with_a_known_idempotency_key_names_the_job_that_has_it"

    def _refuse_known_key(self, job: Job) -> None:
        return


class NamesTheLoserOfAnIdempotencyKey(Fault):
    caught_by = "test_of_many_jobs_with_one_idempotency_key_one_is_stored_and_the_errors_name_it"

    def _refuse_known_key(self, job: Job) -> None:
        try:
            super()._refuse_known_key(job)
        except DuplicateId as error:
            raise DuplicateId(kind=error.kind, id=error.id, holder=job.id) from None


# -- results, configurations, progress ---------------------------------------------------------------


class LosesResults(Fault):
    caught_by = "test_a_result_comes_back_equal_in_full"

    def advance_job(self, job: Job, *, result: JobResult | None = None, **rest: Any) -> None:
        super().advance_job(job, **rest)


class TakesNullForNone(Fault):
    caught_by = "test_a_null_result_is_not_the_same_as_none"

    def job_result(self, job_id: str) -> JobResult | None:
        found = super().job_result(job_id)
        return None if found is not None and found.payload == "null" else found


class LosesTheResultAtTheNextAdvance(Fault):
    caught_by = "test_a_result_stays_when_a_later_advance_has_none_and_is_replaced_when_it_has_one"

    def advance_job(self, job: Job, *, result: JobResult | None = None, **rest: Any) -> None:
        super().advance_job(job, result=result, **rest)
        if result is None:
            self._results.pop(job.id, None)


class CutsLargeConfigurations(Fault):
    caught_by = "test_a_configuration_comes_back_unchanged"

    def add_job(self, job: Job, *, config: str) -> None:
        super().add_job(job, config=config[: 64 * 1024])


class TidiesConfigurations(Fault):
    caught_by = "test_a_configuration_comes_back_unchanged"

    def add_job(self, job: Job, *, config: str) -> None:
        super().add_job(job, config=config.strip())


class EndsTextsAtNul(Fault):
    caught_by = "test_strings_of_a_job_come_back_unchanged"

    def add_job(self, job: Job, *, config: str) -> None:
        super().add_job(job, config=config.split("\0", maxsplit=1)[0])


class TakesEmptyTextForNone(Fault):
    caught_by = "test_empty_strings_of_a_job_are_not_none"

    def add_job(self, job: Job, *, config: str) -> None:
        super().add_job(attrs.evolve(job, callback_url=job.callback_url or None), config=config)


class DropsProgressAtTheEnd(Fault):
    caught_by = "test_progress_stays_when_an_advance_has_none_and_is_replaced_when_it_has_some"

    def advance_job(self, job: Job, **rest: Any) -> None:
        super().advance_job(attrs.evolve(job, progress=job.progress or JobProgress()), **rest)


class RecordsProgressOfTheDead(Fault):
    caught_by = "test_progress_of_a_final_job_is_ignored"

    def record_progress(self, job_id: str, progress: JobProgress) -> None:
        if job_id in self._jobs:
            self._jobs[job_id] = attrs.evolve(self._jobs[job_id], progress=progress)


class BringsJobsBackByProgress(Fault):
    caught_by = "test_progress_racing_the_end_of_a_job_never_brings_it_back"

    def __init__(self) -> None:
        super().__init__()
        self._read = threading.Event()
        self._ended = threading.Event()

    def advance_job(self, job: Job, **rest: Any) -> None:
        self._read.wait(DEADLINE)
        super().advance_job(job, **rest)
        self._ended.set()

    def record_progress(self, job_id: str, progress: JobProgress) -> None:
        stored = self._jobs[job_id]
        self._read.set()
        self._ended.wait(DEADLINE)
        self._jobs[job_id] = attrs.evolve(stored, progress=progress)


# -- times, settings ---------------------------------------------------------------------------------


class CutsMicroseconds(Fault):
    caught_by = "test_a_job_with_every_field_set_comes_back_equal_in_full"

    def add_job(self, job: Job, *, config: str) -> None:
        job = attrs.evolve(job, submitted_at=job.submitted_at.replace(microsecond=196_000))
        super().add_job(job, config=config)


class KeepsTheTimeZone(Fault):
    caught_by = "test_an_upload_time_comes_back_in_utc"

    def add_binary(self, binary: Binary) -> None:
        self._binaries[binary.id] = binary


class KeepsSettingsByReference(Fault):
    caught_by = "test_settings_changed_after_they_were_stored_or_read_change_nothing"

    def add_context(self, context: Context) -> None:
        super().add_context(context)
        self._contexts[context.id] = context


class HandsOutSettingsByReference(Fault):
    caught_by = "test_settings_changed_after_they_were_stored_or_read_change_nothing"

    def context(self, context_id: str) -> Context | None:
        return self._contexts.get(context_id)


# -- lists -------------------------------------------------------------------------------------------


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


# -- servers -----------------------------------------------------------------------------------------


class TakesEveryLeaseForValid(Fault):
    caught_by = "test_a_lease_of_no_time_has_expired_and_a_long_one_has_not"

    def servers(self, *, expired: bool | None = None) -> list[Server]:
        return [] if expired else super().servers()


class RemovesLivingServersAsExpired(Fault):
    caught_by = "test_only_an_expired_server_can_be_removed_as_expired"

    def remove_server(self, server_id: str, *, only_expired: bool = False) -> bool:
        return super().remove_server(server_id)


class RegistersServersByRenewal(Fault):
    caught_by = "test_a_server_that_is_not_registered_cannot_be_renewed"

    def renew_server(self, server_id: str, *, lease: float) -> bool:
        if not super().renew_server(server_id, lease=lease):
            self.register_server(server_id, started_at=at(), address="", lease=lease)
        return True


class RefusesToReviveAServer(Fault):
    caught_by = "test_renewing_revives_a_server_whose_lease_has_expired"

    def renew_server(self, server_id: str, *, lease: float) -> bool:
        alive = [server.id for server in self.servers(expired=False)]
        return server_id in alive and super().renew_server(server_id, lease=lease)


class RemovesAndRenewsInTwoSteps(Fault):
    caught_by = "test_a_renewal_and_a_removal_of_an_expired_server_never_both_win"

    def __init__(self) -> None:
        super().__init__()
        self._compared = Rendezvous(2)

    def renew_server(self, server_id: str, *, lease: float) -> bool:
        known = server_id in self._servers
        self._compared.wait()
        super().renew_server(server_id, lease=lease)
        return known

    def remove_server(self, server_id: str, *, only_expired: bool = False) -> bool:
        if not only_expired:
            return super().remove_server(server_id)
        known = server_id in self._servers
        self._compared.wait()
        super().remove_server(server_id)
        return known


class EnqueuesWithoutLimits(Fault):
    caught_by = "test_only_living_jobs_of_the_context_take_its_room"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        super().enqueue_job(job, config=config, limits=attrs.evolve(limits, places=1000))


class EnqueuesForUnknownUsers(Fault):
    caught_by = "test_a_user_may_not_take_the_room_of_others"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        super().enqueue_job(attrs.evolve(job, submitted_by=""), config=config, limits=limits)
        self._jobs[job.id] = job


class EnqueuesInEndedContexts(Fault):
    caught_by = "test_a_job_is_enqueued_only_in_a_context_that_accepts_jobs"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        try:
            super().enqueue_job(job, config=config, limits=limits)
        except (ContextNotFound, ContextStopping):
            self.add_job(job, config=config)


class EnqueuesInUnknownContexts(Fault):
    caught_by = "test_no_job_is_enqueued_in_an_unknown_context"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        if job.context_id not in self._contexts:
            self.add_job(job, config=config)
        else:
            super().enqueue_job(job, config=config, limits=limits)


class ForgetsTheConfigurationOfEnqueuedJobs(Fault):
    caught_by = "test_an_enqueued_job_is_stored_with_its_configuration"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        super().enqueue_job(job, config="{}", limits=limits)


class EnqueuesWithoutBinaries(Fault):
    caught_by = "test_a_job_is_enqueued_only_with_the_binaries_of_its_class_path"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        super().enqueue_job(attrs.evolve(job, class_path=()), config=config, limits=limits)


class CountsAndEnqueuesInTwoSteps(Fault):
    caught_by = "test_of_many_that_enqueue_a_job_as_many_succeed_as_there_is_room"

    def __init__(self) -> None:
        super().__init__()
        self._compared = Rendezvous(4)

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        live = [key for key in self._live if self._jobs[key].context_id == job.context_id]
        limits.check("c", "", running=0, waiting=len(live), waiting_of_user=0)
        self._compared.wait()
        self.add_job(job, config=config)


class ComparesTheContextAndEnqueuesInTwoSteps(Fault):
    caught_by = "test_a_job_is_never_enqueued_after_the_end_of_its_context"

    def __init__(self) -> None:
        super().__init__()
        self._looked = threading.Event()

    def job(self, job_id: str) -> Job | None:
        found = super().job(job_id)
        self._looked.set()
        return found

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        self._looked.clear()
        if self._contexts[job.context_id].state.final:
            raise ContextNotFound(name=job.context_name)
        self._looked.wait(DEADLINE)
        self.add_job(job, config=config)


class ReturnsAnsweredRequests(Fault):
    caught_by = "test_a_server_gets_its_requests_without_an_answer_oldest_first"

    def requests_to(self, server_id: str) -> list[ServerRequest]:
        return [request for request in self._requests.values() if request.recipient == server_id]


class AnswersTwice(Fault):
    caught_by = "test_a_request_is_answered_once"

    def answer_request(self, request_id: str, answer: str) -> bool:
        if request_id in self._requests:
            self._requests[request_id] = attrs.evolve(self._requests[request_id], answer=answer)
        return request_id in self._requests


class AnswersRemovedRequests(Fault):
    caught_by = "test_an_answer_and_a_removal_never_miss_each_other"

    def __init__(self) -> None:
        super().__init__()
        self._compared = Rendezvous(2)

    def answer_request(self, request_id: str, answer: str) -> bool:
        self._compared.wait()
        super().answer_request(request_id, answer)
        return True

    def remove_request(self, request_id: str) -> ServerRequest | None:
        found = self._requests.pop(request_id)
        self._compared.wait()
        return found


class DropsOneNotice(Fault):
    caught_by = "test_all_that_listen_receive_every_notice"

    def notify(self, notice: str) -> None:
        if notice != "notice 1":
            super().notify(notice)


class ShortensNotices(Fault):
    caught_by = "test_all_that_listen_receive_every_notice"

    def notify(self, notice: str) -> None:
        super().notify(notice[:4000])


class ForgetsTheEpochOfContexts(Fault):
    caught_by = "test_a_context_is_advanced_only_by_the_holder_of_its_epoch"

    def advance_context(self, context: Context, *, epoch: int | None = None, **rest: Any) -> None:
        stored = self._contexts.get(context.id)
        super().advance_context(context, epoch=stored.epoch if stored else epoch, **rest)


class ForgetsTheEpochOfJobs(Fault):
    caught_by = "test_a_job_is_advanced_only_by_the_holder_of_its_epoch"

    def advance_job(self, job: Job, *, epoch: int | None = None, **rest: Any) -> None:
        stored = self._jobs.get(job.id)
        super().advance_job(job, epoch=stored.epoch if stored else epoch, **rest)


class ForgetsTheEpochOfDeliveries(Fault):
    caught_by = "test_a_delivery_is_advanced_only_by_the_holder_of_its_epoch"

    def advance_delivery(
        self, delivery: Delivery, *, expected: DeliveryState, epoch: int | None = None
    ) -> None:
        stored = self._deliveries.get(delivery.id)
        super().advance_delivery(delivery, expected=expected, epoch=stored.epoch if stored else epoch)


# -- binaries ----------------------------------------------------------------------------------------


class TakesTheVersionAddedLast(Fault):
    caught_by = "test_the_newest_version_is_the_one_uploaded_last_and_not_the_one_added_last"

    def binary(self, name: str) -> Binary | None:
        return [binary for binary in self._binaries.values() if binary.name == name][-1]


class ForgetsTheCaseOfNames(Fault):
    caught_by = "test_names_that_differ_in_case_are_two_binaries"

    def binary(self, name: str) -> Binary | None:
        found = [b for b in self._binaries.values() if b.name.lower() == name.lower()]
        return found[-1] if found else None


class DeletesBinariesInUse(Fault):
    caught_by = "test_a_binary_of_a_live_job_cannot_be_deleted"

    def _users(self, binary_ids: set[str]) -> tuple[str, ...]:
        return ()


class LooksAtTheNewestVersionOnly(Fault):
    caught_by = "test_a_refused_delete_names_the_jobs_in_submission_order_and_removes_nothing"

    def delete_binary(self, name: str) -> list[Binary]:
        newest = self.binary(name)
        if newest is not None and not self._users({newest.id}):
            return super().delete_binary(name)
        return super().delete_binary(name) if newest is None else self._refuse(name, newest)

    def _refuse(self, name: str, newest: Binary) -> list[Binary]:
        self._binaries = {newest.id: newest}
        return super().delete_binary(name)


class DeletesTheNewestVersionOnly(Fault):
    caught_by = "test_deleting_removes_every_version_of_the_name_and_returns_them_newest_first"

    def delete_binary(self, name: str) -> list[Binary]:
        older = self.binary_versions(name)[1:]
        removed = super().delete_binary(name)
        self._binaries.update({binary.id: binary for binary in older})
        return removed


class TakesJobsOfDeletedBinaries(Fault):
    caught_by = "test_a_job_of_a_deleted_version_raises_binary_not_found_and_stores_nothing"

    def add_job(self, job: Job, *, config: str) -> None:
        known = self._binaries
        anything: dict[Any, Any] = dict.fromkeys(entry.binary_id for entry in job.class_path)
        self._binaries = anything
        try:
            super().add_job(job, config=config)
        finally:
            self._binaries = known


class ChecksBinariesAfterStoringTheJob(Fault):
    caught_by = "test_a_job_of_a_deleted_version_raises_binary_not_found_and_stores_nothing"

    def add_job(self, job: Job, *, config: str) -> None:
        try:
            super().add_job(job, config=config)
        except BinaryNotFound:
            self._put_job(job)
            raise


class ChecksUsersBeforeItLocks(Fault):
    caught_by = "test_a_delete_and_a_submit_of_one_binary_never_both_win"

    def __init__(self) -> None:
        super().__init__()
        self._checked = threading.Event()
        self._added = threading.Event()

    def add_job(self, job: Job, *, config: str) -> None:
        self._checked.wait(DEADLINE)
        super().add_job(job, config=config)
        self._added.set()

    def delete_binary(self, name: str) -> list[Binary]:
        users = self._users({binary.id for binary in self.binary_versions(name)})
        self._checked.set()
        self._added.wait(DEADLINE)
        if users:
            return super().delete_binary(name)
        with self._lock:
            live, self._live = self._live, set()
            try:
                return super().delete_binary(name)
            finally:
                self._live = live


# -- deleting jobs -----------------------------------------------------------------------------------


class DeletesThoseThatEndedJustThen(Fault):
    caught_by = "test_deleting_removes_final_jobs_that_ended_before_a_time_and_returns_how_many"

    def delete_jobs(self, *, ended_before: datetime, limit: int) -> int:
        return super().delete_jobs(ended_before=ended_before + timedelta(microseconds=1), limit=limit)


class DeletesNewestFirst(Fault):
    caught_by = "test_the_oldest_jobs_are_deleted_first_and_no_more_than_the_limit"

    def delete_jobs(self, *, ended_before: datetime, limit: int) -> int:
        ended = [job for job in self._jobs.values() if job.ended_at and job.ended_at < ended_before]
        newest = sorted(ended, key=lambda job: str(job.ended_at))[::-1][:limit]
        for job in newest:
            self._forget(job)
        return len(newest)


class DeletesMoreThanTheLimit(Fault):
    caught_by = "test_the_oldest_jobs_are_deleted_first_and_no_more_than_the_limit"

    def delete_jobs(self, *, ended_before: datetime, limit: int) -> int:
        return super().delete_jobs(ended_before=ended_before, limit=limit + 1)


class DeletesJobsThatOweACallback(Fault):
    caught_by = "test_a_job_with_a_delivery_that_is_not_final_stays_and_does_not_count"

    def delete_jobs(self, *, ended_before: datetime, limit: int) -> int:
        self._deliveries.clear()
        return super().delete_jobs(ended_before=ended_before, limit=limit)


class LeavesConfigurationsBehind(Fault):
    caught_by = "test_configurations_results_and_final_deliveries_are_deleted_with_their_job"

    def delete_jobs(self, *, ended_before: datetime, limit: int) -> int:
        configs = dict(self._configs)
        count = super().delete_jobs(ended_before=ended_before, limit=limit)
        self._configs = configs
        return count


class CountsLiveJobsAsEnded(Fault):
    caught_by = "test_the_newest_job_beyond_a_number_of_ended_jobs_is_found"

    def newest_excess_job(self, *, jobs: int | None, result_bytes: int | None) -> datetime | None:
        fewer = None if jobs is None else max(0, jobs - len(self._live))
        return super().newest_excess_job(jobs=fewer, result_bytes=result_bytes)


class AllowsOneResultTooMany(Fault):
    caught_by = "test_the_newest_job_beyond_the_bytes_of_results_is_found"

    def newest_excess_job(self, *, jobs: int | None, result_bytes: int | None) -> datetime | None:
        more = None if result_bytes is None else result_bytes + 1
        return super().newest_excess_job(jobs=jobs, result_bytes=more)


class ForgetsTheSizesOfResults(Fault):
    caught_by = "test_usage_counts_the_records_and_the_bytes"

    def usage(self) -> MetadataUsage:
        return attrs.evolve(super().usage(), result_bytes=0)


class DeletesEachJobTwice(Fault):
    caught_by = "test_deletes_of_old_jobs_at_once_remove_each_job_once"

    def __init__(self) -> None:
        super().__init__()
        self._counted = Rendezvous(5)

    def delete_jobs(self, *, ended_before: datetime, limit: int) -> int:
        counted = sum(1 for job in self._jobs.values() if job.ended_at and job.ended_at < ended_before)
        self._counted.wait()
        super().delete_jobs(ended_before=ended_before, limit=limit)
        return min(counted, limit)


# -- deliveries and blobs ----------------------------------------------------------------------------


class IsNeverDueJustThen(Fault):
    caught_by = "test_due_deliveries_are_pending_and_not_later_than_now"

    def due_deliveries(self, *, now: datetime, limit: int, excluding: Iterable[str] = ()) -> list[Delivery]:
        early = now - timedelta(microseconds=1)
        return super().due_deliveries(now=early, limit=limit, excluding=excluding)


class LimitsBeforeItExcludes(Fault):
    caught_by = "test_a_busy_receiver_hides_no_other"

    def due_deliveries(self, *, now: datetime, limit: int, excluding: Iterable[str] = ()) -> list[Delivery]:
        left_out = set(excluding)
        return [d for d in super().due_deliveries(now=now, limit=limit) if d.receiver not in left_out]


class SendsInTheOrderOfCreation(Fault):
    caught_by = "test_due_deliveries_come_by_due_time_then_creation_then_id"

    def due_deliveries(self, *, now: datetime, limit: int, excluding: Iterable[str] = ()) -> list[Delivery]:
        found = super().due_deliveries(now=now, limit=limit, excluding=excluding)
        return sorted(found, key=lambda delivery: (delivery.created_at, delivery.id))


class ClaimsBeforeItLocks(Fault):
    caught_by = "test_of_many_couriers_that_claim_a_delivery_one_wins"

    def __init__(self) -> None:
        super().__init__()
        self._compared = Rendezvous(2)

    def advance_delivery(
        self, delivery: Delivery, *, expected: DeliveryState, epoch: int | None = None
    ) -> None:
        if self._deliveries[delivery.id].state is not expected:
            super().advance_delivery(delivery, expected=expected, epoch=epoch)
        self._compared.wait()
        self._deliveries[delivery.id] = delivery


class CollectsBlobsOfResults(Fault):
    caught_by = "test_a_result_refers_to_its_blob_until_its_job_is_deleted"

    def unreferenced(self, digests: Iterable[str]) -> list[str]:
        results, self._results = self._results, {}
        try:
            return super().unreferenced(digests)
        finally:
            self._results = results


class CollectsBlobsOfLiveJobs(Fault):
    caught_by = "test_a_live_job_refers_to_the_blobs_of_its_class_path"

    def unreferenced(self, digests: Iterable[str]) -> list[str]:
        live, self._live = self._live, set()
        try:
            return super().unreferenced(digests)
        finally:
            self._live = live


class CollectsBlobsOfOlderVersions(Fault):
    caught_by = "test_every_version_of_a_binary_refers_to_its_blob_until_it_is_deleted"

    def unreferenced(self, digests: Iterable[str]) -> list[str]:
        known, self._binaries = self._binaries, {b.id: b for b in self.binaries()}
        try:
            return super().unreferenced(digests)
        finally:
            self._binaries = known


class NeverLetsGoOfAClassPath(Fault):
    caught_by = "test_a_final_job_does_not_refer_to_its_class_path"

    def unreferenced(self, digests: Iterable[str]) -> list[str]:
        live, self._live = self._live, set(self._jobs)
        try:
            return super().unreferenced(digests)
        finally:
            self._live = live


class FailsWhenItIsFine(Fault):
    caught_by = "test_a_store_in_working_order_passes_its_check"

    def check(self) -> None:
        raise JobServerError(message="no")


class ClosesOnce(Fault):
    caught_by = "test_closing_twice_is_allowed"

    def close(self) -> None:
        if self.__dict__.setdefault("_closed", False):
            raise JobServerError(message="closed")
        self.__dict__["_closed"] = True


FAULTS = Fault.__subclasses__()


# -- stores that outlive their process ---------------------------------------------------------------


class BrokenLock:
    """Stands for the database of a store that does not answer."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __enter__(self) -> None:
        raise self.error

    def __exit__(self, *_exc: object) -> None:
        return


class Persistent(MemoryMetadataStore):
    """A store in memory that can be opened again: other stores share its records."""

    caught_by: ClassVar[str]

    def opened_again(self) -> "Persistent":
        other = type(self)()
        other.__dict__ = self.__dict__
        return other

    def broken_by(self) -> Exception:
        return StorageError(message="the database does not answer")


class PersistentSuite(PersistentMetadataStoreContract):
    raw_counts, raw_job_state = Suite.raw_counts, Suite.raw_job_state

    def open_again(self, store: MetadataStore) -> MetadataStore:
        assert isinstance(store, Persistent)
        return store.opened_again()

    @contextmanager
    def broken(self, store: MetadataStore) -> Iterator[None]:
        assert isinstance(store, Persistent)
        lock, store.__dict__["_lock"] = store._lock, BrokenLock(store.broken_by())
        yield
        store.__dict__["_lock"] = lock


def _caching(name: str) -> type[Persistent]:
    """Return a store in which one reading method caches its first result."""

    def read(self: Any, *arguments: Any, **named: Any) -> Any:
        cache = CACHES.setdefault(self, {})
        if name not in cache:
            cache[name] = getattr(Persistent, name)(self, *arguments, **named)
        return cache[name]

    caught_by = "test_no_read_is_older_than_what_another_store_wrote"
    return type(f"Caches_{name}", (Persistent,), {name: read, "caught_by": caught_by})


CACHES: WeakKeyDictionary[MemoryMetadataStore, dict[str, Any]] = WeakKeyDictionary()


class LetsDatabaseErrorsOut(Persistent):
    caught_by = "test_what_the_database_fails_at_is_a_storage_error"

    def broken_by(self) -> Exception:
        return sqlite3.OperationalError("no such table: jobs")


class LetsDatabaseErrorsOfOneMethodOut(Persistent):
    caught_by = "test_what_the_database_fails_at_is_a_storage_error"

    def delete_contexts(self, *, ended_before: datetime, limit: int) -> list[str]:
        try:
            return super().delete_contexts(ended_before=ended_before, limit=limit)
        except StorageError as error:
            raise sqlite3.OperationalError(str(error)) from None


class TakesABrokenDatabaseForEmpty(Persistent):
    caught_by = "test_what_the_database_fails_at_is_a_storage_error"

    def job(self, job_id: str) -> Job | None:
        try:
            return super().job(job_id)
        except StorageError:
            return None


READS = ["binary", "binaries", "binary_versions", "context", "context_named", "contexts", "job"]
READS += ["job_with_key", "job_config", "job_result", "jobs", "delivery", "deliveries_of"]
READS += ["due_deliveries", "deliveries_in", "servers", "request", "requests_to", "unreferenced"]
PERSISTENT_FAULTS = [
    *map(_caching, READS),
    LetsDatabaseErrorsOut,
    LetsDatabaseErrorsOfOneMethodOut,
    TakesABrokenDatabaseForEmpty,
]


def _fails(store: type[MemoryMetadataStore], name: str, suite: type[MetadataStoreContract] = Suite) -> bool:
    """Whether a test of the contract fails for a store, with any of its parameters."""
    ran = 0
    for test, arguments in cases(suite):
        if test != name:
            continue
        ran += 1
        try:
            getattr(suite(), test)(store=store(), **arguments)
        except (Exception, pytest.fail.Exception):
            return True
    assert ran, f"the contract has no test {name}"
    return False


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_contract_catches(fault: type[Fault]) -> None:
    assert not _fails(MemoryMetadataStore, fault.caught_by), "the test fails for a store without a fault"
    assert _fails(fault, fault.caught_by)


@pytest.mark.parametrize("fault", PERSISTENT_FAULTS, ids=lambda fault: fault.__name__)
def test_the_contract_of_persistent_stores_catches(fault: type[Persistent]) -> None:
    assert not _fails(Persistent, fault.caught_by, PersistentSuite), "the test fails without a fault"
    assert _fails(fault, fault.caught_by, PersistentSuite)


def test_no_thread_is_left_behind() -> None:
    assert [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon] == []
