"""Several job servers in this process that share one store, and the tests that hold for every such store."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conditions import wait_until
from jobserver_core import (
    BinaryType,
    ContextExists,
    ContextNotFound,
    ContextState,
    ContextStopping,
    DeliveryState,
    FailureKind,
    Job,
    JobAlreadyFinal,
    JobPostponed,
    JobRequest,
    JobServer,
    JobState,
    NoSlots,
    OnAnotherServer,
    ServerClosed,
    Settings,
    StorageError,
    Unavailable,
    parse_class_path,
)
from jobserver_core.events import JobChanged
from jobserver_core.memory import MemoryBlobStore, MemoryTransport
from jobserver_core.ports import ContextEnd, JobOutcome, Launcher, MetadataStore
from jobserver_core.running import intake, requests
from jobserver_core.running.notices import POLL
from jobserver_core.running.recovery import Recovery
from jobserver_core.running.servers import FULL_CHECK_EVERY
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, ScriptedLauncher, a_request, a_server, archive, upload

RECEIVER = "memory://receiver/x"
ONE_SLOT = Settings.from_mapping({"jobserver.jobs.max-jobs-per-context": 1})
RENEWAL = 3.0
"""Seconds between two renewals of the default lease."""


class FleetClock(ManualClock):
    """A manual clock of one server, whose calls return after the threads that they start."""

    @staticmethod
    def _run(call: Callable[[], None]) -> None:
        ManualClock._run(call)
        for prefix in (
            "jobserver-lease",
            "jobserver-removed",
            "jobserver-failover",
            "jobserver-notices",
            "jobserver-retry",
        ):
            for thread in threading.enumerate():
                if thread.name.startswith(prefix) and thread.ident is not None:  # of others, some only start
                    thread.join(WAIT)


class FailingBlobs(MemoryBlobStore):
    """Blobs in memory, one of which may be unreadable."""

    failing: str | None = None

    def local_path(self, digest: str) -> AbstractContextManager[Path]:
        if digest == self.failing:
            raise StorageError(message="the blob cannot be read")
        return super().local_path(digest)


class Member:
    """One server of a fleet. Its clock stands still, as in a paused process, unless a test moves it."""

    def __init__(
        self,
        metadata: MetadataStore,
        blobs: MemoryBlobStore,
        *,
        launcher: Launcher | None = None,
        **ports: Any,
    ) -> None:
        self.clock = FleetClock()
        self.launcher = ScriptedLauncher()
        self.transport = MemoryTransport()
        self.server: JobServer = a_server(
            metadata=metadata,
            blobs=blobs,
            launcher=launcher or self.launcher,
            transports=[self.transport],
            clock=self.clock,
            **ports,
        )

    @property
    def id(self) -> str:
        return self.server._services.server_id

    @property
    def recovery(self) -> Recovery:
        return self.server._services.recovery

    def renew(self) -> None:
        """Let the time of one renewal pass."""
        self.clock.advance(RENEWAL)

    def ready(self, number: int = 0) -> None:
        """Report that a context is ready."""
        self.launcher.listeners[number].context_ready(application_id=None, url=None)

    def running_job(self, context: str, **rest: Any) -> str:
        """Submit a job to a context, which runs it at once, and return its id."""
        job = self.server.submit(a_request("w.Any", context=context, **rest))
        self.launcher.listeners[0].job_running(job.id)
        return job.id

    def close(self) -> None:
        self.launcher.close()
        self.server.close(0)


class SeveralServersSuite:
    """What several servers on one store owe. Subclasses supply stores, and a way to let leases expire."""

    @abstractmethod
    def open(self) -> MetadataStore:
        """Return another store on the same data."""

    @abstractmethod
    def expire(self, server_id: str) -> None:
        """Let a server's lease expire, on the store's clock."""

    @pytest.fixture
    def members(self) -> Iterator[list[Member]]:
        """The servers that were started; they are closed after the test."""
        members: list[Member] = []
        self.members, self.blobs = members, FailingBlobs()
        yield members
        for member in members:
            member.close()

    def boot(self, **ports: Any) -> Member:
        """Start one more server."""
        member = Member(self.open(), self.blobs, **ports)
        self.members.append(member)
        member.server.start()
        assert member.server._services.callbacks.drain(WAIT)  # it has looked for callbacks, and found none
        return member

    # -- living servers ----------------------------------------------------------------------------

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
        first.launcher.listeners[0].job_ended(running, JobOutcome())
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
        _finish(runs, job)
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
        _finish(runs, first.id)
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
            _finish(owner, job.id)
            assert job.result(WAIT) == "done"
        assert other.server.deliveries(late.id) != []
        assert other.launcher.handles == []

    def test_a_job_whose_notice_is_lost_is_found_by_a_look_at_all_jobs(self, members: list[Member]) -> None:
        owner, other = self._owner_and_other()
        other.server._services.notices.close()
        job = other.server.submit(a_request("w.Any", context="shared"))
        assert owner.launcher.handles[0].calls == []
        owner.clock.advance(POLL)
        assert owner.launcher.handles[0].calls == [("submit", job.id)]

    def test_a_submit_on_another_server_is_refused_as_on_the_owner(self, members: list[Member]) -> None:
        settings = {"jobserver.jobs.max-jobs-per-context": 1, "jobserver.jobs.max-queued-jobs": 1}
        owner, other = self._owner_and_other(settings=Settings.from_mapping(settings))
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

    def test_a_repeated_submit_to_a_context_of_another_server_makes_one_job(
        self, members: list[Member]
    ) -> None:
        owner, other = self._owner_and_other()
        request = a_request("w.Any", context="shared", idempotency_key="key")
        jobs = {member.server.submit(request).id for member in (other, owner, other)}
        assert len(jobs) == 1

    def test_a_job_that_was_not_picked_up_before_its_context_ended_ends_with_it(
        self, members: list[Member]
    ) -> None:
        owner, other = self._owner_and_other()
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
        owner, other = self._owner_and_other()
        owner.server._services.intake.close()
        job = other.server.submit(a_request("w.Any", context="shared"))
        self.expire(owner.id)
        other.renew()
        other.ready()
        assert other.launcher.handles[0].calls == [("submit", job.id)]
        _finish(other, job.id)
        other.clock.advance(POLL)
        assert job.result(WAIT) == "done"

    def test_a_subscriber_can_kill_a_job_that_waits_behind_the_one_that_is_picked_up(
        self, members: list[Member]
    ) -> None:
        owner, other = self._owner_and_other(settings=ONE_SLOT)
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
        owner, other = self._owner_and_other()
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

    def test_a_job_whose_files_can_never_be_read_ends(
        self, members: list[Member], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(intake, "LEASE_TIMEOUT", 2 * POLL)
        owner, other = self._owner_and_other()
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
        owner, other = self._owner_and_other()
        other.server._services.notices.close()
        job = other.server.submit(a_request("w.Any", context="shared"))
        owner.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        wait_until(lambda: len(owner.launcher.listeners) == 2, "the new context", WAIT)
        owner.ready(1)
        wait_until(lambda: owner.launcher.handles[1].calls == [("submit", job.id)], "the job", WAIT)

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
        _finish(owner, running)
        owner.clock.advance(POLL)
        owner.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        wait_until(lambda: len(owner.launcher.listeners) == 2, "the new context", WAIT)
        owner.ready(1)
        wait_until(lambda: owner.launcher.handles[1].calls == [("submit", job.id)], "the job", WAIT)

    def test_the_time_to_wait_for_a_slot_does_not_depend_on_the_clock_of_the_server_that_was_asked(
        self, members: list[Member]
    ) -> None:
        owner, other = self._owner_and_other(settings=ONE_SLOT)
        owner.running_job("shared")
        owner.clock.set_wall(3600)
        job = other.server.submit(a_request("w.Any", context="shared", max_queue_time=60.0)).id
        owner.clock.advance(POLL)
        assert owner.server._services.jobs.lives(job)
        owner.clock.advance(60 - POLL)
        assert not owner.server.job(job).state.final
        owner.clock.advance(POLL)
        assert owner.server.job(job).failure is FailureKind.QUEUE_TIME

    def test_a_request_does_not_stop_another_context_that_has_got_the_name(
        self, members: list[Member], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owner, other = self._owner_and_other()
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

    def _owner_and_other(self, **ports: Any) -> tuple[Member, Member]:
        """Return a server with a context "shared", and another one."""
        owner, other = self.boot(**ports), self.boot(**ports)
        upload(owner.server)
        owner.server.create_context("shared")
        owner.ready()
        return owner, other

    def test_a_job_can_be_killed_on_any_server(self, members: list[Member]) -> None:
        owner, other = self._owner_and_other()
        job = owner.running_job("shared")
        killed = other.server.kill_job(job)
        assert owner.launcher.handles[0].calls[-1] == ("kill_job", job)
        owner.launcher.listeners[0].job_ended(job, JobOutcome(killed=True))
        other.clock.advance(POLL)
        assert killed.result(WAIT).state is JobState.KILLED
        with pytest.raises(JobAlreadyFinal):
            other.server.kill_job(job)

    def test_a_job_can_be_killed_by_force_on_any_server(self, members: list[Member]) -> None:
        owner, other = self._owner_and_other()
        job = owner.running_job("shared")
        other.server.kill_job(job, force=True)
        owner.clock.advance(owner.server.settings.jobs.kill_timeout)
        assert owner.launcher.handles[0].calls[-1] == ("kill", None)

    def test_a_job_can_be_killed_before_its_owner_has_picked_it_up(self, members: list[Member]) -> None:
        settings = Settings.from_mapping({"jobserver.jobs.max-jobs-per-context": 1})
        owner, other = self._owner_and_other(settings=settings)
        owner.running_job("shared")
        send, other.server._services.notices.send = other.server._services.notices.send, lambda *_: None
        job = other.server.submit(a_request("w.Any", context="shared"))
        other.server._services.notices.send = send
        assert other.server.kill_job(job.id).result(WAIT).state is JobState.KILLED

    def test_a_context_can_be_stopped_on_any_server(self, members: list[Member]) -> None:
        owner, other = self._owner_and_other()
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
        owner, other = self._owner_and_other()
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

    def test_a_reset_stops_the_contexts_of_all_servers(self, members: list[Member]) -> None:
        owner, other = self._owner_and_other()
        other.server.create_context("own")
        other.ready()
        done = other.server.reset_contexts()
        assert owner.launcher.handles[0].calls[0][0] == other.launcher.handles[0].calls[0][0] == "stop"
        for member in (owner, other):
            member.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        other.clock.advance(POLL)
        assert done.result(WAIT) is None

    def test_waiting_for_a_context_of_another_server_ends_with_the_server(
        self, members: list[Member]
    ) -> None:
        _, other = self._owner_and_other()
        stopped = other.server.stop_context("shared")
        other.server.close(0)
        with pytest.raises(ServerClosed):
            stopped.result(WAIT)

    def test_the_end_of_a_context_whose_server_died_while_it_stopped_is_seen(
        self, members: list[Member]
    ) -> None:
        owner, other = self._owner_and_other()
        stopped = other.server.stop_context("shared")
        self.expire(owner.id)
        other.renew()
        other.clock.advance(POLL)
        assert stopped.result(WAIT).state is ContextState.ERROR

    def test_what_belongs_to_a_server_that_is_gone_is_being_taken_over(self, members: list[Member]) -> None:
        owner, other = self._owner_and_other()
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
        owner, other = self._owner_and_other()
        owner.server._services.notices.close()
        monkeypatch.setattr(requests, "ANSWER_TIMEOUT", 0.01)
        monkeypatch.setattr(requests, "ANSWER_POLL_INTERVAL", 0.01)
        with pytest.raises(Unavailable, match="the server of context shared does not respond; try again"):
            other.server.stop_context("shared")
        assert other.server._services.metadata.requests_to(owner.id) == []
        assert other.server.context("shared").state is ContextState.RUNNING

    def test_a_log_of_another_server_names_that_server(self, members: list[Member]) -> None:
        settings = Settings.from_mapping({"jobserver.servers.address": "host-1.example"})
        owner, other = self._owner_and_other(settings=settings)
        job = owner.running_job("shared")
        for call in (partial(other.server.job_log, job), partial(other.server.context_log, "shared")):
            with pytest.raises(OnAnotherServer, match=r"host-1\.example"):
                call()

    def test_blobs_are_swept_only_by_a_server_that_is_alone(self, members: list[Member]) -> None:
        first, second = self.boot(), self.boot()
        self.blobs = FailingBlobs(clock=ManualClock(start=ManualClock().now() - timedelta(days=1)))
        third = self.boot()
        gone = third.server.upload("gone", BinaryType.EGG, archive("gone"))
        third.server.delete_binary("gone")
        third.server.prune()
        assert self.blobs.size(gone.digest) is not None
        first.server.close(0)
        second.server.close(0)
        third.server.prune()
        assert self.blobs.size(gone.digest) is None

    # -- a server that is gone ---------------------------------------------------------------------

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
        _finish(alive, waits.id)
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

    def _left_by(self, leaving: Member, context: str | None) -> str:
        """Return a job that waits for a context of a server that has closed."""
        upload(leaving.server)
        if context is not None:
            leaving.server.create_context(context)
        job = leaving.server.submit(a_request("w.Any", context=context))
        leaving.server.drain()
        leaving.launcher.close()
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
        delivery_id = self._stuck_delivery(new)
        known = iter([frozenset[str]()])
        alive.server._services.callbacks.take_over(lambda: next(known, frozenset({new.id})))
        _wait_for_delivery(new, delivery_id, DeliveryState.SENDING)
        new.transport.release(RECEIVER)
        _wait_for_delivery(new, delivery_id, DeliveryState.DELIVERED)
        assert alive.transport.messages == []

    def test_a_callback_that_a_dead_server_was_sending_is_sent_by_another_one(
        self, members: list[Member]
    ) -> None:
        dead, alive = self.boot(), self.boot()
        delivery_id = self._stuck_delivery(dead)
        alive.renew()
        assert alive.transport.messages == []
        self.expire(dead.id)
        alive.renew()
        _wait_for_delivery(alive, delivery_id, DeliveryState.DELIVERED)
        assert [message.delivery_id for message in alive.transport.messages] == [delivery_id]

    def _stuck_delivery(self, member: Member) -> str:
        """Return a delivery whose attempt never ends, because its server does not."""
        upload(member.server)
        member.server.create_context("shared")
        member.ready()
        member.transport.hang(RECEIVER)
        job = member.running_job("shared", callback_url=RECEIVER)
        _finish(member, job)
        assert member.transport.wait_for(lambda transport: bool(transport.under_way), WAIT)
        [delivery] = member.server.deliveries(job)
        return delivery.id

    # -- supervised contexts -----------------------------------------------------------------------

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
        _finish(alive, again)
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

    # -- a server that was paused ------------------------------------------------------------------

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
        _finish(slow, job)
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
        _wait_for_delivery(alive, delivery.id, DeliveryState.DELIVERED)
        before = self._records(alive, running, waits.id)

        _finish(paused, running)
        paused.ready(1)
        assert self._records(alive, running, waits.id) == before
        assert ("submit", waits.id) not in paused.launcher.handles[1].calls
        assert paused.transport.messages == []

    def _records(self, member: Member, *jobs: str) -> list[object]:
        found: list[object] = [member.server.context("shared")]
        return found + [(member.server.job(job), member.server.deliveries(job)) for job in jobs]

    def test_a_paused_server_ends_its_contexts_and_goes_on_afresh(self, members: list[Member]) -> None:
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
        delivery_id = self._stuck_delivery(paused)
        alive.transport.hang(RECEIVER)
        self.expire(paused.id)
        alive.renew()
        assert alive.transport.wait_for(lambda transport: bool(transport.under_way), WAIT)
        paused.transport.release(RECEIVER)
        assert paused.server._services.callbacks.drain(WAIT)
        _wait_for_delivery(alive, delivery_id, DeliveryState.SENDING)
        alive.transport.release(RECEIVER)
        _wait_for_delivery(alive, delivery_id, DeliveryState.DELIVERED)


def _finish(member: Member, job_id: str) -> None:
    listener = member.launcher.listeners[0]
    listener.job_running(job_id)
    listener.open_result(job_id, stream=False).write(b'"done"')
    listener.job_ended(job_id, JobOutcome())


def _wait_for_delivery(member: Member, delivery_id: str, state: DeliveryState) -> None:
    """Wait until the store has a delivery in a state, owned by this server."""

    def found() -> bool:
        delivery = member.server._services.metadata.delivery(delivery_id)
        return delivery is not None and (delivery.state, delivery.owner) == (state, member.id)

    wait_until(found, f"{state} of delivery {delivery_id}", WAIT)
