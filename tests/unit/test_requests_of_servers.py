"""What servers ask of one another and store for one another, while stores and threads fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial

import attrs
import pytest

from conditions import wait_until
from jobserver_core import (
    Context,
    ContextFailed,
    ContextNotFound,
    ContextState,
    Job,
    JobNotFound,
    JobPostponed,
    JobState,
    StorageError,
    Unavailable,
)
from jobserver_core.memory import InlineLauncher, MemoryBlobStore, MemoryMetadataStore
from jobserver_core.models.jobs import QueueLimits
from jobserver_core.models.servers import ServerRequest
from jobserver_core.ports import ContextEnd
from jobserver_core.running import requests
from jobserver_core.running.notices import POLL, Worker
from jobserver_core.running.watching import Watch
from jobserver_core.testing.builders import a_context, a_job
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, a_request, upload
from several_servers import ONE_SLOT, Member


def test_a_context_that_ended_between_two_looks_is_not_said_to_have_never_been_ready() -> None:
    store = MemoryMetadataStore()
    started = a_context("warm")
    store.add_context(started)
    watch = Watch(store.context, lambda _id: ContextNotFound(name="warm"))
    waiter = watch.watch(started).started.waiter
    ended = attrs.evolve(started, state=ContextState.FINISHED, ended_at=started.started_at)
    store.advance_context(ended, expected=ContextState.STARTED)
    watch.scan(None)
    with pytest.raises(ContextFailed, match="was not known to be ready when it ended as FINISHED"):
        waiter.result(0)


def job_watch(store: MemoryMetadataStore) -> Watch[Job]:
    return Watch(store.job, lambda job_id: JobNotFound(job_id=job_id))


class FaultyRequests(MemoryMetadataStore):
    """A shared store that fails in calls with these names."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        super().__init__(shared=True, now=self.clock.now)
        self.failing: set[str] = set()

        self.error: Exception = StorageError(message="the database is down")

    def _check(self, name: str) -> None:
        if name in self.failing:
            raise self.error

    def add_context(self, context: Context) -> None:
        self._check("add_context")
        super().add_context(context)

    def add_job(self, job: Job, *, config: str) -> None:
        self._check("add_job")
        super().add_job(job, config=config)

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        super().enqueue_job(job, config=config, limits=limits)
        self._check("enqueue_job")  # as if the connection broke during the commit

    def answer_request(self, request_id: str, answer: str) -> bool:
        self._check("answer_request")
        return super().answer_request(request_id, answer)

    def request(self, request_id: str) -> ServerRequest | None:
        self._check("request")
        return super().request(request_id)

    def remove_request(self, request_id: str) -> ServerRequest | None:
        self._check("remove_request")
        return super().remove_request(request_id)


class Pair:
    """A server with a context "shared", and another one."""

    def __init__(self) -> None:
        self.store, blobs = FaultyRequests(), MemoryBlobStore()
        self.owner, self.other = (Member(self.store, blobs, settings=ONE_SLOT) for _ in range(2))
        self.owner.server.start()
        self.other.server.start()
        upload(self.owner.server)
        self.owner.server.create_context("shared")
        self.owner.ready()

    def answer(self) -> None:
        """Let the owner scan for requests."""
        self.owner.server._services.requests._answer_all(None)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(requests, "ANSWER_POLL_INTERVAL", 0.01)
    pair = Pair()
    yield pair
    pair.store.failing.clear()
    pair.owner.close()
    pair.other.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait only briefly for the answers of other servers."""
    monkeypatch.setattr(requests, "ANSWER_TIMEOUT", 0.05)


def test_a_job_with_a_key_runs_once_even_if_its_submit_failed_after_it_was_stored(pair: Pair) -> None:
    request = a_request("w.Any", context="shared", idempotency_key="key")
    pair.store.failing = {"enqueue_job"}
    with pytest.raises(StorageError):
        pair.other.server.submit(request)
    pair.store.failing.clear()
    pair.owner.clock.advance(POLL)
    pair.other.clock.advance(POLL)
    again = pair.other.server.submit(request)
    assert pair.owner.launcher.handles[0].calls == [("submit", again.id)]
    assert not pair.other.server.job(again.id).state.final


@pytest.mark.parametrize("call", ["add_context", "add_job", "enqueue_job"])
def test_any_exception_of_a_store_that_refuses_a_new_record_names_the_store(pair: Pair, call: str) -> None:
    server = (pair.other if call == "enqueue_job" else pair.owner).server
    pair.store.failing, pair.store.error = {call}, KeyError("shared")
    request = a_request("w.Any", context="shared")
    record = (
        partial(server.create_context, "other") if call == "add_context" else partial(server.submit, request)
    )
    with pytest.raises(StorageError) as failed:
        record()
    assert str(failed.value) == f"{call} of the metadata store FaultyRequests raised KeyError: 'shared'"
    assert isinstance(failed.value.__cause__, KeyError)


def test_a_failed_submit_withdraws_its_job_only_if_that_has_not_begun(pair: Pair) -> None:
    def submit() -> str:
        before = {job.id for job in pair.other.server.jobs().jobs}
        pair.store.failing = {"enqueue_job"}
        with pytest.raises(StorageError):
            pair.other.server.submit(a_request("w.Any", context="shared"))
        pair.store.failing.clear()
        [stored] = {job.id for job in pair.other.server.jobs().jobs} - before
        return stored

    begun = submit()
    pair.owner.clock.advance(POLL)
    waiting = submit()
    pair.other.clock.advance(POLL)
    assert not pair.other.server.job(begun).state.final
    assert pair.other.server.job(waiting).state is JobState.ERROR


@pytest.mark.usefixtures("impatient")
def test_a_request_that_could_not_be_removed_is_removed_later(pair: Pair) -> None:
    pair.owner.server._services.notices.close()
    pair.store.failing = {"request", "remove_request"}
    with pytest.raises(StorageError):
        pair.other.server.stop_context("shared")
    pair.store.failing.clear()
    pair.other.clock.advance(POLL)
    assert pair.store.requests_to(pair.owner.id) == []
    pair.answer()
    assert pair.owner.server.context("shared").state is ContextState.RUNNING


@pytest.mark.usefixtures("impatient")
def test_an_old_request_of_a_server_that_is_gone_is_refused(pair: Pair) -> None:
    pair.owner.server._services.notices.close()
    pair.store.failing = {"remove_request"}
    with pytest.raises(Unavailable):
        pair.other.server.stop_context("shared")
    [request] = pair.store.requests_to(pair.owner.id)
    pair.store.clock.advance(timedelta(minutes=1).total_seconds())
    pair.store.renew_server(pair.owner.id, lease=10)
    pair.answer()
    assert pair.owner.server.context("shared").state is ContextState.RUNNING
    stored = pair.store.request(request.id)
    assert stored is not None
    assert "too old" in str(stored.answer)


def test_an_answer_counts_even_if_the_owner_is_gone_by_then(pair: Pair) -> None:
    def die_after_the_answer() -> None:
        pair.answer()
        pair.store.remove_server(pair.owner.id)

    looked = threading.Event()
    asked = pair.other.server._services.requests
    check = asked._check_alive
    pair.owner.server._services.notices.close()

    def check_late(server_id: str, what: str) -> object:
        if looked.is_set():
            die_after_the_answer()
        looked.set()
        return check(server_id, what)

    asked._check_alive = check_late  # type: ignore[method-assign, assignment]
    pair.other.server.stop_context("shared", timeout=7)
    assert pair.owner.launcher.handles[0].calls == [("stop", 7)]


def test_an_owner_that_could_not_store_its_answer_does_not_act_again(pair: Pair) -> None:
    owner = pair.owner.server._services
    owner.notices.close()
    acted: list[str] = []
    owner.requests.on(requests.Action.KILL_CONTEXT, lambda asked: acted.append(asked["name"]) or {})
    killing = threading.Thread(target=partial(pair.other.server.kill_context, "shared"))
    killing.start()
    wait_until(lambda: pair.store.requests_to(pair.owner.id), "the request", WAIT)
    pair.store.failing = {"answer_request"}
    with pytest.raises(StorageError):
        pair.answer()
    pair.store.failing.clear()
    pair.answer()
    killing.join(WAIT)
    assert acted == ["shared"]


def test_jobs_of_a_context_that_was_stopped_from_another_server_say_who_did_it(pair: Pair) -> None:
    job = pair.owner.server.submit(a_request("w.Any", context="shared"))
    pair.owner.server._services.notices.close()
    stopping = threading.Thread(target=partial(pair.other.server.stop_context, "shared", user="ann"))
    stopping.start()
    wait_until(lambda: pair.store.requests_to(pair.owner.id), "the request", WAIT)
    pair.answer()
    stopping.join(WAIT)
    pair.owner.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
    error = pair.other.server.job(job.id).error
    assert error is not None
    assert error.stack == "stopped by user ann"


def test_a_worker_that_got_no_thread_scans_at_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[frozenset[str] | None] = []
    worker = Worker("test", scans.append)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        worker.wake(frozenset(["lost"]))
    worker.wake(frozenset(["next"]))
    wait_until(lambda: scans == [frozenset(["lost", "next"])], "the scan", WAIT)
    worker.close()


def test_a_job_that_was_just_enqueued_counts_as_started_though_its_owner_has_dispatched_it() -> None:
    store = MemoryMetadataStore(shared=True)
    job = a_job()
    store.add_job(a_job(id=job.id, dispatched_at=job.submitted_at), config="{}")
    assert job_watch(store).watch(job).started.waiter.done()


def test_all_jobs_that_a_notice_names_are_checked() -> None:
    store = MemoryMetadataStore(shared=True)
    watch, jobs = job_watch(store), [a_job() for _ in range(600)]
    for job in jobs:
        store.add_job(job, config="{}")
    watched = [watch.watch(job) for job in jobs]
    for job in jobs:
        store.advance_job(_finished(job), expected=job.state)
    watch.scan(frozenset(job.id for job in jobs))
    assert all(found.finished.waiter.done() for found in watched)


def _finished(job: Job) -> Job:
    return a_job(id=job.id, state=JobState.FINISHED, ended_at=job.submitted_at)


def test_waiters_of_a_job_that_cannot_be_picked_up_now_learn_that_it_is_postponed(pair: Pair) -> None:
    jobs = pair.owner.server._services.jobs
    context = pair.owner.server._services.registry.all()[0]
    found: list[Callable[[float], object]] = []
    pick_up = context.pick_up

    def refuse(live: object) -> None:
        found.append(jobs.handle(live.job.id).finished.result)  # type: ignore[attr-defined]
        context.pick_up = pick_up  # type: ignore[method-assign]
        raise StorageError(message="the database is down")

    context.pick_up = refuse  # type: ignore[method-assign, assignment]
    pair.other.server.submit(a_request("w.Any", context="shared"))
    pair.owner.clock.advance(POLL)
    with pytest.raises(JobPostponed):
        found[0](WAIT)


@pytest.mark.parametrize("dies", [False, True])
def test_a_context_that_was_taken_over_and_is_ready_leaves_no_jobs_behind(dies: bool) -> None:
    store, blobs, launcher = FaultyRequests(), MemoryBlobStore(), InlineLauncher({})
    first, second = (Member(store, blobs, launcher=launcher) for _ in range(2))
    first.server.start()
    first.server.create_context("shared", {"supervise": True}).result(WAIT)
    launcher.detach()
    first.server._services.registry.detach_all()
    store.remove_server(first.id)
    second.server.start()
    [context] = second.server._services.registry.all()
    wait_until(lambda: context._context.ready_reported, "the takeover", WAIT)
    if dies:
        context._reports.context_ended(ContextEnd.KILLED_OUTSIDE)
        assert context.successor is not None
    else:
        second.server.stop_context("shared").result(WAIT)
    assert not context.leaves_jobs
    for member in (first, second):
        member.close()
