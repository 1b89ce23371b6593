"""A server that crashed, and its successor on the same stores."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from conditions import wait_until
from jobserver_core import (
    BinaryType,
    ContextState,
    FailureKind,
    JobAlreadyFinal,
    JobServer,
    JobState,
    Settings,
)
from jobserver_core.events import JobChanged
from jobserver_core.ports import ContextEnd, JobOutcome
from jobserver_core.running.jobs_without_room import RETRY_INTERVAL
from jobserver_core.running.retention import GRACE
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, Successors, a_request, archive, report_result, shut_down_before_handover, upload


@pytest.fixture
def world() -> Iterator[Successors]:
    world = Successors()
    yield world
    world.close()


def test_contexts_of_a_crashed_server_end_in_error_and_their_jobs_too(
    world: Successors, caplog: pytest.LogCaptureFixture
) -> None:
    first = world.boot()
    upload(first)
    first.create_context("shared")
    world.launchers[0].listeners[0].context_ready(application_id=None, url=None)
    runs = first.submit(a_request("w.Any", context="shared", callback_url="memory://receiver/x"))
    world.launchers[0].listeners[0].job_running(runs.id)
    waits = first.submit(a_request("w.Any", context="shared"))

    second = world.boot()
    for job_id in (runs.id, waits.id):
        job = second.job(job_id)
        assert job.state is JobState.ERROR
        assert job.failure is FailureKind.CONTEXT_LOST
        assert job.error is not None
        assert job.error.message == "Context (shared) for this job was terminated"
    assert second.context("shared").state is ContextState.ERROR
    assert second.contexts() == []
    assert len(second.deliveries(runs.id)) == 1
    assert "context shared ended as ERROR: the job server ended" in caplog.text
    assert f"job {runs.id} ended as ERROR: the job server ended" in caplog.text
    second.create_context("shared")


def test_a_job_that_never_reached_its_own_context_runs_again(world: Successors) -> None:
    first = world.boot()
    upload(first)
    job = first.submit(a_request("w.Any", {"a": 1}, context_settings={"num-cpu-cores": 3}))
    old_context = job.job.context_id

    second = world.boot()
    record = second.job(job.id)
    assert record.state is JobState.RESTARTING
    assert record.context_id != old_context
    listener, handle = world.launchers[1].listeners[0], world.launchers[1].handles[0]
    assert second.context(record.context_name).settings["num-cpu-cores"] == 3
    listener.context_ready(application_id=None, url=None)
    assert handle.calls == [("submit", job.id)]
    listener.job_running(job.id)
    report_result(listener, job.id, b'"again"')
    assert second.job_handle(job.id).result(WAIT) == "again"


def test_a_job_whose_next_context_a_shutdown_stops_waits_for_the_server_after_that(
    world: Successors, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.boot()
    upload(first)
    job = first.submit(a_request("w.Any"))

    shut_down_before_handover(monkeypatch)
    second = world.boot()
    assert (second.job(job.id).state, second.load.waiting) == (JobState.STARTED, 0)
    third = world.boot()
    assert third.job(job.id).state is JobState.RESTARTING
    assert len(world.launchers[2].listeners) == 1


def test_a_job_that_was_being_killed_is_killed(world: Successors) -> None:
    first = world.boot()
    upload(first)
    job = first.submit(a_request("w.Any", callback_url="memory://receiver/x"))
    listener = world.launchers[0].listeners[0]
    listener.context_ready(application_id=None, url=None)
    first.kill_job(job.id, user="ann")
    first.kill_job(job.id, user="bob")

    second = world.boot()
    killed = second.job(job.id)
    assert killed.state is JobState.KILLED
    assert killed.error is not None
    assert (killed.error.message, killed.error.stack) == (f"Job {job.id} killed", "by user ann")
    assert second.deliveries(job.id) == []


def test_jobs_of_a_context_that_was_being_deleted_send_no_callback(world: Successors) -> None:
    first = world.boot()
    upload(first)
    first.create_context("shared")
    world.launchers[0].listeners[0].context_ready(application_id=None, url=None)
    job = first.submit(a_request("w.Any", context="shared", callback_url="memory://receiver/x"))
    first.stop_context("shared")

    second = world.boot()
    assert second.job(job.id).state is JobState.ERROR
    assert second.deliveries(job.id) == []


def test_final_records_stay_unchanged(world: Successors) -> None:
    first = world.boot()
    upload(first)
    job = first.submit(a_request("w.Any"))
    listener = world.launchers[0].listeners[0]
    listener.context_ready(application_id=None, url=None)
    first.kill_job(job.id)
    listener.job_ended(job.id, JobOutcome(killed=True))
    listener.context_ended(ContextEnd.STOPPED)
    before = first.job(job.id), first.context(job.job.context_name)

    second = world.boot()
    assert (second.job(job.id), second.context(job.job.context_name)) == before


# -- sweeping --------------------------------------------------------------------------------------


def swept(server: JobServer) -> None:
    server._services.sweeper.sweep()


def test_blobs_that_nothing_refers_to_are_swept_after_a_grace(world: Successors) -> None:
    clock = ManualClock(start=ManualClock().now() + timedelta(days=365 * 100))
    server = world.boot(clock=clock)
    kept = server.upload("kept", BinaryType.EGG, archive("kept"))
    gone = server.upload("gone", BinaryType.EGG, archive("gone"))
    server.delete_binary("gone")
    swept(server)
    assert world.blobs.size(kept.digest) is not None
    assert world.blobs.size(gone.digest) is None


def test_a_young_blob_is_not_swept(world: Successors) -> None:
    server = world.boot()
    gone = server.upload("gone", BinaryType.EGG, archive("gone"))
    server.delete_binary("gone")
    swept(server)
    assert timedelta(0) < GRACE
    assert world.blobs.size(gone.digest) is not None


def test_ended_jobs_are_removed_after_their_retention(world: Successors) -> None:
    clock = ManualClock()
    settings = Settings.from_mapping({"jobserver": {"jobs": {"retention": "1 day"}}})
    server = world.boot(clock=clock, settings=settings)
    upload(server)
    job = server.submit(a_request("w.Any"))
    listener = world.launchers[0].listeners[0]
    listener.context_ready(application_id=None, url=None)
    server.kill_job(job.id)
    listener.context_ended(ContextEnd.KILLED)
    alive = server.submit(a_request("w.Any"))
    clock.advance(3600 * 23)
    swept(server)
    assert server.job(job.id).state is JobState.KILLED
    clock.advance(3600 * 2)
    swept(server)
    assert [left.id for left in server.jobs().jobs] == [alive.id]


def test_a_job_for_which_there_is_no_room_after_a_restart_runs_as_soon_as_there_is(world: Successors) -> None:
    first = world.boot()
    upload(first)
    job = first.submit(a_request("w.Any"))

    clock = ManualClock()
    settings = {"jobserver.contexts.max-contexts": 1, "spark": {"contexts": {"configured": {}}}}
    second = world.boot(settings=Settings.from_mapping(settings), clock=clock)
    assert not second.job(job.id).state.final
    listener = world.launchers[1].listeners[0]
    listener.context_ready(application_id=None, url=None)
    second.stop_context("configured")
    listener.context_ended(ContextEnd.STOPPED)

    def restarted() -> bool:
        clock.advance(RETRY_INTERVAL)
        return second.job(job.id).state is JobState.RESTARTING

    wait_until(restarted)
    wait_until(lambda: len(world.launchers[1].listeners) == 2)


def test_a_job_that_waits_for_room_after_a_restart_can_be_killed(world: Successors) -> None:
    first = world.boot()
    upload(first)
    job = first.submit(a_request("w.Any", callback_url="memory://receiver/x"))

    clock = ManualClock()
    settings = {"jobserver.contexts.max-contexts": 1, "spark": {"contexts": {"configured": {}}}}
    second = world.boot(settings=Settings.from_mapping(settings), clock=clock)
    states: list[JobState] = []
    second.subscribe(lambda event: states.append(event.job.state) if isinstance(event, JobChanged) else None)
    killed = second.kill_job(job.id).result(WAIT)
    assert (killed.state, killed.kill_requested) == (JobState.KILLED, True)
    assert killed == second.job(job.id)
    assert states == [JobState.KILLED]
    assert second.deliveries(job.id) == []
    with pytest.raises(JobAlreadyFinal):
        second.kill_job(job.id)

    listener = world.launchers[1].listeners[0]
    second.stop_context("configured")
    listener.context_ended(ContextEnd.STOPPED)  # now there is room
    clock.advance(RETRY_INTERVAL)
    wait_until(lambda: "jobserver-recovery" not in {thread.name for thread in threading.enumerate()})
    assert second.job(job.id) == killed
    assert len(world.launchers[1].listeners) == 1
