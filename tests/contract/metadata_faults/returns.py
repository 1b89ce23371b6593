"""Calls that return values of another type than the port declares."""

from typing import Any

from jobserver_core.models.jobs import JobQuery
from metadata_faults.fault import Fault

CAUGHT_BY = "test_every_call_returns_what_the_port_declares"


class ReturnsAListInsteadOfAPage(Fault):
    caught_by = CAUGHT_BY

    def jobs(self, query: JobQuery) -> Any:
        return super().jobs(query).jobs


class ReturnsTheNumberOfRows(Fault):
    caught_by = CAUGHT_BY

    def renew_server(self, server_id: str, *, lease: float) -> Any:
        return int(super().renew_server(server_id, lease=lease))


class ReturnsATuple(Fault):
    caught_by = CAUGHT_BY

    def unreferenced(self, digests: Any) -> Any:
        return tuple(super().unreferenced(digests))


class ReturnsNamesInsteadOfBinaries(Fault):
    caught_by = CAUGHT_BY

    def binaries(self) -> Any:
        return [binary.name for binary in super().binaries()]


class ReturnsFalseFromItsCheck(Fault):
    caught_by = "test_a_store_in_working_order_passes_its_check"

    def check(self) -> Any:
        return False


class ReturnsARowInsteadOfAJob(Fault):
    caught_by = CAUGHT_BY

    def job(self, job_id: str) -> Any:
        found = super().job(job_id)
        return None if found is None else (found.id, found.state.value)
