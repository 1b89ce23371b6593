"""Membership of this server among those that share the metadata store, and its watch over the others.

Theory
======

The problem: several servers work on one store. When one of them dies, the others must end its contexts and
run its waiting jobs; while it lives, they must not touch them. No server can tell whether another one is
dead, or only slow, cut off, or paused for a minute and about to continue.

The idea: each server is registered with a *lease*, a time on the store's clock, and renews it while it runs.
When a lease has expired, another server may remove the registration. This, and nothing else, declares the
server dead. The store lets either a renewal or a removal win. Then the records of the removed server are
taken over one by one, each with a higher *epoch*, which every write compares
(:mod:`~jobserver_core.ports.metadata`).

A server that was removed although it is alive finds out in two ways: its writes to records that were taken
over fail, and its next renewal finds no registration. It then ends its contexts on its own machine, without
touching what others have taken over, and registers again like a server that has just started.

The invariants: a server registers before it creates a record, so a record of an unregistered server has lost
its owner. An expired lease alone changes nothing: a server that was slow but was not removed simply
continues. Only the store's clock judges leases, so the clocks of machines may differ.

If the server that removed another one dies before it has taken everything over, the records still belong to
an unregistered server. So every server scans for such records when a registration that it knew has
disappeared, and every :data:`FULL_CHECK_EVERY` renewals in any case.

If the store itself was unavailable, all leases expire at once. So a server that could not renew its own lease
in time gives the others the time of one lease before it judges them, and a server that starts waits for its
first renewal.

Deliberately not handled: a store that is not shared, such as a SQLite file in the data directory. The lock of
the data directory already keeps other servers out, so there is nothing to renew or to watch.
"""

from __future__ import annotations

import importlib.metadata
import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from jobserver_core.errors import StorageError
from jobserver_core.models.contexts import ContextQuery
from jobserver_core.models.lifecycle import CONTEXTS
from jobserver_core.models.servers import ServerStatus
from jobserver_core.ports import Clock, MetadataStore, Timer
from jobserver_core.repeats import Repeats
from jobserver_core.running.notices import Topic, notice_of

if TYPE_CHECKING:
    from jobserver_core.config.settings import ServerSettings

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

RENEWAL = 0.3
"""The fraction of its lease after which a server renews it."""
FULL_CHECK_EVERY = 20
"""Every how many renewals a server scans for records without an owner, even if no server has disappeared."""


@attrs.define(kw_only=True, eq=False)
class Membership:
    """Registers this server, renews its lease, and removes servers whose lease has expired. Thread-safe.

    ``address`` tells people where this server runs. A lease is never shorter than ``reattach_timeout``,
    because contexts wait that long for the next server on the same data directory. ``on_removed`` is called
    after another server has removed this one and this one has registered again; it must end the contexts.
    ``take_over`` is called when there may be records of servers that are gone; its calls do not overlap. Both
    run on separate threads, so the lease is renewed meanwhile. Methods raise StorageError if the metadata
    store fails, unless they say otherwise.
    """

    _metadata: MetadataStore
    _clock: Clock
    _server_id: str
    _address: str
    _settings: ServerSettings
    _reattach_timeout: float
    _on_removed: Callable[[], None]
    _take_over: Callable[[], None]
    _lease: float = attrs.field(init=False)
    _known: frozenset[str] = attrs.field(default=frozenset(), init=False)
    _renewals: int = attrs.field(default=0, init=False)
    _joined: bool = attrs.field(default=False, init=False)
    _draining: bool = attrs.field(default=False, init=False)
    _removed: bool = attrs.field(default=False, init=False)
    leases_taken_over: int = attrs.field(default=0, init=False)
    """How many other servers this one has declared dead."""
    leases_lost: int = attrs.field(default=0, init=False)
    """How often others have declared this one dead."""
    _renewed_at: float = attrs.field(default=0.0, init=False)
    _judges_from: float = attrs.field(default=0.0, init=False)
    _watching: bool = attrs.field(default=False, init=False)
    _scan_wanted: bool = attrs.field(default=False, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _timer: Timer | None = attrs.field(default=None, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _working: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _scanning: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self._lease = max(self._settings.lease, self._reattach_timeout)

    def join(self) -> None:
        """Register this server."""
        now = self._clock.now()
        version = importlib.metadata.version("jobserver-core")
        self._metadata.register_server(
            self._server_id, started_at=now, address=self._address, lease=self._lease, version=version
        )
        self._joined = True
        if self._draining:
            self._metadata.drain_server(self._server_id)
        self._renewed_at = self._clock.monotonic()
        if not self._metadata.shared:
            self._remove_dead()
        self._known = self.others()

    def drain(self) -> None:
        """Store that this server accepts no new work, so that the others give it none. Idempotent.

        Every renewal then tries again, even if this raises.
        """
        self._draining = True
        if self._joined and not self._closed:
            self._metadata.drain_server(self._server_id)

    def others(self) -> frozenset[str]:
        """Return the ids of all other servers whose records must not be touched."""
        if not self._metadata.shared:
            return frozenset()
        return frozenset(server.id for server in self._metadata.servers()) - {self._server_id}

    def statuses(self) -> list[ServerStatus]:
        """Return all servers with what they run."""
        expired = {s.id for s in self._metadata.servers(expired=True)} if self._metadata.shared else set()
        living = self._metadata.contexts(ContextQuery(states=CONTEXTS.live_states))
        contexts = Counter(context.owner for context in living)
        return [
            ServerStatus(
                **attrs.asdict(server),
                expired=server.id in expired,
                leased=self._metadata.shared,
                contexts=contexts[server.id],
            )
            for server in self._metadata.servers()
        ]

    @property
    def has_heirs(self) -> bool:
        """Whether another server would take over what this one leaves. A guess if the store fails."""
        try:
            return bool(self.heirs())
        except StorageError:
            return self.has_peers

    def heirs(self) -> list[str]:
        """Return the ids of the other servers that are alive and accept work."""
        if not self._metadata.shared:
            return []
        servers = self._metadata.servers(expired=False)
        return [server.id for server in servers if server.id != self._server_id and not server.draining]

    def search_now(self, ids: frozenset[str] | None) -> None:
        """Look at once for what these servers have left."""
        if not ids:
            return  # every renewal checks anyway
        with self._working:
            if not self._closed:
                self._scan_wanted = True
                self._renew()

    def search_given(self, ids: frozenset[str] | None) -> None:
        """Look at once for what was given to these servers, if this is one of them."""
        if ids and self._server_id in ids:
            self.search_now(ids)

    @property
    def has_peers(self) -> bool:
        """Whether other servers were registered at the last renewal."""
        return bool(self._known)

    def start(self) -> None:
        """Start to renew the lease."""
        if self._metadata.shared:
            self._schedule()

    def watch(self) -> None:
        """Start to call ``take_over`` for servers that disappear."""
        self._watching = True

    def stop_watching(self, timeout: float) -> None:
        """Stop calling ``take_over``, and wait up to ``timeout`` seconds for a running call."""
        self._watching = False
        if self._scanning.acquire(timeout=timeout):
            self._scanning.release()
        else:
            _log.warning("still taking over what a server left after %g s", timeout)

    def close(self, *, detached: bool) -> None:
        """Give up the registration, or keep it if contexts were left to the next server."""
        with self._lock:
            if self._closed or not self._joined:
                return
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
        with self._working:  # a renewal at the same time would register this server again
            try:
                if detached:
                    self._metadata.renew_server(self._server_id, lease=self._reattach_timeout)
                else:
                    self._metadata.remove_server(self._server_id)
                    self._metadata.notify(f"[{notice_of(Topic.LEFT, self._server_id)}]")
            except StorageError as error:
                _log.warning("this server stays registered until its lease expires: %s", error)

    # -- renewals ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        def renew() -> None:  # not on the clock's thread: a store that hangs must not block other timers
            threading.Thread(target=self._renew_and_schedule, name="jobserver-lease", daemon=True).start()

        with self._lock:
            if not self._closed:
                self._timer = self._clock.call_later(self._settings.lease * RENEWAL, renew)

    def _renew_and_schedule(self) -> None:
        try:
            with self._working:
                if not self._closed:
                    self._renew()
        except StorageError as error:
            _repeats.warning("lease", "cannot renew the lease of this server, retrying: %s", error)
        except Exception:  # noqa: BLE001 - whatever goes wrong, the next renewal must happen
            _log.exception("cannot watch the other servers")
        finally:
            self._schedule()

    def _renew(self) -> None:
        self._renewals += 1
        if not self._metadata.renew_server(self._server_id, lease=self._lease):
            _log.error("this server did not renew its lease in time, and others have taken its contexts over")
            self._removed = True
            self.leases_lost += 1
        if self._removed:  # even if an earlier attempt to register seemed to fail
            self.join()
            self._removed = False
            end = self._end_contexts_after_removal
            threading.Thread(target=end, name="jobserver-removed", daemon=True).start()
        now = self._clock.monotonic()
        if now - self._renewed_at > self._settings.lease / 2:
            self._judges_from = now + self._lease
        self._renewed_at = now
        if self._draining:
            self._metadata.drain_server(self._server_id)
        if now >= self._judges_from:
            self._remove_dead()
        others = self.others()
        self._scan_wanted |= bool(self._known - others) or self._renewals % FULL_CHECK_EVERY == 0
        self._known = others
        if self._watching and self._scan_wanted:
            # On a separate thread, because it may be slow and the lease must be renewed meanwhile.
            threading.Thread(target=self._scan, name="jobserver-failover", daemon=True).start()

    def _remove_dead(self) -> None:
        """Remove the servers whose lease has expired, or all if nobody shares the store."""
        shared = self._metadata.shared
        for server in self._metadata.servers(expired=True if shared else None):
            if server.id == self._server_id:
                continue
            if self._metadata.remove_server(server.id, only_expired=shared) and shared:
                self.leases_taken_over += 1
                text = "server %s (%s) did not renew its lease: taking over what it left"
                _log.warning(text, server.id, server.address)

    def _end_contexts_after_removal(self) -> None:
        """End the contexts from before this server was removed, then look for what they left."""
        try:
            self._on_removed()
        except Exception:  # noqa: BLE001 - the server continues, whatever happened to its contexts
            _log.exception("cannot end the contexts that other servers have taken over")
        self._scan_wanted = True
        self._scan()

    def _scan(self) -> None:
        if not self._scanning.acquire(blocking=False):
            return  # the next renewal tries again
        try:
            if self._watching and not self._closed:
                self._scan_wanted = False
                self._take_over()
        except Exception as error:  # noqa: BLE001 - the next scan may succeed
            unexpected = not isinstance(error, StorageError)
            text = "cannot take over what a server left, retrying: %s"
            _repeats.warning("left", text, error, exc_info=unexpected)
            self._scan_wanted = True
        finally:
            self._scanning.release()
