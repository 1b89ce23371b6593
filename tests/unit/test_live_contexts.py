"""How the core handles launcher events, in orders that a test with a real launcher cannot produce."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from conditions import wait_until
from jobserver_core import ContextState, ErrorInfo, FailureKind, JobHandle, JobState, errors
from jobserver_core.ports import ContextEnd, ContextListener, JobOutcome
from jobserver_core.running import context_registry
from serving import WAIT, Scene, ScriptedLauncher, a_request, a_server, report_result, upload

RAISED = JobOutcome(error=ErrorInfo(message="boom"), failure=FailureKind.RAISED)


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.listener.context_ended(ContextEnd.KILLED)
    scene.server.close(0)


def finish(scene: Scene, job: JobHandle, text: bytes = b"1") -> None:
    scene.listener.job_running(job.id)
    report_result(scene.listener, job.id, text)


def test_a_job_that_finishes_before_its_kill_arrives_is_finished(scene: Scene) -> None:
    job = scene.submit(callback_url="memory://receiver/x")
    scene.listener.job_running(job.id)
    waiter = scene.server.kill_job(job.id)
    assert not waiter.done()
    assert scene.server.job(job.id).state is JobState.RUNNING
    assert scene.server.job(job.id).kill_requested
    report_result(scene.listener, job.id, b"1")
    assert waiter.result(0).state is JobState.FINISHED
    assert len(scene.server.deliveries(job.id)) == 1


def forced(scene: Scene, job: JobHandle, end: Callable[[], None] = lambda: None) -> None:
    """Kill a job by force; its grace period ends while a write hangs, with the lock of its context held."""
    scene.listener.job_running(job.id)
    scene.server.kill_job(job.id, force=True)
    [context] = scene.server._services.registry.all()
    seconds = scene.server.settings.jobs.kill_timeout
    clock = threading.Thread(target=scene.clock.advance, args=(seconds,), daemon=True)
    with context._context.lock:
        clock.start()
        clock.join(WAIT)
        assert not clock.is_alive(), "the clock's other timers are late"
        end()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "jobserver-retry context shared"])


def test_a_job_that_does_not_end_in_time_delays_no_timer_while_the_store_hangs(scene: Scene) -> None:
    forced(scene, scene.submit())
    assert scene.handle.calls[-1] == ("kill", None)


def test_a_job_whose_end_is_just_being_stored_does_not_end_its_context(scene: Scene) -> None:
    job = scene.submit()
    forced(scene, job, lambda: scene.listener.job_ended(job.id, JobOutcome(killed=True)))
    assert ("kill", None) not in scene.handle.calls
    assert scene.server.job(job.id).state is JobState.KILLED


def test_a_killed_job_sends_no_callback(scene: Scene) -> None:
    job = scene.submit(callback_url="memory://receiver/x")
    scene.server.kill_job(job.id)
    scene.listener.job_ended(job.id, JobOutcome(killed=True))
    assert scene.server.job(job.id).state is JobState.KILLED
    assert scene.server.deliveries(job.id) == []


def test_a_job_that_fails_while_it_is_being_killed_sends_no_callback(scene: Scene) -> None:
    job = scene.submit(callback_url="memory://receiver/x")
    scene.server.kill_job(job.id)
    scene.listener.job_ended(job.id, RAISED)
    assert scene.server.job(job.id).state is JobState.ERROR
    assert scene.server.deliveries(job.id) == []


def test_a_kill_that_was_not_requested_is_reported_as_a_lost_context(scene: Scene) -> None:
    job = scene.submit()
    scene.listener.job_ended(job.id, JobOutcome(killed=True))
    assert scene.server.job(job.id).failure is FailureKind.CONTEXT_LOST


def test_a_second_outcome_of_a_job_changes_nothing(scene: Scene) -> None:
    job = scene.submit()
    finish(scene, job)
    scene.listener.job_ended(job.id, RAISED)
    scene.listener.job_running(job.id)
    assert scene.server.job(job.id).state is JobState.FINISHED


def test_a_job_whose_launcher_reports_only_its_end_finishes_and_counts_as_run(scene: Scene) -> None:
    job = scene.submit()
    report_result(scene.listener, job.id, b"2")
    record = scene.server.job(job.id)
    assert record.state is JobState.FINISHED
    assert record.running_at is not None
    assert job.result(0) == 2


def test_a_context_that_dies_ends_its_jobs_first_and_sends_their_callbacks(scene: Scene) -> None:
    states: list[str] = []
    with scene.server.subscribe(lambda event: states.append(type(event).__name__)):
        job = scene.submit(callback_url="memory://receiver/x")
        scene.listener.job_running(job.id)
        states.clear()
        scene.listener.context_ended(ContextEnd.FAILED, ErrorInfo(message="the JVM died"))
    record = scene.server.job(job.id)
    assert record.state is JobState.ERROR
    assert record.error is not None
    assert record.error.message == "Context (shared) for this job was terminated"
    assert "the JVM died" in record.error.stack
    context = scene.server.context("shared")
    assert context.state is ContextState.ERROR
    assert context.error == ErrorInfo(message="the JVM died")
    assert states.index("JobChanged") < states.index("ContextChanged")
    assert len(scene.server.deliveries(job.id)) == 1


def test_a_submit_while_the_end_of_its_context_is_stored_finds_no_context(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_registry, "SUCCESSOR_TIMEOUT", 0.05)
    refused: list[type[errors.JobServerError]] = []
    advance_context = scene.metadata.advance_context

    def submit_first(*arguments: Any, **named: Any) -> None:
        with pytest.raises(errors.JobServerError) as caught:
            scene.submit()
        refused.append(caught.type)
        advance_context(*arguments, **named)

    scene.metadata.advance_context = submit_first  # type: ignore[method-assign]
    scene.listener.context_ended(ContextEnd.FAILED)
    assert refused == [errors.ContextNotFound]


def test_jobs_of_a_deleted_context_send_no_callback(scene: Scene) -> None:
    job = scene.submit(callback_url="memory://receiver/x")
    scene.listener.job_running(job.id)
    waiter = scene.server.stop_context("shared")
    assert scene.server.context("shared").state is ContextState.STOPPING
    with pytest.raises(errors.ContextStopping, match="is being stopped"):
        scene.submit()
    scene.listener.context_ended(ContextEnd.STOPPED)
    assert waiter.result(0).state is ContextState.FINISHED
    assert scene.server.job(job.id).state is JobState.ERROR
    assert scene.server.deliveries(job.id) == []


def test_a_job_that_finishes_while_its_context_stops_is_finished_and_notified(scene: Scene) -> None:
    job = scene.submit(callback_url="memory://receiver/x")
    scene.server.stop_context("shared")
    finish(scene, job)
    scene.listener.context_ended(ContextEnd.STOPPED)
    assert scene.server.job(job.id).state is JobState.FINISHED
    assert len(scene.server.deliveries(job.id)) == 1


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (ContextEnd.STOPPED, ContextState.FINISHED),
        (ContextEnd.FAILED, ContextState.ERROR),
        (ContextEnd.KILLED_OUTSIDE, ContextState.KILLED),
        (ContextEnd.KILLED, ContextState.KILLED),
    ],
)
def test_a_context_ends_as_its_launcher_reports(scene: Scene, end: ContextEnd, state: ContextState) -> None:
    scene.listener.context_ended(end)
    context = scene.server.context("shared")
    assert context.state is state
    assert (context.error is not None) == (state is ContextState.ERROR)
    with pytest.raises(errors.ContextNotFound):
        scene.submit()


@pytest.mark.parametrize("end", [ContextEnd.STOPPED, ContextEnd.FAILED])
def test_a_context_that_ends_by_itself_before_it_is_ready_has_failed(end: ContextEnd) -> None:
    scene = Scene(ready=False)
    scene.listener.context_ended(end)
    context = scene.server.context("shared")
    assert context.state is ContextState.ERROR
    assert context.error == ErrorInfo(message="the context ended by itself")
    scene.server.close(0)


def test_a_context_that_ends_before_it_is_ready_fails_its_future() -> None:
    scene = Scene(ready=False)
    job = scene.submit()
    scene.listener.context_ended(ContextEnd.STOPPED)
    with pytest.raises(errors.ContextFailed):
        scene.created.result(0)
    assert scene.server.context("shared").state is ContextState.ERROR
    assert scene.server.job(job.id).failure is FailureKind.CONTEXT_LOST
    scene.server.close(0)


def test_a_context_that_is_ready_while_it_is_being_stopped_stays_stopping() -> None:
    scene = Scene(ready=False)
    scene.server.stop_context("shared")
    scene.listener.context_ready(application_id="late", url=None)
    assert scene.server.context("shared").state is ContextState.STOPPING
    scene.listener.context_ended(ContextEnd.STOPPED)
    assert scene.server.context("shared").state is ContextState.FINISHED
    scene.server.close(0)


def test_a_launcher_that_is_ready_before_it_hands_back_the_handle_loses_no_job() -> None:
    def ready(listener: ContextListener) -> None:
        listener.context_ready(application_id="quick", url=None)

    launcher = ScriptedLauncher(at_start=ready)
    server = a_server(launcher=launcher).start()
    upload(server)
    job = server.submit(a_request("w.Any"))
    assert launcher.handles[0].calls == [("submit", job.id)]
    launcher.listeners[0].context_ended(ContextEnd.STOPPED)
    server.close(0)


def test_a_launcher_that_refuses_settings_leaves_an_ended_context() -> None:
    def refuse(_listener: ContextListener) -> None:
        raise errors.InvalidSetting(key="num-cpu-cores", message="takes a whole number")

    server = a_server(launcher=ScriptedLauncher(at_start=refuse)).start()
    upload(server)
    with pytest.raises(errors.InvalidSetting):
        server.create_context("bad")
    assert server.context("bad").state is ContextState.ERROR
    record = server.submit(a_request("w.Any")).finished.result(WAIT)
    assert record.failure is FailureKind.CONTEXT_INIT
    assert server.contexts() == []
    server.close(0)


def test_the_outcome_that_another_writer_stored_first_wins(scene: Scene) -> None:
    job = scene.submit()
    scene.listener.job_running(job.id)
    stored = scene.metadata.job(job.id)
    assert stored is not None
    other = attrs.evolve(stored, state=JobState.KILLED, ended_at=scene.clock.now())
    scene.metadata.advance_job(other, expected=stored.state)
    finish(scene, job)
    assert scene.server.job(job.id) == other
    assert job.finished.result(0) == other
    assert scene.server.job_handle(job.id).finished.result(0) == other


def test_a_full_disk_is_the_error_of_the_job_whose_result_it_was(scene: Scene) -> None:
    job = scene.submit()
    scene.listener.job_running(job.id)
    report_result(scene.listener, job.id, b"\xff")
    record = scene.server.job(job.id)
    assert record.failure is FailureKind.RESULT
    assert record.error is not None
    assert "could not be stored" in record.error.message
