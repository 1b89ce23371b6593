"""What becomes of the jobs and callbacks of a server that is gone."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from conditions import wait_until
from jobserver_core import (
    ContextQuery,
    ContextState,
    DeliveryState,
    FailureKind,
    JobState,
    Settings,
    Takeovers,
    Unavailable,
)
from jobserver_core.ports import ContextEnd
from jobserver_core.running.jobs_without_room import RETRY_INTERVAL
from jobserver_core.running.servers import FULL_CHECK_EVERY
from serving import WAIT, a_request, upload
from several_servers import RECEIVER, Fleet, Member, finish, wait_for_delivery


class DeadServers(Fleet):
    def test_what_a_dead_server_ran_ends_once_its_lease_has_expired(self, members: list[Member]) -> None:
        dead, alive = self.boot(), self.boot()
        upload(dead.server)
        dead.server.create_context("shared")
        dead.ready()
        running = dead.running_job("shared", callback_url=RECEIVER)

        alive.renew()
        assert not alive.server.job(running).state.final
        self.expire(dead.id)
        alive.renew()
        job = alive.server.job(running)
        assert (job.state, job.failure) == (JobState.ERROR, FailureKind.CONTEXT_LOST)
        context = alive.server.context("shared")
        assert context.state is ContextState.ERROR
        assert context.error is not None
        assert context.error.message == "the job server ended, and its contexts with it"
        assert [server.id for server in alive.server.servers()] == [alive.id]
        assert len(alive.server.deliveries(running)) == 1

    def test_takeovers_are_counted_by_both_servers(self, members: list[Member]) -> None:
        dead, alive = self.boot(), self.boot()
        assert dead.server.takeovers == alive.server.takeovers == Takeovers()
        self.expire(dead.id)
        alive.renew()
        dead.renew()  # it was only paused
        alive.renew()
        assert alive.server.takeovers == Takeovers(leases_taken_over=1)
        assert dead.server.takeovers == Takeovers(leases_lost=1)

    def test_a_context_that_ended_with_its_server_still_names_it(self, members: list[Member]) -> None:
        addresses = [Settings.from_mapping({"jobserver.servers.address": name}) for name in ("one", "two")]
        dead, alive = (self.boot(settings=settings) for settings in addresses)
        upload(dead.server)
        dead.server.create_context("shared")
        dead.ready()
        assert alive.server.context("shared").server == "one"
        self.expire(dead.id)
        alive.renew()
        ended = alive.server.context("shared")
        assert (ended.owner, ended.server_id, ended.server) == (alive.id, dead.id, "one")
        alive.server.create_context("shared")
        assert alive.server.context("shared").server == "two"
        assert alive.server.context(ended.id) == ended

    def test_a_job_that_had_not_begun_runs_on_another_server(self, members: list[Member]) -> None:
        dead, alive = self.boot(), self.boot()
        upload(dead.server)
        waits = dead.server.submit(a_request("w.Any", {"a": 1}))
        self.expire(dead.id)
        alive.renew()
        alive.ready()
        job = alive.server.job(waits.id)
        assert job.state is JobState.RESTARTING
        assert alive.server.context(job.context_name).owner == alive.id
        assert alive.launcher.handles[0].calls == [("submit", waits.id)]
        finish(alive, waits.id)
        assert alive.server.job_handle(waits.id).result(WAIT) == "done"

    def test_one_of_many_servers_takes_over_what_a_dead_one_left(self, members: list[Member]) -> None:
        dead = self.boot()
        upload(dead.server)
        jobs = [dead.server.submit(a_request("w.Any")).id for _ in range(5)]
        alive = [self.boot() for _ in range(3)]
        self.expire(dead.id)
        threads = [threading.Thread(target=member.renew) for member in alive]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        for member in alive:
            for listener in member.launcher.listeners:  # which grows, as others may start then
                listener.context_ready(application_id=None, url=None)
        submitted = [job for member in alive for handle in member.launcher.handles for _, job in handle.calls]
        assert sorted(submitted) == sorted(jobs), [alive[0].server.job(job) for job in jobs]

    def test_what_waits_on_a_server_that_closes_runs_on_another_one(self, members: list[Member]) -> None:
        leaving, staying = self.boot(), self.boot()
        upload(leaving.server)
        job = leaving.server.submit(a_request("w.Any"))
        leaving.server.drain()
        leaving.launcher.close()
        leaving.server.close(0)
        staying.renew()
        staying.ready()
        assert staying.launcher.handles[0].calls == [("submit", job.id)]

    def test_one_of_two_servers_takes_over_what_waited_on_a_server_that_closed(
        self, members: list[Member]
    ) -> None:
        leaving, first, second = self.boot(), self.boot(), self.boot()
        job = self._left_by(leaving, "red")
        lost = first.recovery.end_lost()
        assert [left.id for left in lost.jobs] == [job]
        assert second.recovery.end_lost().jobs == []
        first.recovery.restart(lost.jobs)
        second.recovery.restart(lost.jobs)  # as if it had read them at the same time
        assert first.server.job(job).state is JobState.RESTARTING
        first.ready()
        assert first.launcher.handles[0].calls == [("submit", job)]
        assert second.launcher.handles == []

    def test_a_job_that_waited_for_a_context_runs_on_the_server_that_has_one_of_its_name(
        self, members: list[Member]
    ) -> None:
        leaving, other, owner = self.boot(), self.boot(), self.boot()
        job = self._left_by(leaving, "red")
        owner.server.create_context("red")
        owner.ready()
        other.renew()
        assert not other.server.job(job).state.final
        for _ in range(FULL_CHECK_EVERY):
            owner.renew()
        assert owner.launcher.handles[0].calls == [("submit", job)]

    def test_a_job_waits_until_the_server_that_takes_it_over_has_room_for_a_context(
        self, members: list[Member]
    ) -> None:
        settings = Settings.from_mapping({"jobserver.contexts.max-contexts": 1})
        leaving, staying = self.boot(), self.boot(settings=settings)
        staying.server.create_context("full")
        staying.ready()
        job = self._left_by(leaving, None)
        staying.renew()
        assert not staying.server.job(job).state.final
        staying.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        for _ in range(FULL_CHECK_EVERY):
            staying.renew()
        staying.ready(1)
        assert staying.launcher.handles[1].calls == [("submit", job)]

    def test_a_job_that_waits_for_room_can_be_killed_on_any_server(self, members: list[Member]) -> None:
        settings = Settings.from_mapping({"jobserver.contexts.max-contexts": 1})
        leaving, staying, other = self.boot(), self.boot(settings=settings), self.boot(settings=settings)
        for member, name in ((staying, "one"), (other, "two")):
            member.server.create_context(name)
        job = self._left_by(leaving, None)
        staying.renew()
        assert other.server.kill_job(job).result(WAIT).state is JobState.KILLED
        staying.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        for _ in range(FULL_CHECK_EVERY):
            staying.renew()
        assert staying.server.job(job).state is JobState.KILLED
        assert len(staying.launcher.listeners) == 1

    def test_a_job_for_which_a_server_has_no_room_runs_on_another_one_that_has(
        self, members: list[Member]
    ) -> None:
        leaving, full, roomy = self.boot(), self._full(), self.boot()
        job = self._left_by(leaving, None)
        full.renew()
        roomy.renew()
        assert roomy.launcher.handles == []  # the full server has claimed the job
        full.clock.advance(RETRY_INTERVAL)
        wait_until(lambda: len(roomy.launcher.handles) == 1, "a context on the server with room", WAIT)
        roomy.ready()
        assert roomy.launcher.handles[0].calls == [("submit", job)]
        assert len(full.launcher.handles) == 1
        full.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        full.clock.advance(2 * RETRY_INTERVAL)
        assert len(full.launcher.handles) == 1  # although it has room now

    def test_full_servers_pass_a_job_on_no_more_often_than_they_retry(self, members: list[Member]) -> None:
        leaving, first, second = self.boot(), self._full(), self._full()
        job = self._left_by(leaving, None)
        first.renew()
        lost = first.server.job(job).context_id
        for giver, taker in [(first, second), (second, first), (first, second)]:
            assert self._owner(lost) == giver.id
            giver.clock.advance(RETRY_INTERVAL)
            wait_until(partial(self._waits_at, taker, giver), "the other server to own the job", WAIT)
            giver.clock.advance(4 * RETRY_INTERVAL)
            assert self._owner(lost) == taker.id  # which keeps it until its own time has passed
        second.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        second.clock.advance(RETRY_INTERVAL)
        wait_until(lambda: len(second.launcher.handles) == 2, "a context on the server with room", WAIT)
        second.ready(1)
        assert second.launcher.handles[1].calls == [("submit", job)]
        assert len(first.launcher.handles) == 1

    def test_a_server_that_drains_is_given_no_jobs_of_others(self, members: list[Member]) -> None:
        leaving, full, draining = self.boot(), self._full(), self.boot()
        job = self._left_by(leaving, None)
        full.renew()
        draining.server.drain()
        full.clock.advance(RETRY_INTERVAL)
        wait_until(lambda: full.waits_for_room == 1, "the second refusal", WAIT)
        assert self._owner(full.server.job(job).context_id) == full.id
        full.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        full.clock.advance(RETRY_INTERVAL)
        wait_until(lambda: len(full.launcher.handles) == 2, "a context for the job", WAIT)

    def test_a_paused_server_does_not_retry_what_another_one_has_taken_over(
        self, members: list[Member]
    ) -> None:
        leaving, paused, alive = self.boot(), self._full(), self.boot()
        job = self._left_by(leaving, None)
        paused.renew()
        assert paused.waits_for_room == 1
        self.expire(paused.id)
        alive.renew()
        taken = alive.server.job(job)
        assert alive.server.context(taken.context_name).owner == alive.id
        paused.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        stored = alive.server._services.metadata.contexts(ContextQuery())
        paused.server._services.without_room._retry()  # as its timer does when it wakes up
        assert alive.server._services.metadata.contexts(ContextQuery()) == stored
        assert paused.waits_for_room == 0
        assert alive.server.job(job) == taken
        alive.ready()
        assert alive.launcher.handles[0].calls == [("submit", job)]

    def _full(self) -> Member:
        """Start a server that has no room for another context."""
        member = self.boot(settings=Settings.from_mapping({"jobserver.contexts.max-contexts": 1}))
        member.server.create_context(f"full-{member.id}")
        member.ready()
        return member

    @staticmethod
    def _waits_at(taker: Member, giver: Member) -> bool:
        return (taker.waits_for_room, giver.waits_for_room) == (1, 0)

    def _owner(self, context_id: str) -> str:
        return self.members[-1].server.context(context_id).owner

    def _left_by(self, leaving: Member, context: str | None) -> str:
        """Return a job that waits for a context of a server that has closed."""
        upload(leaving.server)
        if context is not None:
            leaving.server.create_context(context)
        job = leaving.server.submit(a_request("w.Any", context=context))
        leaving.server.drain()
        leaving.launcher.close()
        with pytest.MonkeyPatch.context() as patch:
            # The others look for what is left when the test tells them to.
            patch.setattr(leaving.server._services.metadata, "notify", lambda _notice: None)
            leaving.server.close(0)
        return job.id

    def test_a_job_whose_server_is_gone_can_be_killed_once_it_was_taken_over(
        self, members: list[Member]
    ) -> None:
        dead, alive = self.boot(), self.boot()
        upload(dead.server)
        job = dead.server.submit(a_request("w.Any"))
        alive.server._services.metadata.remove_server(dead.id)
        with pytest.raises(Unavailable, match="being taken over by another server; try again"):
            alive.server.kill_job(job.id)
        alive.renew()
        alive.server.kill_job(job.id)
        assert alive.server.job(job.id).state is JobState.KILLED

    def test_a_callback_of_a_server_that_has_just_started_is_left_alone(self, members: list[Member]) -> None:
        alive, new = self.boot(), self.boot()
        delivery_id = self.stuck_delivery(new)
        known = iter([frozenset[str]()])
        alive.server._services.callbacks.take_over(lambda: next(known, frozenset({new.id})))
        wait_for_delivery(new, delivery_id, DeliveryState.SENDING)
        new.transport.release(RECEIVER)
        wait_for_delivery(new, delivery_id, DeliveryState.DELIVERED)
        assert alive.transport.messages == []

    def test_a_callback_that_a_dead_server_was_sending_is_sent_by_another_one(
        self, members: list[Member]
    ) -> None:
        dead, alive = self.boot(), self.boot()
        delivery_id = self.stuck_delivery(dead)
        alive.renew()
        assert alive.transport.messages == []
        self.expire(dead.id)
        alive.renew()
        wait_for_delivery(alive, delivery_id, DeliveryState.DELIVERED)
        assert [message.delivery_id for message in alive.transport.messages] == [delivery_id]
