"""What becomes of supervised contexts whose server is gone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest

from conditions import wait_until
from jobserver_core import (
    ContextQuery,
    ContextState,
    FailureKind,
    InvalidSetting,
    JobState,
    Resources,
    Settings,
)
from jobserver_core.memory import InlineLauncher
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports import ContextEnd
from jobserver_core.running.notices import POLL
from serving import FUNCTIONS, WAIT, a_request, upload
from several_servers import ONE_SLOT, RECEIVER, Fleet, Member, finish


class SupervisedContexts(Fleet):
    def test_a_supervised_context_of_a_dead_server_is_started_again_on_another_one(
        self, members: list[Member]
    ) -> None:
        dead, alive = self.boot(), self.boot()
        upload(dead.server)
        dead.server.create_context("shared", {"supervise": True, "num-cpu-cores": 3})
        dead.ready()
        plain, again = dead.running_job("shared"), dead.running_job("shared", restartable=True)
        for job in (plain, again):
            dead.launcher.listeners[0].job_running(job)
        self.expire(dead.id)
        alive.renew()

        context = alive.server.context("shared")
        assert (context.owner, context.state) == (alive.id, ContextState.RESTARTING)
        assert (context.restarts, context.settings["num-cpu-cores"]) == (1, 3)
        assert alive.server.job(plain).failure is FailureKind.CONTEXT_LOST
        assert alive.server.job(again).restarts == 1

        def launched() -> bool:
            alive.clock.advance(0.1)
            return bool(alive.launcher.handles)

        wait_until(launched)
        alive.ready()
        wait_until(lambda: alive.launcher.handles[0].calls == [("submit", again)])
        finish(alive, again)
        assert alive.server.job_handle(again).result(WAIT) == "done"

    def test_a_job_of_another_server_runs_in_the_successor_of_a_context_that_dies_meanwhile(
        self, members: list[Member]
    ) -> None:
        owner, other = self.boot(), self.boot()
        upload(owner.server)
        owner.server.create_context("shared", {"supervise": True})
        owner.ready()
        job = other.server.submit(a_request("w.Any", context="shared", restartable=True)).id
        owner.launcher.listeners[0].context_ended(ContextEnd.FAILED)

        def in_time(condition: Callable[[], bool]) -> bool:
            owner.clock.advance(0.5)
            return condition()

        wait_until(lambda: in_time(lambda: len(owner.launcher.handles) == 2))
        owner.ready(1)
        wait_until(lambda: in_time(lambda: owner.launcher.handles[1].calls == [("submit", job)]))

    def test_a_job_that_was_not_picked_up_runs_in_the_successor_soon_after_its_files_can_be_read(
        self, members: list[Member]
    ) -> None:
        owner, other = self.boot(), self.boot()
        upload(owner.server)
        owner.server.create_context("shared", {"supervise": True})
        owner.ready()
        other.server._services.notices.close()
        job = other.server.submit(a_request("w.Any", context="shared")).id
        self.blobs.failing = owner.server.binaries()[0].digest
        owner.launcher.listeners[0].context_ended(ContextEnd.FAILED)

        def launched() -> bool:
            owner.clock.advance(0.5)
            return len(owner.launcher.handles) == 2

        wait_until(launched)
        owner.ready(1)
        owner.clock.advance(POLL)
        assert owner.launcher.handles[1].calls == []
        self.blobs.failing = None
        owner.clock.advance(POLL)
        assert owner.launcher.handles[1].calls == [("submit", job)]

    def test_an_invalid_configuration_does_not_keep_a_supervised_context_from_starting_again(
        self, members: list[Member]
    ) -> None:
        settings = Settings.from_mapping({"spark": {"contexts": {"shared": {"idle-timeout": 30}}}})
        dead, alive = self.boot(), self.boot(settings=settings)
        dead.server.create_context("shared", {"supervise": True, "num-cpu-cores": 3})
        dead.server.create_context("other")
        self.expire(dead.id)
        alive.renew()
        context = alive.server.context("shared")
        assert (context.owner, context.state) == (alive.id, ContextState.RESTARTING)
        assert context.settings["num-cpu-cores"] == 3
        assert alive.server.context("other").state is ContextState.ERROR

    def test_a_context_that_cannot_be_started_again_ends_alone_with_that_reason(
        self, members: list[Member], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dead, alive = self.boot(), self.boot()
        upload(dead.server)
        dead.server.create_context("shared", {"supervise": True, "refused": True})
        dead.server.create_context("fine", {"supervise": True})
        dead.ready()
        job = dead.running_job("shared", restartable=True)
        resources = alive.launcher.resources

        def refuse(settings: JsonMapping) -> Resources:
            if settings.get("refused"):
                raise InvalidSetting(key="refused", message="is not allowed any more")
            return resources(settings)

        monkeypatch.setattr(alive.launcher, "resources", refuse)
        self.expire(dead.id)
        alive.renew()
        ended = alive.server.context("shared")
        assert ended.state is ContextState.ERROR
        assert ended.error is not None
        assert "cannot be started again" in ended.error.message
        assert "is not allowed any more" in ended.error.message
        lost = alive.server.job(job)
        assert (lost.state, lost.failure) == (JobState.ERROR, FailureKind.CONTEXT_LOST)
        assert alive.server.context("fine").state is ContextState.RESTARTING

    def test_a_supervised_context_of_a_server_that_is_stopped_moves_at_once(
        self, members: list[Member]
    ) -> None:
        leaving, staying = self.boot(launcher=InlineLauncher(FUNCTIONS), settings=ONE_SLOT), self.boot()
        upload(leaving.server)
        leaving.server.create_context("shared", {"supervise": True}).result(WAIT)
        request = a_request("w.Sleep", context="shared", restartable=True, callback_url=RECEIVER)
        begun = leaving.server.submit(request).id
        wait_until(lambda: leaving.server.job(begun).state is JobState.RUNNING)
        waiting = leaving.server.submit(a_request("w.Any", context="shared")).id
        leaving.server.drain()
        leaving.server.close(0)

        def moved() -> bool:
            staying.clock.advance(0)
            return bool(staying.launcher.handles)

        wait_until(moved, "the context on the other server", WAIT)
        context = staying.server.context("shared")
        assert (context.owner, context.state) == (staying.id, ContextState.RESTARTING)
        assert (context.restarts, context.consecutive_restarts) == (1, 0)
        assert context.error is not None
        assert "was stopped" in context.error.message
        [_, before] = staying.server.contexts(ContextQuery(name="shared"))
        assert (before.state, before.owner) == (ContextState.FINISHED, staying.id)
        staying.ready()
        calls = staying.launcher.handles[0].calls
        wait_until(lambda: len(calls) == 2, "the jobs", WAIT)
        assert {job for _, job in calls} == {begun, waiting}
        assert staying.server.deliveries(begun) == []
        finish(staying, begun)
        assert staying.server.job_handle(begun).result(WAIT) == "done"

    def test_jobs_that_may_not_run_twice_end_with_a_context_that_moves(self, members: list[Member]) -> None:
        leaving, staying = self.boot(launcher=InlineLauncher(FUNCTIONS)), self.boot()
        upload(leaving.server)
        leaving.server.create_context("shared", {"supervise": True}).result(WAIT)
        job = leaving.server.submit(a_request("w.Sleep", context="shared", callback_url=RECEIVER)).id
        wait_until(lambda: leaving.server.job(job).state is JobState.RUNNING)
        leaving.server.close(0)
        ended = staying.server.job(job)
        assert (ended.state, ended.failure) == (JobState.ERROR, FailureKind.CONTEXT_LOST)
        assert len(staying.server.deliveries(job)) == 1

    @pytest.mark.parametrize("others", ["none", "draining"])
    def test_a_supervised_context_ends_with_the_last_server(self, members: list[Member], others: str) -> None:
        last = self.boot(launcher=InlineLauncher(FUNCTIONS))
        if others == "draining":
            self.boot().server.drain()
        last.server.create_context("shared", {"supervise": True}).result(WAIT)
        last.server.close(1)
        with closing(self.open()) as store:
            [context] = store.contexts(ContextQuery(name="shared"))
        assert context.state in (ContextState.FINISHED, ContextState.KILLED)

    def test_a_paused_server_starts_no_context_again_that_another_one_has(
        self, members: list[Member]
    ) -> None:
        paused, alive = self.boot(), self.boot()
        paused.server.create_context("shared", {"supervise": True})
        paused.ready()
        self.expire(paused.id)
        alive.renew()
        paused.launcher.listeners[0].context_ended(ContextEnd.FAILED)
        paused.renew()
        assert paused.server._services.registry.all() == []
        [context] = alive.server.contexts()
        assert (context.owner, context.restarts) == (alive.id, 1)
