"""Several servers over one store in memory."""

from __future__ import annotations

import pytest

from jobserver_core import ContextState, StorageError
from jobserver_core.memory import MemoryBlobStore, MemoryMetadataStore
from jobserver_core.testing.clock import ManualClock
from several_servers import RENEWAL, Member, SeveralServersSuite
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


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_histories_lose_nothing_and_run_nothing_twice(seed: int) -> None:
    Torture(seed, *shared_memory()).run(steps=120)
