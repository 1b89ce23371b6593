"""Several servers over one store in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest

from conditions import wait_until
from jobserver_core import (
    Context,
    ContextQuery,
    ContextState,
    ContextStopping,
    Job,
    JobState,
    Settings,
    StorageError,
    assembly,
)
from jobserver_core.events import ContextChanged, Event
from jobserver_core.memory import (
    InlineJob,
    InlineLauncher,
    MemoryBlobStore,
    MemoryFetcher,
    MemoryMetadataStore,
)
from jobserver_core.models.servers import Server
from jobserver_core.ports import ContextEnd, Fetched
from jobserver_core.running.servers import Membership
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, a_request, upload
from several_servers import RENEWAL, FleetClock, Member
from several_servers_suite import SeveralServersSuite
from torture import LEASE, Torture, shared_memory


class TestSeveralServersInMemory(SeveralServersSuite):
    def setup_method(self) -> None:
        self.open, self.expire = shared_memory()
        self.metadata = self.open()

    def test_leases_are_judged_by_the_clock_of_the_store_only(self, members: list[Member]) -> None:
        first, second = self.boot(), self.boot()
        second.clock.advance(100 * LEASE)
        first.clock.advance(RENEWAL)
        assert {server.id for server in first.server.servers()} == {first.id, second.id}

    def test_a_server_takes_over_what_nobody_owns_even_if_it_knew_of_no_server(
        self, members: list[Member]
    ) -> None:
        dead, alive = self.boot(), self.boot()
        dead.server.create_context("shared")
        self.expire(dead.id)
        alive.server._services.membership._known = frozenset()
        self.metadata.remove_server(dead.id)
        alive.renew()
        assert alive.server.context("shared").state is ContextState.STARTED
        for _ in range(20):
            alive.renew()
        assert alive.server.context("shared").state is ContextState.ERROR


class StoreWithPauses(MemoryMetadataStore):
    """A shared store that calls ``meanwhile`` once, just before it writes the end of a job or reads one."""

    def __init__(self, now: Callable[[], datetime], *, before: str) -> None:
        super().__init__(shared=True, now=now)
        self._before = before
        self.meanwhile: Callable[[], None] | None = None

    def _pause(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()

    def advance_job(self, job: Job, **rest: Any) -> None:
        if self._before == "write" and job.state.final:
            self._pause()
        super().advance_job(job, **rest)

    def job(self, job_id: str) -> Job | None:
        if self._before == "read":
            self._pause()
        return super().job(job_id)


@pytest.mark.parametrize("before", ["read", "write"])
def test_a_server_that_claimed_a_context_cannot_end_a_job_of_it_that_goes_on_elsewhere(before: str) -> None:
    store = StoreWithPauses(ManualClock().now, before=before)
    blobs, gate = MemoryBlobStore(), threading.Event()

    def gated(job: InlineJob) -> str:
        while not gate.wait(0.005):
            job.check()
        return "done"

    launcher = InlineLauncher({"w.Gated": gated})
    first, claims = Member(store, blobs, launcher=launcher), Member(store, blobs)
    again = Member(store, blobs, launcher=launcher)
    try:
        first.server.start()
        claims.server.start()
        upload(first.server)
        first.server.create_context("shared").result(WAIT)
        job = first.server.submit(a_request("w.Gated", context="shared")).id
        wait_until(lambda: first.server.job(job).state is JobState.RUNNING)
        first.server._services.registry.all()[0].store_running()

        def meanwhile() -> None:
            store.remove_server(claims.id)
            again.server.start()

        launcher.detach()
        first.server._services.registry.detach_all()  # a crash would release its files, too
        store.remove_server(first.id)
        store.meanwhile = meanwhile
        claims.recovery.end_lost()
        assert again.server.context("shared").owner == again.id
        assert again.server.job(job).state is JobState.RUNNING
        gate.set()
        assert again.server.job_handle(job).result(WAIT) == "done"
    finally:
        gate.set()
        for member in (first, claims, again):
            member.close()


class ClusterLauncher(InlineLauncher):
    """Its contexts leave something in a cluster."""

    def __init__(self) -> None:
        super().__init__({})
        self.swept: list[str] = []

    def sweep_lost(self, contexts: Sequence[Context]) -> None:
        self.swept += [context.name for context in contexts]


def test_a_server_removes_what_contexts_of_dead_servers_left_elsewhere() -> None:
    store, blobs = MemoryMetadataStore(shared=True), MemoryBlobStore()
    launcher = ClusterLauncher()
    first, second = (Member(store, blobs, launcher=each) for each in (InlineLauncher({}), launcher))
    try:
        for member, name in ((first, "first"), (second, "second")):
            member.server.start()
            member.server.create_context(name).result(WAIT)
        first.server._services.registry.detach_all()  # a crash would release its files, too
        store.remove_server(first.id)
        second.recovery.end_lost()
        wait_until(lambda: launcher.swept)
        assert launcher.swept == ["first"]
        assert second.server.context("second").state is ContextState.RUNNING
    finally:
        for member in (first, second):
            member.close()


class StoreThatGoesAway(MemoryMetadataStore):
    """A shared store that sometimes cannot renew leases."""

    away = False

    def renew_server(self, server_id: str, *, lease: float) -> bool:
        if self.away:
            raise StorageError(message="the database is down")
        return super().renew_server(server_id, lease=lease)


def test_nobody_is_declared_dead_because_the_store_was_away() -> None:
    clock = ManualClock()
    metadata = StoreThatGoesAway(shared=True, now=clock.now)
    members = [Member(metadata, MemoryBlobStore()) for _ in range(3)]
    for member in members:
        member.server.start()
    metadata.away = True
    clock.advance(3 * LEASE)
    for member in members:
        for _ in range(10):
            member.renew()
    metadata.away = False
    assert metadata.servers(expired=False) == []
    for member in members:
        member.renew()
        assert len(metadata.servers()) == len(members)
    assert len(metadata.servers(expired=False)) == len(members)

    clock.advance(LEASE)
    for _ in range(4):
        for member in members[1:]:
            member.renew()
    assert {server.id for server in metadata.servers()} == {member.id for member in members[1:]}
    for member in members:
        member.close()


def test_a_store_that_is_not_shared_needs_no_renewals() -> None:
    clock = ManualClock()
    metadata = MemoryMetadataStore(now=clock.now)
    member = Member(metadata, MemoryBlobStore())
    member.server.start()
    before = metadata.servers()
    assert [server.id for server in before] == [member.id]
    clock.advance(100.0)
    member.clock.advance(100.0)
    assert metadata.servers() == before
    member.close()
    assert metadata.servers() == []


class StoreThatForgetsToAnswer(MemoryMetadataStore):
    """A shared store whose next list of servers fails after a server has registered."""

    armed = False
    failing = False

    def register_server(self, server_id: str, **rest: Any) -> None:
        super().register_server(server_id, **rest)
        self.failing = self.armed

    def servers(self, *, expired: bool | None = None) -> list[Server]:
        if self.failing:
            self.armed = self.failing = False
            raise StorageError(message="the database is down")
        return super().servers(expired=expired)


def test_a_removed_server_ends_its_contexts_even_if_it_could_not_register_at_once() -> None:
    metadata = StoreThatForgetsToAnswer(shared=True, now=ManualClock().now)
    member = Member(metadata, MemoryBlobStore())
    member.server.start()
    member.server.create_context("shared")
    member.ready()
    metadata.remove_server(member.id)
    metadata.armed = True
    member.renew()
    assert not metadata.armed
    assert [server.id for server in metadata.servers()] == [member.id]
    member.renew()
    assert ("kill", None) in member.launcher.handles[0].calls
    assert member.server._services.registry.all() == []
    member.close()


class Watch:
    """The membership of one server, whose calls wait until ``gate`` is set."""

    def __init__(self, metadata: MemoryMetadataStore, *, reattach_timeout: float = 0.0) -> None:
        self.metadata = metadata
        self.clock = FleetClock()
        self.gate = threading.Event()
        self.calls: list[str] = []
        self.ended: list[str] = []
        self.membership = Membership(
            metadata=metadata,
            clock=self.clock,
            server_id="this",
            address="",
            settings=Settings().servers,
            reattach_timeout=reattach_timeout,
            on_removed=lambda: self._call("on_removed"),
            take_over=lambda: self._call("take_over"),
        )
        self.membership.join()
        self.membership.start()
        self.membership.watch()

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.gate.wait(WAIT)
        self.ended.append(name)

    def join_threads(self) -> None:
        for thread in threading.enumerate():
            if thread.name.startswith(("jobserver-removed", "jobserver-failover")):
                thread.join(WAIT)


def test_a_server_that_keeps_its_contexts_for_long_judges_nobody_after_an_outage_either() -> None:
    clock = ManualClock()
    metadata = StoreThatGoesAway(shared=True, now=clock.now)
    watch = Watch(metadata, reattach_timeout=100 * LEASE)
    metadata.register_server("other", started_at=clock.now(), address="", lease=LEASE)
    metadata.away = True
    clock.advance(2 * LEASE)
    watch.clock.advance(2 * LEASE)
    metadata.away = False
    watch.clock.advance(RENEWAL)
    assert [server.id for server in metadata.servers(expired=True)] == ["other"]
    watch.membership.close(detached=False)


def test_a_shutdown_waits_until_a_scan_has_ended() -> None:
    metadata = MemoryMetadataStore(shared=True)
    watch = Watch(metadata)
    threading.Thread(target=watch.membership._scan).start()
    wait_until(lambda: watch.calls == ["take_over"], "the take-over")
    watch.membership.stop_watching(0.0)
    assert watch.ended == []
    threading.Timer(0.05, watch.gate.set).start()
    watch.membership.stop_watching(WAIT)
    assert watch.ended == ["take_over"]
    watch.membership._scan()
    assert watch.calls == ["take_over"]
    watch.membership.close(detached=False)


def test_the_lease_is_renewed_while_contexts_that_others_have_taken_over_are_ended() -> None:
    clock = ManualClock()
    metadata = MemoryMetadataStore(shared=True, now=clock.now)
    watch = Watch(metadata)
    metadata.remove_server("this")
    watch.membership._renew_and_schedule()
    wait_until(lambda: watch.calls == ["on_removed"], "the end of the contexts")
    clock.advance(LEASE / 2)
    watch.membership._renew_and_schedule()
    clock.advance(LEASE / 2)
    assert [server.id for server in metadata.servers(expired=False)] == ["this"]
    watch.gate.set()
    watch.join_threads()
    assert watch.calls == ["on_removed", "take_over"]
    watch.membership.close(detached=False)


class StoreWithAPause(MemoryMetadataStore):
    """A shared store that calls ``between`` once, when contexts are read."""

    between: Callable[[], object] | None = None

    def contexts(self, query: ContextQuery) -> list[Context]:
        found = super().contexts(query)
        between, self.between = self.between, None
        if between is not None:
            between()
        return found


def test_a_scan_leaves_alone_what_ended_here_since_the_jobs_were_read() -> None:
    metadata = StoreWithAPause(shared=True)
    member = Member(metadata, MemoryBlobStore())
    member.server.start()
    upload(member.server)
    job = member.server.submit(a_request("w.Any"))
    metadata.between = lambda: member.launcher.listeners[0].context_ended(ContextEnd.FAILED)
    assert member.recovery.end_lost().jobs == []
    assert member.server.job(job.id).state is JobState.ERROR
    member.close()


def test_a_killed_context_is_not_brought_back_by_a_job_and_gets_no_more() -> None:
    metadata, blobs = StoreWithAPause(shared=True), MemoryBlobStore()
    dead, alive, other = (Member(metadata, blobs) for _ in range(3))
    for member in (dead, alive, other):
        member.server.start()
    upload(dead.server)
    dead.server.create_context("shared")
    dead.ready()
    dead.server._services.intake.close()
    request = a_request("w.Any", context="shared")
    early = other.server.submit(request)
    dead.server.kill_context("shared")
    metadata.remove_server(dead.id)

    def submit_late() -> None:
        with pytest.raises(ContextStopping):
            other.server.submit(request)

    metadata.between = submit_late
    assert alive.recovery.end_lost().jobs == []
    [job] = alive.server.jobs().jobs
    assert (job.id, job.state) == (early.id, JobState.ERROR)
    for member in (dead, alive, other):
        member.close()


def test_a_submit_in_the_moment_in_which_its_context_moved_is_accepted_elsewhere() -> None:
    metadata, blobs = MemoryMetadataStore(shared=True), MemoryBlobStore()
    owner, other = Member(metadata, blobs), Member(metadata, blobs)
    for member in (owner, other):
        member.server.start()
    upload(owner.server)
    owner.server.create_context("shared")
    owner.ready()
    accepted: list[str] = []

    def submit(event: Event) -> None:
        # The end is stored, but the context is not retired yet.
        if isinstance(event, ContextChanged) and event.context.state.final and not accepted:
            other.server.create_context("shared")
            accepted.append(owner.server.submit(a_request("w.Any", context="shared")).job.context_id)

    owner.server.subscribe(submit)
    owner.launcher.listeners[0].context_ended(ContextEnd.FAILED)
    assert accepted == [other.server.context("shared").id]
    for member in (owner, other):
        member.close()


class StoreThatReadsEarly(MemoryMetadataStore):
    """A shared store that calls ``after`` once, after a context was looked up by its name."""

    after: Callable[[], object] | None = None

    def context_named(self, name: str) -> Context | None:
        found = super().context_named(name)
        after, self.after = self.after, None
        if after is not None:
            after()
        return found


def test_a_submit_in_the_moment_in_which_its_context_is_created_elsewhere_is_accepted() -> None:
    metadata, blobs = StoreThatReadsEarly(shared=True), MemoryBlobStore()
    owner, other = Member(metadata, blobs), Member(metadata, blobs)
    for member in (owner, other):
        member.server.start()
    upload(owner.server)
    metadata.after = lambda: owner.server.create_context("shared")
    job = other.server.submit(a_request("w.Any", context="shared")).job
    assert job.context_id == owner.server.context("shared").id
    for member in (owner, other):
        member.close()


class StoreThatEnqueuesLate(MemoryMetadataStore):
    """A shared store that calls ``before`` once, before a job is stored for a context of another server."""

    before: Callable[[], object] | None = None

    def enqueue_job(self, job: Job, **rest: Any) -> None:
        before, self.before = self.before, None
        if before is not None:
            before()
        super().enqueue_job(job, **rest)


def test_a_submit_finds_the_successor_of_a_context_that_dies_on_another_server() -> None:
    metadata, blobs = StoreThatEnqueuesLate(shared=True), MemoryBlobStore()
    owner, other = Member(metadata, blobs), Member(metadata, blobs)
    for member in (owner, other):
        member.server.start()
    upload(owner.server)
    owner.server.create_context("shared", {"supervise": True})
    owner.ready()
    before = other.server.context("shared")
    metadata.before = lambda: owner.launcher.listeners[0].context_ended(ContextEnd.FAILED)
    job = other.server.submit(a_request("w.Any", context="shared")).job
    assert job.context_id == other.server.context("shared").id != before.id
    for member in (owner, other):
        member.close()


class SlowFetcher(MemoryFetcher):
    """Fetches nothing until ``gate`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.fetching = threading.Event(), threading.Event()

    @contextmanager
    def fetch(self, uri: str, **rest: Any) -> Iterator[Fetched]:
        self.fetching.set()
        self.gate.wait(WAIT)
        with super().fetch(uri, **rest) as fetched:
            yield fetched


def test_a_server_that_starts_does_what_others_ask_while_it_fetches_files() -> None:
    metadata, blobs, fetcher = MemoryMetadataStore(shared=True), MemoryBlobStore(), SlowFetcher()
    settings = Settings.from_mapping({"spark": {"contexts": {"slow": {"cp": "http://repository/slow.jar"}}}})
    dead, other = Member(metadata, blobs), Member(metadata, blobs)
    new = Member(metadata, blobs, fetcher=fetcher, settings=settings)
    for member in (dead, other):
        member.server.start()
    dead.server.create_context("shared", {"supervise": True})
    metadata.remove_server(dead.id)
    starting = threading.Thread(target=new.server.start)
    starting.start()
    try:
        assert fetcher.fetching.wait(WAIT)
        assert other.server.context("shared").owner == new.id
        other.server.stop_context("shared")
        assert other.server.context("shared").stop_requested
    finally:
        fetcher.gate.set()
        starting.join(WAIT)
        for member in (dead, other, new):
            member.close()


def test_a_scan_does_not_end_contexts_that_are_detached_meanwhile() -> None:
    metadata = StoreWithAPause(shared=True)
    member = Member(metadata, MemoryBlobStore())
    member.server.start()
    member.server.create_context("shared")
    before = member.server.context("shared")
    metadata.between = member.server._services.registry.detach_all
    member.recovery.end_lost()
    assert metadata.context_named("shared") == before
    member.close()


def test_a_server_that_is_closing_takes_nothing_over() -> None:
    metadata = StoreWithAPause(shared=True)
    dead, closing = Member(metadata, MemoryBlobStore()), Member(metadata, MemoryBlobStore())
    dead.server.start()
    closing.server.start()
    dead.server.create_context("shared")
    metadata.remove_server(dead.id)
    metadata.between = closing.server.drain
    closing.recovery.end_lost()
    assert closing.server.context("shared").owner == dead.id
    closing.close()
    dead.close()


def test_a_server_takes_no_context_over_that_belongs_to_a_living_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "FORCE", 0.1)  # the first server does not see that its context ends
    metadata, blobs = MemoryMetadataStore(shared=True), MemoryBlobStore()
    launcher = InlineLauncher({})
    first = Member(metadata, blobs, launcher=launcher)
    first.server.start()
    first.server.create_context("shared").result(WAIT)
    second = Member(metadata, blobs, launcher=launcher)
    second.server.start()
    assert second.server.context("shared").owner == first.id
    first.close()
    second.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_histories_lose_nothing_and_run_nothing_twice(seed: int) -> None:
    Torture(seed, *shared_memory()).run(steps=120)


@pytest.mark.parametrize("contexts", [0, 1])
def test_a_server_that_detaches_stays_registered_only_for_contexts_that_it_leaves(contexts: int) -> None:
    store, blobs = MemoryMetadataStore(shared=True), MemoryBlobStore()
    launcher = InlineLauncher({})
    leaving, staying = Member(store, blobs, launcher=launcher), Member(store, blobs)
    try:
        for member in (leaving, staying):
            member.server.start()
        for _ in range(contexts):
            leaving.server.create_context("shared").result(WAIT)
        leaving.server.close(contexts="detach")
        assert len([server for server in store.servers() if server.id == leaving.id]) == contexts
    finally:
        leaving.close()
        staying.close()
