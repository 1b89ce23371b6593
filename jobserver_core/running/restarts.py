"""Which contexts are started again after they died, when, and how often.

Theory
======

The problem: a context that serves a team has to come back after its JVM ran out of memory, its host was
killed, or its machine is gone. But nobody wants a context that dies at every start to keep a machine busy for
ever, and a context that somebody has stopped must stay away.

The idea: a *supervised* context that dies ends like any other, with its reason. In the same write, the store
gets its *successor*: a new record with a new id and the same name and settings, in the state RESTARTING. So
no moment exists in which a crash of the server could lose the intention, and the name is never free. The
successor is launched after a pause (:mod:`~jobserver_core.running.supervision`), which doubles each time. If
it dies as well, it has a successor of its own, until there were ``max-restarts`` consecutive restarts. A
context that has lived for ``restart-reset`` resets the count.

The invariants: a context that was asked to stop, or stops by itself (``idle-timeout``), has no successor, and
neither has one that ends with the last server in an orderly way. If other servers are there, one that is
stopped *leaves* its supervised contexts to them: their records say so, and are otherwise those of lost
contexts, which another server takes over as soon as the registration of their server is gone. The record
keeps that reason when it ends; the successor has it only as words, so a crash of its own counts. A context
that was never ready has no successor either, because its creator gets the reason, unless it is a successor
itself or its server died or left it while it was starting. At most one server stores a successor: the one
whose write ends the context.
"""

from __future__ import annotations

from datetime import datetime

import attrs

from jobserver_core.config.units import duration_text
from jobserver_core.errors import InvalidSetting
from jobserver_core.models.contexts import Context
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import Job
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.models.lifecycle import ContextState
from jobserver_core.running.context_settings import RestartLimits, restart_limits
from jobserver_core.running.records import Records

__all__ = ["SERVER_STOPPED", "Death", "death_of", "pause_before", "reason_of_leaving", "runs_again"]


SERVER_STOPPED = "ServerStopped"
"""The class of the error of contexts whose server was stopped in an orderly way."""


@attrs.frozen(kw_only=True)
class Death:
    """The end of a supervised context that nobody asked for. ``settings`` are those of its successor.

    An ``orderly`` one is that of a context whose server was stopped: it does not count as a failure.
    """

    context: Context
    settings: JsonMapping
    limits: RestartLimits
    reason: ErrorInfo
    died_at: datetime
    orderly: bool = False

    @property
    def _consecutive(self) -> int:
        lived = (self.died_at - self.context.started_at).total_seconds()
        lived -= pause_before(self.context)
        stable = self.context.state is ContextState.RUNNING and lived >= self.limits.reset
        return 0 if stable else self.context.consecutive_restarts

    @property
    def final(self) -> bool:
        """Whether the context is not started again, because that has failed too often."""
        return self._consecutive >= self.limits.max_restarts and not self.orderly

    @property
    def error(self) -> ErrorInfo:
        """The error of the context that died."""
        if not self.final:
            return self.reason
        name, count = self.context.name, self._consecutive
        return attrs.evolve(
            self.reason,
            message=f"context {name} died again after {count} consecutive restarts and is not started any "
            f"more (max-restarts, each after less than {duration_text(self.limits.reset)}): "
            f"{self.reason.message}",
        )

    def successor(self, records: Records) -> Context | None:
        """Return the record that takes the name of the context, or None if it is not started again."""
        if self.final:
            return None
        # Without the class of an orderly end: the successor's server has not left it.
        error = attrs.evolve(self.reason, error_class="") if self.orderly else self.reason
        return attrs.evolve(
            records.new_context(self.context.name, self.settings, ad_hoc=False),
            state=ContextState.RESTARTING,
            error=error,
            restarts=self.context.restarts + 1,
            consecutive_restarts=self._consecutive + (0 if self.orderly else 1),
        )


def death_of(
    context: Context, *, settings: JsonMapping, reason: ErrorInfo | None, died_at: datetime
) -> Death | None:
    """Return the death of a context that ends without a request; None if it is not supervised."""
    limits = _limits(settings)
    if limits is None or context.ad_hoc or context.stop_requested:
        return None
    if context.state not in (ContextState.STARTED, ContextState.RUNNING, ContextState.RESTARTING):
        return None
    return Death(
        context=context,
        settings=settings,
        limits=limits,
        reason=reason or ErrorInfo(message="the context ended by itself"),
        died_at=died_at,
        orderly=reason is not None and reason.error_class == SERVER_STOPPED,
    )


def reason_of_leaving(context: Context) -> ErrorInfo | None:
    """Return why the server of a context has left it to another one; None if it has not."""
    error = context.error
    return error if error is not None and error.error_class == SERVER_STOPPED else None


def pause_before(context: Context) -> float:
    """Return the seconds between the record of a successor and its launch."""
    limits = _limits(context.settings)
    if limits is None or not context.consecutive_restarts:
        return 0.0
    doubled = limits.backoff * 2.0 ** min(context.consecutive_restarts - 1, 50)
    return min(limits.max_backoff, doubled)


def runs_again(job: Job, context: Context, death: Death | None) -> bool:
    """Whether a job of a lost context has to run in another one, and does not end with it.

    ``death`` is None if the context is not supervised, or if its end is stored already.
    """
    if job.kill_requested or context.stop_requested:
        return False
    if death is not None and death.final:
        return False
    if job.waiting:
        return True
    died = context.state in (ContextState.ERROR, ContextState.KILLED) or reason_of_leaving(context)
    return job.restartable and bool(death or (died and _limits(context.settings)))


def _limits(settings: JsonMapping) -> RestartLimits | None:
    """Return the limits of restarts; None also for a record of an earlier release with other settings."""
    try:
        return restart_limits(settings)
    except InvalidSetting:
        return None
