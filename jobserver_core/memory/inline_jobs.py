"""The jobs of the in-memory launcher: Python callables on threads of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from queue import SimpleQueue

import attrs

from jobserver_core.errors import TooLarge
from jobserver_core.models.arguments import check_seconds
from jobserver_core.models.dotted_keys import hint_for_lookup, hint_for_message
from jobserver_core.models.failures import ErrorInfo, FailureKind, message_of
from jobserver_core.models.jobs import JobProgress
from jobserver_core.models.json_values import Json, JsonMapping, JsonObject, loads
from jobserver_core.ports import ContextEnd, ContextListener, ContextSpec, JobOutcome, JobSpec, ResultSink
from jobserver_core.results import RESULT_REFUSED, UnusableResult, await_value, opened
from jobserver_core.shutdown import user_code

JobFunction = Callable[["InlineJob"], Json]


class JobRefused(Exception):
    """Raised by the ``validate`` attribute of an inline job that rejects its configuration."""

    __module__ = "jobserver_core.memory"  # which exports it: users see it as the class of a job's error


class _Killed(BaseException):
    """Raised in the thread of a job that is being killed."""


_FAILURES: tuple[tuple[type[BaseException], FailureKind], ...] = (
    (JobRefused, FailureKind.VALIDATION),
    (TooLarge, FailureKind.RESULT),
    (UnusableResult, FailureKind.RESULT),
    (Exception, FailureKind.RAISED),
    (BaseException, FailureKind.CRASHED),  # SystemExit and similar exceptions would end a process
)


class InlineJob:
    """The argument of an inline job's callable: its configuration, its log, and its progress."""

    def __init__(
        self,
        spec: JobSpec,
        context: ContextSpec,
        notify: Callable[[Callable[[ContextListener], None]], None],
    ) -> None:
        self.id = spec.id
        self.class_name = spec.class_name
        self.search_path = context.search_path_of(spec)
        self.config: JsonObject = loads(spec.config)
        self.context_settings: JsonMapping = context.settings
        self.data_dir = context.data_dir
        self.cancelled = threading.Event()
        """Set when the job must end; a callable that blocks outside of :meth:`sleep` should check it."""
        self._log_path = spec.log_path
        self._notify = notify

    def check(self) -> None:
        """End the callable if the job is being killed."""
        if self.cancelled.is_set():
            raise _Killed

    def sleep(self, seconds: float) -> None:
        """Sleep for some seconds, unless the job is killed.

        Raises:
            InvalidRequest: It is not a number of seconds.
        """
        check_seconds("seconds", seconds, optional=False)
        if self.cancelled.wait(seconds):
            raise _Killed

    def print(self, *values: object) -> None:
        """Append a line with values, separated by spaces, to the job's log, which the first line creates."""
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("a", encoding="utf-8") as log:
            print(*values, file=log)

    def report(self, progress: JobProgress) -> None:
        """Report the progress of the job."""
        self._notify(lambda listener: listener.job_progress(self.id, progress))


class InlineReports:
    """Passes reports to a listener, one at a time, and none after the end.

    The reports about a job are kept until the job is forgotten, and repeated to a new listener.
    """

    def __init__(self, listener: ContextListener) -> None:
        self._listener: ContextListener | None = listener
        self._lock = threading.RLock()
        self._ended = False
        self._ready: Callable[[ContextListener], None] | None = None
        self._ignored: set[str] = set()
        self._kept: dict[str, list[Callable[[ContextListener], None]]] = {}

    def context_ready(self, *, application_id: str) -> None:
        """Report that the context is ready, now and to each later listener."""
        with self._lock:
            self._ready = lambda listener: listener.context_ready(application_id=application_id, url=None)
            self.notify(self._ready)

    def close(self, end: ContextEnd, error: ErrorInfo | None) -> None:
        """Report the end of the context, and nothing after it."""
        with self._lock:
            self._ended = True
            if self._listener is not None:
                self._listener.context_ended(end, error)

    def notify(self, call: Callable[[ContextListener], None]) -> None:
        """Report an event, unless nobody listens."""
        with self._lock:
            if not self._ended and self._listener is not None:
                call(self._listener)

    def report(self, job_id: str, call: Callable[[ContextListener], None]) -> None:
        """Report an event of a job, now and to each later listener."""
        with self._lock:
            if job_id in self._ignored:
                return
            self._kept.setdefault(job_id, []).append(call)
            self.notify(call)

    @property
    def kept(self) -> set[str]:
        """The jobs of which events are kept."""
        with self._lock:
            return set(self._kept)

    def forget(self, job_id: str) -> None:
        """Keep no reports about a job any longer. Takes no lock, because a report may be under way."""
        self._kept.pop(job_id, None)

    def ignore(self, job_id: str) -> None:
        """Report nothing about a job any more."""
        with self._lock:
            self._ignored.add(job_id)
            self._kept.pop(job_id, None)

    def detach(self) -> None:
        """Report to no listener until :meth:`attach`."""
        with self._lock:
            self._listener = None

    def attach(self, listener: ContextListener) -> None:
        """Report to another listener, which gets all the kept events first."""
        with self._lock:
            self._listener = listener
            if self._ready is not None:
                self.notify(self._ready)
            for calls in list(self._kept.values()):
                for call in list(calls):
                    self.notify(call)


_CLOSE_TIMEOUT = 1.0
"""Seconds for which a close waits for threads, in case a call does not return."""


class InlineThreads:
    """Daemon threads that are reused for calls. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0

    def run(self, call: Callable[[], None]) -> None:
        """Call on a thread that is idle, or on a new one."""
        with self._lock:
            new = not self._idle
            self._idle -= not new
            if new:
                thread = threading.Thread(target=self._work, name="inline-jobs", daemon=True)
                thread.start()
                self._threads.append(thread)
        self._calls.put(call)

    def close(self) -> None:
        """End the threads, and wait for them; one whose call does not return ends when it does."""
        with self._lock:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._calls.put(None)
        deadline = time.monotonic() + _CLOSE_TIMEOUT
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            with self._lock:
                self._idle += 1


class InlineRun:
    """Runs one callable and reports its outcome."""

    def __init__(
        self,
        functions: Mapping[str, JobFunction],
        context: ContextSpec,
        spec: JobSpec,
        listener: InlineReports,
        forget: Callable[[str], None],
    ) -> None:
        self.over = threading.Event()
        """Set when the callable has returned and its outcome was reported."""
        self._functions = functions
        self._spec = spec
        self._listener = listener
        self._forget = forget
        self._job = InlineJob(spec, context, listener.notify)

    def kill(self) -> None:
        """Ask the callable to end."""
        self._job.cancelled.set()

    def run(self) -> None:
        """Run the callable, and report its outcome."""
        try:
            outcome = self._outcome()
            self._forget(self._spec.id)
            self._listener.report(self._spec.id, lambda listener: listener.job_ended(self._spec.id, outcome))
        finally:
            self.over.set()

    def _outcome(self) -> JobOutcome:
        function = self._functions.get(self._spec.class_name)
        if function is None:
            info = ErrorInfo(message=f"class {self._spec.class_name} not found", error_class="LookupError")
            return JobOutcome(error=info, failure=FailureKind.CLASS_NOT_FOUND)
        try:
            with user_code("a job"):
                self._call(function)
        except _Killed:
            return JobOutcome(killed=True)
        except BaseException as error:  # noqa: BLE001 - anything that a job raises is its error
            failure = next(kind for cls, kind in _FAILURES if isinstance(error, cls))
            hint = _hint(error, self._job.config)
            message = f"{error}; {hint}" if hint else None
            info = ErrorInfo.from_exception(error, message=message, stack=True)
            if isinstance(error, UnusableResult):
                info = attrs.evolve(info, error_class=RESULT_REFUSED)
            return JobOutcome(error=info, failure=failure)
        return JobOutcome()

    def _call(self, function: JobFunction) -> None:
        self._job.check()
        validate = getattr(function, "validate", None)
        if validate is not None:
            await_value(validate(self._job))
        self._listener.report(self._spec.id, lambda listener: listener.job_running(self._spec.id))
        self._write(await_value(function(self._job)))

    def _write(self, value: Json) -> None:
        stream, chunks = opened(value)
        result = _Result(self._spec.id, stream=stream)
        self._listener.report(self._spec.id, result.open)
        for chunk in chunks:
            self._job.check()
            self._listener.report(self._spec.id, partial(result.write, chunk))
            result.check()


def _hint(error: BaseException, config: JsonMapping) -> str:
    """Return how to nest the key of a configuration that a callable has missed, if it has a dot in it."""
    if isinstance(error, JobRefused):
        return hint_for_message(config, message_of(error))
    if isinstance(error, KeyError) and error.args:
        return hint_for_lookup(config, str(error.args[0]))
    return ""


class _Result:
    """The sink of a job's result at the present listener."""

    def __init__(self, job_id: str, *, stream: bool) -> None:
        self._job_id = job_id
        self._stream = stream
        self._sink: ResultSink | None = None
        self._refused: TooLarge | None = None

    def open(self, listener: ContextListener) -> None:
        self._sink = listener.open_result(self._job_id, stream=self._stream)

    def write(self, chunk: bytes, _listener: ContextListener) -> None:
        if self._refused is None and self._sink is not None:
            try:
                self._sink.write(chunk)
            except TooLarge as error:
                self._refused = error

    def check(self) -> None:
        """Check that the sink has accepted the result so far.

        Raises:
            TooLarge: It has refused it.
        """
        if self._refused is not None:
            raise self._refused
