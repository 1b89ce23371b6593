"""Contexts that outlive their server, and the next server on the same stores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from conditions import wait_until
from faulty_store import FaultyStore
from jobserver_core import (
    ContextState,
    FailureKind,
    InvalidSetting,
    JobInterrupted,
    JobPostponed,
    JobServer,
    JobState,
    ServerClosed,
    Settings,
    load_settings,
)
from jobserver_core.config.settings import ContextLimits, JobLimits, SparkSettings
from jobserver_core.memory import (
    InlineJob,
    InlineLauncher,
    MemoryBlobStore,
    MemoryMetadataStore,
    MemoryTransport,
)
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports import ContextEnd, ContextHandle, ContextListener, ContextSpec, JobSpec
from jobserver_core.running import recovery
from jobserver_core.testing.clock import ManualClock
from serving import (
    FUNCTIONS,
    WAIT,
    ScriptedHandle,
    ScriptedLauncher,
    a_request,
    a_server,
    report_result,
    shut_down_before_handover,
    upload,
)

ONE_SLOT = Settings(jobs=JobLimits(max_jobs_per_context=1))


class World:
    """What outlives a server: the stores, and a launcher with its contexts."""

    def __init__(self) -> None:
        self.metadata = FaultyStore()
        self.blobs = MemoryBlobStore()
        self.transport = MemoryTransport()
        self.gate = threading.Event()
        self.ran: list[str] = []
        self.launcher = InlineLauncher(
            {**FUNCTIONS, "w.Gated": self._gated, "w.Slow": self._slow_stream, "w.Noted": self._noted}
        )
        self.servers: list[JobServer] = []

    def boot(self, settings: Settings = ONE_SLOT, **ports: Any) -> JobServer:
        """Start a server; the one before has ended, or is taken to have crashed."""
        if self.servers:
            self.servers[-1]._services.registry.detach_all()  # a crash would release its files, too
        server = a_server(
            metadata=self.metadata,
            blobs=self.blobs,
            transports=[self.transport],
            settings=settings,
            **{"launcher": self.launcher, **ports},
        )
        self.servers.append(server)
        return server.start()

    def _gated(self, job: InlineJob) -> Any:
        while not self.gate.wait(0.005):
            job.check()
        return self._noted(job)

    def _noted(self, job: InlineJob) -> Any:
        self.ran.append(job.id)
        return job.config.get("value", "done")

    def _slow_stream(self, job: InlineJob) -> Iterator[bytes]:
        yield b"before " * 1000
        while not self.gate.wait(0.005):
            job.check()
        yield b"after"


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.gate.set()
    for server in reversed(world.servers):
        server.close(0)
    world.launcher.close()


def a_busy_server(world: World, class_name: str = "w.Gated", **rest: Any) -> tuple[JobServer, str]:
    """Return a server with a context ``shared`` and a running job in it."""
    server = world.boot()
    upload(server)
    server.create_context("shared").result(WAIT)
    job = server.submit(a_request(class_name, context="shared", **rest))
    wait_until(lambda: server.job(job.id).state is JobState.RUNNING)
    server.jobs()  # stores that it runs
    return server, job.id


def test_running_and_queued_jobs_continue_in_the_same_context_after_a_crash(world: World) -> None:
    first, running = a_busy_server(world, callback_url="memory://receiver/x")
    queued = [first.submit(a_request("w.Noted", {"value": n}, context="shared")).id for n in (1, 2)]
    before = first.context("shared")

    second = world.boot()
    after = second.context("shared")
    assert after.id == before.id
    assert after.application_id == before.application_id
    assert after.state is ContextState.RUNNING
    assert after.owner != before.owner
    assert second.job(running).state is JobState.RUNNING
    assert [second.job(job_id).state for job_id in queued] == [JobState.STARTED] * 2
    world.gate.set()
    assert second.job_handle(running).result(WAIT) == "done"
    assert [second.job_handle(job_id).result(WAIT) for job_id in queued] == [1, 2]
    assert world.ran == [running, *queued]
    assert world.transport.wait_for(lambda transport: len(transport.messages) == 1, WAIT)
    assert len(second.deliveries(running)) == 1
    assert second.submit(a_request("w.Echo", {"value": 3}, context="shared")).result(WAIT) == 3
    assert [server.takeovers.contexts_reattached for server in (first, second)] == [0, 1]


def test_a_job_that_ended_meanwhile_has_its_whole_result(world: World) -> None:
    first, running = a_busy_server(world, "w.Slow")
    with first:
        first.close(contexts="detach")
    world.gate.set()

    second = world.boot()
    assert second.job_handle(running).result(WAIT) == b"before " * 1000 + b"after"


def test_detaching_notifies_the_waiters_and_changes_no_record(world: World) -> None:
    first, running = a_busy_server(world)
    waiting = first.submit(a_request("w.Noted", context="shared"))
    handle = first.job_handle(running)
    stopped = first._services.registry.get("shared").ended.waiter
    first.close(contexts="detach")
    with pytest.raises(JobInterrupted):
        handle.result(WAIT)
    with pytest.raises(JobPostponed):
        waiting.result(WAIT)
    with pytest.raises(ServerClosed):
        stopped.result(WAIT)
    job = world.metadata.job(running)
    assert job is not None
    assert job.state is JobState.RUNNING
    context = world.metadata.context_named("shared")
    assert context is not None
    assert context.state is ContextState.RUNNING


def test_the_settings_choose_whether_a_shutdown_detaches(world: World) -> None:
    first = world.boot(Settings(contexts=ContextLimits(on_shutdown="detach", reattach_timeout="60 s")))
    upload(first)
    first.create_context("shared").result(WAIT)
    assert first.detaches
    first.close()
    second = world.boot()
    assert not second.detaches
    assert second.context("shared").state is ContextState.RUNNING
    second.close()
    third = world.boot()
    assert third.context("shared").state is ContextState.FINISHED


def test_a_kill_that_was_recorded_before_the_crash_happens(world: World) -> None:
    _first, running = a_busy_server(world)
    job = world.metadata.job(running)
    assert job is not None
    world.metadata.advance_job(attrs.evolve(job, kill_requested=True), expected=job.state)

    second = world.boot()
    wait_until(lambda: second.job(running).state is JobState.KILLED)
    assert second.context("shared").state is ContextState.RUNNING


@pytest.mark.parametrize(
    ("state", "final"),
    [(ContextState.STOPPING, ContextState.FINISHED), (ContextState.RUNNING, ContextState.KILLED)],
)
def test_a_stop_or_kill_of_a_context_that_was_recorded_before_the_crash_happens(
    world: World, state: ContextState, final: ContextState
) -> None:
    first, running = a_busy_server(world)
    context = first.context("shared")
    changed = attrs.evolve(context, state=state, stop_requested=True)
    world.metadata.advance_context(changed, expected=context.state)

    second = world.boot()
    wait_until(lambda: second.context("shared").state is final)
    assert second.job(running).state is JobState.ERROR


def test_an_ad_hoc_context_whose_job_has_ended_is_stopped(world: World) -> None:
    first = world.boot()
    upload(first)
    job = first.submit(a_request("w.Gated"))
    wait_until(lambda: first.job(job.id).state is JobState.RUNNING)
    first.jobs()
    record = world.metadata.job(job.id)
    assert record is not None
    ended = attrs.evolve(record, state=JobState.KILLED, ended_at=record.submitted_at, kill_requested=True)
    world.metadata.advance_job(ended, expected=JobState.RUNNING)

    second = world.boot()
    wait_until(lambda: second.context(record.context_name).state is ContextState.FINISHED)
    assert second.job(job.id) == ended


def test_a_configured_context_that_lives_is_not_started_again(world: World) -> None:
    settings = Settings(spark=SparkSettings(contexts={"shared": {}}))
    first = world.boot(settings)
    wait_until(lambda: first.context("shared").state is ContextState.RUNNING)
    second = world.boot(settings)
    assert second.context("shared").id == first.context("shared").id
    assert len(second.contexts()) == 1


# -- contexts that turn out to be dead ---------------------------------------------------------------


class Survivor(ScriptedLauncher):
    """A launcher with one survivor, whose events the test reports."""

    def __init__(self, spec: ContextSpec) -> None:
        super().__init__()
        self._spec = spec
        self.jobs: list[str] = []
        self.validating: Callable[[], None] = lambda: None

    def validate(self, settings: JsonMapping) -> None:
        self.validating()

    def survivors(self) -> Sequence[ContextSpec]:
        return [self._spec]

    def reattach(
        self, spec: ContextSpec, jobs: Sequence[JobSpec], listener: ContextListener
    ) -> ContextHandle:
        self.jobs = [job.id for job in jobs]
        self.listeners.append(listener)
        self.handles.append(ScriptedHandle())
        return self.handles[-1]


@pytest.fixture
def crashed(world: World) -> Iterator[tuple[JobServer, Survivor, str, str]]:
    """A server that waits for a context of a crashed server, with a running and a waiting job."""
    first, running = a_busy_server(world)
    waiting = first.submit(a_request("w.Noted", context="shared")).id
    (spec,) = world.launcher.survivors()
    world.launcher.detach()
    launcher = Survivor(spec)
    yield world.boot(launcher=launcher), launcher, running, waiting
    launcher.validating = lambda: None
    launcher.close()


def test_waiting_jobs_are_dispatched_only_after_the_context_is_back(
    crashed: tuple[JobServer, Survivor, str, str],
) -> None:
    server, launcher, running, waiting = crashed
    (listener,), (handle,) = launcher.listeners, launcher.handles
    assert launcher.jobs == [running]
    listener.context_ready(application_id=None, url=None)
    assert handle.calls == []
    listener.job_running(running)
    report_result(listener, running, b"1")
    assert server.job_handle(running).result(WAIT) == 1
    wait_until(lambda: handle.calls == [("submit", waiting)])


def test_when_the_context_is_dead_its_running_jobs_end_and_the_others_run_elsewhere(
    crashed: tuple[JobServer, Survivor, str, str],
) -> None:
    server, launcher, running, waiting = crashed
    handle = server.job_handle(waiting)
    reason = ErrorInfo(message="it did not come back")
    launcher.listeners[0].context_ended(ContextEnd.FAILED, reason)
    job = server.job(running)
    assert job.state is JobState.ERROR
    assert job.failure is FailureKind.CONTEXT_LOST
    assert job.error is not None
    assert "it did not come back" in job.error.stack
    wait_until(lambda: len(launcher.handles) == 2)
    assert server.job(waiting).state is JobState.RESTARTING
    listener = launcher.listeners[1]
    listener.context_ready(application_id=None, url=None)
    wait_until(lambda: launcher.handles[1].calls == [("submit", waiting)])
    listener.job_running(waiting)
    report_result(listener, waiting, b"2")
    assert handle.result(WAIT) == 2


@pytest.mark.parametrize(
    "error", [InvalidSetting(key="spark.cores.max", message="is negative"), RuntimeError("a defect")]
)
def test_a_waiting_job_that_can_run_nowhere_else_ends_with_that_reason(
    crashed: tuple[JobServer, Survivor, str, str], error: Exception
) -> None:
    server, launcher, _running, waiting = crashed

    def refuse() -> None:
        raise error

    launcher.validating = refuse
    handle = server.job_handle(waiting)
    launcher.listeners[0].context_ended(ContextEnd.FAILED)
    job = handle.finished.result(WAIT)
    assert job.state is JobState.ERROR
    assert job.error is not None
    assert str(error) in job.error.stack
    assert server.job(waiting) == job
    wait_until(lambda: server.load.waiting == 0)


def test_a_waiting_job_runs_elsewhere_once_storage_works_again(
    world: World, crashed: tuple[JobServer, Survivor, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PAUSE", 0.01)
    server, launcher, _running, waiting = crashed
    world.metadata.fail(only=("add_context",))
    launcher.listeners[0].context_ended(ContextEnd.FAILED)
    wait_until(lambda: world.metadata.attempts.count("add_context") > 3)  # the first started the old context
    assert server.job(waiting).state is JobState.STARTED
    world.metadata.recover()
    wait_until(lambda: len(launcher.handles) == 2)
    launcher.listeners[1].context_ready(application_id=None, url=None)
    wait_until(lambda: launcher.handles[1].calls == [("submit", waiting)])


def test_a_waiting_job_that_storage_keeps_from_moving_is_postponed_by_a_shutdown(
    world: World, crashed: tuple[JobServer, Survivor, str, str]
) -> None:
    server, launcher, _running, waiting = crashed
    handle = server.job_handle(waiting)
    world.metadata.fail(only=("add_context",))
    launcher.listeners[0].context_ended(ContextEnd.FAILED)
    wait_until(lambda: world.metadata.attempts.count("add_context") > 1)
    server.drain()
    with pytest.raises(JobPostponed):
        handle.finished.result(WAIT)
    assert server.job(waiting).state is JobState.STARTED


def test_a_waiting_job_whose_next_context_a_shutdown_stops_is_postponed(
    crashed: tuple[JobServer, Survivor, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, launcher, _running, waiting = crashed
    handle = server.job_handle(waiting)
    shut_down_before_handover(monkeypatch)
    launcher.listeners[0].context_ended(ContextEnd.FAILED)
    with pytest.raises(JobPostponed):
        handle.finished.result(WAIT)
    assert server.job(waiting).state is JobState.STARTED
    wait_until(lambda: server.load.waiting == 0)


def test_a_job_that_is_killed_while_it_is_moved_does_not_run(
    crashed: tuple[JobServer, Survivor, str, str],
) -> None:
    server, launcher, _running, waiting = crashed
    moving, killed = threading.Event(), threading.Event()

    def wait_for_kill() -> None:
        moving.set()
        assert killed.wait(WAIT)

    launcher.validating = wait_for_kill
    launcher.listeners[0].context_ended(ContextEnd.FAILED)
    assert moving.wait(WAIT)
    server.kill_job(waiting)
    killed.set()
    assert server.job_handle(waiting).finished.result(WAIT).state is JobState.KILLED
    wait_until(lambda: len(launcher.handles) == 2)
    launcher.listeners[1].context_ready(application_id=None, url=None)
    assert launcher.handles[1].calls == []


def test_a_context_that_was_deleted_before_it_was_back_does_not_start_again(world: World) -> None:
    settings = Settings(spark=SparkSettings(contexts={"shared": {}}))
    first = world.boot(settings)
    wait_until(lambda: first.context("shared").state is ContextState.RUNNING)
    (spec,) = world.launcher.survivors()
    world.launcher.detach()
    launcher = Survivor(spec)
    second = world.boot(settings, launcher=launcher)
    second.stop_context("shared")
    launcher.listeners[0].context_ended(ContextEnd.STOPPED)
    for thread in threading.enumerate():
        if thread.name == "jobserver-recovery":
            thread.join(WAIT)
    assert second.context("shared").state is ContextState.FINISHED
    assert len(launcher.handles) == 1


def test_a_shutdown_before_the_context_is_back_postpones_its_waiting_jobs(
    crashed: tuple[JobServer, Survivor, str, str],
) -> None:
    server, launcher, running, waiting = crashed
    handle = server.job_handle(waiting)
    server.drain()
    launcher.listeners[0].context_ended(ContextEnd.STOPPED)
    with pytest.raises(JobPostponed):
        handle.finished.result(WAIT)
    assert server.job(running).state is JobState.ERROR
    assert server.job(waiting).state is JobState.STARTED


class DyingSurvivor(Survivor):
    """A survivor that dies while it is taken over."""

    def __init__(self, spec: ContextSpec) -> None:
        super().__init__(spec)
        self.started = threading.Event()
        self.swept_away = False

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        handle = super().start_context(spec, listener)
        self.started.set()
        return handle

    def reattach(
        self, spec: ContextSpec, jobs: Sequence[JobSpec], listener: ContextListener
    ) -> ContextHandle:
        handle = super().reattach(spec, jobs, listener)
        listener.context_ended(ContextEnd.FAILED)
        return handle

    def sweep(self) -> None:
        self.swept_away = self.started.wait(0.2)  # it would end whatever was not re-attached


def test_jobs_are_moved_only_after_the_sweep_of_the_launcher(world: World) -> None:
    first, _running = a_busy_server(world)
    first.submit(a_request("w.Noted", context="shared"))
    (spec,) = world.launcher.survivors()
    world.launcher.detach()
    launcher = DyingSurvivor(spec)
    world.boot(launcher=launcher)
    assert launcher.started.wait(WAIT)
    assert not launcher.swept_away
    launcher.close()


def test_a_survivor_without_a_record_is_left_to_the_sweep(world: World) -> None:
    first, running = a_busy_server(world)
    context = first.context("shared")
    ended = attrs.evolve(context, state=ContextState.ERROR, ended_at=context.started_at)
    world.metadata.advance_context(ended, expected=ContextState.RUNNING)

    second = world.boot()
    assert second.job(running).state is JobState.ERROR
    wait_until(lambda: not world.launcher.survivors())


def test_limits_of_time_hold_in_a_context_that_outlives_its_server(world: World) -> None:
    clock = ManualClock()
    first = world.boot(clock=clock)
    upload(first)
    first.create_context("shared", {"max-lifetime": "10 minutes"}).result(WAIT)
    running = first.submit(a_request("w.Gated", context="shared", max_run_time=100)).id
    waiting = first.submit(a_request("w.Gated", context="shared", max_queue_time=100)).id
    wait_until(lambda: first.job(running).state is JobState.RUNNING)
    clock.advance(60)
    first.jobs()

    later = ManualClock(start=clock.now())
    second = world.boot(clock=later)
    wait_until(lambda: second.job(running).state is JobState.RUNNING)
    later.advance(39)
    assert not second.job(waiting).state.final
    later.advance(1)
    assert second.job_handle(waiting).finished.result(WAIT).failure is FailureKind.QUEUE_TIME
    assert second.job_handle(running).finished.result(WAIT).failure is FailureKind.RUN_TIME
    later.advance(499)
    assert second.context("shared").state is ContextState.RUNNING
    later.advance(1)
    wait_until(lambda: second.context("shared").state is ContextState.FINISHED)


def test_a_job_that_waited_in_a_context_that_was_taken_over_and_lost_runs_again(world: World) -> None:
    first, _ = a_busy_server(world)
    waits = first.submit(a_request("w.Noted", context="shared"))
    services = world.boot()._services
    assert [context.record.name for context in services.registry.all()] == ["shared"]
    services._lose_contexts()
    wait_until(lambda: not services.registry.all())
    assert [job.id for job in services.recovery.end_lost().jobs] == [waits.id]


@pytest.mark.parametrize(
    "error",
    [InvalidSetting(key="spark.cores.max", message="takes a number"), RuntimeError("no more")],
    ids=type,
)
def test_a_context_that_the_next_server_refuses_ends_alone_with_that_reason(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    first, job = a_busy_server(world)
    first.create_context("fine").result(WAIT)
    first.create_context("refused", {"refused": True, "supervise": True}).result(WAIT)
    resources = world.launcher.resources

    def refuse(settings: JsonMapping) -> Any:
        if settings.get("refused"):
            raise error
        return resources(settings)

    monkeypatch.setattr(world.launcher, "resources", refuse)
    second = world.boot()
    ended = second.context("refused")
    assert (ended.state, ended.restarts) == (ContextState.ERROR, 0)
    assert ended.error is not None
    assert str(error) in ended.error.message
    assert second.context("fine").state is ContextState.RUNNING
    world.gate.set()
    assert second.job_handle(job).result(WAIT) == "done"


def test_contexts_of_the_configured_memory_launcher_end_with_the_server(tmp_path: Path) -> None:
    chosen = {
        "jobserver.data-dir": tmp_path,
        "jobserver.metadata.backend": "memory",
        "jobserver.blobs.backend": "memory",
        "jobserver.launcher.backend": "memory",
        "jobserver.contexts.reattach-timeout": "60 s",
        "jobserver.contexts.on-shutdown": "detach",
    }
    metadata = MemoryMetadataStore()
    with JobServer.from_settings(load_settings(overrides=chosen), metadata=metadata) as server:
        assert not server.detaches
        server.create_context("warm").result(WAIT)
    context = metadata.context_named("warm")
    assert context is not None
    assert context.state is ContextState.FINISHED
