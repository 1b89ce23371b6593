"""Time limits of a living context and its jobs.

Theory
======

The problem: there are limits on how long a job may wait and run, and on how long a context may be idle and
live. The obvious solution is a timer for each job. But nearly all of these timers are cancelled, and a
cancelled timer stays in the clock until it is due: with a limit of a day, that is a day's worth of jobs.

The idea: a context needs one timer, set to its earliest deadline. Code that adds a deadline calls
:meth:`Deadlines.watch`, which sets a timer only if none is due before. When it fires, all deadlines are
checked: whatever is overdue ends, and the earliest of the remaining deadlines gets a timer. No timer is
cancelled. If a job has ended, its timer fires once without effect. If an earlier timer is added, the later
one stays and is used afterwards. So timers do not pile up, even if short limits alternate with long ones.

The invariants: deadlines are monotonic times, so changing the machine's clock does not move them. A timer
that fires checks the current state under the context's lock, so a job that ended meanwhile, or a context that
is busy again, is left alone. This does not happen on the clock's thread, because the store may hang.
Deadlines after a restart are derived from the times in the records.

Deliberately not handled: a running job that its launcher cannot end alone. It keeps its slot until it ends by
itself, because ending its context would end other users' jobs, too. An ad-hoc context has no other jobs, so
it is killed.
"""

from __future__ import annotations

import logging
import math
from typing import Protocol

from jobserver_core.config.units import duration_text
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.lifecycle import ContextState
from jobserver_core.ports import Clock, Timer
from jobserver_core.running.context_end import ContextEnding
from jobserver_core.running.context_record import ContextRecord
from jobserver_core.running.context_settings import time_limits

_log = logging.getLogger(__name__)


class TimedJobs(Protocol):
    """What :class:`Deadlines` needs from a :class:`~jobserver_core.running.job_queue.JobQueue`."""

    @property
    def idle_since(self) -> float | None:
        """The monotonic time since which no job has been running or waiting, or None if one is."""

    def expire(self, now: float) -> float | None:
        """End or kill the jobs whose deadline has passed; return the next deadline."""


class Deadlines:
    """Ends overdue jobs of one context, and stops a context that has been idle or alive for too long.

    Set ``jobs`` before you use anything else. Call all methods with the context's lock held.
    """

    jobs: TimedJobs
    """The jobs of the context."""

    def __init__(self, context: ContextRecord, *, clock: Clock, ending: ContextEnding) -> None:
        self._context = context
        self._clock = clock
        self._ending = ending
        self.limits = time_limits(context.current.settings)
        """The limits in the context's settings."""
        self._ready_at = 0.0
        self._lifetime_ends: float | None = None
        self._stop_at = -math.inf
        self._timers: dict[float, Timer] = {}
        self._closed = False

    def context_ready(self) -> None:
        """Start to apply the limits. The lifetime counts from the context's record, even after a restart."""
        self._ready_at = self._clock.monotonic()
        limit = self.limits.max_lifetime
        if limit is not None:
            lived = (self._clock.now() - self._context.current.started_at).total_seconds()
            self._lifetime_ends = self._clock.monotonic() + min(limit, limit - lived)
            self.watch(self._lifetime_ends)
        self.context_idle()

    def context_idle(self) -> None:
        """Check the context after its idle timeout, or now if it is draining."""
        if self._context.draining is not None:
            self.watch(self._clock.monotonic())
        elif self.limits.idle_timeout is not None:
            self.watch(self._clock.monotonic() + self.limits.idle_timeout)

    def watch(self, deadline: float) -> None:
        """Check all deadlines at this time, if not earlier."""
        if self._closed or min(self._timers, default=math.inf) <= deadline:
            return
        delay = deadline - self._clock.monotonic()
        self._timers[deadline] = self._clock.call_later(
            delay, lambda: self._context.changes.put_on_thread(lambda: self._check(deadline))
        )

    def close(self) -> None:
        """Cancel the timers, and stop checking deadlines."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _check(self, due: float) -> None:
        """End whatever is overdue, and set the next timer. Can be called again if it raises StorageError."""
        with self._context.changing():
            if self._closed:
                return
            self._timers.pop(due, None)
            now = self._clock.monotonic()
            for deadline in (self.jobs.expire(now), self._check_context(now)):
                if deadline is not None:
                    self.watch(deadline)

    def _check_context(self, now: float) -> float | None:
        """Stop the context if its time is over; return when to check again."""
        if self._context.current.state is not ContextState.RUNNING:
            return None
        idle_since = self.jobs.idle_since
        if self._context.draining is None:
            return self._next_limit(now, idle_since)
        if idle_since is None and now < self._stop_at:
            return self._stop_at
        self._context.outbox.put(self._ending.stop_by_itself)
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
        """Have the context accept no more jobs, and stop it once its accepted jobs have ended."""
        reason = f"context {self._context.current.name} {what} of {duration_text(limit or 0.0)}"
        _log.info("%s: it is stopped", reason)
        self._context.draining = ErrorInfo(message=reason)
        return self._check_context(now)
