"""Servers that are stopped in an orderly way, and what becomes of their work when storage fails meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from conditions import wait_until
from jobserver_core import (
    Context,
    ContextQuery,
    ContextState,
    FailureKind,
    JobState,
    Settings,
    StorageError,
)
from jobserver_core.memory import InlineLauncher, MemoryBlobStore, MemoryMetadataStore
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.servers import Server
from jobserver_core.ports import ContextEnd, JobOutcome
from jobserver_core.testing.clock import ManualClock
from serving import FUNCTIONS, WAIT, a_request, upload
from several_servers import Member
from torture import LEASE

SUPERVISED = {"supervise": True}


class Store(MemoryMetadataStore):
    """A shared store, whose writes of contexts and servers may fail."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        super().__init__(shared=True, now=self.clock.now)
        self.fails: Callable[[str, Context | None], bool] = lambda _what, _context: False
        self.away = False

    def fail_once(self, what: str, when: Callable[[Context | None], bool] = lambda _context: True) -> None:
        """Let the next write of this kind fail."""

        def fails(kind: str, context: Context | None) -> bool:
            if kind == what and when(context):
                self.fails = lambda _what, _context: False
                return True
            return False

        self.fails = fails

    @property
    def failed(self) -> bool:
        """Whether the write has failed that had to."""
        return self.fails.__name__ == "<lambda>"

    def _write(self, what: str, context: Context | None = None) -> None:
        if self.away or self.fails(what, context):
            raise StorageError(message="the database is down")

    def advance_context(self, context: Context, **rest: Any) -> None:
        self._write("context", context)
        super().advance_context(context, **rest)

    def drain_server(self, server_id: str) -> bool:
        self._write("drain")
        return super().drain_server(server_id)

    def servers(self, *, expired: bool | None = None) -> list[Server]:
        if self.away:
            raise StorageError(message="the store is closed")
        return super().servers(expired=expired)

    def expire(self, server_id: str) -> None:
        """Let the lease of a server expire."""
        others = [server.id for server in self.servers() if server.id != server_id]
        self.clock.advance(LEASE)
        for other in others:
            self.renew_server(other, lease=LEASE)


class Fleet:
    """Servers on one store."""

    def __init__(self) -> None:
        self.store, self.blobs = Store(), MemoryBlobStore()
        self.members: list[Member] = []

    def boot(self, **ports: Any) -> Member:
        member = Member(self.store, self.blobs, **ports)
        self.members.append(member)
        member.server.start()
        return member

    def history(self, name: str = "shared") -> list[Context]:
        """Return the records of a context and its successors, newest first."""
        return self.store.contexts(ContextQuery(name=name))


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    for member in fleet.members:
        member.close()


class SweepingLauncher(InlineLauncher):
    """Its contexts leave something in a cluster."""

    def __init__(self) -> None:
        super().__init__({})
        self.swept: list[str] = []

    def sweep_lost(self, contexts: Sequence[Context]) -> None:
        self.swept += [context.name for context in contexts]


def test_a_takeover_that_storage_interrupts_loses_no_context(fleet: Fleet) -> None:
    settings = Settings.from_mapping({"spark": {"contexts": {"one": {}, "two": {}}}})
    launcher = SweepingLauncher()
    dead = fleet.boot(launcher=InlineLauncher({}), settings=settings)
    alive = fleet.boot(launcher=launcher, settings=settings)
    dead.server._services.registry.detach_all()  # a crash would release its files, too
    ends: list[str] = []

    def second_end(context: Context | None) -> bool:
        if context is not None and context.state.final:
            ends.append(context.name)
        return len(ends) == 2

    fleet.store.fail_once("context", second_end)
    fleet.store.remove_server(dead.id)
    alive.renew()
    assert fleet.store.failed
    assert sum(fleet.history(name)[0].state.final for name in ("one", "two")) == 1
    alive.renew()
    wait_until(lambda: len(launcher.swept) == 2, "the sweep", WAIT)
    assert sorted(launcher.swept) == ["one", "two"]
    for name in ("one", "two"):
        found = alive.server.context(name)
        assert found.owner == alive.id
        assert not found.state.final


def test_a_job_that_may_run_again_outlives_a_takeover_that_storage_interrupts(fleet: Fleet) -> None:
    leaving = fleet.boot(launcher=InlineLauncher(FUNCTIONS))
    staying = fleet.boot()
    upload(leaving.server)
    jobs = []
    for name in ("one", "two"):
        leaving.server.create_context(name, SUPERVISED).result(WAIT)
        jobs.append(leaving.server.submit(a_request("w.Sleep", context=name, restartable=True)))
    wait_until(lambda: all(leaving.server.job(job.id).state is JobState.RUNNING for job in jobs))
    ends: list[str] = []

    def second_end(context: Context | None) -> bool:
        if context is not None and context.state.final:
            ends.append(context.name)
        return len(ends) == 2

    fleet.store.fail_once("context", second_end)
    leaving.server.close(0)
    wait_until(lambda: fleet.store.failed, "the failure", WAIT)
    staying.renew()
    wait_until(
        lambda: all(staying.server.job(job.id).state is JobState.RESTARTING for job in jobs), "the jobs", WAIT
    )


def test_a_crash_counts_although_the_context_came_from_a_server_that_was_stopped(fleet: Fleet) -> None:
    leaving = fleet.boot(launcher=InlineLauncher(FUNCTIONS))
    servers = [fleet.boot()]
    leaving.server.create_context("shared", SUPERVISED).result(WAIT)
    leaving.server.close(0)
    wait_until(lambda: fleet.history()[0].owner == servers[0].id, "the takeover", WAIT)
    assert fleet.history()[0].consecutive_restarts == 0
    for crashes in (1, 2):
        servers.append(fleet.boot())
        fleet.store.expire(servers[-2].id)
        servers[-1].renew()
        found, before, *_ = fleet.history()
        assert (found.owner, found.consecutive_restarts) == (servers[-1].id, crashes)
        assert before.state is ContextState.ERROR
        assert before.error is not None
        assert before.error.message == "the job server ended, and its contexts with it"


def test_a_context_that_its_server_takes_back_is_not_left_any_more(fleet: Fleet, tmp_path: Path) -> None:
    launcher = InlineLauncher(FUNCTIONS)
    first = fleet.boot(launcher=launcher, data_dir=tmp_path)
    other = fleet.boot()
    first.server.create_context("shared", SUPERVISED).result(WAIT)
    first.server._services._leave_contexts()
    assert fleet.history()[0].error is not None
    launcher.detach()  # the server is killed before the context has stopped
    first.server._services.registry.detach_all()
    first.server._services.resources.close()
    again = fleet.boot(launcher=launcher, data_dir=tmp_path)
    [context] = fleet.history()
    assert (context.owner, context.state, context.error) == (again.id, ContextState.RUNNING, None)
    launcher.detach()
    again.server._services.registry.detach_all()
    fleet.store.expire(again.id)
    other.renew()
    found, before = fleet.history()
    assert (before.state, found.consecutive_restarts) == (ContextState.ERROR, 1)


def test_a_context_is_handed_over_although_storage_fails_for_a_moment(fleet: Fleet) -> None:
    leaving = fleet.boot(launcher=InlineLauncher(FUNCTIONS))
    staying = fleet.boot()
    leaving.server.create_context("shared", SUPERVISED).result(WAIT)
    fleet.store.fail_once("context", lambda context: context is not None and context.error is not None)
    closing = threading.Thread(target=leaving.server.close, args=(WAIT,))
    closing.start()

    def closed() -> bool:
        leaving.clock.advance(0.1)
        return not closing.is_alive()

    wait_until(closed, "the shutdown", WAIT)
    assert fleet.store.failed
    wait_until(lambda: len(fleet.history()) == 2, "the successor", WAIT)
    found, before = fleet.history()
    assert (found.owner, found.state) == (staying.id, ContextState.RESTARTING)
    assert before.state is ContextState.FINISHED


def test_that_a_server_drains_is_stored_once_storage_works_again(fleet: Fleet) -> None:
    draining = fleet.boot()
    fleet.store.fail_once("drain")
    draining.server.drain()
    assert fleet.store.failed
    draining.renew()
    assert [server.draining for server in fleet.store.servers()] == [True]


def test_a_context_that_is_left_while_it_starts_ends_with_the_reason(fleet: Fleet) -> None:
    leaving = fleet.boot(launcher=InlineLauncher(FUNCTIONS, start_delay=3600))
    fleet.boot()
    leaving.server.create_context("shared", SUPERVISED)
    leaving.server.close(0)
    wait_until(lambda: len(fleet.history()) == 2, "the successor", WAIT)
    found, before = fleet.history()
    assert (found.state, found.consecutive_restarts) == (ContextState.RESTARTING, 0)
    assert before.state is ContextState.ERROR
    assert before.error is not None
    assert "was stopped" in before.error.message


@pytest.mark.parametrize(
    ("outcome", "again"),
    [
        (JobOutcome(error=ErrorInfo(message="no"), failure=FailureKind.RAISED), False),
        (JobOutcome(error=ErrorInfo(message="gone"), failure=FailureKind.CONTEXT_LOST), True),
        (JobOutcome(killed=True), True),
    ],
)
def test_only_a_job_that_ends_with_its_context_runs_again_elsewhere(
    fleet: Fleet, outcome: JobOutcome, again: bool
) -> None:
    leaving, _ = fleet.boot(), fleet.boot()
    upload(leaving.server)
    leaving.server.create_context("shared", SUPERVISED)
    leaving.ready()
    job = leaving.running_job("shared", restartable=True)
    leaving.server._services._leave_contexts()
    leaving.launcher.listeners[0].job_ended(job, outcome)
    leaving.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
    found = leaving.server.job(job)
    assert found.state.final is not again
    assert found.failure is (None if again else FailureKind.RAISED)


def test_an_orderly_shutdown_logs_no_failures(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    leaving = fleet.boot(launcher=InlineLauncher(FUNCTIONS))
    other = fleet.boot()
    leaving.server.create_context("shared", SUPERVISED).result(WAIT)
    with caplog.at_level("WARNING"):
        leaving.server.drain()
        leaving.server.close(1)
        other.server.close(WAIT)  # it would log that the store is away
        fleet.store.away = True  # as a store is that was closed
        leaving.server.close(1)
        fleet.store.away = False
    names = ("jobserver_core.shutdown", "jobserver_core.running.servers", "jobserver_core.assembly")
    assert [record.getMessage() for record in caplog.records if record.name in names] == []
