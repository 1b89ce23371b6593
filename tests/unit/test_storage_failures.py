"""A temporary storage failure ends no jobs: reports are stored later, and requests are refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from conditions import wait_until
from jobserver_core import ContextState, FailureKind, JobHandle, JobProgress, JobState, errors
from jobserver_core.binaries.pins import BlobPins
from jobserver_core.config.settings import JobLimits
from jobserver_core.events import ContextChanged, JobChanged, JobProgressed
from jobserver_core.memory import MemoryBlobStore, MemoryMetadataStore
from jobserver_core.models.jobs import JobQuery
from jobserver_core.ports import BlobWriter, ContextEnd, JobOutcome
from jobserver_core.running.context_reports import ContextReports
from jobserver_core.running.live_job import RESULT_TIMEOUT
from jobserver_core.running.result_storage import BUFFER, ResultStore
from jobserver_core.running.retries import FIRST_PAUSE, LONGEST_PAUSE, MAX_DOUBTFUL, Withdrawals
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, Scene, a_request


class FaultyBlobs(MemoryBlobStore):
    """Refuses new blobs while ``full``."""

    full = False

    def create(self) -> BlobWriter:
        if self.full:
            raise errors.StorageError(message="disk full")
        return super().create()


class StorageScene(Scene):
    """A server with one scripted context, on stores that can fail on demand."""

    def __init__(self, *, ready: bool = True) -> None:
        self.blobs = FaultyBlobs()
        super().__init__(ready=ready, blobs=self.blobs)

    def until(self, condition: Callable[[], bool]) -> None:
        """Let time pass until something is so."""

        def reached() -> bool:
            self.clock.advance(0.05)
            return condition()

        wait_until(reached, pause=0.001)

    def until_tried(self, times: int) -> None:
        """Let time pass until this many more writes were attempted."""
        wanted = len(self.metadata.attempts) + times
        self.until(lambda: len(self.metadata.attempts) >= wanted)

    def close(self) -> None:
        self.metadata.recover()
        self.launcher.close()
        self.until(lambda: not self.server.contexts())
        self.server.close(0)


@pytest.fixture
def scene() -> Iterator[StorageScene]:
    scene = StorageScene()
    yield scene
    scene.close()


# -- reports of the launcher ---------------------------------------------------------------------------


@pytest.mark.parametrize("stores_first", [False, True])
@pytest.mark.parametrize("times", [1, 4])
def test_every_report_about_a_job_is_stored_in_order_once_the_store_works(
    scene: StorageScene, times: int, stores_first: bool
) -> None:
    job = scene.submit(callback_url="memory://receiver/x")
    scene.metadata.fail(times, stores_first=stores_first)
    scene.listener.job_running(job.id)
    scene.finish(job)
    assert not job.done()
    assert JobState.FINISHED not in scene.states(job.id)
    scene.until(job.done)
    assert job.result(0) == 1
    assert scene.server.job(job.id).state is JobState.FINISHED
    assert scene.states(job.id) == [JobState.STARTED, JobState.RUNNING, JobState.FINISHED]
    assert scene.server.context("shared").state is ContextState.RUNNING
    scene.until(lambda: len(scene.transport.messages) == 1)
    assert len(scene.server.deliveries(job.id)) == 1


def test_an_outcome_that_is_not_stored_is_left_to_the_next_server(scene: StorageScene) -> None:
    job = scene.submit()
    scene.metadata.fail(only=("advance_job",))
    scene.finish(job, b'"whole"')
    scene.until_tried(2)
    scene.server._services.registry.detach_all()
    with pytest.raises(errors.JobInterrupted):
        job.result(WAIT)
    scene.metadata.recover()
    scene.clock.advance(LONGEST_PAUSE)
    for thread in threading.enumerate():
        if thread.name.startswith("jobserver-retry"):
            thread.join(WAIT)
    record = scene.metadata.job(job.id)
    assert record is not None
    assert record.state is JobState.STARTED
    assert scene.metadata.job_result(job.id) is None


@pytest.mark.parametrize("size", [4, 2 * BUFFER])
def test_a_result_that_was_discarded_cannot_be_stored(size: int) -> None:
    pins = BlobPins(MemoryMetadataStore(), ManualClock(), "server")
    writer = ResultStore(MemoryBlobStore(), pins, JobLimits()).writer(stream=False)
    writer.write(b"x" * size)
    writer.discard()
    with pytest.raises(errors.StorageError):
        writer.finish()
    assert not writer.repeatable


def test_an_outcome_has_no_effects_before_it_is_stored(scene: StorageScene) -> None:
    job, second = scene.submit(callback_url="memory://receiver/x"), scene.submit()
    scene.listener.job_running(job.id)
    scene.metadata.fail()
    scene.finish(job)
    scene.until_tried(5)
    assert not job.done()
    assert scene.server.job(job.id).state is JobState.RUNNING
    assert scene.transport.messages == []
    assert JobState.FINISHED not in scene.states(job.id)
    scene.metadata.recover()
    scene.until(job.done)
    assert job.result(0) == 1
    scene.finish(second)
    assert second.result(WAIT) == 1


def test_times_are_those_of_the_reports_even_if_they_are_stored_later(scene: StorageScene) -> None:
    job, lost = scene.submit(), scene.submit()
    scene.metadata.fail()
    scene.listener.job_running(lost.id)
    scene.until_tried(2)
    running_at = scene.clock.now()
    scene.listener.job_running(job.id)
    scene.clock.advance(3)
    ended_at = scene.clock.now()
    scene.finish(job)
    scene.clock.advance(3)
    lost_at = scene.clock.now()
    scene.listener.context_ended(ContextEnd.FAILED)
    scene.clock.advance(60)
    scene.metadata.recover()
    scene.until(lambda: scene.server.context("shared").state is ContextState.ERROR)
    assert (scene.server.job(job.id).running_at, scene.server.job(job.id).ended_at) == (running_at, ended_at)
    assert scene.server.job(lost.id).ended_at == scene.server.context("shared").ended_at == lost_at


def test_progress_is_dropped_while_the_store_fails_and_resumes_afterwards(scene: StorageScene) -> None:
    job = scene.submit()
    scene.listener.job_running(job.id)
    scene.metadata.fail(1)
    scene.listener.job_progress(job.id, JobProgress(tasks_done=1, tasks_total=3))
    assert scene.server.job(job.id).progress is None
    assert not [event for event in scene.events if isinstance(event, JobProgressed)]
    scene.listener.job_progress(job.id, JobProgress(tasks_done=2, tasks_total=3))
    assert scene.server.job(job.id).progress == JobProgress(tasks_done=2, tasks_total=3)
    assert len([event for event in scene.events if isinstance(event, JobProgressed)]) == 1


def test_progress_does_not_try_a_store_that_is_known_to_fail(scene: StorageScene) -> None:
    job = scene.submit()
    scene.metadata.fail()
    scene.listener.job_running(job.id)
    assert isinstance(scene.listener, ContextReports)
    changes = scene.listener._context.changes
    scene.until(lambda: changes.failing)
    scene.listener.job_progress(job.id, JobProgress(tasks_done=1))
    assert scene.metadata.attempts[-1] == "advance_job"
    scene.metadata.recover()
    scene.until(lambda: not changes.failing)
    stored = scene.metadata.job(job.id)
    assert stored is not None
    assert stored.state is JobState.RUNNING


def test_a_job_that_runs_is_stored_so_before_it_ends(scene: StorageScene) -> None:
    job = scene.submit()
    scene.listener.job_running(job.id)
    assert scene.server.job(job.id).state is JobState.RUNNING
    scene.until(lambda: scene.metadata.job(job.id) == scene.server.job(job.id))
    assert not job.done()


def test_a_job_that_begins_just_before_others_are_stored_as_running_has_its_own_moment(
    scene: StorageScene,
) -> None:
    def stored(job: JobHandle) -> JobState | None:
        record = scene.metadata.job(job.id)
        return record and record.state

    first, second = scene.submit(), scene.submit()
    scene.listener.job_running(first.id)
    scene.clock.advance(0.9 * FIRST_PAUSE)
    scene.listener.job_running(second.id)
    scene.until(lambda: stored(first) is JobState.RUNNING)
    assert stored(second) is JobState.STARTED
    scene.until(lambda: stored(second) is JobState.RUNNING)


def test_a_list_shows_running_jobs_before_that_state_is_stored(scene: StorageScene) -> None:
    job = scene.submit()
    scene.listener.job_running(job.id)
    (listed,) = scene.server.jobs(JobQuery(states=(JobState.RUNNING,))).jobs
    assert listed == scene.server.job(job.id)


def test_a_short_job_is_written_twice(scene: StorageScene) -> None:
    before = len(scene.metadata.attempts)
    job = scene.submit()
    scene.listener.job_running(job.id)
    scene.finish(job)
    assert job.result(0) == 1
    assert scene.metadata.attempts[before:] == ["add_job", "advance_job"]
    assert scene.states(job.id) == [JobState.STARTED, JobState.RUNNING, JobState.FINISHED]
    assert scene.server.job(job.id).running_at is not None


@pytest.mark.parametrize("stores_first", [False, True])
def test_a_context_that_is_ready_while_the_store_fails_is_ready_after(stores_first: bool) -> None:
    scene = StorageScene(ready=False)
    job = scene.submit()
    scene.metadata.fail(3, stores_first=stores_first)
    scene.listener.context_ready(application_id="app-1", url="http://ui")
    assert not scene.created.done()
    scene.until(scene.created.done)
    assert scene.created.result(0).application_id == "app-1"
    scene.until(lambda: ("submit", job.id) in scene.handle.calls)
    scene.close()


def test_a_context_that_is_ready_in_time_does_not_fail_when_that_is_stored_late() -> None:
    scene = StorageScene(ready=False)
    scene.metadata.fail()
    scene.listener.context_ready(application_id="app-1", url=None)
    scene.clock.advance(scene.server.settings.contexts.creation_timeout + 1)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "jobserver-retry context shared"])
    assert scene.handle.calls == []
    scene.metadata.recover()
    scene.until(scene.created.done)
    assert scene.created.result(0).state is ContextState.RUNNING
    scene.close()


@pytest.mark.parametrize("stores_first", [False, True])
def test_a_context_that_ends_while_the_store_fails_ends_all_of_its_jobs(
    scene: StorageScene, stores_first: bool
) -> None:
    jobs = [scene.submit(callback_url="memory://receiver/x") for _ in range(3)]
    scene.metadata.fail(5, stores_first=stores_first)
    scene.listener.context_ended(ContextEnd.FAILED)
    scene.until(lambda: scene.server.context("shared").state is ContextState.ERROR)
    scene.until(lambda: all(job.done() for job in jobs))
    assert {scene.server.job(job.id).failure for job in jobs} == {FailureKind.CONTEXT_LOST}
    assert [len(scene.server.deliveries(job.id)) for job in jobs] == [1, 1, 1]
    changed = [event for event in scene.events if isinstance(event, JobChanged | ContextChanged)]
    assert isinstance(changed[-1], ContextChanged)


def test_a_context_that_has_ended_takes_no_jobs_before_its_end_is_stored(scene: StorageScene) -> None:
    scene.metadata.fail(only=("advance_context",))
    scene.listener.context_ended(ContextEnd.FAILED)
    with pytest.raises(errors.StorageError, match="context shared has ended"):
        scene.submit()
    assert scene.server.jobs().jobs == ()


def test_a_job_that_cannot_be_dispatched_stays_in_the_queue(scene: StorageScene) -> None:
    job = scene.server.submit(a_request("w.Any"))  # its context is not ready yet
    listener, handle = scene.launcher.listeners[1], scene.launcher.handles[1]
    scene.metadata.fail(3, only=("advance_job",))
    listener.context_ready(application_id=None, url=None)
    assert handle.calls == []
    scene.until(lambda: handle.calls == [("submit", job.id)])


def test_an_ad_hoc_context_stops_even_if_the_store_fails_after_its_job(scene: StorageScene) -> None:
    job = scene.server.submit(a_request("w.Any"))
    listener, handle = scene.launcher.listeners[1], scene.launcher.handles[1]
    listener.context_ready(application_id=None, url=None)
    listener.job_running(job.id)
    listener.open_result(job.id, stream=False).write(b"1")
    scene.metadata.fail(4, only=("advance_context",))
    listener.job_ended(job.id, JobOutcome())
    assert job.result(0) == 1
    assert not [call for call in handle.calls if call[0] == "stop"]
    scene.until(lambda: bool([call for call in handle.calls if call[0] == "stop"]))
    assert scene.server.context(job.job.context_name).state is ContextState.STOPPING


def test_waiting_changes_are_bounded_by_the_slots(scene: StorageScene) -> None:
    slots = scene.server.settings.jobs.max_jobs_per_context
    jobs = [scene.submit() for _ in range(slots * 3)]
    scene.metadata.fail()
    for job in jobs[:slots]:
        scene.listener.job_running(job.id)
        for number in range(100):
            scene.listener.job_progress(job.id, JobProgress(tasks_done=number))
        scene.finish(job)
    scene.until_tried(3)
    context = scene.server._services.registry.get("shared")
    assert len(context._context.changes._changes) <= 2 * slots + 1
    scene.metadata.recover()
    scene.until(lambda: all(job.done() for job in jobs[:slots]))
    scene.until(lambda: len([call for call in scene.handle.calls if call[0] == "submit"]) == 2 * slots)


# -- results -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_result_that_the_blob_store_refuses_for_a_time_is_kept(scene: StorageScene, stream: bool) -> None:
    job = scene.submit()
    scene.listener.job_running(job.id)
    text = b'"' + b"x" * 200_000 + b'"'
    scene.blobs.full = True
    scene.finish(job, text, stream=stream)
    scene.clock.advance(1)
    assert not job.done()
    scene.blobs.full = False
    scene.until(job.done)
    reader = scene.server.open_result(job.id)
    assert reader is not None
    with reader:
        assert b"".join(reader) == text


def test_a_result_that_the_blob_store_refuses_for_good_is_the_error_of_its_job(scene: StorageScene) -> None:
    job = scene.submit()
    scene.listener.job_running(job.id)
    scene.blobs.full = True
    scene.finish(job, b"x" * 200_000, stream=True)
    scene.clock.advance(RESULT_TIMEOUT)
    scene.until(job.done)
    assert scene.server.job(job.id).failure is FailureKind.RESULT
    scene.blobs.full = False


def test_a_stored_result_is_kept_until_the_end_of_its_job_is_stored_too(scene: StorageScene) -> None:
    job = scene.submit()
    scene.listener.job_running(job.id)
    scene.metadata.fail()
    scene.finish(job, b"x" * 200_000, stream=True)
    scene.clock.advance(3600)
    scene.server._services.sweeper.sweep()
    scene.metadata.recover()
    scene.until(job.done)
    reader = scene.server.open_result(job.id)
    assert reader is not None
    with reader:
        assert b"".join(reader) == b"x" * 200_000


# -- requests of users ---------------------------------------------------------------------------------


def test_a_submit_during_an_outage_is_refused_and_leaves_nothing(scene: StorageScene) -> None:
    scene.metadata.fail(1)
    with pytest.raises(errors.StorageError, match="disk full"):
        scene.submit()
    assert scene.server.jobs().jobs == ()
    job = scene.submit()
    scene.finish(job)
    assert job.result(WAIT) == 1


def test_a_failed_submit_that_was_stored_is_rolled_back(scene: StorageScene) -> None:
    scene.metadata.fail(1, only=("add_job",), stores_first=True)
    with pytest.raises(errors.StorageError):
        scene.submit(idempotency_key="key")
    (left,) = scene.server.jobs().jobs
    scene.until(lambda: scene.server.job(left.id).state is JobState.ERROR)
    again = scene.submit(idempotency_key="key")
    assert again.id != left.id
    scene.finish(again)
    assert again.result(WAIT) == 1


def test_a_context_stored_by_a_failed_request_frees_its_name(scene: StorageScene) -> None:
    scene.metadata.fail(1, only=("add_context",), stores_first=True)
    with pytest.raises(errors.StorageError):
        scene.server.create_context("mine")
    scene.until(lambda: scene.server.context("mine").state is ContextState.ERROR)
    scene.server.create_context("mine")
    assert scene.server.context("mine").state is ContextState.STARTED


def test_a_submit_with_its_own_context_leaves_nothing_during_an_outage(scene: StorageScene) -> None:
    scene.metadata.fail(3, only=("add_job", "advance_context"))
    with pytest.raises(errors.StorageError):
        scene.server.submit(a_request("w.Any"))
    scene.until(lambda: len(scene.server.contexts()) == 1)
    assert scene.server.jobs().jobs == ()
    assert len(scene.launcher.handles) == 1


def test_a_kill_during_an_outage_is_refused_and_can_be_repeated(scene: StorageScene) -> None:
    job = scene.submit()
    scene.metadata.fail(1)
    with pytest.raises(errors.StorageError):
        scene.server.kill_job(job.id)
    assert not scene.server.job(job.id).kill_requested
    assert ("kill_job", job.id) not in scene.handle.calls
    waiter = scene.server.kill_job(job.id)
    scene.listener.job_ended(job.id, JobOutcome(killed=True))
    assert waiter.result(WAIT).state is JobState.KILLED


def test_an_accepted_kill_stays_a_kill_even_if_stored_late(scene: StorageScene) -> None:
    job = scene.submit(callback_url="memory://receiver/x")
    waiter = scene.server.kill_job(job.id)
    scene.metadata.fail(6)
    scene.listener.job_ended(job.id, JobOutcome(killed=True))
    assert not waiter.done()
    scene.until(waiter.done)
    assert scene.server.job(job.id).state is JobState.KILLED
    assert scene.server.deliveries(job.id) == []


def test_a_waiting_job_still_waits_when_its_kill_fails_in_an_outage() -> None:
    scene = StorageScene(ready=False)
    job = scene.submit()
    scene.metadata.fail(1)
    with pytest.raises(errors.StorageError):
        scene.server.kill_job(job.id)
    assert scene.server.job(job.id).state is JobState.STARTED
    scene.listener.context_ready(application_id=None, url=None)
    assert scene.handle.calls == [("submit", job.id)]
    scene.close()


def test_a_waiting_job_that_is_killed_sends_no_callback() -> None:
    scene = StorageScene(ready=False)
    job = scene.submit(callback_url="memory://receiver/x")
    assert scene.server.kill_job(job.id).result(WAIT).state is JobState.KILLED
    assert scene.server.job(job.id).kill_requested
    assert scene.server.deliveries(job.id) == []
    scene.close()


def test_a_stop_during_an_outage_is_refused_and_can_be_repeated(scene: StorageScene) -> None:
    scene.metadata.fail(1)
    with pytest.raises(errors.StorageError):
        scene.server.stop_context("shared")
    assert scene.server.context("shared").state is ContextState.RUNNING
    assert scene.handle.calls == []
    scene.server.stop_context("shared")
    assert scene.handle.calls[0][0] == "stop"


def test_a_job_that_does_not_end_ends_its_context_even_if_the_store_fails(scene: StorageScene) -> None:
    job = scene.submit()
    scene.server.kill_job(job.id, force=True)
    scene.metadata.fail()
    scene.clock.advance(scene.server.settings.jobs.kill_timeout + 1)
    wait_until(lambda: ("kill", None) in scene.handle.calls)


def test_a_reset_stops_every_context_even_if_the_store_fails_meanwhile(scene: StorageScene) -> None:
    scene.server.create_context("other")
    scene.launcher.listeners[1].context_ready(application_id=None, url=None)
    scene.metadata.fail(3)
    scene.server.reset_contexts()
    scene.until(lambda: all(handle.calls[:1] for handle in scene.launcher.handles))
    assert {handle.calls[0][0] for handle in scene.launcher.handles} == {"stop"}


def test_requests_are_refused_at_once_when_too_many_before_them_are_in_doubt() -> None:
    clock = ManualClock()
    withdrawals = Withdrawals(clock)
    for number in range(MAX_DOUBTFUL):
        withdrawals.check_room()
        withdrawals.put(f"job-{number}", lambda: None)
    with pytest.raises(errors.StorageError, match="failing for a while"):
        withdrawals.check_room()
    clock.advance(FIRST_PAUSE)
    wait_until(lambda: not withdrawals._doubtful, pause=0.001)
    withdrawals.check_room()


class NotedBlobStore(MemoryBlobStore):
    """Lists the writers that were not discarded; calls ``on_create`` for each new one."""

    def __init__(self, on_create: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.on_create = on_create
        self.unfinished: list[BlobWriter] = []

    def create(self) -> BlobWriter:
        writer = super().create()
        self.unfinished.append(writer)
        drop = writer.discard

        def discard() -> None:
            drop()
            if writer in self.unfinished:
                self.unfinished.remove(writer)

        writer.discard = discard  # type: ignore[method-assign]
        self.on_create()
        return writer


def test_bytes_that_arrive_after_a_result_was_discarded_leave_no_file() -> None:
    blobs = NotedBlobStore()
    pins = BlobPins(MemoryMetadataStore(), ManualClock(), "s")
    writer = ResultStore(blobs, pins, JobLimits()).writer(stream=False)
    writer.write(b"x" * BUFFER)
    writer.discard()
    writer.write(b"x" * BUFFER)
    assert blobs.unfinished == []
    with pytest.raises(errors.StorageError):
        writer.finish()


def test_a_result_that_is_discarded_while_its_file_is_created_leaves_none() -> None:
    blobs = NotedBlobStore()
    pins = BlobPins(MemoryMetadataStore(), ManualClock(), "s")
    writer = ResultStore(blobs, pins, JobLimits()).writer(stream=False)
    blobs.on_create = writer.discard
    writer.write(b"x" * (BUFFER + 1))
    assert blobs.unfinished == []
