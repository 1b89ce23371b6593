"""Faults in binaries and the jobs that use them."""

import threading
from typing import Any

from faults import DEADLINE

from jobserver_core.errors import BinaryNotFound
from jobserver_core.models.binaries import Binary
from jobserver_core.models.jobs import Job
from metadata_faults.fault import Fault


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
