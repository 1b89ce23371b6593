"""Pins: they keep blobs that are in use from being swept, also by other servers on the same blob store.

Theory
======

The problem: a blob is written first, and the record that refers to it is stored later. What a context runs
never gets such a record, and may outlive the binary that it came from. A sweep that looks for records alone
would delete both. To write a blob, store a record, and delete a blob are three steps in two stores, and
several servers may take them at the same moment: one uploads the content that another one is about to delete.

The idea: a server first *pins* a blob that it will use, and only then checks whether it exists, or writes it.
A sweep first marks a blob as being *removed*, then looks for records and pins, and deletes it only if there
are none. Both marks are in one place: in this process, and on a shared metadata store also there. Each is
committed before its writer looks for the other one. So if a pin and a removal meet, at least one of them sees
the other. A removal that sees a pin gives up. A pin that sees a removal stays, and waits until the removal is
over; then the blob is there as before, or is written again.

The invariants: no blob is deleted that is pinned or that a record refers to. A record that refers to a blob
is stored only while a pin holds it, or while another record refers to it (a job to the binary that it runs).
A removal delays nothing but the use of the same content, and only for a moment.

A pin on a shared store costs a write. So a server keeps a pin after its last use, until a sweep of its own
finds it idle for a while; using the same content again costs nothing. That also makes sure that nobody takes
a deleted blob for an existing one because a network drive caches what this server looked up before.

Servers die. A removal has a lease on the store's clock: when the server that deletes has died, pins wait no
longer than that lease. It deletes only at the beginning of the lease, so a deletion that hangs has arrived by
then or never will, and one that failed keeps the mark until then. The pins of a server that has died, or was
started again, hold for a day: it may be paused in the middle of a request, and continue. A server that finds
out that it was declared dead stores new pins from then on.

Servers of earlier releases do not pin. While one of them is registered, the store begins no removal.

Deliberately not handled: a server that is paused for more than a day in the middle of a request, or for more
than ten minutes between reading the clock and the deletion.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import attrs

from jobserver_core.errors import StorageError
from jobserver_core.ports import Clock, MetadataStore

REMOVAL_LEASE = 600.0
"""Seconds after which nobody waits for a removal any more."""
REMOVAL_TIME = 10.0
"""Seconds after the beginning of a removal in which deletions may begin."""
WAIT = 15.0
"""Seconds for which a pin waits for the end of a removal."""
PAUSE = 0.05
"""Seconds between two checks whether a removal of another server is over."""


@attrs.define(eq=False)
class _Pin:
    """The pin of one blob. Only the metadata store knows its ``id``, and only once it is ``stored``."""

    digest: str
    id: str = attrs.field(factory=lambda: secrets.token_hex(16))
    users: int = 0
    stored: bool = False
    idle_since: float = 0.0


@attrs.define(eq=False)
class BlobPins:
    """The blobs that this server counts on, and those that it removes. Thread-safe."""

    _metadata: MetadataStore
    _clock: Clock
    _server_id: str
    _changed: threading.Condition = attrs.field(factory=threading.Condition, init=False)
    _pins: dict[str, _Pin] = attrs.field(factory=dict, init=False)
    _removing: set[str] = attrs.field(factory=set, init=False)

    @contextmanager
    def pinned(self, digest: str) -> Iterator[None]:
        """Keep a blob inside the block, which checks whether it exists, or writes it.

        Raises:
            StorageError: The pin cannot be stored, or the blob is being removed and that takes too long.
        """
        pin = self._take(digest)
        try:
            yield
        finally:
            self._give_back(pin)

    def remove(self, digests: Iterable[str], delete: Callable[[str], None]) -> int:
        """Delete those of the blobs that no record refers to and nobody pins; return how many.

        Raises what ``delete`` does, and StorageError. One thread at a time may call this.
        """
        with self._changed:
            free = [digest for digest in digests if digest not in self._pins]
            self._removing.update(free)
        try:
            return self._remove_unused(free, delete)
        finally:
            with self._changed:
                self._removing.difference_update(free)
                self._changed.notify_all()

    def drop_idle(self, age: float) -> None:
        """Give up the pins that were last used at least ``age`` seconds ago."""
        with self._changed:
            latest = self._clock.monotonic() - age
            idle = [pin for pin in self._pins.values() if not pin.users and pin.idle_since <= latest]
            for pin in idle:  # before the store forgets them: a new use of the blob stores a new pin
                del self._pins[pin.digest]
        if idle:
            self._metadata.unpin_blobs([pin.id for pin in idle])

    def renew(self) -> None:
        """Store new pins from now on, because the earlier ones expire: this server was declared dead."""
        with self._changed:
            self._pins.clear()

    def _take(self, digest: str) -> _Pin:
        with self._changed:
            pin = self._pins.get(digest)
            if pin is None:
                pin = self._pins[digest] = _Pin(digest)
            pin.users += 1  # before it waits, so that no further removal begins
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: digest not in self._removing, WAIT):
                    raise _still_removed(digest)
            if self._metadata.shared and not pin.stored:
                self._store(pin)
        except BaseException:
            self._give_back(pin)
            raise
        return pin

    def _store(self, pin: _Pin) -> None:
        """Store a pin, and wait until no other server removes its blob."""
        for _ in range(int(WAIT / PAUSE)):
            if self._metadata.pin_blob(pin.id, server_id=self._server_id, digest=pin.digest):
                pin.stored = True
                return
            time.sleep(PAUSE)
        raise _still_removed(pin.digest)

    def _give_back(self, pin: _Pin) -> None:
        with self._changed:
            pin.users -= 1
            pin.idle_since = self._clock.monotonic()
            if not (pin.users or self._metadata.shared):
                del self._pins[pin.digest]

    def _remove_unused(self, digests: list[str], delete: Callable[[str], None]) -> int:
        if not self._metadata.shared:
            unused = self._metadata.unreferenced(digests)
            for digest in unused:
                delete(digest)
            return len(unused)
        deadline = self._clock.monotonic() + REMOVAL_TIME
        over = set(digests)
        removed = 0
        try:
            for digest in self._metadata.begin_removal(
                digests, server_id=self._server_id, lease=REMOVAL_LEASE
            ):
                if self._clock.monotonic() > deadline:
                    break
                over.discard(digest)  # if deleting it fails, that may still happen later
                delete(digest)
                over.add(digest)
                removed += 1
        finally:
            self._metadata.end_removal(over, server_id=self._server_id)
        return removed


def _still_removed(digest: str) -> StorageError:
    return StorageError(
        message=f"blob {digest} was unused and is being removed; "
        f"try again later, at the latest in {REMOVAL_LEASE / 60:g} minutes"
    )
