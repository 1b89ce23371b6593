"""Jobs that are submitted on one server to a context of another one."""

from __future__ import annotations

from functools import partial

import attrs
import pytest

from conditions import wait_until
from jobserver_core import (
    BinaryType,
    ContextNotFound,
    ContextStopping,
    FailureKind,
    IdempotencyMismatch,
    JobHandle,
    JobRequest,
    JobState,
    NoSlots,
    ServerClosed,
    Settings,
    Unavailable,
    parse_class_path,
)
from jobserver_core.events import JobChanged
from jobserver_core.ports import ContextEnd
from jobserver_core.running import intake
from jobserver_core.running.notices import POLL
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, a_request, archive, upload
from several_servers import ONE_SLOT, RECEIVER, Fleet, FleetClock, Member, finish


class Submitting(Fleet):
    def test_a_submit_that_is_repeated_on_another_server_returns_the_same_job(
        self, members: list[Member]
    ) -> None:
        runs, other = self.boot(), self.boot()
        upload(runs.server)
        request = a_request("w.Any", idempotency_key="key")
        first = runs.server.submit(request)
        again = other.server.submit(request)
        assert again.id == first.id
        runs.ready()
        finish(runs, first.id)
        other.clock.advance(POLL)
        assert again.result(WAIT) == "done"
        assert other.launcher.listeners == []

    def test_a_job_can_be_submitted_on_any_server_to_a_context_of_another_one(
        self, members: list[Member]
    ) -> None:
        owner, other = self.boot(), self.boot()
        upload(other.server)
        owner.server.create_context("shared")
        early = other.server.submit(a_request("w.Any", context="shared"))
        assert other.server.job(early.id).state is JobState.STARTED
        owner.ready()
        late = other.server.submit(a_request("w.Any", {"a": 1}, context="shared", callback_url=RECEIVER))
        calls = owner.launcher.handles[0].calls
        wait_until(lambda: len(calls) == 2, "the jobs", WAIT)
        assert sorted(calls) == sorted([("submit", early.id), ("submit", late.id)])
        for job in (early, late):
            finish(owner, job.id)
            assert job.result(WAIT) == "done"
        assert other.server.deliveries(late.id) != []
        assert other.launcher.handles == []

    def test_a_job_whose_notice_is_lost_is_found_by_a_scan_of_all_jobs(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        other.server._services.notices.close()
        job = other.server.submit(a_request("w.Any", context="shared"))
        assert owner.launcher.handles[0].calls == []
        owner.clock.advance(POLL)
        assert owner.launcher.handles[0].calls == [("submit", job.id)]

    def test_a_submit_on_another_server_is_refused_as_on_the_owner(self, members: list[Member]) -> None:
        settings = {"jobserver.jobs.max-jobs-per-context": 1, "jobserver.jobs.max-queued-jobs": 1}
        owner, other = self.owner_and_other(settings=Settings.from_mapping(settings))
        request = a_request("w.Any", context="shared")
        owner.server.submit(request)
        other.server.submit(request)
        with pytest.raises(
            NoSlots, match=r"shared has no free job slot \(running jobs: 1\): the queue is full"
        ):
            other.server.submit(request)
        owner.server.stop_context("shared")
        with pytest.raises(ContextStopping):
            other.server.submit(request)
        owner.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        with pytest.raises(ContextNotFound):
            other.server.submit(request)

    def test_a_server_that_drains_gets_no_jobs_from_others(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        owner.server.drain()
        with pytest.raises(ServerClosed):
            owner.server.submit(a_request("w.Any", context="shared"))
        with pytest.raises(Unavailable, match="the server of context shared is shutting down") as caught:
            other.server.submit(a_request("w.Any", context="shared"))
        assert type(caught.value) is Unavailable
        assert other.server.load.refused == 1
        assert other.server.jobs().jobs == ()
        assert [server.draining for server in other.server.servers()] == [
            server.id == owner.id for server in other.server.servers()
        ]

    def test_a_context_that_is_being_killed_gets_no_jobs_on_any_server(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        owner.server.kill_context("shared")
        for member in (owner, other):
            with pytest.raises(ContextStopping):
                member.server.submit(a_request("w.Any", context="shared"))
        assert other.server.jobs().jobs == ()

    def test_a_repeated_submit_to_a_context_of_another_server_makes_one_job(
        self, members: list[Member]
    ) -> None:
        owner, other = self.owner_and_other()
        request = a_request("w.Any", context="shared", idempotency_key="key")
        jobs = {member.server.submit(request).id for member in (other, owner, other)}
        assert len(jobs) == 1
        for member in (other, owner):
            with pytest.raises(IdempotencyMismatch, match=r"different request$"):
                member.server.submit(attrs.evolve(request, submitted_by="bob"))

    def test_a_job_that_was_not_picked_up_before_its_context_ended_ends_with_it(
        self, members: list[Member]
    ) -> None:
        owner, other = self.owner_and_other()
        other.server._services.notices.close()
        job = other.server.submit(a_request("w.Any", context="shared", callback_url=RECEIVER))
        owner.launcher.listeners[0].context_ended(ContextEnd.FAILED)
        wait_until(lambda: other.server.job(job.id).state.final, "the end of the job", WAIT)
        ended = other.server.job(job.id)
        assert (ended.state, ended.failure) == (JobState.ERROR, FailureKind.CONTEXT_LOST)
        assert len(other.server.deliveries(job.id)) == 1

    def test_a_job_that_was_not_picked_up_before_the_owner_died_runs_elsewhere(
        self, members: list[Member]
    ) -> None:
        owner, other = self.owner_and_other()
        owner.server._services.intake.close()
        job = other.server.submit(a_request("w.Any", context="shared"))
        self.expire(owner.id)
        other.renew()
        other.ready()
        assert other.launcher.handles[0].calls == [("submit", job.id)]
        finish(other, job.id)
        other.clock.advance(POLL)
        assert job.result(WAIT) == "done"

    def test_a_subscriber_can_kill_a_job_that_waits_behind_the_one_that_is_picked_up(
        self, members: list[Member]
    ) -> None:
        owner, other = self.owner_and_other(settings=ONE_SLOT)
        owner.running_job("shared")
        other.server._services.notices.close()
        waiting = {other.server.submit(a_request("w.Any", context="shared")).id for _ in range(2)}
        killed: list[str] = []

        def kill(event: object) -> None:
            if isinstance(event, JobChanged) and event.job.id in waiting and not killed:
                killed.extend(waiting - {event.job.id})
                owner.server.kill_job(killed[0])

        owner.server.subscribe(kill)
        owner.clock.advance(POLL)
        states = {job: owner.server.job(job).state for job in waiting}
        assert [job for job, state in states.items() if state is JobState.KILLED] == killed

    def test_a_job_whose_files_cannot_be_read_delays_no_other_one_and_ends_with_its_time(
        self, members: list[Member]
    ) -> None:
        owner, other = self.owner_and_other()
        other.server.upload("bad", BinaryType.EGG, archive("bad"))
        self.blobs.failing = other.server.binary("bad").digest
        bad = parse_class_path("bad")
        short, long = (
            other.server.submit(
                JobRequest(class_name="w.Any", class_path=bad, context="shared", max_queue_time=limit)
            ).id
            for limit in (60.0, None)
        )
        good = other.server.submit(a_request("w.Any", context="shared")).id
        owner.clock.advance(POLL)
        assert owner.launcher.handles[0].calls == [("submit", good)]
        for _ in range(12):
            owner.clock.advance(POLL)
        assert owner.server.job(short).failure is FailureKind.QUEUE_TIME
        assert not owner.server.job(long).state.final
        other.server.kill_job(long)
        assert other.server.job(long).state is JobState.KILLED

    def test_a_job_whose_files_arrive_slowly_delays_no_other_one_and_can_be_killed(
        self, members: list[Member]
    ) -> None:
        owner, other = self.owner_and_other()
        other.server.upload("slow", BinaryType.EGG, archive("slow"))
        self.blobs.slow = other.server.binary("slow").digest
        slow, killed = (
            other.server.submit(
                JobRequest(class_name="w.Any", class_path=parse_class_path("slow"), context="shared")
            ).id
            for _ in range(2)
        )
        try:
            good = [other.server.submit(a_request("w.Any", context="shared")).id for _ in range(2)]
            calls = owner.launcher.handles[0].calls
            wait_until(lambda: len(calls) == len(good), "the jobs whose files are here", WAIT)
            assert {job for _, job in calls} == set(good)
            assert other.server.kill_job(killed).result(WAIT).state is JobState.KILLED
        finally:
            self.blobs.arrived.set()
        wait_until(lambda: ("submit", slow) in calls, "the job whose files have arrived", WAIT)
        assert other.server.job(killed).state is JobState.KILLED
        assert ("submit", killed) not in calls

    def test_a_job_whose_files_do_not_arrive_ends_with_its_time(
        self, members: list[Member], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(intake, "LEASE_TIMEOUT", 20 * POLL)
        monkeypatch.setattr(FleetClock, "_run", staticmethod(ManualClock._run))  # waits for no download
        owner, other = self.owner_and_other()
        other.server.upload("slow", BinaryType.EGG, archive("slow"))
        self.blobs.slow = other.server.binary("slow").digest
        first, short, long = (
            other.server.submit(
                JobRequest(
                    class_name="w.Any",
                    class_path=parse_class_path("slow"),
                    context="shared",
                    max_queue_time=limit,
                )
            ).id
            for limit in (60.0, 60.0, None)
        )

        def ended(job: str) -> bool:
            owner.clock.advance(POLL)
            return owner.server.job(job).state.final

        try:
            for job in (first, short):
                wait_until(partial(ended, job), "the end of the job")
                assert owner.server.job(job).failure is FailureKind.QUEUE_TIME
            wait_until(partial(ended, long), "the end of the job without a limit")
            assert owner.server.job(long).failure is FailureKind.LOADING
        finally:
            self.blobs.arrived.set()

    def test_a_job_whose_files_can_never_be_read_ends(
        self, members: list[Member], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(intake, "LEASE_TIMEOUT", 2 * POLL)
        owner, other = self.owner_and_other()
        other.server.upload("bad", BinaryType.EGG, archive("bad"))
        self.blobs.failing = other.server.binary("bad").digest
        job = other.server.submit(
            JobRequest(class_name="w.Any", class_path=parse_class_path("bad"), context="shared")
        )
        for _ in range(4):
            owner.clock.advance(POLL)
        assert owner.server.job(job.id).failure is FailureKind.LOADING
        self.blobs.failing = None

    def test_a_job_runs_in_a_new_context_if_its_own_ended_by_itself_before_it_was_picked_up(
        self, members: list[Member]
    ) -> None:
        owner, other = self.owner_and_other()
        other.server._services.notices.close()
        job = other.server.submit(a_request("w.Any", context="shared"))
        assert_runs_in_a_new_context(owner, job)

    def test_a_context_that_has_reached_its_lifetime_gets_no_jobs_from_other_servers(
        self, members: list[Member]
    ) -> None:
        owner, other = self.boot(), self.boot()
        upload(owner.server)
        owner.server.create_context("shared", {"max-lifetime": "60s", "lifetime-grace": "600s"})
        owner.ready()
        running = owner.running_job("shared")
        owner.clock.advance(60)
        job = other.server.submit(a_request("w.Any", context="shared"))
        owner.clock.advance(POLL)
        assert owner.launcher.handles[0].calls == [("submit", running)]
        finish(owner, running)
        owner.clock.advance(POLL)
        assert_runs_in_a_new_context(owner, job)

    def test_the_time_to_wait_for_a_slot_does_not_depend_on_the_clock_of_the_server_that_was_asked(
        self, members: list[Member]
    ) -> None:
        owner, other = self.owner_and_other(settings=ONE_SLOT)
        owner.running_job("shared")
        owner.clock.set_wall(3600)
        job = other.server.submit(a_request("w.Any", context="shared", max_queue_time=60.0)).id
        owner.clock.advance(POLL)
        assert owner.server._services.jobs.lives(job)
        owner.clock.advance(60 - POLL)
        assert not owner.server.job(job).state.final
        owner.clock.advance(POLL)
        assert owner.server.job(job).failure is FailureKind.QUEUE_TIME


def assert_runs_in_a_new_context(owner: Member, job: JobHandle) -> None:
    """End the only context of a server; the job has to run in the next one."""
    owner.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
    wait_until(lambda: len(owner.launcher.listeners) == 2, "the new context", WAIT)
    owner.ready(1)
    wait_until(lambda: owner.launcher.handles[1].calls == [("submit", job.id)], "the job", WAIT)
