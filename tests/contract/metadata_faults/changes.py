"""Faults in what a change compares before it writes: states and unique values."""

from typing import Any

import attrs
from faults import Rendezvous

from jobserver_core.errors import DuplicateId, StaleState
from jobserver_core.models.binaries import Binary
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job, JobResult
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from metadata_faults.fault import Fault


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
