"""Faults in the removal of what is old."""

from datetime import datetime, timedelta

import attrs
from faults import Rendezvous

from jobserver_core.models.binaries import Binary
from jobserver_core.models.storage import MetadataUsage
from metadata_faults.fault import Fault


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
