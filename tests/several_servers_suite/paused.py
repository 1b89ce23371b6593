"""What a server may do that was paused, whether or not another one has taken over what it had."""

from __future__ import annotations

import pytest

from jobserver_core import DeliveryState, Job, JobPostponed, JobState, Unavailable
from serving import WAIT, a_request, upload
from several_servers import RECEIVER, Fleet, Member, finish, wait_for_delivery


class PausedServers(Fleet):
    def test_a_server_that_was_slow_but_not_declared_dead_goes_on(self, members: list[Member]) -> None:
        slow = self.boot()
        upload(slow.server)
        slow.server.create_context("shared")
        slow.ready()
        job = slow.running_job("shared")
        self.expire(slow.id)
        slow.renew()
        other = self.boot()
        assert not other.server.job(job).state.final
        finish(slow, job)
        assert slow.server.job_handle(job).result(WAIT) == "done"

    def test_a_paused_server_can_change_nothing_of_what_was_taken_over(self, members: list[Member]) -> None:
        paused, alive = self.boot(), self.boot()
        upload(paused.server)
        paused.server.create_context("shared")
        paused.ready()
        running = paused.running_job("shared", callback_url=RECEIVER)
        waits = paused.server.submit(a_request("w.Any"))
        self.expire(paused.id)
        alive.renew()
        [delivery] = alive.server.deliveries(running)
        wait_for_delivery(alive, delivery.id, DeliveryState.DELIVERED)
        before = self._records(alive, running, waits.id)

        finish(paused, running)
        paused.ready(1)
        assert self._records(alive, running, waits.id) == before
        assert ("submit", waits.id) not in paused.launcher.handles[1].calls
        assert paused.transport.messages == []

    def _records(self, member: Member, *jobs: str) -> list[object]:
        found: list[object] = [member.server.context("shared")]
        return found + [(member.server.job(job), member.server.deliveries(job)) for job in jobs]

    def test_requests_to_a_paused_server_for_what_was_taken_over_may_be_repeated(
        self, members: list[Member]
    ) -> None:
        paused, alive = self.boot(), self.boot()
        upload(paused.server)
        paused.server.create_context("shared")
        paused.ready()
        running = paused.running_job("shared")
        self.expire(paused.id)
        alive.renew()
        requests = (
            lambda: paused.server.stop_context("shared"),
            lambda: paused.server.kill_context("shared"),
            lambda: paused.server.kill_job(running),
        )
        for request in requests:
            with pytest.raises(Unavailable, match="being taken over by another server; try again"):
                request()

    def test_a_paused_server_ends_its_contexts_and_continues_as_a_new_one(
        self, members: list[Member]
    ) -> None:
        paused, alive = self.boot(), self.boot()
        upload(paused.server)
        paused.server.create_context("shared")
        paused.ready()
        running = paused.running_job("shared")
        waits = paused.server.submit(a_request("w.Any"))
        self.expire(paused.id)
        alive.renew()
        paused.renew()

        assert ("kill", None) in paused.launcher.handles[0].calls
        assert paused.server._services.registry.all() == []
        assert {server.id for server in alive.server.servers()} == {paused.id, alive.id}
        assert paused.server.job(running).state is JobState.ERROR
        moved: Job = alive.server.job(waits.id)
        assert moved.state is JobState.RESTARTING
        with pytest.raises(JobPostponed):
            waits.finished.result(WAIT)

        paused.server.create_context("again")
        paused.ready(2)
        alive.renew()
        job = paused.server.submit(a_request("w.Any", context="again"))
        assert paused.launcher.handles[2].calls == [("submit", job.id)]
        assert alive.server.context("again").owner == paused.id

    def test_a_paused_server_cannot_store_the_outcome_of_a_callback_that_was_handed_back(
        self, members: list[Member]
    ) -> None:
        paused, alive = self.boot(), self.boot()
        delivery_id = self.stuck_delivery(paused)
        alive.transport.hang(RECEIVER)
        self.expire(paused.id)
        alive.renew()
        assert alive.transport.wait_for(lambda transport: bool(transport.under_way), WAIT)
        paused.transport.release(RECEIVER)
        assert paused.server._services.callbacks.drain(WAIT)
        wait_for_delivery(alive, delivery_id, DeliveryState.SENDING)
        alive.transport.release(RECEIVER)
        wait_for_delivery(alive, delivery_id, DeliveryState.DELIVERED)
