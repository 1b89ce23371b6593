"""Faults in servers, their leases, requests, notices and epochs."""

from typing import Any

import attrs
from faults import Rendezvous

from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job
from jobserver_core.models.lifecycle import DeliveryState
from jobserver_core.models.servers import Server, ServerRequest
from jobserver_core.testing.builders import at
from metadata_faults.fault import Fault


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


class ForgetsVersions(Fault):
    caught_by = "test_a_server_has_the_version_that_it_was_registered_with"

    def register_server(self, server_id: str, **rest: Any) -> None:
        super().register_server(server_id, **{**rest, "version": ""})


class StopsDrainingWithARenewal(Fault):
    caught_by = "test_a_server_drains_until_it_is_registered_again"

    def renew_server(self, server_id: str, *, lease: float) -> bool:
        renewed = super().renew_server(server_id, lease=lease)
        if renewed:
            self._servers[server_id] = attrs.evolve(self._servers[server_id], draining=False)
        return renewed
