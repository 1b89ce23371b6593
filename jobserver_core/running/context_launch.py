"""Launch a context: from its place in the start queue to the handle that its launcher returns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import attrs

from jobserver_core.errors import JobServerError, LaunchError
from jobserver_core.models.contexts import Context
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.ports import (
    Clock,
    ContextEnd,
    ContextHandle,
    ContextListener,
    ContextSpec,
    JobOutcome,
    JobSpec,
    Launcher,
)
from jobserver_core.running.context_record import ContextRecord, level_of
from jobserver_core.running.starts import QueuedStart, StartQueue
from jobserver_core.running.waiting import Waiter

if TYPE_CHECKING:
    from jobserver_core.config.settings import ContextLimits

_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class ContextLaunch:
    """Launches one context when its turn comes, and passes calls on to its launcher.

    A context that is stopped or killed before its launch is never launched: it is *withdrawn*, and its end is
    reported to ``listener`` as if the launcher had done so. Calls to the launcher go through the context's
    outbox of calls, or hold its gate (to start or re-attach), so a launch and a withdrawal never overlap,
    even without a lock. The exception is :meth:`acknowledge`: it must follow the sync, so it goes through the
    other outbox. Set ``listener`` before you use anything else.
    """

    _context: ContextRecord
    _launcher: Launcher
    _starts: StartQueue
    _caller: str
    _clock: Clock
    _limits: ContextLimits
    listener: ContextListener = attrs.field(init=False)
    _withdrawn: bool = attrs.field(default=False, init=False)
    _handle: ContextHandle | None = attrs.field(default=None, init=False)

    def begin(self, spec: ContextSpec) -> None:
        """Start the context when its turn comes. An immediate error ends the context and is raised."""
        name = self._context.current.name
        start = QueuedStart(name, self._caller, launch=lambda: self._launch_queued(spec), expire=self._expire)
        try:
            now = self._starts.enter(start)
            self._context.ready.waiter.notify(lambda _waiter: self._starts.leave(start))
            if now:
                # The launcher may report the context as ready before it returns the handle.
                with self._context.calls.held():
                    self._launch(spec)
        except BaseException as error:  # also Ctrl-C: without a handle, nothing else would end the context
            self._fail(error)
            raise

    def reattach(self, spec: ContextSpec, jobs: Sequence[JobSpec]) -> None:
        """Take over a context that outlived its server. Errors of the launcher propagate."""
        with self._context.calls.held():  # the launcher may report before it returns the handle
            self._handle = self._launcher.reattach(spec, jobs, self.listener)
        if self._context.current.state.starting:
            self._await_ready(spec)

    def submit(self, handle: ContextHandle, spec: JobSpec) -> None:
        """Let the launcher run a job. If it raises instead, the job has crashed."""
        try:
            handle.submit(spec)
        except LaunchError as error:
            info = ErrorInfo.from_exception(error.__cause__ or error, message=str(error), stack=True)
            _log.error("job %s of context %s crashed: %s", spec.id, self._context.current.name, error)
            self.listener.job_ended(spec.id, JobOutcome(error=info, failure=FailureKind.CRASHED))

    def acknowledge(self, job_id: str) -> None:
        """Notify the launcher that a job's end is stored."""
        if self._handle is not None:
            with self._logging():
                self._handle.acknowledge(job_id)

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Log an error of the launcher for which there is nobody to get it."""
        try:
            yield
        except LaunchError as error:
            _log.error("context %s: %s", self._context.current.name, error)

    @property
    def preparing(self) -> str:
        """What the launcher still does before the context can start, or ""."""
        with suppress(LaunchError):  # it is polled; its stand-in logs an error once a minute
            return self._handle.preparing if self._handle is not None else ""
        return ""

    def put_call(self, call: Callable[[ContextHandle], None], unlaunched: ContextEnd | None = None) -> None:
        """Call the launcher once the lock is released.

        A context that has not been launched ends with ``unlaunched``; if that is None, nothing happens.
        """

        def effect() -> None:
            if self._handle is not None:
                with self._logging():
                    call(self._handle)
            elif unlaunched is not None:
                self._withdraw(unlaunched)

        self._context.calls.put(effect)

    def _launch_queued(self, spec: ContextSpec) -> None:
        """Launch a context that had to wait. An error is recorded only in its final state."""

        def effect() -> None:
            try:
                self._launch(spec)
            except BaseException as error:  # as in begin()
                self._fail(error)
                if not isinstance(error, Exception):
                    raise

        self._context.calls.put(effect)
        self._context.calls.drain()

    def _launch(self, spec: ContextSpec) -> None:
        if self._withdrawn:
            return
        context = self._context.current
        _log.log(level_of(context), "context %s is starting", context.name)
        self._handle = self._start(spec)
        self._await_ready(spec)

    def _start(self, spec: ContextSpec) -> ContextHandle:
        slow = self._clock.call_later(self._limits.creation_timeout, lambda: self._log_slow_start(spec))
        try:
            return self._launcher.start_context(spec, self.listener)
        finally:
            slow.cancel()

    def _log_slow_start(self, spec: ContextSpec) -> None:
        """Name a launcher that waits for its context. Until it returns, nothing can kill the context."""
        _log.warning(
            "context %s: start_context of the launcher %s has not returned within %g s "
            "(jobserver.contexts.creation-timeout); it has to return at once",
            spec.name,
            type(self._launcher).__name__,
            self._limits.creation_timeout,
        )

    def _await_ready(self, spec: ContextSpec) -> None:
        self._context.ready.waiter.notify(self._log_ready)
        self._limit_start(spec)

    def _log_ready(self, ready: Waiter[Context]) -> None:
        with suppress(JobServerError):  # it has ended, which is logged, or was left to another server
            context = ready.result(0)
            seconds = (self._clock.now() - context.started_at).total_seconds()
            restart = f" (restart {context.restarts})" if context.restarts else ""
            _log.log(level_of(context), "context %s is ready after %.1f s%s", context.name, seconds, restart)

    def _limit_start(self, spec: ContextSpec, waited: float = 0.0) -> None:
        """Kill the context if it is not ready within ``creation-timeout``.

        That begins again while the launcher is preparing, for up to ``start-queue-timeout`` in all.
        """
        timeout = self._limits.creation_timeout

        def over() -> None:
            total = waited + timeout
            if self.preparing and total < self._limits.start_queue_timeout:
                self._limit_start(spec, total)
            else:
                self._context.changes.on_thread(lambda: self._give_up(timeout, spec))

        timer = self._clock.call_later(timeout, over)
        self._context.ready.waiter.notify(lambda _waiter: timer.cancel())

    def _fail(self, error: BaseException) -> None:
        self.listener.context_ended(ContextEnd.FAILED, ErrorInfo.from_exception(error))

    def _expire(self) -> None:
        """End a context that was not launched in time. Uses another thread to store its end."""
        name, status = self._context.current.name, self._starts.status
        info = ErrorInfo(
            message=f"context {name} waited {self._limits.start_queue_timeout:g} s to be launched: "
            f"{status.limit} contexts start at once and {status.queued} others wait; start fewer, or raise "
            "jobserver.contexts.start-queue-timeout or jobserver.contexts.concurrent-starts",
            error_class="TimeoutError",
        )
        self._context.calls.put(lambda: self._withdraw(ContextEnd.FAILED, info))
        self._context.changes.on_thread(self._context.calls.drain)

    def _withdraw(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        """End a context that was never launched and will not be."""
        if self._handle is None:
            self._withdrawn = True
            self.listener.context_ended(end, error)

    def _give_up(self, timeout: float, spec: ContextSpec) -> None:
        """Kill a context that was not ready in time. Only its log may say why."""
        with self._context.changing():
            context = self._context.current
            if context.state.starting and not self._context.ready_reported:
                self._context.failure = _not_ready(spec, timeout)
                self.put_call(lambda handle: handle.kill())


def _not_ready(spec: ContextSpec, timeout: float) -> ErrorInfo:
    """Return the failure of a context that was not ready in time, with the end of its log."""
    log, message = spec.log_tail(), spec.last_message()
    why = spec.master_problem() or (
        "on a slow or busy machine, raise jobserver.contexts.creation-timeout, "
        "and run 'jobserver prepare' once for faster starts"
    )
    last = f"; its log ends with: {message}" if message else ""
    return ErrorInfo(
        message=f"context {spec.name} was not ready after {timeout:g} s: {why}{last}",
        error_class="TimeoutError",
        stack=f"last lines of the context's log:\n{log}" if log else "",
    )
