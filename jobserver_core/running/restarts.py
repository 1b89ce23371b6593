"""Which contexts are restarted after they die, when, and how often.

Theory
======

The problem: a context that serves a team has to come back after its JVM ran out of memory, its host was
killed, or its machine disappeared. But a context that dies at every start must not keep a machine busy
forever, and a context that a user has stopped must stay stopped.

The idea: a *supervised* context that dies ends like any other, with its reason. In the same write, the store
gets its *successor*: a new record with a new id and the same name and settings, in the state RESTARTING. So a
crash of the server cannot lose the restart at any moment, and the name is never free. The successor is
launched after a pause (:mod:`~jobserver_core.running.supervision`), which doubles each time. If it dies, too,
it gets a successor of its own, until there have been ``max-restarts`` consecutive restarts. A context that
has lived for ``restart-reset`` resets the count.

The invariants: a context that was asked to stop, or that stops by itself (``idle-timeout``), gets no
successor. Neither does one that ends in an orderly shutdown of the last server. If there are other servers, a
server that is stopped *leaves* its supervised contexts to them: their records are marked, and are otherwise
treated like those of lost contexts, which another server takes over as soon as their server is no longer
registered. A record keeps the mark when it ends, but its successor does not have it, so a crash of the
successor counts. A context that was never ready gets no successor either, because its creator gets the error,
unless it is a successor itself, or its server died or left it while it was starting. At most one server
stores a successor: the one whose write ends the context.
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


@attrs.frozen(kw_only=True)
class Death:
    """The end of a supervised context that nobody requested. ``settings`` are those of its successor.

    A death is ``orderly`` if the context's server was stopped; it then does not count as a failure.
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
        """Whether the context is not restarted because it has died too often."""
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
        """Return the record that takes the context's name, or None if the context is not restarted."""
        if self.final:
            return None
        return attrs.evolve(
            records.new_context(self.context.name, self.settings, ad_hoc=False),
            state=ContextState.RESTARTING,
            error=self.reason,
            restarts=self.context.restarts + 1,
            consecutive_restarts=self._consecutive + (0 if self.orderly else 1),
        )


def death_of(
    context: Context,
    *,
    settings: JsonMapping,
    reason: ErrorInfo | None,
    died_at: datetime,
    orderly: bool = False,
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
        orderly=orderly,
    )


def pause_before(context: Context) -> float:
    """Return the seconds between the record of a successor and its launch."""
    limits = _limits(context.settings)
    if limits is None or not context.consecutive_restarts:
        return 0.0
    doubled = limits.backoff * 2.0 ** min(context.consecutive_restarts - 1, 50)
    return min(limits.max_backoff, doubled)


def runs_again(job: Job, context: Context, death: Death | None) -> bool:
    """Whether a job of a lost context has to run in another context instead of ending.

    ``death`` is None if the context is not supervised, or if its end is already stored.
    """
    if job.kill_requested or context.stop_requested:
        return False
    if death is not None and death.final:
        return False
    if job.waiting:
        return True
    died = context.state in (ContextState.ERROR, ContextState.KILLED) or context.left_to_others
    return job.restartable and bool(death or (died and _limits(context.settings)))


def _limits(settings: JsonMapping) -> RestartLimits | None:
    """Return the limits of restarts; None also for settings of an earlier release that are now invalid."""
    try:
        return restart_limits(settings)
    except InvalidSetting:
        return None
