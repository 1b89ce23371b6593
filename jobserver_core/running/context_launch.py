"""Launch a context: from its place in the start queue to the handle that its launcher returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jobserver_core.models.failures import ErrorInfo
from jobserver_core.ports import (
    Clock,
    ContextEnd,
    ContextHandle,
    ContextListener,
    ContextSpec,
    JobSpec,
    Launcher,
)
from jobserver_core.running.context_record import ContextRecord
from jobserver_core.running.starts import QueuedStart, StartQueue

if TYPE_CHECKING:
    from jobserver_core.config.settings import ContextLimits

__all__ = ["ContextLaunch"]


class ContextLaunch:
    """Launches one context when it is its turn, and passes calls on to its launcher.

    A context that is stopped or killed before its launch is never launched: it is *withdrawn*, and its end is
    reported to ``listener`` as if its launcher had. Everything here that calls the launcher runs as an entry
    of the context's outbox of calls, so a launch and a withdrawal exclude each other without a lock.
    """

    def __init__(
        self,
        context: ContextRecord,
        listener: ContextListener,
        *,
        launcher: Launcher,
        starts: StartQueue,
        caller: str,
        clock: Clock,
        limits: ContextLimits,
    ) -> None:
        self._context = context
        self._listener = listener
        self._launcher = launcher
        self._starts = starts
        self._caller = caller
        self._clock = clock
        self._limits = limits
        self._withdrawn = False
        self._handle: ContextHandle | None = None

    def begin(self, spec: ContextSpec) -> None:
        """Start the context as soon as it is its turn; an immediate error ends it and is raised."""
        name = self._context.current.name
        start = QueuedStart(name, self._caller, launch=lambda: self._launch_queued(spec), expire=self._expire)
        try:
            now = self._starts.enter(start)
            self._context.ready.waiter.add_done_callback(lambda _waiter: self._starts.leave(start))
            if now:
                # The launcher may report that it is ready before it has returned the handle.
                with self._context.calls.held():
                    self._launch(spec)
        except Exception as error:
            self._fail(error)
            raise

    def reattach(self, spec: ContextSpec, jobs: Sequence[JobSpec]) -> None:
        """Take over a context that outlived its server; raises what the launcher does."""
        with self._context.calls.held():  # the launcher may report before it has returned the handle
            self._handle = self._launcher.reattach(spec, jobs, self._listener)
        if self._context.current.state.starting:
            self._limit_start(spec)

    def acknowledge(self, job_id: str) -> None:
        """Notify the launcher that a job's end is stored."""
        if self._handle is not None:
            self._handle.acknowledge(job_id)

    def call(self, call: Callable[[ContextHandle], None], unlaunched: ContextEnd | None = None) -> None:
        """Call the launcher once the lock is released.

        A context that has not been launched ends as ``unlaunched`` says; with None nothing happens to it.
        """

        def effect() -> None:
            if self._handle is not None:
                call(self._handle)
            elif unlaunched is not None:
                self._withdraw(unlaunched)

        self._context.calls.put(effect)

    def _launch_queued(self, spec: ContextSpec) -> None:
        """Launch a context that had to wait; an error shows only in its final state."""

        def effect() -> None:
            try:
                self._launch(spec)
            except Exception as error:  # noqa: BLE001 - any error is the reason why the context failed
                self._fail(error)

        self._context.calls.put(effect)
        self._context.calls.drain()

    def _launch(self, spec: ContextSpec) -> None:
        if self._withdrawn:
            return
        self._handle = self._launcher.start_context(spec, self._listener)
        self._limit_start(spec)

    def _limit_start(self, spec: ContextSpec) -> None:
        timeout = self._limits.creation_timeout
        timer = self._clock.call_later(timeout, lambda: self._give_up(timeout, spec))
        self._context.ready.waiter.add_done_callback(lambda _waiter: timer.cancel())

    def _fail(self, error: Exception) -> None:
        self._listener.context_ended(ContextEnd.FAILED, ErrorInfo.from_exception(error))

    def _expire(self) -> None:
        """End a context that was not launched in time."""
        name, status = self._context.current.name, self._starts.status
        info = ErrorInfo(
            message=f"context {name} waited {self._limits.start_queue_timeout:g} s to be launched: "
            f"{status.limit} contexts start at once and {status.queued} others wait; start fewer, or raise "
            "jobserver.contexts.start-queue-timeout or jobserver.contexts.concurrent-starts",
            error_class="TimeoutError",
        )
        self._context.calls.put(lambda: self._withdraw(ContextEnd.FAILED, info))
        self._context.calls.drain()

    def _withdraw(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        """End a context that was never launched and will not be."""
        if self._handle is None:
            self._withdrawn = True
            self._listener.context_ended(end, error)

    def _give_up(self, timeout: float, spec: ContextSpec) -> None:
        """Kill a context that did not become ready in time; only its log may have the reason."""
        with self._context.changing():
            context = self._context.current
            if context.state.starting and not self._context.ready_reported:
                self._context.failure = _not_ready(context.name, timeout, spec.log_tail())
                self.call(lambda handle: handle.kill())


def _not_ready(name: str, timeout: float, log: str) -> ErrorInfo:
    """Return the failure of a context that was not ready in time, given the end of its log."""
    messages = [line for line in log.splitlines() if line[:1].strip()]  # neither blank nor a stack frame
    last = f"; its log ends with: {messages[-1]}" if messages else ""
    return ErrorInfo(
        message=f"context {name} was not ready after {timeout:g} s "
        f"(jobserver.contexts.creation-timeout){last}",
        error_class="TimeoutError",
        stack=f"last lines of the context's log:\n{log}" if log else "",
    )
