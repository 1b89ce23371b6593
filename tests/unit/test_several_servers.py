"""Several servers over one store in memory."""

from __future__ import annotations

from jobserver_core import ContextState
from jobserver_core.memory import MemoryBlobStore, MemoryMetadataStore
from jobserver_core.ports import MetadataStore
from jobserver_core.testing.clock import ManualClock
from several_servers import RENEWAL, Member, SeveralServersSuite

LEASE = 10.0


class TestSeveralServersInMemory(SeveralServersSuite):
    def setup_method(self) -> None:
        self.clock = ManualClock()
        self.metadata = MemoryMetadataStore(shared=True, now=self.clock.now)

    def open(self) -> MetadataStore:
        return self.metadata

    def expire(self, server_id: str) -> None:
        """Let the lease of one server pass, and renew those of the others, as they would have done."""
        others = [server.id for server in self.metadata.servers() if server.id != server_id]
        self.clock.advance(LEASE)
        for other in others:
            self.metadata.renew_server(other, lease=LEASE)

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
