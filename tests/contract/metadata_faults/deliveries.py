"""Faults in deliveries, in the blobs that records refer to, and in checking and closing."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from faults import Rendezvous

from jobserver_core.errors import JobServerError
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.lifecycle import DeliveryState
from metadata_faults.fault import Fault


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
