"""Stop and kill a living context, or a job in it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs

from jobserver_core.errors import StaleState
from jobserver_core.models.lifecycle import CONTEXTS, ContextEvent
from jobserver_core.ports import Clock, ContextEnd
from jobserver_core.running.context_launch import ContextLaunch
from jobserver_core.running.context_record import ContextRecord
from jobserver_core.running.live_job import LiveJob

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class ContextEnding:
    """Stops or kills one context, or kills one of its jobs, through the launcher.

    Call the methods inside :meth:`ContextRecord.changing`, unless their docstring says otherwise.
    ``requested`` means that a user asked for the end, so the jobs send no callbacks. ``reason`` says who or
    what ends the context; owners of jobs that end with it see this text.
    """

    _context: ContextRecord
    _launch: ContextLaunch
    _clock: Clock
    _settings: Settings

    def stop(self, timeout: float, *, requested: bool, reason: str) -> None:
        """Stop the context.

        Raises:
            StaleState: The context has ended.
            StorageError: The stop could not be recorded.
        """
        context = self._context
        if context.leaving is None or requested:
            if not CONTEXTS.allows(context.current.state, ContextEvent.STOP):
                return
            context.leaving = None
            context.advance(ContextEvent.STOP, stop_requested=requested)
            context.end_because(reason)
        self._launch.put_call(lambda handle: handle.stop(timeout), unlaunched=ContextEnd.STOPPED)

    def stop_eventually(self, timeout: float, *, requested: bool, reason: str) -> None:
        """Stop the context as soon as the stop can be stored. Call it without the lock."""

        def stop() -> None:
            try:
                with self._context.changing():
                    self.stop(timeout, requested=requested, reason=reason)
            except StaleState as error:
                with self._context.changing():
                    self.kill_stale(error)

        self._context.changes.put(stop)

    def stop_by_itself(self, reason: str = "") -> None:
        """Stop a context because one of its jobs ended or its time is up. Call it without the lock."""
        timeout = self._settings.contexts.deletion_timeout
        self.stop_eventually(timeout, requested=False, reason=reason)

    def kill(self, *, requested: bool, reason: str) -> None:
        """End the context by force.

        Raises:
            StaleState: The context has ended.
            StorageError: The kill could not be recorded.
        """
        if not self._context.current.state.final:
            if requested:
                self._context.advance(None, stop_requested=True)
            self._context.end_because(reason)
            self._launch.put_call(lambda handle: handle.kill(), unlaunched=ContextEnd.KILLED)

    def kill_stale(self, error: StaleState) -> None:
        """Kill a context here that another writer has ended or taken over."""
        _log.warning("context %s was ended by another writer: %s", self._context.current.name, error)
        self._launch.put_call(lambda handle: handle.kill(), unlaunched=ContextEnd.KILLED)

    def kill_job(self, live: LiveJob, *, force: bool = False) -> None:
        """Have the launcher end a running job; with ``force``, kill the context if that takes too long."""
        self._launch.put_call(lambda handle: handle.kill_job(live.job.id))
        if not force:
            return
        grace_period = self._settings.jobs.kill_timeout

        def kill() -> None:
            with self._context.changing():
                if live.job.state.final or live.ended_at is not None:
                    return  # it ended while this waited for the lock, or its end is waiting to be stored
                _log.warning("job %s did not end within %g s: killing its context", live.job.id, grace_period)
                reason = f"killed to end job {live.job.id}, which could not be killed alone"
                self.kill(requested=False, reason=reason)

        timer = self._clock.call_later(grace_period, lambda: self._context.changes.on_thread(kill))
        live.finished.waiter.notify(lambda _waiter: timer.cancel())
