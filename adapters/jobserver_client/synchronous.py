"""The synchronous client.

It runs an :class:`AsyncClient` on an event loop in a thread of its own, so that there is one implementation
of every call, and so that waiting for many jobs costs no threads. See :mod:`jobserver_client.threads`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from functools import partial
from os import PathLike
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar

import attrs
import httpx

from jobserver_client.asynchronous import AsyncClient
from jobserver_client.connection import FileBody
from jobserver_client.handles import AsyncJobHandle, AsyncResultReader, AsyncWaiter
from jobserver_client.options import ConnectionOptions, RemoteServer
from jobserver_client.threads import LoopThread, waiter_for
from jobserver_core.events import Event, Subscription
from jobserver_core.models.arguments import check_callable
from jobserver_core.models.binaries import Binary, BinaryType, DataFile
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.jobs import Job, JobPage, JobQuery, JobRequest
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.models.servers import ServerStatus
from jobserver_core.models.storage import StorageUsage
from jobserver_core.running.results import ResultReader
from jobserver_core.running.waiting import JobHandle, Waiter

T = TypeVar("T")


class RemoteResult(ResultReader):
    """A result that is being read from the server. If the connection breaks, that is ConnectionLost."""

    def __init__(self, thread: LoopThread, reader: AsyncResultReader) -> None:
        self.kind = reader.kind
        self.size = reader.size
        self._thread = thread
        self._reader = reader
        self._rest = b""

    def _read(self, size: int) -> bytes:
        if not self._rest:
            [self._rest] = self._thread.run(_next(self._reader)) or [b""]
        chunk, self._rest = self._rest[:size], self._rest[size:]
        return chunk

    def close(self) -> None:
        self._closed = True
        self._thread.run(self._reader.close())


class StreamedResponse:
    """A response that is being read: its headers, and its body as bytes or lines."""

    def __init__(
        self,
        thread: LoopThread,
        response: httpx.Response,
        opened: AbstractAsyncContextManager[httpx.Response],
    ) -> None:
        self.response = response
        self._thread = thread
        self._opened = opened

    def iter_bytes(self) -> Iterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            ConnectionLost: The connection breaks before the end.
        """
        return self._iterate(self.response.aiter_bytes())

    def iter_lines(self) -> Iterator[str]:
        """Yield the lines of the body as they arrive.

        Raises:
            ConnectionLost: The connection breaks before the end.
        """
        return self._iterate(self.response.aiter_lines())

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        while found := self._thread.run(_next_translated(items, self._opened)):
            yield found[0]


async def _next_translated(
    items: AsyncIterator[T], opened: AbstractAsyncContextManager[httpx.Response]
) -> tuple[T] | None:
    """Return the next item, or None at the end. The context manager raises errors as ours."""
    try:
        return await _next(items)
    except httpx.HTTPError as error:
        await opened.__aexit__(type(error), error, error.__traceback__)
        raise


async def _next(items: AsyncIterator[T]) -> tuple[T] | None:
    """Return the next item, or None at the end."""
    try:
        return (await items.__anext__(),)
    except StopAsyncIteration:
        return None


class _InnerClient(AsyncClient):
    """The client that a :class:`Client` uses, and closes."""

    _is_inner = True


class Client(RemoteServer):
    """A job server that runs elsewhere, with the methods of :class:`jobserver_core.JobServer`.

    Code that submits jobs to an embedded server works with a client as well::

        with Client("https://jobs.example.com", token=token) as client:
            handle = client.submit(JobRequest(class_name="words.Count", class_path="words", context="warm"))
            print(handle.result(timeout=60))

    Log in with ``user`` and ``password``, or with a bearer ``token``. For https, ``ca_file`` has the
    certificate authorities to trust (PEM) instead of the usual ones; ``ssl_context`` controls everything,
    client certificates included. After ``timeout`` seconds without a byte, a request fails. The default is 90
    seconds, but 10 minutes where the server may have much to do: ``submit``, ``upload``, ``add_data_file``,
    ``storage`` and ``prune``. ``math.inf`` is no limit. A waiter waits for its operation as long as you do,
    and for an hour at most without a response. ``connect_timeout`` limits the opening of a connection. A
    request that failed in transit is repeated up to ``retries`` times if that is safe. While a wait or a
    subscription lasts, the server may be away for ``reconnect_timeout`` seconds.

    Every method may be called from any thread. Handles and waiters may be awaited, too. A method raises
    what its namesake of ``JobServer`` raises: ``client.job("x")`` raises JobNotFound.

    Raises:
        ServerUnreachable: No server answers. Like the following, from every method.
        ConnectionLost: The server stopped answering.
        AccessDenied: The credentials are wrong, or do not allow the request.
        ResultTimeout: A response takes too long.
        UnexpectedResponse: A response is not one of a job server.
    """

    _closing = "use it in a with block, or call close()"

    def _open(self, options: ConnectionOptions) -> None:
        self._remote = _InnerClient(**attrs.asdict(options, recurse=False))
        self._thread = LoopThread()

    def _is_forgotten(self) -> bool:
        thread = getattr(self, "_thread", None)  # the constructor may have raised
        return thread is not None and thread.is_open

    @property
    def url(self) -> str:
        """The server's address."""
        return self._remote.url

    def close(self) -> None:
        """Close the connections. What runs on the server continues. Idempotent."""
        self._thread.close(self._remote.close())

    def __enter__(self) -> Client:
        self._thread.check()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def is_ready(self) -> bool:
        """Return whether the server accepts jobs. Needs no credentials."""
        return self._thread.run(self._remote.is_ready())

    def subscribe(self, subscriber: Callable[[Event], object]) -> Subscription:
        """Call ``subscriber`` with every event from now on, until the subscription is closed.

        It is called on a thread of the client. Its exceptions are logged. After an interrupted connection,
        some events are missing. If the server is away for too long, the subscription ends, and a warning is
        logged.
        """
        check_callable("the subscriber", subscriber, arguments=1)
        subscription = self._thread.run(
            self._remote.subscribe(lambda event: self._thread.call_back(partial(subscriber, event)))
        )
        return Subscription(lambda: self._thread.call_on_loop(subscription.close))

    def servers(self) -> list[ServerStatus]:
        """Return the servers that share the database, oldest first."""
        return self._thread.run(self._remote.servers())

    def storage(self) -> list[StorageUsage]:
        """Return what uses how much storage, and its limits. May take long."""
        return self._thread.run(self._remote.storage())

    def prune(self) -> dict[str, int]:
        """Remove now what the hourly sweep would remove; return how many of each kind. May take long."""
        return self._thread.run(self._remote.prune())

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | None] | None = None,
        content: bytes | BinaryIO = b"",
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        unlimited: bool = False,
        accept_errors: bool = False,
    ) -> httpx.Response:
        """Send a request to the HTTP API, for what has no method of its own, and return the whole response.

        ``timeout`` is in seconds without a byte, by default that of the client; ``unlimited`` waits forever.

        Raises:
            InvalidRequest: The path does not begin with a slash.
            JobServerError: The server responded with an error, which ``accept_errors`` does not accept.
        """
        call = self._remote.connection.request(
            method,
            path,
            params=params,
            content=content if isinstance(content, bytes) else FileBody(content),
            headers=headers,
            timeout=timeout,
            unlimited=unlimited,
            accept_errors=accept_errors,
        )
        return self._thread.run(call)

    def stream(
        self,
        path: str,
        *,
        read_timeout: float | None = None,
        accept_errors: bool = False,
        headers: Mapping[str, str] | None = None,
        **params: str | None,
    ) -> AbstractContextManager[StreamedResponse]:
        """Open the response of a GET request for reading as it arrives, within a ``with`` block."""
        return self._opened(
            self._remote.connection.stream(
                path, read_timeout=read_timeout, accept_errors=accept_errors, headers=headers, **params
            )
        )

    def followed_job_log(self, job_id: str) -> AbstractContextManager[StreamedResponse]:
        """Open a job's output as bytes, until the job has ended. Use it in a ``with`` block."""
        return self._opened(self._remote.followed_job_log(job_id))

    def followed_context_log(self, name: str) -> AbstractContextManager[StreamedResponse]:
        """Open the log of a context's driver as bytes, until the context has ended, as with jobs."""
        return self._opened(self._remote.followed_context_log(name))

    @contextmanager
    def _opened(self, opened: AbstractAsyncContextManager[httpx.Response]) -> Iterator[StreamedResponse]:
        response = self._thread.run(opened.__aenter__())
        try:
            yield StreamedResponse(self._thread, response, opened)
        finally:
            self._thread.run(opened.__aexit__(None, None, None))

    # -- binaries ----------------------------------------------------------------------------------

    def upload(self, name: str, type: BinaryType | str, data: bytes | BinaryIO | Iterable[bytes]) -> Binary:
        """Store a new version of a binary."""
        return self._thread.run(self._remote.upload(name, type, data))

    def binaries(self) -> list[Binary]:
        """Return the newest version of every binary, sorted by name."""
        return self._thread.run(self._remote.binaries())

    def binary(self, name: str) -> Binary:
        """Return the newest version of a binary."""
        return self._thread.run(self._remote.binary(name))

    def binary_versions(self, name: str) -> list[Binary]:
        """Return all versions of a binary, newest first."""
        return self._thread.run(self._remote.binary_versions(name))

    def delete_binary(self, name: str) -> list[Binary]:
        """Remove every version of a binary, and return them."""
        return self._thread.run(self._remote.delete_binary(name))

    # -- contexts ----------------------------------------------------------------------------------

    def create_context(self, name: str, settings: JsonMapping | None = None) -> Waiter[Context]:
        """Begin to start a context; the waiter has it once jobs can run, or raises the error.

        ``settings`` are laid over the server's ``spark.context-settings``.
        """
        return self._waiter(self._remote.create_context(name, settings), f"context {name}")

    def contexts(self, query: ContextQuery | None = None) -> list[Context]:
        """Return the live contexts, newest first.

        Raises:
            InvalidRequest: A query was given, which the HTTP API does not take.
        """
        return self._thread.run(self._remote.contexts(query))

    def context(self, name: str) -> Context:
        """Return the newest context of a name, or the one with an id.

        Raises:
            ContextNotFound: There is none.
        """
        return self._thread.run(self._remote.context(name))

    def context_waiter(self, name: str) -> Waiter[Context]:
        """Return a waiter for a context that somebody has begun to start, such as one of ``spark.contexts``.

        Like the waiter of :meth:`create_context`, it has the context once jobs can run, at once if they
        already can, or raises ContextFailed.

        Raises:
            ContextNotFound: No context has the name, or it has ended already; says why, if that is known.
            ContextStopping: It is stopping.
        """
        return self._waiter(self._remote.context_waiter(name), f"context {name}")

    def ended_contexts(self, limit: int = 50) -> list[Context]:
        """Return the newest contexts that have ended, newest first.

        At most ``limit`` (1 to 10,000) are returned.
        """
        return self._thread.run(self._remote.ended_contexts(limit))

    def context_before(self, context: Context) -> Context | None:
        """Return the supervised context whose death led to this one: its ``error`` is the restart's reason.

        Returns None if this one is no restart, or the record was removed since.
        """
        return self._thread.run(self._remote.context_before(context))

    def stop_context(self, name: str) -> Waiter[Context]:
        """Begin to stop a context; the waiter has it once it has ended."""
        return self._waiter(self._remote.stop_context(name), f"context {name}")

    def kill_context(self, name: str) -> Waiter[Context]:
        """End a context by force; the waiter has it once it has ended."""
        return self._waiter(self._remote.kill_context(name), f"context {name}")

    def reset_contexts(self) -> Waiter[None]:
        """Stop every context, and start those of the configuration again."""
        return self._waiter(self._remote.reset_contexts(), "reset of the contexts")

    def _waiter(self, call: Coroutine[Any, Any, AsyncWaiter[T]], what: str) -> Waiter[T]:
        return waiter_for(self._thread, self._thread.run(call), what)

    # -- jobs --------------------------------------------------------------------------------------

    def submit(self, request: JobRequest) -> JobHandle:
        """Accept a job: once this returns, the server has recorded it, and nothing that happens loses it.

        If the connection is cut, the request is repeated with its idempotency key, so there is exactly one
        job. Fractions of a second in ``max_queue_time`` and ``max_run_time`` are rounded up.
        """
        return self._handle(self._thread.run(self._remote.submit(request)))

    def jobs(self, query: JobQuery | None = None) -> JobPage:
        """Return a page of jobs, newest first."""
        return self._thread.run(self._remote.jobs(query))

    def job(self, job_id: str) -> Job:
        """Return a job as it is recorded."""
        return self._thread.run(self._remote.job(job_id))

    def job_handle(self, job_id: str) -> JobHandle:
        """Return a handle to wait for a job, whenever it was submitted."""
        return self._handle(self._thread.run(self._remote.job_handle(job_id)))

    def _handle(self, handle: AsyncJobHandle) -> JobHandle:
        return JobHandle(
            handle.job,
            started=waiter_for(self._thread, handle.started, f"job {handle.id}"),
            finished=waiter_for(self._thread, handle.finished, f"job {handle.id}"),
            open_result=self.open_result,
        )

    def job_config(self, job_id: str) -> str:
        """Return the job's configuration as JSON text."""
        return self._thread.run(self._remote.job_config(job_id))

    def open_result(self, job_id: str) -> ResultReader | None:
        """Open a finished job's result for reading in chunks; None when it has none."""
        reader = self._thread.run(self._remote.open_result(job_id))
        return None if reader is None else RemoteResult(self._thread, reader)

    def deliveries(self, job_id: str) -> list[Delivery]:
        """Return the callback deliveries of a job, with their attempts and states, but without their URL."""
        return self._thread.run(self._remote.deliveries(job_id))

    def kill_job(self, job_id: str, *, force: bool = False) -> Waiter[Job]:
        """Begin to end a job; the waiter has it once it is final: KILLED, unless it ended before that.

        With ``force``, the server kills the job's context if the job cannot be killed alone.

        Raises:
            JobNotFound: No job has this ID.
            JobAlreadyFinal: The job had already ended.
        """
        return self._waiter(self._remote.kill_job(job_id, force=force), f"job {job_id}")

    # -- logs and data files -----------------------------------------------------------------------

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[str]:
        """Yield the lines of a job's output; with ``follow``, new ones until the job has ended.

        Following goes on if the server restarts meanwhile.

        Raises:
            JobNotFound: No job has this ID.
        """
        return self._iterate(self._remote.logs(job_id, follow=follow))

    def context_logs(self, name: str, *, follow: bool = False) -> Iterator[str]:
        """Yield the lines of the log of a context's driver.

        Raises:
            ContextNotFound: No context has this name or ID.
            LogNotFound: Nothing was written to it, or it was removed.
        """
        return self._iterate(self._remote.context_logs(name, follow=follow))

    def _iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        reading: asyncio.Task[tuple[T] | None] | None = None

        async def following() -> tuple[T] | None:
            nonlocal reading
            reading = asyncio.create_task(_next(items))
            return await asyncio.shield(reading)  # only end() cancels it: twice would interrupt its cleanup

        async def end() -> None:
            if reading is not None:  # a call that Ctrl-C has interrupted may still be reading
                reading.cancel()
                await asyncio.wait({reading})
            await items.aclose()

        try:
            while found := self._thread.run(following()):
                yield found[0]
        finally:
            self._thread.run(end())

    def add_data_file(
        self, prefix: str, data: bytes | BinaryIO | Iterable[bytes], *, ending: str | None = None
    ) -> DataFile:
        """Store a data file that jobs can read by its path on the server's machine.

        Its name is ``<prefix>-<time><ending>``. The ending, such as ``.csv.gz``, is by default that of
        ``prefix``.
        """
        return self._thread.run(self._remote.add_data_file(prefix, data, ending=ending))

    def data_files(self) -> list[PurePosixPath]:
        """Return the paths of the data files on the server's machine, sorted."""
        return self._thread.run(self._remote.data_files())

    def delete_data_file(self, name: str | PathLike[str]) -> None:
        """Remove a data file by its full path or its plain name."""
        self._thread.run(self._remote.delete_data_file(name))

    def reset_data_files(self) -> None:
        """Remove every data file."""
        self._thread.run(self._remote.reset_data_files())
