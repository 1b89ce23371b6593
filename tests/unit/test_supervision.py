"""Supervised contexts that die are started again, with the jobs that may go on."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from conditions import wait_until
from faulty_store import FaultyStore
from jobserver_core import (
    Context,
    ContextNotFound,
    ContextQuery,
    ContextState,
    FailureKind,
    InvalidSetting,
    JobHandle,
    JobServer,
    JobState,
    Settings,
    StorageError,
)
from jobserver_core.config.settings import JobLimits, SparkSettings
from jobserver_core.models.contexts import Resources
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports import ContextEnd
from jobserver_core.running.context_registry import ContextRegistry
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.records import Records
from jobserver_core.running.restarts import Death, death_of, pause_before
from jobserver_core.testing.builders import EPOCH, a_context
from serving import WAIT, ScriptedLauncher, Successors, a_request, a_server, report_result, upload

SUPERVISED: JsonMapping = {"supervise": True, "restart-backoff": "1 ms"}
DIED = ErrorInfo(message="Java heap space", error_class="java.lang.OutOfMemoryError")
TWO_SLOTS = Settings(jobs=JobLimits(max_jobs_per_context=2))


class World:
    """A server with a scripted launcher."""

    def __init__(self, settings: Settings = TWO_SLOTS) -> None:
        self.launcher = ScriptedLauncher()
        self.metadata = FaultyStore()
        self.server: JobServer = a_server(launcher=self.launcher, settings=settings, metadata=self.metadata)

    def create(self, name: str = "shared", **settings: Any) -> None:
        self.server.create_context(name, {**SUPERVISED, **settings})
        self.ready()

    def ready(self) -> None:
        """Report that the newest context is ready."""
        self.launcher.listeners[-1].context_ready(application_id=f"app-{self.starts}", url=None)

    @property
    def starts(self) -> int:
        return len(self.launcher.listeners)

    def die(self, end: ContextEnd = ContextEnd.FAILED) -> None:
        """Let the newest context end by itself."""
        self.launcher.listeners[-1].context_ended(end, DIED)

    def restarted(self, starts: int) -> Context:
        """Wait until contexts were launched this many times; return the newest one."""
        wait_until(lambda: len(self.launcher.handles) == starts)
        return self.server.context("shared")

    def running(self, **rest: Any) -> JobHandle:
        job = self.waiting(**rest)
        self.launcher.listeners[-1].job_running(job.id)
        return job

    def waiting(self, **rest: Any) -> JobHandle:
        return self.server.submit(a_request("w.Any", context="shared", **rest))

    def finish(self, job_id: str) -> None:
        listener = self.launcher.listeners[-1]
        listener.job_running(job_id)
        report_result(listener, job_id, b'"done"')

    def submitted(self) -> list[str]:
        """Return the jobs that the newest context was given."""
        return [job_id for call, job_id in self.launcher.handles[-1].calls if call == "submit"]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    world.server.start()
    upload(world.server)
    yield world
    world.server.drain()  # or contexts that end with their launcher would start again
    world.launcher.close()
    world.server.close(0)


# -- contexts ----------------------------------------------------------------------------------------


def test_a_supervised_context_that_dies_is_started_again_under_its_name(world: World) -> None:
    world.create()
    first = world.server.context("shared")
    world.die()
    second = world.restarted(2)
    assert (second.state, second.restarts, second.error) == (ContextState.RESTARTING, 1, DIED)
    assert second.settings == first.settings
    world.ready()
    again = world.server.context("shared")
    assert (again.id, again.state, again.restarts) == (second.id, ContextState.RUNNING, 1)
    assert (again.application_id, again.error) == ("app-2", None)
    dead = world.server.contexts(ContextQuery(name="shared"))[-1]
    assert (dead.id, dead.state, dead.error) == (first.id, ContextState.ERROR, DIED)


def test_the_log_says_when_a_context_is_ready_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "jobserver_core")
    ready = re.compile(r"context shared is ready after \d\.\d s \(restart 1\)")

    def said() -> bool:
        return any(ready.fullmatch(message) for message in caplog.messages)

    world.create()
    world.die()
    world.restarted(2)
    assert not said()
    world.ready()
    wait_until(said, lambda: caplog.messages)


def test_a_context_that_was_started_again_leads_to_the_one_before_it(world: World) -> None:
    world.create()
    chain = [world.server.context("shared")]
    for starts in (2, 3):
        world.die()
        world.restarted(starts)
        world.ready()
        chain.append(world.server.context("shared"))
    newest = world.server.context_before(chain[2])
    assert newest is not None
    assert (newest.id, newest.error) == (chain[1].id, DIED)
    oldest = world.server.context_before(newest)
    assert oldest is not None
    assert (oldest.id, world.server.context_before(oldest)) == (chain[0].id, None)


def test_a_context_that_somebody_killed_from_outside_is_started_again(world: World) -> None:
    world.create()
    world.die(ContextEnd.KILLED_OUTSIDE)
    assert world.restarted(2).restarts == 1


def test_a_context_that_is_not_supervised_stays_dead(world: World) -> None:
    world.create(supervise=False)
    world.die()
    assert world.server.context("shared").state is ContextState.ERROR
    assert world.server._services.registry.all() == []


def test_a_context_that_was_never_ready_is_not_started_again(world: World) -> None:
    created = world.server.create_context("shared", SUPERVISED)
    world.die()
    with pytest.raises(Exception, match="Java heap space"):
        created.result(WAIT)
    assert world.server._services.registry.all() == []


@pytest.mark.parametrize("end", [ContextEnd.STOPPED, ContextEnd.FAILED])
def test_a_stop_by_a_user_ends_supervision(world: World, end: ContextEnd) -> None:
    world.create()
    world.server.stop_context("shared")
    world.die(end)
    assert world.server.context("shared").state.final
    assert world.server._services.registry.all() == []


def test_a_kill_by_a_user_ends_supervision(world: World) -> None:
    world.create()
    world.server.kill_context("shared")
    world.die(ContextEnd.KILLED)
    assert world.server.context("shared").state is ContextState.KILLED
    assert world.server._services.registry.all() == []


def test_a_context_that_waits_for_its_restart_can_be_stopped(world: World) -> None:
    world.create(**{"restart-backoff": "1 hour", "max-restart-backoff": "1 hour"})
    waits = world.server.submit(a_request("w.Any", context="shared"))
    running = world.running(restartable=True)
    world.die()
    assert world.server.context("shared").state is ContextState.RESTARTING
    stopped = world.server.stop_context("shared").result(WAIT)
    assert (stopped.state, stopped.restarts) == (ContextState.FINISHED, 1)
    for job in (waits, running):
        assert job.finished.result(WAIT).state is JobState.ERROR
    assert world.starts == 1


def test_a_context_that_dies_again_and_again_ends_in_error_with_the_reason_and_the_count(
    world: World,
) -> None:
    world.create(**{"max-restarts": 2})
    waits = [world.waiting(restartable=True) for _ in range(3)]
    for starts in (2, 3):
        world.die()
        world.restarted(starts)
    world.die(ContextEnd.KILLED_OUTSIDE)
    ended = world.server.context("shared")
    assert (ended.state, ended.restarts) == (ContextState.ERROR, 2)
    assert ended.error is not None
    assert "died again after 2 consecutive restarts" in ended.error.message
    assert "Java heap space" in ended.error.message
    for job in waits:
        assert job.finished.result(WAIT).failure is FailureKind.CONTEXT_LOST
    assert world.server._services.registry.all() == []


def test_a_restart_that_fails_at_once_counts_as_a_death(world: World) -> None:
    world.create(**{"max-restarts": 1}, cp="words")
    world.server.delete_binary("words")
    world.die()
    wait_until(lambda: world.server.context("shared").state is ContextState.ERROR)
    error = world.server.context("shared").error
    assert error is not None
    assert "words" in error.message


@pytest.mark.parametrize("stores_first", [False, True])
def test_a_death_that_cannot_be_stored_leads_to_one_successor_later(world: World, stores_first: bool) -> None:
    world.create()
    world.metadata.fail(2, only=("advance_context",), stores_first=stores_first)
    world.die()
    assert world.restarted(2).restarts == 1
    assert len(world.server.contexts(ContextQuery(name="shared"))) == 2


def test_nothing_is_started_again_once_the_server_closes(world: World) -> None:
    world.create(**{"restart-backoff": "50 ms"})
    waits = [world.waiting() for _ in range(3)]
    world.die()
    world.server.drain()
    assert world.server.context("shared").state is ContextState.RESTARTING
    world.server.close(5)
    assert world.starts == 1
    assert world.metadata.job(waits[-1].id).state is not JobState.ERROR  # type: ignore[union-attr]


def test_a_restart_asks_for_what_the_dead_context_asked_for_without_asking_the_launcher(world: World) -> None:
    asked: list[JsonMapping] = []
    resources = world.launcher.resources

    def ask(settings: JsonMapping) -> Resources:
        asked.append(settings)
        return resources(settings)

    world.launcher.resources = ask  # type: ignore[method-assign]
    world.create()
    [dead] = world.server._services.registry.all()
    assert len(asked) == 1
    world.die()
    world.restarted(2)
    [successor] = world.server._services.registry.all()
    assert (successor.resources, len(asked)) == (dead.resources, 1)


class NotedLock:
    """A reentrant lock that notes in ``most`` how many of its kind a thread holds at once."""

    most = 0
    _held = threading.local()

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()
        locks = self._held.__dict__.setdefault("locks", [])
        locks.append(self)
        NotedLock.most = max(NotedLock.most, len(set(locks)))

    def __exit__(self, *_exc: object) -> None:
        self._held.locks.remove(self)
        self._lock.release()


def test_a_server_that_drains_while_a_context_dies_holds_the_jobs_of_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NotedLock, "most", 0)
    module = SimpleNamespace(RLock=NotedLock)
    monkeypatch.setattr("jobserver_core.running.context_record.threading", module)
    world.create()
    waits = [world.waiting() for _ in range(3)][-1]
    services = world.server._services
    draining = threading.Thread(target=world.server.drain)
    new_context = Records.new_context

    def drain_first(*arguments: Any, **named: Any) -> Context:
        draining.start()  # it waits for the context that dies
        wait_until(lambda: services.registry._closed)
        return new_context(*arguments, **named)

    monkeypatch.setattr(Records, "new_context", drain_first)
    world.die()
    draining.join(WAIT)
    assert not draining.is_alive()
    [successor] = services.registry.all()
    assert successor.leaves_jobs
    wait_until(lambda: world.server.job(waits.id).context_id == successor.record.id)
    assert NotedLock.most == 1
    world.server.close(WAIT)
    assert world.starts == 1
    assert not world.metadata.job(waits.id).state.final  # type: ignore[union-attr]


class LateRegistry:
    """Finds a context that has just died, once, as a request does that came a moment before."""

    def __init__(self, registry: ContextRegistry, dead: LiveContext) -> None:
        self._registry = registry
        self._dead: LiveContext | None = dead

    def get(self, name: str) -> LiveContext:
        dead, self._dead = self._dead, None
        return dead or self._registry.get(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)


def test_a_submit_that_finds_a_context_that_has_just_died_goes_to_its_successor(world: World) -> None:
    world.create(**{"restart-backoff": "1 hour", "max-restart-backoff": "1 hour"})
    registry = world.server._services.registry
    [dead] = registry.all()
    world.metadata.fail(1, only=("advance_context",))
    world.die()
    assert dead.ending
    assert registry.has_successor("shared"), "it waits until the death is stored"
    late = LateRegistry(registry, dead)
    world.server._services.submissions._contexts = late  # type: ignore[assignment]
    job = world.waiting()
    assert world.server.job(job.id).context_id == world.server.context("shared").id != dead.record.id


def test_a_submit_to_a_context_that_stays_dead_is_refused(world: World) -> None:
    world.create(supervise=False)
    registry = world.server._services.registry
    [dead] = registry.all()
    world.die()
    world.server._services.submissions._contexts = LateRegistry(registry, dead)  # type: ignore[assignment]
    with pytest.raises(ContextNotFound):
        world.waiting()


# -- jobs --------------------------------------------------------------------------------------------


def test_interrupted_jobs_run_again_only_if_they_are_restartable(world: World) -> None:
    world.create()
    plain, again = world.running(), world.running(restartable=True)
    world.die()
    world.restarted(2)
    assert plain.finished.result(WAIT).failure is FailureKind.CONTEXT_LOST
    wait_until(lambda: world.server.job(again.id).state is JobState.RESTARTING)
    job = world.server.job(again.id)
    assert (job.waiting, job.restarts, job.running_at) == (True, 1, None)
    world.ready()
    assert world.submitted() == [again.id]
    assert world.server.job(again.id).context_id == world.server.context("shared").id
    world.finish(again.id)
    assert again.result(WAIT) == "done"
    assert world.server.job(again.id).restarts == 1


@pytest.mark.parametrize("printed", [b"one\n", b"one"])
def test_a_line_separates_the_runs_of_a_job_in_its_log(world: World, printed: bytes) -> None:
    world.create()
    again, silent = (world.running(restartable=True) for _ in range(2))
    directory = world.server._services.data_directory
    log = directory.job_log(again.id)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(printed)
    for run in (2, 3):
        world.die()
        context = world.restarted(run)
        world.ready()
        wait_until(lambda: again.id in world.submitted())
        with world.server.open_job_log(again.id) as reader:
            *lines, line = reader.read().decode().splitlines()
        assert (lines[0], len(lines)) == ("one", run - 1)
        assert line.startswith(f"--- run {run} of job {again.id} starts at 20")
        assert line.endswith(f"Z in context shared ({context.id}) ---")
    assert not directory.job_log(silent.id).exists()


def test_a_restartable_job_without_supervision_ends_with_its_context(world: World) -> None:
    world.create(supervise=False)
    job = world.running(restartable=True)
    world.die()
    assert job.finished.result(WAIT).failure is FailureKind.CONTEXT_LOST


def test_jobs_that_waited_run_in_their_order_and_before_later_ones(world: World) -> None:
    world.create(**{"restart-backoff": "100 ms"})
    interrupted = [world.running(restartable=True) for _ in range(2)]
    waiting = [world.waiting() for _ in range(4)]
    world.die()
    late = world.waiting()
    world.restarted(2)
    world.ready()
    expected = [job.id for job in (*interrupted, *waiting, late)]
    for job_id in expected:
        assert job_id in world.submitted()
        world.finish(job_id)
    assert world.submitted() == expected


def test_a_job_whose_kill_was_requested_does_not_run_again(world: World) -> None:
    world.create()
    job = world.running(restartable=True)
    world.server.kill_job(job.id)
    world.die()
    assert job.finished.result(WAIT).state is JobState.KILLED
    world.restarted(2)


def test_a_job_can_be_killed_while_it_waits_for_the_restart(world: World) -> None:
    world.create(**{"restart-backoff": "1 hour", "max-restart-backoff": "1 hour"})
    job = world.running(restartable=True)
    world.die()
    wait_until(lambda: world.server.job(job.id).state is JobState.RESTARTING)
    assert world.server.kill_job(job.id).result(WAIT).state is JobState.KILLED


def test_a_waiting_job_whose_kill_was_not_stored_ends_in_the_successor_of_its_context(world: World) -> None:
    world.create(**{"restart-backoff": "100 ms"})
    running = [world.running(restartable=True) for _ in range(2)]
    waiting = world.waiting(restartable=True)
    world.metadata.fail()
    world.die()
    with pytest.raises(StorageError):
        world.server.kill_job(waiting.id)
    world.metadata.recover()
    world.restarted(2)
    world.ready()
    for job in (*running, waiting):
        wait_until(lambda: job.id in world.submitted())  # noqa: B023 - called at once
        world.finish(job.id)
        assert job.finished.result(WAIT).state is JobState.FINISHED


def test_the_waiting_time_of_a_job_that_runs_again_is_not_limited(world: World) -> None:
    world.create()
    job = world.running(restartable=True, max_queue_time=0.001)
    world.die()
    world.restarted(2)
    world.ready()
    wait_until(lambda: world.submitted() == [job.id])


# -- limits ------------------------------------------------------------------------------------------


def _death(context: Context, *, lived: float = 1.0) -> Death:
    death = death_of(
        context, settings=context.settings, reason=DIED, died_at=EPOCH + timedelta(seconds=lived)
    )
    assert death is not None
    return death


def _supervised(**fields: Any) -> Context:
    settings = {"supervise": True, **fields.pop("settings", {})}
    return a_context(state=ContextState.RUNNING, settings=settings, **fields)


def test_the_pause_doubles_with_each_restart_up_to_its_limit() -> None:
    settings = {"restart-backoff": "2 s", "max-restart-backoff": "15 s"}
    pauses = [pause_before(_supervised(settings=settings, consecutive_restarts=row)) for row in range(6)]
    assert pauses == [0.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert pause_before(_supervised(consecutive_restarts=10_000)) == 60.0


def test_a_context_that_lived_long_enough_begins_a_new_row(world: World) -> None:
    records = world.server._services.recovery._records
    old = _supervised(settings={"restart-reset": "100 s"}, restarts=9, consecutive_restarts=5)
    assert _death(old, lived=100).final
    successor = _death(old, lived=100 + pause_before(old)).successor(records)
    assert successor is not None
    assert (successor.restarts, successor.consecutive_restarts) == (10, 1)
    starting = attrs.evolve(old, state=ContextState.RESTARTING)
    assert _death(starting, lived=10_000).final


def test_restarts_may_be_unlimited() -> None:
    assert not _death(_supervised(settings={"max-restarts": "off"}, consecutive_restarts=10**6)).final


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"supervise": "maybe"}, "takes true or false"),
        ({"max-restarts": 0}, "a number from 1, or off"),
        ({"max-restarts": "often"}, "a number from 1, or off"),
        ({"restart-backoff": 5}, "needs a unit"),
        ({"restart-backoff": "off"}, "cannot be turned off"),
        ({"max-restart-backoff": "off"}, "cannot be turned off"),
        ({"restart-reset": "0 s"}, "more than 0 s"),
    ],
)
def test_invalid_settings_of_supervision_are_refused(
    world: World, settings: JsonMapping, message: str
) -> None:
    with pytest.raises(InvalidSetting, match=message):
        world.server.create_context("shared", settings)


# -- servers -----------------------------------------------------------------------------------------


@pytest.fixture
def successors() -> Iterator[Successors]:
    world = Successors()
    yield world
    world.close()


def test_a_context_whose_server_crashed_is_started_again_by_the_next_one(successors: Successors) -> None:
    first = successors.boot(settings=TWO_SLOTS)
    upload(first)
    first.create_context("shared", SUPERVISED)
    successors.launchers[0].listeners[0].context_ready(application_id=None, url=None)
    plain, again, waits = (
        first.submit(a_request("w.Any", context="shared", restartable=restartable)).id
        for restartable in (False, True, False)
    )
    for job in (plain, again):
        successors.launchers[0].listeners[0].job_running(job)
    first.jobs()  # stores that they run: later, it would be the write of a server that is not dead

    second = successors.boot(settings=TWO_SLOTS)
    launcher = successors.launchers[1]
    wait_until(lambda: len(launcher.handles) == 1)
    context = second.context("shared")
    assert (context.state, context.restarts) == (ContextState.RESTARTING, 1)
    assert second.job(plain).state is JobState.ERROR
    assert second.job(again).restarts == 1
    launcher.listeners[0].context_ready(application_id=None, url=None)
    assert launcher.handles[0].calls == [("submit", again), ("submit", waits)]


def test_a_context_of_the_configuration_is_kept_alive_with_its_present_settings(
    successors: Successors,
) -> None:
    def settings(cores: int) -> Settings:
        shared = {**SUPERVISED, "num-cpu-cores": cores}
        return Settings(spark=SparkSettings(contexts={"shared": shared}))

    successors.boot(settings=settings(1))
    launcher = successors.launchers[0]
    launcher.listeners[0].context_ready(application_id=None, url=None)
    launcher.listeners[0].context_ended(ContextEnd.FAILED, DIED)
    wait_until(lambda: len(launcher.handles) == 2)

    second = successors.boot(settings=settings(2))
    launcher = successors.launchers[1]
    wait_until(lambda: len(launcher.handles) == 1)
    context = second.context("shared")
    assert (context.settings["num-cpu-cores"], context.restarts) == (2, 2)
    assert [c.id for c in second.contexts()] == [context.id]


def test_a_server_that_crashed_too_often_gives_up_on_a_context_and_its_jobs(successors: Successors) -> None:
    first = successors.boot()
    upload(first)
    first.create_context("shared", {**SUPERVISED, "max-restarts": 1})
    waits = first.submit(a_request("w.Any", context="shared")).id
    second = successors.boot()
    assert second.context("shared").state is ContextState.RESTARTING
    third = successors.boot()
    assert third.context("shared").state is ContextState.ERROR
    assert "consecutive restarts" in third.context("shared").error.message  # type: ignore[union-attr]
    assert third.job(waits).state is JobState.ERROR
