"""The record of a living context, how it changes, and the effects of a change.

Theory
======

The problem: users, the launcher and timers change one context and its jobs from any thread. Their changes
must be stored in one order, and every observer must see that order. An observer of a change must not
deadlock with the context, and a failing store must not lose anything that has already happened.

The idea is three steps, always in this order:

1. The *retry queue* decides when a change is tried. Reports from a launcher and decisions of the server go
   through it. They are tried at once, or after the changes that are already waiting for the store. A user's
   request bypasses it: it is tried once, and fails with the store's error.
2. The *lock* allows one change at a time. It guards the record, the jobs and their queue. Inside
   :meth:`changing`, a change reads the current state, writes to the store by compare-and-set, and only then
   changes the objects in memory. Nothing else happens under the lock.
3. Two *outboxes* hold the effects: ``calls`` for calls to the launcher, ``outbox`` for events and waiters,
   and for the launcher's ``acknowledge``, which must follow the sync. Entries are added under the lock, so
   they are in the order of the changes. They run after the lock is released, one at a time. Notifications of
   a final state first wait for the disk (:mod:`~jobserver_core.running.outbox`); calls to the launcher need
   not, so a free slot is used at once.

The invariants: a change is stored before its effects run. Subscribers, callbacks of waiters and launchers
never run under the lock. An entry of the outbox may start a change, which takes the lock again and appends to
the outboxes. Blobs are pinned and written before the lock is taken, never under it, because that can be slow.

Deliberately not handled: the end of the process. The outboxes and the retry queue are only in memory; the
next start reconciles the records with reality.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jobserver_core.errors import ContextNotFound, ContextStopping, StorageError
from jobserver_core.models.contexts import Context
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.lifecycle import ContextEvent, ContextState
from jobserver_core.ports import Clock
from jobserver_core.running.outbox import Outbox
from jobserver_core.running.records import Records
from jobserver_core.running.retries import RetryQueue
from jobserver_core.running.waiting import Promise, never_ready

_log = logging.getLogger(__name__)


def level_of(context: Context) -> int:
    """Return the level at which the life of a context is logged. Every job may have an ad-hoc one."""
    return logging.DEBUG if context.ad_hoc else logging.INFO


class ContextRecord:
    """The stored state of one context, with its lock, outboxes, retry queue and promises."""

    def __init__(self, context: Context, *, records: Records, clock: Clock) -> None:
        what = f"context {context.name}"
        self._records = records
        self._clock = clock
        self.lock = threading.RLock()
        self.current = context
        self.calls = Outbox()
        self.outbox = Outbox(records.syncer)
        self.changes = RetryQueue(clock, what)
        self.ready: Promise[Context] = Promise(what, records.call_back)
        self.ended: Promise[Context] = Promise(what, records.call_back)
        self.ready_reported = False
        """Whether the launcher has reported the context as ready. This may not be stored yet."""
        self.ended_at: datetime | None = None
        """When the launcher reported the end. This may not be stored yet."""
        self.failure: ErrorInfo | None = None
        """Why a failed context is being killed; its launcher reports only the kill."""
        self.leaving: ErrorInfo | None = None
        """Why another server will restart the context once this one has stopped it."""
        self.draining: ErrorInfo | None = None
        """Why the context accepts no more jobs. Jobs that it has accepted continue."""
        self.ending: ErrorInfo | None = None
        """Which user or limit stopped or killed the context, for the jobs that end with it."""

    @property
    def reason_of_end(self) -> str:
        """Why the context ends, unless it failed; empty if it ends by itself."""
        reason = self.ending or self.draining
        if reason is not None:
            return reason.message
        return "stopped on request" if self.current.stop_requested else ""

    def end_because(self, reason: str) -> None:
        """Remember why the context is stopped or killed. The first reason wins."""
        if reason and self.ending is None:
            self.ending = ErrorInfo(message=reason)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock inside the block; the effects of the changes run after it."""
        try:
            with self.lock:
                yield
        finally:
            self.calls.drain()
            self.outbox.drain()

    def advance(self, event: ContextEvent | None, **changes: Any) -> None:
        """Store the context as :meth:`Records.advance_context` does, and publish it later."""
        self.current = self._records.advance_context(self.current, event, **changes)
        self._publish(self.current)

    def end(self, event: ContextEvent, error: ErrorInfo | None) -> None:
        """Store the end as :meth:`Records.end_context` does, and publish it later."""
        context = self.current = self._records.end_context(
            self.current, event, error, ended_at=self.ended_at, reason=self.reason_of_end
        )
        if context.state is ContextState.ERROR and context.error is not None:
            _log.warning("context %s ended as ERROR: %s", context.name, context.error.message)
        else:
            reason = f": {self.reason_of_end}" if self.reason_of_end else ""
            _log.log(level_of(context), "context %s ended as %s%s", context.name, context.state.value, reason)
        self._publish(context)

    def replace(self, event: ContextEvent, error: ErrorInfo, successor: Context) -> bool:
        """Store the end as :meth:`Records.replace_context` does, and publish both later.

        Returns whether it was stored.
        """
        ended_at = self.ended_at or self._clock.now()
        ended = self._records.replace_context(
            self.current, event, error, ended_at=ended_at, successor=successor
        )
        if ended is None:
            return False
        self.current = ended
        self._publish(ended)
        self._publish(successor)
        return True

    def _publish(self, context: Context) -> None:
        self.outbox.put(lambda: self._records.publish_context(context))

    def check_accepts_jobs(self) -> None:
        """Raise an error if the context no longer accepts jobs.

        Raises:
            ContextNotFound: It has ended.
            ContextStopping: It is stopping.
            StorageError: It has ended, but this cannot be stored yet because storage is failing.
        """
        context = self.current
        if context.state.final or (self.ended_at is not None and not self.changes.failing):
            raise ContextNotFound(name=context.name)
        ending = context.state is ContextState.STOPPING or context.stop_requested
        if ending or self.draining is not None:
            raise ContextStopping(name=context.name)
        if self.ended_at is not None:
            raise StorageError(
                message=f"context {context.name} has ended, but this cannot be stored yet; try again later"
            )

    def notify_ready(self) -> None:
        """Notify those who wait for the context to be ready, once the lock is released."""
        context = self.current
        self.outbox.put(lambda: self.ready.keep(context))

    def notify_ended(self) -> None:
        """Notify all waiters that the context is final. Called by the outbox."""
        context = self.current
        self.ready.fail(never_ready(context))
        self.ended.keep(context)
