"""Time limits: on the wait and the run of a job, and on the idleness and the life of a context."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import attrs
import pytest

from faulty_store import FaultyStore
from jobserver_core import ContextState, FailureKind, Job, JobHandle, JobServer, JobState, Settings, errors
from jobserver_core.memory import MemoryBlobStore, MemoryMetadataStore, MemoryTransport
from jobserver_core.ports import ContextEnd, JobOutcome
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, PatientClock, ScriptedLauncher, a_request, a_server, upload


class World:
    """A server with one slot for each context, and a clock that the test moves."""

    def __init__(
        self,
        metadata: MemoryMetadataStore,
        clock: ManualClock | None = None,
        blobs: MemoryBlobStore | None = None,
        **context: Any,
    ) -> None:
        self.clock = clock or PatientClock()
        self.blobs = blobs or MemoryBlobStore()
        self.metadata = metadata
        self.launcher = ScriptedLauncher()
        self.server: JobServer = a_server(
            clock=self.clock,
            launcher=self.launcher,
            metadata=metadata,
            blobs=self.blobs,
            transports=[MemoryTransport()],
            settings=Settings.from_mapping(
                {"spark.context-settings": context, "jobserver.jobs.max-jobs-per-context": 1}
            ),
        )

    def start(self) -> None:
        self.server.start()
        upload(self.server)

    def create(self, name: str = "shared", **settings: Any) -> None:
        self.server.create_context(name, settings)
        self.launcher.listeners[-1].context_ready(application_id=None, url=None)

    def submit(self, context: str | None = "shared", **limits: Any) -> JobHandle:
        return self.server.submit(a_request("w.Any", context=context, **limits))

    def job(self, handle: JobHandle) -> Job:
        return self.server.job(handle.id)

    def end(self, handle: JobHandle, outcome: JobOutcome | None = None) -> None:
        listener = self.launcher.listeners[-1]
        if outcome is None:
            listener.open_result(handle.id, stream=False).write(b"1")
        listener.job_ended(handle.id, outcome or JobOutcome())

    @property
    def calls(self) -> list[tuple[str, Any]]:
        return self.launcher.handles[-1].calls

    @property
    def state(self) -> ContextState:
        return self.server.context("shared").state

    def close(self) -> None:
        self.launcher.close()
        self.server.close(0)


@pytest.fixture
def worlds() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make(worlds: ExitStack) -> Any:
    def make(metadata: MemoryMetadataStore | None = None, **rest: Any) -> World:
        world = World(metadata or FaultyStore(), **rest)
        worlds.callback(world.close)
        world.start()
        return world

    return make


# -- the run of a job ------------------------------------------------------------------------------


def test_a_job_that_runs_too_long_is_killed_and_ends_with_that_reason(make: Any) -> None:
    world = make()
    world.create()
    job = world.submit(max_run_time=60, callback_url="memory://receiver/x")
    world.launcher.listeners[0].job_running(job.id)
    world.clock.advance(59.9)
    assert ("kill_job", job.id) not in world.calls
    world.clock.advance(0.2)
    assert ("kill_job", job.id) in world.calls
    world.end(job, JobOutcome(killed=True))
    record = world.job(job)
    assert (record.state, record.failure) == (JobState.ERROR, FailureKind.RUN_TIME)
    assert record.error is not None
    assert record.error.message == "it was stopped because it ran longer than its limit of 1 minute"
    assert len(world.server.deliveries(job.id)) == 1
    with pytest.raises(errors.JobFailed) as caught:
        job.result(0)
    assert str(caught.value) == f"job {job.id}: TimeoutError: {record.error.message}"


def test_a_job_that_finishes_while_it_is_killed_for_its_time_has_finished(make: Any) -> None:
    world = make()
    world.create()
    job = world.submit(max_run_time=1)
    world.clock.advance(2)
    world.end(job)
    assert world.job(job).state is JobState.FINISHED


def test_a_job_that_is_killed_on_request_after_its_time_is_killed(make: Any) -> None:
    world = make()
    world.create()
    job = world.submit(max_run_time=1)
    world.clock.advance(2)
    world.server.kill_job(job.id)
    world.end(job, JobOutcome(killed=True))
    assert world.job(job).state is JobState.KILLED


def test_the_time_of_a_run_counts_from_its_dispatch_and_not_from_its_submit(make: Any) -> None:
    world = make()
    world.create()
    first, second = world.submit(), world.submit(max_run_time=10)
    world.clock.advance(1000)
    world.end(first)
    world.clock.advance(9)
    assert ("kill_job", second.id) not in world.calls
    world.clock.advance(1)
    assert ("kill_job", second.id) in world.calls


def test_a_context_has_a_default_for_its_jobs_that_a_request_overrides(make: Any) -> None:
    world = make()
    world.create(**{"job-max-run-time": "10 s", "job-max-queue-time": "1 h"})
    first, second = world.submit(), world.submit(max_run_time=500, max_queue_time=700)
    assert (world.job(first).max_run_time, world.job(first).max_queue_time) == (10, 3600)
    assert (world.job(second).max_run_time, world.job(second).max_queue_time) == (500, 700)


def test_an_overdue_job_that_does_not_end_takes_only_an_ad_hoc_context_with_it(make: Any) -> None:
    world = make()
    world.create()
    world.submit(max_run_time=1)
    world.clock.advance(1000)
    assert ("kill", None) not in world.calls
    world.submit(None, max_run_time=1)
    world.launcher.listeners[-1].context_ready(application_id=None, url=None)
    world.clock.advance(1000)
    assert ("kill", None) in world.calls


def test_an_overdue_job_whose_context_is_killed_for_it_ends_with_that_reason(make: Any) -> None:
    world = make()
    job = world.submit(None, max_run_time=1)
    world.launcher.listeners[0].context_ready(application_id=None, url=None)
    world.clock.advance(1000)
    world.launcher.listeners[0].context_ended(ContextEnd.KILLED)
    assert world.job(job).failure is FailureKind.RUN_TIME


def test_setting_the_machines_clock_makes_no_job_overdue(make: Any) -> None:
    world = make()
    world.create()
    runs, waits = world.submit(max_run_time=60), world.submit(max_queue_time=60)
    world.clock.set_wall(86_400)
    world.clock.advance(59)
    assert world.calls == [("submit", runs.id)]
    world.clock.set_wall(-2 * 86_400)
    world.clock.advance(1)
    assert ("kill_job", runs.id) in world.calls
    assert world.job(waits).failure is FailureKind.QUEUE_TIME


def test_many_jobs_with_limits_need_one_timer(make: Any) -> None:
    world = make()
    world.create()
    timers = len(world.clock.timers)
    for _ in range(50):
        world.end(world.submit(max_run_time=3600, max_queue_time=3600))
    world.submit(max_run_time=3600)
    assert len(world.clock.timers) <= timers + 2  # one of them stores the RUNNING states


def test_short_limits_among_long_ones_leave_no_cancelled_timers_behind(make: Any) -> None:
    world = make()
    world.create()
    for _ in range(20):
        world.end(world.submit(max_run_time=3600))
        world.end(world.submit(max_run_time=1))
        world.clock.advance(2)
    assert len(world.clock._timers) <= 5


def test_a_store_that_hangs_does_not_block_the_timers_of_others(make: Any) -> None:
    hanging, hangs, released = MemoryMetadataStore(), threading.Event(), threading.Event()
    advance_job = hanging.advance_job

    def hang(*arguments: Any, **named: Any) -> None:
        hangs.set()
        assert released.wait(WAIT)
        advance_job(*arguments, **named)

    world = make(hanging, clock=ManualClock())
    world.create()
    world.submit()
    late = world.submit(max_queue_time=5)
    hanging.advance_job = hang  # type: ignore[method-assign]
    others: list[str] = []
    world.clock.call_later(6, lambda: others.append("called"))
    try:
        moved = threading.Thread(target=lambda: world.clock.advance(6), daemon=True)
        moved.start()
        assert hangs.wait(WAIT)
        moved.join(10)
        assert others == ["called"]
    finally:
        released.set()
    assert late.finished.result(WAIT).failure is FailureKind.QUEUE_TIME


# -- the wait of a job -----------------------------------------------------------------------------


def test_a_job_that_waits_too_long_for_a_slot_ends_with_that_reason(make: Any) -> None:
    world = make()
    world.create()
    runs = world.submit()
    waits = world.submit(max_queue_time=60, callback_url="memory://receiver/x")
    world.clock.advance(60)
    record = world.job(waits)
    assert (record.state, record.failure) == (JobState.ERROR, FailureKind.QUEUE_TIME)
    assert record.error is not None
    assert record.error.message.endswith("waited for context shared longer than its limit of 1 minute")
    assert len(world.server.deliveries(waits.id)) == 1
    world.end(runs)
    assert world.calls == [("submit", runs.id)]


def test_a_job_that_is_dispatched_in_time_may_run_longer_than_it_may_wait(make: Any) -> None:
    world = make()
    world.create()
    world.end(world.submit(max_queue_time=10))
    first, second = world.submit(max_queue_time=10), world.submit(max_queue_time=10)
    world.clock.advance(5)
    world.end(first)
    world.clock.advance(1000)
    assert world.job(second).state is JobState.STARTED
    assert world.calls[-1] == ("submit", second.id)


def test_a_job_that_waits_too_long_for_its_own_context_ends_that_context_too(make: Any) -> None:
    world = make()
    job = world.submit(None, max_queue_time=5)
    world.clock.advance(5)
    assert world.job(job).failure is FailureKind.QUEUE_TIME
    assert world.calls[-1][0] == "stop"


def test_a_wait_that_ends_while_storage_fails_is_stored_later(make: Any) -> None:
    store = FaultyStore()
    world = make(store)
    world.create()
    runs, waits = world.submit(), world.submit(max_queue_time=5)
    store.fail(only=("advance_job",))
    world.clock.advance(5)
    assert world.job(waits).state is JobState.STARTED
    store.recover()
    world.end(runs)
    world.clock.advance(1)
    assert waits.finished.result(10).failure is FailureKind.QUEUE_TIME
    assert ("submit", waits.id) not in world.calls


def test_the_wait_under_an_earlier_server_counts(make: Any) -> None:
    store = FaultyStore()
    first = make(store)
    late = first.submit(None, max_queue_time=60)
    in_time = first.submit(None, max_queue_time=600)

    now = first.clock.now() + timedelta(seconds=100)
    second = make(store, clock=PatientClock(start=now), blobs=first.blobs)
    assert second.job(late).state is JobState.RESTARTING
    second.clock.advance(0)
    assert second.job(late).failure is FailureKind.QUEUE_TIME
    for listener in second.launcher.listeners:
        listener.context_ready(application_id=None, url=None)
    assert second.job(in_time).dispatched_at is not None


# -- contexts --------------------------------------------------------------------------------------


def test_a_context_without_jobs_is_stopped_after_its_idle_timeout(make: Any) -> None:
    world = make()
    world.create(**{"idle-timeout": "10 minutes"})
    world.clock.advance(599)
    world.end(world.submit())
    world.clock.advance(599)
    assert world.state is ContextState.RUNNING
    world.clock.advance(1)
    assert world.state is ContextState.STOPPING
    world.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
    assert world.state is ContextState.FINISHED


def test_a_context_with_a_job_is_not_idle(make: Any) -> None:
    world = make(**{"idle-timeout": "1 s"})
    world.create()
    first, second = world.submit(), world.submit()
    world.clock.advance(1000)
    world.end(first)
    world.clock.advance(1000)
    assert world.state is ContextState.RUNNING
    world.end(second)
    world.clock.advance(1)
    assert world.state is ContextState.STOPPING


def test_a_context_whose_last_job_another_server_has_taken_over_is_idle(make: Any) -> None:
    world = make(**{"idle-timeout": "1 s"})
    world.create()
    first, second = world.submit(), world.submit()
    taken = world.job(second)
    world.metadata.advance_job(
        attrs.evolve(taken, epoch=taken.epoch + 1), expected=taken.state, epoch=taken.epoch
    )
    world.clock.advance(1000)
    world.end(first)
    assert world.state is ContextState.RUNNING
    world.clock.advance(1)
    assert world.state is ContextState.STOPPING


def test_the_start_of_a_context_is_not_idle_time(make: Any) -> None:
    world = make()
    world.server.create_context("shared", {"idle-timeout": "10 s"})
    world.clock.advance(50)
    world.launcher.listeners[0].context_ready(application_id=None, url=None)
    world.clock.advance(9)
    assert world.state is ContextState.RUNNING
    world.clock.advance(1)
    assert world.state is ContextState.STOPPING


def test_without_limits_a_context_lives_on(make: Any) -> None:
    world = make(**{"idle-timeout": "1 s", "max-lifetime": "1 s"})
    world.create(**{"idle-timeout": "off", "max-lifetime": None})
    world.clock.advance(86_400 * 365)
    assert world.state is ContextState.RUNNING


def test_a_context_at_the_end_of_its_life_runs_the_jobs_it_has_accepted_and_no_others(make: Any) -> None:
    world = make()
    world.create(**{"max-lifetime": "1 h"})
    world.clock.advance(3599)
    first, second = world.submit(), world.submit()
    world.clock.advance(1)
    with pytest.raises(errors.ContextStopping):
        world.submit()
    assert world.state is ContextState.RUNNING
    world.end(first)
    world.end(second)
    world.clock.advance(0)
    assert world.state is ContextState.STOPPING
    assert world.job(second).state is JobState.FINISHED


def test_an_idle_context_is_stopped_at_the_end_of_its_life(make: Any) -> None:
    world = make()
    world.create(**{"max-lifetime": "1 h"})
    world.clock.advance(3600)
    assert world.state is ContextState.STOPPING


def test_jobs_that_go_on_after_the_life_of_their_context_are_ended_after_a_grace_period(make: Any) -> None:
    world = make()
    world.create(**{"max-lifetime": "1 h", "max-lifetime-grace": "5 minutes"})
    runs, waits = world.submit(), world.submit()
    world.clock.advance(3600 + 299)
    assert world.state is ContextState.RUNNING
    world.clock.advance(1)
    assert world.state is ContextState.STOPPING
    world.end(runs, JobOutcome(killed=True))
    world.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
    for job in (runs, waits):
        record = world.job(job)
        assert record.failure is FailureKind.CONTEXT_LOST
        assert record.error is not None
        assert record.error.stack == "context shared has reached its max-lifetime of 1 hour"


def test_without_a_grace_period_jobs_may_go_on_until_they_end(make: Any) -> None:
    world = make()
    world.create(**{"max-lifetime": "1 h", "max-lifetime-grace": "off"})
    job = world.submit()
    world.clock.advance(3600 * 100)
    assert world.state is ContextState.RUNNING
    world.end(job)
    world.clock.advance(0)
    assert world.job(job).state is JobState.FINISHED
    assert world.state is ContextState.STOPPING


@pytest.mark.parametrize("key", ["idle-timeout", "max-lifetime", "max-lifetime-grace", "job-max-run-time"])
@pytest.mark.parametrize("value", [60, "60", "soon", "0 s", "-1 s", "100000 days", True, {"a": 1}])
def test_a_limit_that_is_not_a_duration_with_a_unit_is_refused(make: Any, key: str, value: Any) -> None:
    with pytest.raises(errors.InvalidSetting, match=key):
        make().server.create_context("shared", {key: value})


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e12])
@pytest.mark.parametrize("name", ["max_run_time", "max_queue_time"])
def test_a_request_with_an_impossible_limit_is_refused(name: str, seconds: float) -> None:
    with pytest.raises(errors.InvalidRequest, match=name):
        a_request("w.Any", **{name: seconds})
