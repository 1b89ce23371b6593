"""What asynchronous calls return: future values, jobs, and results that are being read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import httpx

from jobserver_client.errors import UnexpectedResponse
from jobserver_core.errors import ResultTimeout
from jobserver_core.models.arguments import check_callable, check_seconds
from jobserver_core.models.jobs import Job, ResultKind
from jobserver_core.models.json_values import Json
from jobserver_core.running.results import CHUNK, check_unread, parse_result, reader_closed
from jobserver_core.running.waiting import check_not_asyncio, raise_unless_finished

T = TypeVar("T")

IN_THE_LOOP = "start a task in a function"
"""What to do instead of passing an asynchronous function that is called in the event loop."""

_log = logging.getLogger(__name__)


class AsyncWaiter(Generic[T]):
    """A read-only handle to a future value, to be awaited.

    Nothing is requested from the server before the value is first awaited or asked for, so a handle that
    nobody uses costs nothing. If you stop waiting, the operation continues. In another event loop than that
    of its client, every method raises Conflict.
    """

    def __init__(
        self, start: Callable[[], Coroutine[object, object, T]], what: str, check_loop: Callable[[], None]
    ) -> None:
        self._start = start
        self._what = what
        self._check_loop = check_loop
        self._task: asyncio.Task[T] | None = None

    def _begin(self) -> asyncio.Task[T]:
        self._check_loop()
        if self._task is None:
            self._task = asyncio.create_task(self._start())
            # Nobody has to fetch the error.
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._task

    def done(self) -> bool:
        """Whether the value is available, or its computation failed."""
        return self._begin().done()

    async def result(self, timeout: float | None = None) -> T:
        """Wait up to ``timeout`` seconds (None: forever) and return the value, or raise the error.

        Raises:
            ResultTimeout: It takes longer; you can wait again.
        """
        check_seconds("timeout", timeout, least=0)
        task = self._begin()
        await asyncio.wait({task}, timeout=timeout)
        if not task.done():
            raise ResultTimeout(what=self._what, seconds=timeout)
        return task.result()

    def add_done_callback(self, call: Callable[[AsyncWaiter[T]], None]) -> None:
        """Call with this waiter once it is done, in the event loop. An exception of the call is logged.

        Raises:
            InvalidRequest: It is not a function of one argument, or it is declared with ``async def``. Or it
                is asyncio's own: ``asyncio.wait`` takes ``asyncio.ensure_future(handle)``, not the handle.
        """
        check_not_asyncio(call)
        check_callable("the done callback", call, arguments=1, instead=IN_THE_LOOP)

        def notified(waiter: AsyncWaiter[T]) -> None:
            try:
                call(waiter)
            except Exception as error:  # noqa: BLE001 - the code belongs to the user
                _log.exception("a done callback of %s raised %s", self._what, type(error).__name__)

        self.notify(notified)

    def notify(self, call: Callable[[AsyncWaiter[T]], object]) -> None:
        """Call with this waiter once it is done, in the event loop. For the library itself."""
        self._begin().add_done_callback(lambda _task: call(self))

    def cancel(self) -> None:
        """Stop waiting, for a client that is closed. Its callers get a CancelledError."""
        if self._task is not None:
            self._task.cancel()

    def __await__(self) -> Generator[object, None, T]:
        return self.result().__await__()


class AsyncJobHandle:
    """A submitted job. ``await`` it for its result.

    It is the counterpart of :class:`jobserver_core.JobHandle`. ``job`` is the record at the time the handle
    was created; ``started`` and ``finished`` are awaited for later ones. What needs a future, such as
    ``asyncio.wait``, takes ``asyncio.ensure_future(handle)``.
    """

    def __init__(
        self,
        job: Job,
        *,
        started: AsyncWaiter[Job],
        finished: AsyncWaiter[Job],
        open_result: Callable[[str], Awaitable[AsyncResultReader | None]],
    ) -> None:
        self.job = job
        self.started = started
        self.finished = finished
        self._open_result = open_result

    def __repr__(self) -> str:
        return f"<AsyncJobHandle {self.id}>"

    @property
    def id(self) -> str:
        """The job's ID."""
        return self.job.id

    def done(self) -> bool:
        """Whether the job has ended, as far as this client has heard. The first call begins to watch it."""
        return self.finished.done()

    async def result(self, timeout: float | None = None) -> Json:
        """Wait for the result and return it as Python values; a streamed one as its bytes.

        The whole result is held in memory. ``finished`` waits without reading it.

        Raises:
            ResultTimeout: The job has not ended after ``timeout`` seconds. It continues.
            JobFailed: The job ended as ERROR.
            JobKilled: The job was killed.
        """
        job = await self.finished.result(timeout)
        raise_unless_finished(job)
        reader = await self._open_result(job.id)
        return await reader.value() if reader is not None else None

    def add_done_callback(self, call: Callable[[AsyncJobHandle], None]) -> None:
        """Call with this handle once the job has ended, in the event loop. Exceptions of the call are logged.

        Raises:
            InvalidRequest: It is not a function of one argument, or it is declared with ``async def``. Or it
                is asyncio's own: ``asyncio.wait`` takes ``asyncio.ensure_future(handle)``, not the handle.
        """
        check_not_asyncio(call)
        check_callable("the done callback", call, arguments=1, instead=IN_THE_LOOP)
        self.finished.add_done_callback(lambda _waiter: call(self))

    def __await__(self) -> Generator[object, None, Json]:
        return self.result().__await__()


class AsyncResultReader:
    """A result that is being read from the server. Iterate over its chunks, or ask for its value.

    ``kind`` is ``ResultKind.STREAM`` for the bytes that the job yielded, any other for JSON. ``size`` is the
    number of bytes. Both are known before anything is read. Close it, or use it in an ``async with`` block.
    If the connection breaks, reading raises ConnectionLost: a part is never taken for the whole. Reading
    raises Conflict once it is closed, and in another event loop than that of its client.
    """

    def __init__(
        self,
        response: httpx.Response,
        opened: AbstractAsyncContextManager[httpx.Response],
        check_loop: Callable[[], None],
    ) -> None:
        json = response.headers.get("content-type", "").startswith("application/json")
        self.kind = ResultKind.STORED if json else ResultKind.STREAM
        self.size = int(response.headers["content-length"])
        self._opened = opened
        self._check_loop = check_loop
        self._closed = False
        self._begun = False
        self._chunks = response.aiter_bytes(CHUNK)

    @classmethod
    async def open(
        cls, opened: AbstractAsyncContextManager[httpx.Response], check_loop: Callable[[], None]
    ) -> AsyncResultReader:
        """Return the result that the response has. ``check_loop`` raises Conflict in another event loop.

        Raises:
            UnexpectedResponse: The size is unknown, because a proxy has changed the response.
            JobServerError: The errors of the request.
        """
        response = await opened.__aenter__()
        if "content-length" not in response.headers:
            await opened.__aexit__(None, None, None)
            url, reason = str(response.request.url), "the response has no Content-Length"
            raise UnexpectedResponse(url=url, status=response.status_code, reason=reason)
        return cls(response, opened, check_loop)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._closed:
            raise reader_closed("result")
        self._check_loop()
        self._begun = True
        try:
            return await self._chunks.__anext__()
        except httpx.HTTPError as error:
            # The context manager of the response raises it as one of our errors.
            await self._opened.__aexit__(type(error), error, error.__traceback__)
            raise

    async def value(self) -> Json:
        """Return the whole result as Python values (a streamed one as bytes), and close.

        Raises:
            Conflict: The reader is closed, or a part has been read.
            LaunchError: The launcher wrote a result that is not JSON.
        """
        check_unread(closed=self._closed, begun=self._begun)
        self._check_loop()
        async with self:
            data = b"".join([chunk async for chunk in self])
        return data if self.kind is ResultKind.STREAM else parse_result(data)

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        self._check_loop()
        self._closed = True
        await self._opened.__aexit__(None, None, None)

    async def __aenter__(self) -> AsyncResultReader:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()
