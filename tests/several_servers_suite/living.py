"""What servers know of one another, and leave alone, while all of them live."""

from __future__ import annotations

from functools import partial

import pytest

from jobserver_core import (
    ContextExists,
    ContextState,
    JobState,
    OnAnotherServer,
    ServerClosed,
    Settings,
)
from jobserver_core.ports import ContextEnd
from jobserver_core.running.notices import POLL
from serving import WAIT, a_request, report_result, upload
from several_servers import Fleet, Member, finish


class LivingServers(Fleet):
    def test_a_second_server_leaves_the_work_of_the_first_one_alone(self, members: list[Member]) -> None:
        first = self.boot()
        upload(first.server)
        first.server.create_context("shared")
        starting = first.server.submit(a_request("w.Any", context="shared"))
        first.ready()
        running = first.running_job("shared")

        second = self.boot()
        second.renew()
        assert second.server.context("shared").state is ContextState.RUNNING
        assert not second.server.job(running).state.final
        assert second.server.job(starting.id).state is JobState.STARTED
        report_result(first.launcher.listeners[0], running, b"1")
        assert first.server.job_handle(running).finished.result(WAIT).state is JobState.FINISHED
        assert second.server.job(running).state is JobState.FINISHED
        assert second.server.context("shared").owner == first.id

    def test_servers_are_registered_until_they_close(self, members: list[Member]) -> None:
        first, second = self.boot(), self.boot()
        assert {server.id for server in first.server.servers()} == {first.id, second.id}
        second.server.close(0)
        assert [server.id for server in first.server.servers()] == [first.id]

    def test_two_servers_cannot_create_contexts_of_one_name(self, members: list[Member]) -> None:
        first, second = self.boot(), self.boot()
        first.server.create_context("shared")
        with pytest.raises(ContextExists):
            second.server.create_context("shared")

    def test_one_can_wait_on_any_server_for_a_job(self, members: list[Member]) -> None:
        runs, other = self.boot(), self.boot()
        upload(runs.server)
        runs.server.create_context("shared")
        runs.ready()
        job = runs.running_job("shared")
        handle = other.server.job_handle(job)
        other.clock.advance(POLL)
        assert not handle.done()
        finish(runs, job)
        other.clock.advance(POLL)
        assert handle.result(WAIT) == "done"
        assert other.server.job_handle(job).result(WAIT) == "done"

    def test_waiting_for_a_job_of_another_server_ends_with_the_server(self, members: list[Member]) -> None:
        runs, other = self.boot(), self.boot()
        upload(runs.server)
        handle = other.server.job_handle(runs.server.submit(a_request("w.Any")).id)
        other.server.close(0)
        with pytest.raises(ServerClosed):
            handle.result(WAIT)
        late = other.server._services.jobs.watch.watch(handle.job)
        with pytest.raises(ServerClosed):
            late.finished.waiter.result(WAIT)

    def test_waiting_for_a_context_of_another_server_ends_with_the_server(
        self, members: list[Member]
    ) -> None:
        _, other = self.owner_and_other()
        stopped = other.server.stop_context("shared")
        other.server.close(0)
        with pytest.raises(ServerClosed):
            stopped.result(WAIT)

    def test_the_end_of_a_context_whose_server_died_while_it_stopped_is_seen(
        self, members: list[Member]
    ) -> None:
        owner, other = self.owner_and_other()
        stopped = other.server.stop_context("shared")
        self.expire(owner.id)
        other.renew()
        other.clock.advance(POLL)
        assert stopped.result(WAIT).state is ContextState.ERROR

    def test_a_context_is_found_on_another_server_whose_clock_is_behind(self, members: list[Member]) -> None:
        owner, other = self.boot(), self.boot()
        upload(owner.server)
        other.clock.set_wall(3600)
        other.server.create_context("shared")
        other.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        owner.server.create_context("shared")
        assert other.server.context("shared").owner == owner.id
        other.server.submit(a_request("w.Any", context="shared"))
        other.server.stop_context("shared")
        assert other.server.context("shared").stop_requested

    def test_a_log_file_of_another_server_names_that_server(self, members: list[Member]) -> None:
        settings = Settings.from_mapping({"jobserver.servers.address": "host-1.example"})
        owner, other = self.owner_and_other(settings=settings)
        job = owner.running_job("shared")
        for call in (partial(other.server.job_log, job), partial(other.server.context_log, "shared")):
            with pytest.raises(OnAnotherServer, match=r"host-1\.example"):
                call()
