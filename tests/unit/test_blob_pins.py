"""Pins and removals of blobs: what is in use stays, and a use of a blob waits for its deletion."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from conditions import wait_until
from jobserver_core import StorageError
from jobserver_core.binaries import pins as pins_module
from jobserver_core.binaries.pins import REMOVAL_LEASE, REMOVAL_TIME, BlobPins
from jobserver_core.memory import MemoryMetadataStore
from jobserver_core.ports import PIN_EXPIRY
from jobserver_core.testing.builders import a_binary, at, digest_of
from jobserver_core.testing.clock import ManualClock
from serving import WAIT

BLOB, OTHER = digest_of("blob"), digest_of("other")
HOUR = 3600.0


class CountingStore(MemoryMetadataStore):
    """A shared store that counts what pins write."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(shared=True, now=clock.now)
        self.pinned = 0

    def pin_blob(self, pin_id: str, *, server_id: str, digest: str) -> bool:
        self.pinned += 1
        return super().pin_blob(pin_id, server_id=server_id, digest=digest)


class Servers:
    """Two servers on one store, and what they have deleted."""

    def __init__(self, *, shared: bool = True) -> None:
        self.clock = ManualClock()
        self.store = CountingStore(self.clock) if shared else MemoryMetadataStore()
        for server_id in ("first", "second"):
            self.store.register_server(server_id, started_at=at(), address="", lease=HOUR)
        self.first = BlobPins(self.store, self.clock, "first")
        self.second = BlobPins(self.store, self.clock, "second")
        self.deleted: list[str] = []

    def remove(self, pins: BlobPins, *digests: str) -> list[str]:
        self.deleted.clear()
        assert pins.remove(digests, self.deleted.append) == len(self.deleted)
        return self.deleted


def waiting(pins: BlobPins, digest: str, entered: Callable[[], None]) -> threading.Thread:
    """Return a thread that pins a blob, and calls ``entered`` once it may use it."""

    def pin() -> None:
        with pins.pinned(digest):
            entered()

    thread = threading.Thread(target=pin)
    thread.start()
    return thread


def test_a_server_that_shares_nothing_removes_what_it_neither_uses_nor_refers_to() -> None:
    servers = Servers(shared=False)
    binary = a_binary("b")
    servers.store.add_binary(binary)
    with servers.first.pinned(BLOB), servers.first.pinned(BLOB):
        assert servers.remove(servers.first, BLOB, OTHER, binary.digest) == [OTHER]
    assert servers.remove(servers.first, BLOB) == [BLOB]


@pytest.mark.parametrize("shared", [False, True])
def test_whoever_uses_a_blob_waits_until_its_deletion_is_over(shared: bool) -> None:
    servers = Servers(shared=shared)
    pins = servers.first
    order: list[str] = []
    deleting, go_on = threading.Event(), threading.Event()

    def delete(digest: str) -> None:
        deleting.set()
        assert go_on.wait(WAIT)
        order.append("deleted")

    sweep = threading.Thread(target=pins.remove, args=([BLOB], delete))
    sweep.start()
    assert deleting.wait(WAIT)
    with pins.pinned(OTHER):  # that of other content does not wait
        order.append("other")
    use = waiting(pins, BLOB, lambda: order.append("used"))
    go_on.set()
    for thread in (sweep, use):
        thread.join(WAIT)
    assert order == ["other", "deleted", "used"]


def test_a_pin_waits_for_the_removal_of_another_server_and_then_prevents_the_next_one() -> None:
    servers = Servers()
    assert servers.store.begin_removal([BLOB], server_id="second", lease=HOUR) == [BLOB]
    entered = threading.Event()
    use = waiting(servers.first, BLOB, entered.set)
    assert isinstance(servers.store, CountingStore)
    store = servers.store
    wait_until(lambda: store.pinned > 1, "the pin to be tried again", WAIT)
    assert not entered.is_set()
    store.end_removal([BLOB], server_id="second")
    assert entered.wait(WAIT)
    use.join(WAIT)
    assert servers.remove(servers.second, BLOB) == []


def test_a_pin_that_waits_in_vain_is_an_error_and_names_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins_module, "WAIT", 0.1)
    servers = Servers()
    servers.store.begin_removal([BLOB], server_id="second", lease=HOUR)
    with pytest.raises(StorageError, match="try again later, at the latest in 10 minutes"):
        servers.first.pinned(BLOB).__enter__()
    servers.clock.advance(HOUR)
    with servers.first.pinned(BLOB):
        pass


def test_a_pin_costs_one_write_until_it_was_idle_for_a_while() -> None:
    servers = Servers()
    assert isinstance(servers.store, CountingStore)
    for _ in range(3):
        with servers.first.pinned(BLOB):
            servers.first.drop_idle(0)
    servers.first.drop_idle(60)
    assert servers.store.pinned == 1
    assert servers.remove(servers.first, BLOB) == servers.remove(servers.second, BLOB) == []
    servers.clock.advance(60)
    servers.first.drop_idle(60)
    assert servers.remove(servers.second, BLOB) == [BLOB]
    with servers.first.pinned(BLOB):
        pass
    assert servers.store.pinned == 2


def test_a_deletion_that_failed_may_still_happen_so_nobody_uses_the_blob_meanwhile() -> None:
    servers = Servers()

    def fail(digest: str) -> None:
        raise StorageError(message="no answer")

    with pytest.raises(StorageError, match="no answer"):
        servers.second.remove([BLOB, OTHER], fail)
    assert not servers.store.pin_blob("pin", server_id="first", digest=BLOB)
    assert servers.store.pin_blob("another", server_id="first", digest=OTHER)
    servers.clock.advance(REMOVAL_LEASE)
    assert servers.store.pin_blob("pin", server_id="first", digest=BLOB)


def test_a_server_that_is_slow_deletes_only_at_the_beginning_of_its_lease() -> None:
    servers = Servers()

    def delete_slowly(digest: str) -> None:
        servers.deleted.append(digest)
        servers.clock.advance(REMOVAL_TIME + 1)

    assert servers.second.remove([BLOB, OTHER], delete_slowly) == 1
    assert servers.deleted == [BLOB]
    assert servers.store.pin_blob("pin", server_id="first", digest=OTHER)


@pytest.mark.parametrize("ended", ["removed", "started again"])
def test_the_pins_of_a_server_that_has_ended_hold_for_a_day(ended: str) -> None:
    servers = Servers()
    with servers.first.pinned(BLOB):
        if ended == "removed":
            servers.store.remove_server("first")
        else:
            servers.store.register_server("first", started_at=at(1), address="", lease=HOUR)
        assert servers.remove(servers.second, BLOB) == []
        servers.clock.advance(PIN_EXPIRY - 1)
        assert servers.remove(servers.second, BLOB) == []
        servers.clock.advance(2)
        assert servers.remove(servers.second, BLOB) == [BLOB]


def test_a_server_that_was_declared_dead_stores_new_pins() -> None:
    servers = Servers()
    with servers.first.pinned(BLOB):
        pass
    servers.store.remove_server("first")
    servers.store.register_server("first", started_at=at(1), address="", lease=HOUR)
    servers.first.renew()
    with servers.first.pinned(BLOB):
        servers.clock.advance(timedelta(days=2).total_seconds())
        assert servers.remove(servers.second, BLOB) == []
