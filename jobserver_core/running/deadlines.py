"""Limits of time on a living context and its jobs.

Theory
======

The problem: a job may wait or run only for so long, and a context may be idle or live only for so long. A
timer for each job would be the obvious way, but nearly all of them are cancelled, and a cancelled timer
occupies the clock until it is due: with a limit of a day, that is a day's worth of jobs.

The idea: a context needs one timer, set to its earliest deadline. Code that adds a deadline calls
:meth:`Deadlines.watch`, which sets a timer only if none is due before. When it fires, all deadlines are
looked at: what is overdue ends, and the earliest of the others is watched. No timer is cancelled: that of a
job that has ended fires once for nothing, and one that is due after a new one stays, to be used later. So
timers do not pile up, even if short limits alternate with long ones.

The invariants: deadlines are monotonic times, so setting the machine's clock moves none of them. A timer that
fires looks at the present state under the context's lock, so a job that ended meanwhile, or a context that is
busy again, is left alone. It does so on another thread than the clock's, because the store may hang.
Deadlines after a restart are derived from the times in the records.

Deliberately not handled: a running job that its launcher cannot end alone. It keeps its slot until it ends by
itself, because ending its context would end the jobs of others; an ad-hoc context has no others, and is
killed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from jobserver_core.config.units import duration_text
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.lifecycle import ContextState
from jobserver_core.ports import Clock, Timer
from jobserver_core.running.context_record import ContextRecord
from jobserver_core.running.context_settings import time_limits
from jobserver_core.running.job_queue import JobQueue

__all__ = ["Deadlines"]

_log = logging.getLogger(__name__)


class Deadlines:
    """Ends overdue jobs of one context, and stops the context when it was idle or lived for too long.

    ``jobs`` returns the context's jobs. ``stop`` begins to stop the context; it is called as an entry of the
    outbox. All methods are called with the context's lock held.
    """

    def __init__(
        self,
        context: ContextRecord,
        *,
        clock: Clock,
        jobs: Callable[[], JobQueue],
        stop: Callable[[], None],
    ) -> None:
        self._context = context
        self._clock = clock
        self._jobs = jobs
        self._stop = stop
        self.limits = time_limits(context.current.settings)
        """The limits in the context's settings."""
        self._ready_at = 0.0
        self._lifetime_ends: float | None = None
        self._stop_at = -math.inf
        self._timers: dict[float, Timer] = {}
        self._closed = False

    def context_ready(self) -> None:
        """Let the limits of the context begin. The lifetime counts from its record, also after a restart."""
        self._ready_at = self._clock.monotonic()
        limit = self.limits.max_lifetime
        if limit is not None:
            lived = (self._clock.now() - self._context.current.started_at).total_seconds()
            self._lifetime_ends = self._clock.monotonic() + min(limit, limit - lived)
            self.watch(self._lifetime_ends)
        self.context_idle()

    def context_idle(self) -> None:
        """Look at the context once it was idle for as long as it may be, or now if it is only draining."""
        if self._context.draining is not None:
            self.watch(self._clock.monotonic())
        elif self.limits.idle_timeout is not None:
            self.watch(self._clock.monotonic() + self.limits.idle_timeout)

    def watch(self, deadline: float) -> None:
        """Look at all deadlines at this time, if not before."""
        if self._closed or min(self._timers, default=math.inf) <= deadline:
            return
        delay = deadline - self._clock.monotonic()
        self._timers[deadline] = self._clock.call_later(
            delay, lambda: self._context.changes.put_on_thread(lambda: self._look(deadline))
        )

    def close(self) -> None:
        """Drop the timers, and look at nothing any more."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _look(self, due: float) -> None:
        """End what is overdue, and set a timer again. Raises StorageError; then it is called again."""
        with self._context.changing():
            if self._closed:
                return
            self._timers.pop(due, None)
            now = self._clock.monotonic()
            upcoming = [self._jobs().expire(now), self._look_at_context(now)]
            for deadline in upcoming:
                if deadline is not None:
                    self.watch(deadline)

    def _look_at_context(self, now: float) -> float | None:
        """Stop the context if it is its time; return when to look again."""
        if self._context.current.state is not ContextState.RUNNING:
            return None
        idle_since = self._jobs().idle_since
        if self._context.draining is None:
            return self._next_limit(now, idle_since)
        if idle_since is None and now < self._stop_at:
            return self._stop_at
        self._context.outbox.put(self._stop)
        return None

    def _next_limit(self, now: float, idle_since: float | None) -> float | None:
        limits, ends = self.limits, []
        if self._lifetime_ends is not None:
            if self._lifetime_ends <= now:
                self._stop_at = self._lifetime_ends + limits.lifetime_grace
                return self._drain("has reached its max-lifetime", limits.max_lifetime, now)
            ends.append(self._lifetime_ends)
        if limits.idle_timeout is not None and idle_since is not None:
            idle_until = max(idle_since, self._ready_at) + limits.idle_timeout
            if idle_until <= now:
                return self._drain("has been idle for its idle-timeout", limits.idle_timeout, now)
            ends.append(idle_until)
        return min(ends, default=None)

    def _drain(self, what: str, limit: float | None, now: float) -> float | None:
        """Let the context accept no more jobs, and stop when those that it has accepted have ended."""
        reason = f"context {self._context.current.name} {what} of {duration_text(limit or 0.0)}"
        _log.info("%s: it is stopped", reason)
        self._context.draining = ErrorInfo(message=reason)
        return self._look_at_context(now)
