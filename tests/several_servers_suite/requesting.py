"""What one server asks of another one: to kill jobs, and to stop, kill and reset contexts."""

from __future__ import annotations

from functools import partial

import pytest

from conditions import wait_until
from jobserver_core import (
    ContextFailed,
    ContextNotFound,
    ContextState,
    ContextStopping,
    JobAlreadyFinal,
    JobState,
    Settings,
    Unavailable,
)
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.ports import ContextEnd, JobOutcome
from jobserver_core.running import requests
from jobserver_core.running.notices import POLL
from serving import WAIT, a_request
from several_servers import Fleet, Member


class Requesting(Fleet):
    def test_a_request_does_not_stop_another_context_that_has_got_the_name(
        self, members: list[Member], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owner, other = self.owner_and_other()
        owner.server._services.notices.close()
        monkeypatch.setattr(requests, "ANSWER_TIMEOUT", 0.01)
        monkeypatch.setattr(requests, "ANSWER_POLL_INTERVAL", 0.01)
        asked = other.server._services.requests
        with monkeypatch.context() as patch:
            patch.setattr(asked, "_remove", lambda _request_id: None)
            with pytest.raises(Unavailable):
                other.server.stop_context("shared")
        owner.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        owner.server.create_context("shared")
        owner.ready(1)
        owner.server._services.requests._answer_all(None)
        assert owner.server.context("shared").state is ContextState.RUNNING
        assert other.server._services.metadata.requests_to(owner.id) == []

    def test_a_job_can_be_killed_on_any_server(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        job = owner.running_job("shared")
        killed = other.server.kill_job(job, user="ann")
        assert owner.launcher.handles[0].calls[-1] == ("kill_job", job)
        owner.launcher.listeners[0].job_ended(job, JobOutcome(killed=True))
        other.clock.advance(POLL)
        record = killed.result(WAIT)
        assert record.state is JobState.KILLED
        assert record.error is not None
        assert (record.error.message, record.error.stack) == (f"Job {job} killed", "by user ann")
        with pytest.raises(JobAlreadyFinal):
            other.server.kill_job(job)

    def test_a_job_can_be_killed_by_force_on_any_server(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        job = owner.running_job("shared")
        other.server.kill_job(job, force=True)
        owner.clock.advance(owner.server.settings.jobs.kill_timeout)
        wait_until(lambda: owner.launcher.handles[0].calls[-1] == ("kill", None))

    def test_a_job_can_be_killed_before_its_owner_has_picked_it_up(self, members: list[Member]) -> None:
        settings = Settings.from_mapping({"jobserver.jobs.max-jobs-per-context": 1})
        owner, other = self.owner_and_other(settings=settings)
        owner.running_job("shared")
        send, other.server._services.notices.send = other.server._services.notices.send, lambda *_: None
        job = other.server.submit(a_request("w.Any", context="shared"))
        other.server._services.notices.send = send
        killed = other.server.kill_job(job.id, user="ann").result(WAIT)
        assert killed.state is JobState.KILLED
        assert killed.error is not None
        assert (killed.error.message, killed.error.stack) == (f"Job {job.id} killed", "by user ann")

    def test_a_context_can_be_waited_for_on_any_server(self, members: list[Member]) -> None:
        owner, other = self.boot(), self.boot()
        for number, name in enumerate(("good", "bad")):
            owner.server.create_context(name)
            waiter = other.server.context_waiter(name)
            assert not waiter.done()
            if name == "good":
                owner.ready(number)
                other.clock.advance(POLL)
                assert waiter.result(WAIT).state is ContextState.RUNNING
                assert other.server.context_waiter(name).done()
            else:
                failed = ErrorInfo(message="no memory")
                owner.launcher.listeners[number].context_ended(ContextEnd.FAILED, failed)
                other.clock.advance(POLL)
                with pytest.raises(ContextFailed, match="no memory"):
                    waiter.result(WAIT)
                with pytest.raises(ContextNotFound, match="no memory"):
                    other.server.context_waiter(name)
        stopped = owner.server.stop_context("good")
        with pytest.raises(ContextStopping):
            other.server.context_waiter("good")
        owner.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        assert stopped.result(WAIT).state is ContextState.FINISHED

    def test_a_context_can_be_stopped_on_any_server(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        stopped = other.server.stop_context("shared", timeout=7)
        assert owner.launcher.handles[0].calls == [("stop", 7)]
        assert other.server.context("shared").state is ContextState.STOPPING
        assert other.server.context("shared").stop_requested
        owner.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        other.clock.advance(POLL)
        assert stopped.result(WAIT).state is ContextState.FINISHED
        for call in (other.server.stop_context, other.server.kill_context):
            with pytest.raises(ContextNotFound):
                call("shared")

    def test_a_context_can_be_killed_on_any_server(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        killed = other.server.kill_context("shared")
        assert owner.launcher.handles[0].calls == [("kill", None)]
        owner.launcher.listeners[0].context_ended(ContextEnd.KILLED)
        other.clock.advance(POLL)
        assert killed.result(WAIT).state is ContextState.KILLED

    def test_a_reset_starts_the_configured_contexts_of_every_server_again(
        self, members: list[Member]
    ) -> None:
        def configured(name: str) -> Member:
            return self.boot(settings=Settings.from_mapping({"spark": {"contexts": {name: {}}}}))

        first, second = configured("first"), configured("second")
        done = first.server.reset_contexts()
        for member in (first, second):
            member.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        first.clock.advance(POLL)
        for member in (first, second):
            wait_until(lambda member=member: len(member.launcher.listeners) == 2)
            member.ready(1)
        done.result(WAIT)
        for member, name in ((first, "first"), (second, "second")):
            context = first.server.context(name)
            assert (context.owner, context.state) == (member.id, ContextState.RUNNING)

    def test_a_reset_stops_the_contexts_of_all_servers(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        other.server.create_context("own")
        other.ready()
        done = other.server.reset_contexts()
        assert owner.launcher.handles[0].calls[0][0] == other.launcher.handles[0].calls[0][0] == "stop"
        for member in (owner, other):
            member.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        other.clock.advance(POLL)
        assert done.result(WAIT) is None

    def test_what_belongs_to_a_server_that_is_gone_is_being_taken_over(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        job = owner.running_job("shared")
        other.server._services.metadata.remove_server(owner.id)
        server = other.server
        for call in (
            partial(server.stop_context, "shared"),
            partial(server.kill_context, "shared"),
            partial(server.kill_job, job),
            partial(server.context_log, "shared"),
        ):
            with pytest.raises(Unavailable, match="being taken over by another server; try again"):
                call()
        with pytest.raises(ContextNotFound):
            server.stop_context("unknown")

    def test_a_request_to_a_server_that_hangs_can_be_tried_again(
        self, members: list[Member], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owner, other = self.owner_and_other()
        owner.server._services.notices.close()
        monkeypatch.setattr(requests, "ANSWER_TIMEOUT", 0.01)
        monkeypatch.setattr(requests, "ANSWER_POLL_INTERVAL", 0.01)
        with pytest.raises(Unavailable, match="the server of context shared does not respond; try again"):
            other.server.stop_context("shared")
        assert other.server._services.metadata.requests_to(owner.id) == []
        assert other.server.context("shared").state is ContextState.RUNNING
