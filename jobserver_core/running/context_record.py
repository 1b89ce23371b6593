"""The record of a living context: who may change it, and what follows from a change.

Theory
======

The problem: users, the launcher and timers change one context and its jobs from any thread. Their changes
must be stored in one order, and everybody who watches must see that order. Nobody who is informed of a
change may deadlock with the context, and a store that fails must lose nothing that has already happened.

The idea is three steps, always in this order:

1. The *retry queue* decides when a change is tried. What a launcher reports, and what the server decides by
   itself, is put there: it is called at once, or after the changes that wait for the store. What a user
   asks for does not pass through it: it is tried once, and fails with the store's error.
2. The *lock* decides who changes. It guards the record, the jobs and their queue. Inside :meth:`changing` a
   change looks at the present state, writes to the store by compare-and-set, and only then changes the
   objects in memory. Nothing else happens under the lock.
3. The *outbox* holds what follows: events, waiters, calls to the launcher. Entries are added under the
   lock, so their order is that of the changes. They run after the lock is released, one at a time.

The invariants: what follows a change never precedes its record. No code of a subscriber, of a waiter's
callback or of a launcher runs under the lock. An entry of the outbox may start a change, which takes the
lock again and adds to the end of the same outbox. A deposit of blobs is begun before the lock is taken,
never under it: the sweep holds all deposits back, so the opposite order could deadlock.

Deliberately not handled: the end of the process. The outbox and the retry queue are in memory; the next
start reconciles the records with the truth.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from jobserver_core.environment import Environment
from jobserver_core.errors import ContextFailed, ContextNotFound, ContextStopping, StaleState, StorageError
from jobserver_core.models.contexts import Context
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.lifecycle import CONTEXTS, ContextEvent, ContextState
from jobserver_core.running.outbox import Outbox
from jobserver_core.running.retries import RetryQueue
from jobserver_core.running.waiting import Promise

__all__ = ["ContextRecord"]

_log = logging.getLogger(__name__)


class ContextRecord:
    """One context as it is stored, with its lock, its outbox, its retry queue, and the promises about it."""

    def __init__(self, environment: Environment, context: Context) -> None:
        self._environment = environment
        self.lock = threading.RLock()
        self.current = context
        self.outbox = Outbox()
        self.changes = RetryQueue(environment.clock, f"context {context.name}")
        self.ready: Promise[Context] = Promise(f"context {context.name}")
        self.ended: Promise[Context] = Promise(f"context {context.name}")
        self.ready_reported = False
        """Whether the launcher reported that it is ready, though that may not be stored yet."""
        self.end_reported = False
        """Whether the launcher reported its end, though that may not be stored yet."""

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock inside the block; what follows from the changes happens after it."""
        try:
            with self.lock:
                yield
        finally:
            self.outbox.drain()

    def advance(self, event: ContextEvent | None, **changes: Any) -> None:
        """Store the context with an event's next state (None: the same state) and other changes.

        A write that was stored although the store reported a failure is recognised when it is repeated.

        Raises:
            IllegalTransition: The state does not accept the event.
            StaleState: Another writer changed the state.
            StorageError: The store failed; nothing was changed.
        """
        before = self.current.state
        state = CONTEXTS.next(before, event) if event else before
        context = attrs.evolve(self.current, state=state, **changes)
        try:
            self._environment.metadata.advance_context(context, expected=before)
        except StaleState:
            stored = self._environment.metadata.context(context.id)
            if stored is None or stored.state is not state:
                raise
            context = stored
        self.current = context
        self.outbox.put(lambda: self._environment.context_changed(context))

    def end(self, event: ContextEvent, error: ErrorInfo | None) -> None:
        """Store the end; where another writer stored one first, adopt it."""
        if CONTEXTS.next(self.current.state, event) is ContextState.ERROR and error is None:
            error = ErrorInfo(message="the context ended by itself")
        try:
            self.advance(event, error=error, ended_at=self._environment.clock.now())
        except StaleState as stale:
            _log.warning("context %s was ended by another writer: %s", self.current.name, stale)
            self.current = self._environment.metadata.context(self.current.id) or self.current

    def check_accepts_jobs(self) -> None:
        """Raise an error when the context takes no jobs any more.

        Raises:
            ContextNotFound: It has ended.
            ContextStopping: It is stopping.
            StorageError: It has ended, which cannot be stored yet.
        """
        context = self.current
        if context.state.final:
            raise ContextNotFound(name=context.name)
        if context.state is ContextState.STOPPING:
            raise ContextStopping(name=context.name)
        if self.end_reported:
            raise StorageError(
                message=f"context {context.name} has ended, which cannot be stored yet; try again later"
            )

    def notify_ready(self) -> None:
        """Inform those who wait until jobs can run, once the lock is released."""
        context = self.current
        self.outbox.put(lambda: self.ready.keep(context))

    def notify_ended(self) -> None:
        """Inform everybody who waits that the context is final. Runs as an entry of the outbox."""
        context = self.current
        error = context.error or ErrorInfo(message=f"context {context.name} ended before it was ready")
        self.ready.fail(ContextFailed(name=context.name, error=error))
        self.ended.keep(context)
