"""Wait for a job or another future value without using a thread: block, use a callback, or await."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Generic, TypeVar

import attrs

from jobserver_core.errors import ContextFailed, InvalidRequest, JobFailed, JobKilled, ResultTimeout
from jobserver_core.forks import Origin
from jobserver_core.models.arguments import check_callable, check_seconds
from jobserver_core.models.contexts import Context
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobResult
from jobserver_core.models.json_values import Json
from jobserver_core.models.lifecycle import JobState
from jobserver_core.models.redaction import redacted_url
from jobserver_core.running.results import ResultReader, parse_result
from jobserver_core.running.user_thread import CallBack, call_here
from jobserver_core.shutdown import blocks_changes

__all__ = ["JobHandle", "Promise", "Waiter", "all_done"]

_log = logging.getLogger(__name__)

_HANDLE = "handle"
_BRIEF = 1.0
"""Seconds up to which nobody wonders why a subscriber waits."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Waiter(Generic[T_co]):
    """A read-only handle to a future value.

    Any number of threads and event loops can wait on it, without extra threads. It can be awaited, and
    ``asyncio.ensure_future`` makes a future of it. It cannot be cancelled: if a caller stops waiting, the
    operation continues.
    """

    def __init__(self, future: Future[T_co], what: str, call_back: CallBack = call_here) -> None:
        self._future = future
        self._what = what
        self._call_back = call_back
        self._origin = Origin()

    def done(self) -> bool:
        """Whether the value is available, or the operation has failed."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> T_co:
        """Wait up to ``timeout`` seconds (None: forever) and return the value, or raise the error.

        Raises:
            ResultTimeout: It takes longer. You can then wait again.
            Conflict: It would come in another process, from which this one was forked.
        """
        check_seconds("timeout", timeout, least=0)
        # Python cannot wait longer than TIMEOUT_MAX, which is several centuries.
        limit = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        if not self._future.done():
            self._origin.check(_HANDLE)
            if blocks_changes() and (limit is None or limit > _BRIEF):
                limit = self._wait_in_subscriber(limit)
        try:
            return self._future.result(limit)
        except FutureTimeout:
            if self._future.done():
                raise
            raise ResultTimeout(what=self._what, seconds=timeout) from None

    def _wait_in_subscriber(self, timeout: float | None) -> float | None:
        """Wait for a moment, and log if that is not enough. Returns how long to wait then."""
        if not wait([self._future], _BRIEF).done:
            text = "a subscriber has been waiting for %s for %g s, and may have to return first; %s"
            _log.warning(text, self._what, _BRIEF, "wait on another thread")
        return None if timeout is None else timeout - _BRIEF

    def add_done_callback(self, call: Callable[[Waiter[T_co]], None]) -> None:
        """Call with this waiter once it is done, on a thread of its server or client for such functions.

        The functions run one after another, those of one waiter in the order in which they were added. A
        function may block or wait for a job. Meanwhile, only the functions after it are delayed, so it must
        not wait for what they do. Its exceptions are logged. Closing waits for functions that have not
        returned, but only briefly: the server for a second, a client for five.

        Raises:
            InvalidRequest: It is not a function of one argument, or it is declared with ``async def``. Or it
                is asyncio's own: ``asyncio.wait`` takes ``asyncio.ensure_future(handle)``, not the handle.
        """
        check_not_asyncio(call)
        check_callable("the done callback", call, arguments=1)
        self.notify(lambda waiter: self._call_back(lambda: self._call(call)))

    def _call(self, call: Callable[[Waiter[T_co]], None]) -> None:
        try:
            call(self)
        except BaseException as error:  # noqa: BLE001 - it may call sys.exit; others also wait for the value
            _log.exception("a done callback of %s raised %s", self._what, type(error).__name__)

    def notify(self, call: Callable[[Waiter[T_co]], object]) -> None:
        """Call with this waiter once it is done, on the thread that finishes it; at once if it is done.

        For the library itself: the server needs that thread, so the call must neither block nor raise.
        """
        self._future.add_done_callback(lambda _future: call(self))

    def __await__(self) -> Generator[object, None, T_co]:
        import asyncio  # noqa: PLC0415 - only needed to await

        if not self._future.done():
            self._origin.check(_HANDLE)
        return asyncio.wrap_future(self._future).__await__()


def check_not_asyncio(call: object) -> None:
    """Refuse a done callback of asyncio, which takes only its own futures.

    Raises:
        InvalidRequest: It is one.
    """
    # asyncio's own callbacks wake a loop only on its thread; on another one, asyncio would wait for ever.
    if str(getattr(call, "__module__", "")).startswith("asyncio."):
        message = "asyncio cannot wait for this itself; pass asyncio.ensure_future(…) of it, or await it"
        raise InvalidRequest(message=message)


class Promise(Generic[T]):
    """The other side of a waiter: sets its value or its error, once."""

    def __init__(self, what: str, call_back: CallBack = call_here) -> None:
        self._future: Future[T] = Future()
        # From here on, a waiter that calls cancel() does not affect the others.
        self._future.set_running_or_notify_cancel()
        self.waiter: Waiter[T] = Waiter(self._future, what, call_back)

    @classmethod
    def kept(cls, value: T, what: str, call_back: CallBack = call_here) -> Waiter[T]:
        """Return a waiter for a value that is already available."""
        promise: Promise[T] = cls(what, call_back)
        promise.keep(value)
        return promise.waiter

    def keep(self, value: T) -> None:
        """Set the value. Does nothing if a value or an error is already set."""
        if not self._future.done():
            self._future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Set the error. Does nothing if a value or an error is already set."""
        if not self._future.done():
            self._future.set_exception(error)


def all_done(waiters: Iterable[Waiter[object]]) -> Waiter[None]:
    """Return a waiter that is done once all of these are done, whether they succeeded or failed."""
    pending = list(waiters)
    done: Promise[None] = Promise(f"{len(pending)} things")
    lock = threading.Lock()
    left = len(pending)

    def one_done(_waiter: Waiter[object]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            done.keep(None)

    for waiter in pending:
        waiter.notify(one_done)
    if not pending:
        done.keep(None)
    return done.waiter


def never_ready(context: Context) -> ContextFailed:
    """Return the error of a context that has ended, and that nobody here has seen ready."""
    message = f"context {context.name} was not known to be ready when it ended as {context.state.value}"
    error = context.error or ErrorInfo(message=message)
    return ContextFailed(name=context.name, error=error)


def raise_unless_finished(job: Job) -> None:
    """Check that a final job has finished.

    Raises:
        JobKilled: It was killed.
        JobFailed: It ended as ERROR.
    """
    if job.state is JobState.KILLED:
        raise JobKilled(job_id=job.id, error=job.error or ErrorInfo(message=f"Job {job.id} killed"))
    if job.state is JobState.ERROR:
        error = _class_not_found(job) if job.failure is FailureKind.CLASS_NOT_FOUND else job.error
        raise JobFailed(job_id=job.id, error=error, failure=job.failure)


def _class_not_found(job: Job) -> ErrorInfo:
    """Return the error with the class path that was searched, and with the reason if it is known."""
    names = ", ".join(redacted_url(entry.source) for entry in job.class_path)
    message = f"class {job.class_name} not found" + (f" in {names}" if names else "")
    stack = job.error.stack if job.error else ""
    reason = stack if "\n" not in stack.strip() else ""  # if it has several lines, it is a JVM stack trace
    return ErrorInfo(message=f"{message}: {reason.strip()}" if reason else message, stack=stack)


@attrs.define(eq=False, repr=False)
class JobHandle:
    """A submitted job.

    ``job`` is the record at the time the handle was created. ``started`` is done once the job runs (its
    validation has passed), has to wait for a slot, or has ended. ``finished`` is done once the job has ended,
    with any outcome. Both return the job's record, and read no result. If the server closes before the job
    has begun, they fail with JobPostponed, since the next server runs it; if the job continues under the next
    server, ``finished`` fails with JobInterrupted.

    A handle can be awaited. What needs a future, such as ``asyncio.wait``, takes
    ``asyncio.ensure_future(handle)``.
    """

    job: Job
    started: Waiter[Job] = attrs.field(kw_only=True)
    finished: Waiter[Job] = attrs.field(kw_only=True)
    _open_result: Callable[[str], ResultReader | None] = attrs.field(kw_only=True)
    _known_result: Callable[[], JobResult | None] = attrs.field(kw_only=True, default=lambda: None)
    _launcher: str = attrs.field(kw_only=True, default="")

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    def done(self) -> bool:
        """Whether the job has ended."""
        return self.finished.done()

    def result(self, timeout: float | None = None) -> Json:
        """Wait for the result and return it as Python values, or as bytes if it is streamed.

        The whole result is held in memory. If it may be large, wait for ``finished``, and read it in chunks
        with ``open_result`` of the server.

        Raises:
            ResultTimeout: The job has not ended after ``timeout`` seconds. It continues.
            JobFailed: The job ended as ERROR.
            JobKilled: The job was killed.
            JobPostponed: The server closes before the job has begun. It runs under the next server.
            JobInterrupted: The server closes, and the job continues under the next server.
            LaunchError: What the launcher wrote as the result is not JSON.
        """
        return self._value(self.finished.result(timeout))

    @property
    def inline_result(self) -> str | None:
        """The JSON of a small result that is still in memory. Even if it is None, there may be a result."""
        known = self._known_result()
        return known.text if known is not None else None

    def add_done_callback(self, call: Callable[[JobHandle], None]) -> None:
        """Call with this handle once the job ends, as :meth:`Waiter.add_done_callback` does.

        The function may submit the next job and wait for it.

        Raises:
            InvalidRequest: The same as for :meth:`Waiter.add_done_callback`.
        """
        check_not_asyncio(call)
        check_callable("the done callback", call, arguments=1)
        self.finished.add_done_callback(lambda _waiter: call(self))

    def __await__(self) -> Generator[object, None, Json]:
        return self._wait().__await__()

    async def _wait(self) -> Json:
        import asyncio  # noqa: PLC0415 - only needed to await

        job = await self.finished
        return await asyncio.to_thread(self._value, job)

    def _value(self, job: Job) -> Json:
        raise_unless_finished(job)
        text = self.inline_result
        if text is not None:
            return parse_result(text, self._launcher)
        reader = self._open_result(job.id)
        return reader.value() if reader else None
