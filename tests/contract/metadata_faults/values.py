"""Faults in what is stored: results, configurations, progress, times and settings."""

import threading
from typing import Any

import attrs
from faults import DEADLINE

from jobserver_core.models.binaries import Binary
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job, JobProgress, JobResult
from metadata_faults.fault import Fault


class LosesResults(Fault):
    caught_by = "test_a_result_comes_back_equal_in_full"

    def advance_job(self, job: Job, *, result: JobResult | None = None, **rest: Any) -> None:
        super().advance_job(job, **rest)


class LosesPackages(Fault):
    caught_by = "test_a_binary_comes_back_equal_in_full"

    def add_binary(self, binary: Binary) -> None:
        super().add_binary(attrs.evolve(binary, package=None))


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
