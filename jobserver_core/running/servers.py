"""The server among those that share the metadata store, and the watch over the others.

Theory
======

The problem: several servers work on one store. When one of them dies, the others must end its contexts and
run its waiting jobs; while it lives, they must not touch them. No server can see whether another one is dead,
or only slow, or cut off, or paused for a minute and about to continue.

The idea: each server is registered with a *lease*, a time on the store's clock, and renews it while it runs.
When a lease has expired, another server may remove the registration: that, and nothing else, declares the
server dead. The store lets either the renewal or the removal win. Then the records of the removed server are
taken over one by one, each with a higher *epoch*, which every write compares
(:mod:`~jobserver_core.ports.metadata`).

A server that was removed although it lives finds out in two ways. Its writes to a record that was taken over
fail, and its next renewal finds no registration. Then it ends its contexts on its own machine, without
touching what others have taken over, and registers again, as a server that has just started.

The invariants: a server registers before it creates a record, so a record of an unregistered server has lost
its owner. An expired lease alone takes nothing away: a server that was slow but was not removed just goes on.
Only the store's clock judges leases, so clocks of machines may differ.

If the server that removed another one dies before it has taken everything over, the records still belong to
an unregistered server. So every server looks for such records when a registration that it knew has
disappeared, and every :data:`FULL_CHECK_EVERY` renewals in any case.

When the store itself was away, all leases have expired at once. A server that could not renew its own lease
in time therefore gives the others the time of a lease before it judges them, and one that starts waits for
its first renewal.

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
from jobserver_core.models.servers import Server, ServerStatus
from jobserver_core.ports import Clock, MetadataStore, Timer
from jobserver_core.repeats import Repeats
from jobserver_core.running.notices import Topic, notice_of

if TYPE_CHECKING:
    from jobserver_core.config.settings import ServerSettings

__all__ = ["FULL_CHECK_EVERY", "RENEWAL", "Membership"]

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

RENEWAL = 0.3
"""The part of its lease after which a server renews it."""
FULL_CHECK_EVERY = 20
"""After how many renewals a server looks for records without an owner, even if no server has disappeared."""


class Membership:
    """Registers this server, renews its lease, and removes servers whose lease has expired. Thread-safe.

    ``address`` shows people where this server runs. A lease is never shorter than ``reattach_timeout``,
    because contexts wait that long for the next server on the same data directory. ``on_removed`` is called
    when this server was removed by another one and has registered again: it has to end its contexts.
    ``take_over`` is called when there may be records of servers that are gone, once at a time. Both run on
    threads of their own, so the lease is renewed meanwhile.
    """

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        clock: Clock,
        server_id: str,
        address: str,
        settings: ServerSettings,
        reattach_timeout: float,
        on_removed: Callable[[], None],
        take_over: Callable[[], None],
    ) -> None:
        self._metadata = metadata
        self._clock = clock
        self._id = server_id
        self._address = address
        self._lease = max(settings.lease, reattach_timeout)
        self._renewal = settings.lease * RENEWAL
        self._longest_gap = settings.lease / 2
        self._reattach_timeout = reattach_timeout
        self._on_removed = on_removed
        self._take_over = take_over
        self._known: frozenset[str] = frozenset()
        self._renewals = 0
        self._joined = False
        self._draining = False
        self._removed = False
        self._renewed_at = 0.0
        self._judges_from = 0.0
        self._watching = False
        self._look_wanted = False
        self._lock = threading.Lock()
        self._timer: Timer | None = None
        self._closed = False
        self._working = threading.Lock()
        self._looking = threading.Lock()

    def join(self) -> None:
        """Register this server. Raises StorageError."""
        now = self._clock.now()
        version = importlib.metadata.version("jobserver-core")
        self._metadata.register_server(
            self._id, started_at=now, address=self._address, lease=self._lease, version=version
        )
        self._joined = True
        if self._draining:
            self._metadata.drain_server(self._id)
        self._renewed_at = self._clock.monotonic()
        if not self._metadata.shared:
            self._remove_dead()
        self._known = self.others()

    def drain(self) -> None:
        """Store that this server accepts no new work, so that the others give it none. Idempotent.

        Raises StorageError; then every renewal tries again.
        """
        self._draining = True
        if self._joined and not self._closed:
            self._metadata.drain_server(self._id)

    def others(self) -> frozenset[str]:
        """Return the ids of all other servers whose records must not be touched. Raises StorageError."""
        if not self._metadata.shared:
            return frozenset()
        return frozenset(server.id for server in self._metadata.servers()) - {self._id}

    def statuses(self) -> list[ServerStatus]:
        """Return all servers with what they run. Raises StorageError."""
        expired = {s.id for s in self._metadata.servers(expired=True)} if self._metadata.shared else set()
        living = self._metadata.contexts(ContextQuery(states=CONTEXTS.live_states))
        contexts = Counter(context.owner for context in living)
        return [
            ServerStatus(**attrs.asdict(server), expired=server.id in expired, contexts=contexts[server.id])
            for server in self._metadata.servers()
        ]

    @property
    def has_heirs(self) -> bool:
        """Whether another server would take over what this one leaves, as far as the store can be read."""
        if not self._metadata.shared:
            return False
        try:
            servers = self._metadata.servers(expired=False)
        except StorageError:
            return self.has_peers
        return any(server.id != self._id and not server.draining for server in servers)

    def servers_left(self, ids: frozenset[str] | None) -> None:
        """Look at once for what these servers have left. Raises StorageError."""
        if not ids:
            return  # every renewal looks anyway
        with self._working:
            if not self._closed:
                self._look_wanted = True
                self._renew()

    @property
    def has_peers(self) -> bool:
        """Whether other servers were registered at the last renewal."""
        return bool(self._known)

    def start(self) -> None:
        """Renew the lease from now on."""
        if self._metadata.shared:
            self._schedule()

    def watch(self) -> None:
        """Call ``take_over`` for servers that disappear from now on."""
        self._watching = True

    def stop_watching(self, timeout: float) -> None:
        """Call ``take_over`` no more, and wait up to ``timeout`` seconds for a call that runs."""
        self._watching = False
        if self._looking.acquire(timeout=timeout):
            self._looking.release()
        else:
            _log.warning("taking over what a server left has not ended after %g s", timeout)

    def close(self, *, detached: bool) -> None:
        """Give up the registration, or keep it for the next server if contexts were left to that one."""
        with self._lock:
            if self._closed or not self._joined:
                return
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
        with self._working:  # a renewal that runs now would register this server again
            try:
                if detached:
                    self._metadata.renew_server(self._id, lease=self._reattach_timeout)
                else:
                    self._metadata.remove_server(self._id)
                    self._metadata.notify(f"[{notice_of(Topic.LEFT, self._id)}]")
            except StorageError as error:
                _log.warning("this server stays registered until its lease expires: %s", error)

    # -- renewals ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        with self._lock:
            if not self._closed:
                self._timer = self._clock.call_later(self._renewal, self._renew_on_thread)

    def _renew_on_thread(self) -> None:
        # Not on the clock's thread: a store that hangs must not block other timers.
        threading.Thread(target=self._renew_and_schedule, name="jobserver-lease", daemon=True).start()

    def _renew_and_schedule(self) -> None:
        try:
            with self._working:
                if not self._closed:
                    self._renew()
        except StorageError as error:
            _repeats.warning("lease", "cannot renew the lease of this server, trying again: %s", error)
        except Exception:  # noqa: BLE001 - whatever goes wrong, the lease has to be renewed the next time
            _log.exception("cannot watch the other servers")
        finally:
            self._schedule()

    def _renew(self) -> None:
        self._renewals += 1
        if not self._metadata.renew_server(self._id, lease=self._lease):
            _log.error("this server did not renew its lease in time, and others have taken its contexts over")
            self._removed = True
        if self._removed:  # even if an earlier attempt to register failed after the store had made it
            self.join()
            self._removed = False
            threading.Thread(target=self._go_on_afresh, name="jobserver-removed", daemon=True).start()
        now = self._clock.monotonic()
        if now - self._renewed_at > self._longest_gap:
            self._judges_from = now + self._lease
        self._renewed_at = now
        if self._draining:
            self._metadata.drain_server(self._id)
        if now >= self._judges_from:
            self._remove_dead()
        others = self.others()
        self._look_wanted |= bool(self._known - others) or self._renewals % FULL_CHECK_EVERY == 0
        self._known = others
        if self._watching and self._look_wanted:
            self._look()

    def _remove_dead(self) -> None:
        """Remove the servers whose lease has expired, or all if nobody shares the store."""
        shared = self._metadata.shared
        for server in self._metadata.servers(expired=True if shared else None):
            if server.id != self._id and self._metadata.remove_server(server.id, only_expired=shared):
                self._report(server)

    def _report(self, server: Server) -> None:
        if self._metadata.shared:
            _log.warning(
                "server %s (%s) did not renew its lease: taking over what it left", server.id, server.address
            )

    def _go_on_afresh(self) -> None:
        """End the contexts of the time before this server was removed, then look for what they left."""
        try:
            self._on_removed()
        except Exception:  # noqa: BLE001 - the server works on, whatever became of its contexts
            _log.exception("cannot end the contexts that other servers have taken over")
        self._look_wanted = True
        self._look_once()

    def _look(self) -> None:
        """Look for records without an owner; it may take long, and the lease has to be renewed meanwhile."""
        threading.Thread(target=self._look_once, name="jobserver-failover", daemon=True).start()

    def _look_once(self) -> None:
        if not self._looking.acquire(blocking=False):
            return  # the next renewal wants it again
        try:
            if self._watching and not self._closed:
                self._look_wanted = False
                self._take_over()
        except Exception as error:  # noqa: BLE001 - the next look may succeed
            unexpected = not isinstance(error, StorageError)
            text = "cannot take over what a server left, trying again: %s"
            _repeats.warning("left", text, error, exc_info=unexpected)
            self._look_wanted = True
        finally:
            self._looking.release()
