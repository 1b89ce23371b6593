"""The client for asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import parse_qs, urlsplit

import httpx

from jobserver_client.connection import Connection, FileBody, Params, body_of, decoded, decoded_list, path_to
from jobserver_client.errors import ClientClosed, error_from, is_refusal
from jobserver_client.handles import IN_THE_LOOP, AsyncJobHandle, AsyncResultReader, AsyncWaiter
from jobserver_client.logs import followed_log
from jobserver_client.options import ConnectionOptions, RemoteServer
from jobserver_client.records import binary_of, context_of, deliveries_of, job_of, server_of, storage_of
from jobserver_client.requests import list_params, submit_call
from jobserver_client.watching import GAP, EventStream, Item
from jobserver_core.errors import (
    Conflict,
    ContextNotFound,
    ContextStopping,
    InvalidCallbackUrl,
    InvalidRequest,
    JobAlreadyFinal,
    JobServerError,
    ResultTimeout,
)
from jobserver_core.events import ContextChanged, Event, JobChanged, Subscription
from jobserver_core.forks import Origin
from jobserver_core.models.arguments import (
    check_callable,
    check_kind,
    check_limit,
    check_settings,
    config_text,
)
from jobserver_core.models.binaries import Binary, BinaryType, DataFile
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.jobs import Job, JobPage, JobQuery, JobRequest
from jobserver_core.models.json_values import Json, JsonMapping
from jobserver_core.models.lifecycle import ContextState, JobState
from jobserver_core.models.servers import ServerStatus
from jobserver_core.models.storage import StorageUsage
from jobserver_core.models.validation import check_binary_name, check_context_name, data_file_name
from jobserver_core.running.waiting import never_ready
from jobserver_core.uris import scheme_of

T = TypeVar("T")

_log = logging.getLogger(__name__)


class AsyncClient(RemoteServer):
    """A job server that runs elsewhere: :class:`jobserver_client.Client`, with coroutines.

    Use it in an ``async with`` block. Methods and options are those of ``Client``; calls are awaited, and
    handles and waiters as well. All of them belong to the event loop of the first call, and raise Conflict in
    another one::

        async with AsyncClient("https://jobs.example.com", token=token) as client:
            handle = await client.submit(JobRequest(class_name="words.Count", class_path="words"))
            print(await handle)
    """

    _closing = "use it in an async with block, or await close()"
    _is_inner = False
    """Whether another client closes it."""

    def _open(self, options: ConnectionOptions) -> None:
        self._origin = Origin()
        self.connection = Connection(options)
        self._stream = EventStream(self.connection)
        self._begun_waiters: set[AsyncWaiter[Any]] = set()

    def _is_forgotten(self) -> bool:
        # The constructor may have raised.
        connection = getattr(self, "connection", None)
        return not (self._is_inner or connection is None or connection.is_closed) and self._origin.here

    def _begin(self, start: Callable[[], Coroutine[object, object, T]], what: str) -> AsyncWaiter[T]:
        """Return a waiter for an operation that begins now, whether or not anybody waits."""
        waiter = AsyncWaiter(start, what, self.connection.check_loop)
        self._begun_waiters.add(waiter)
        waiter.notify(self._begun_waiters.discard)
        return waiter

    @property
    def url(self) -> str:
        """The server's address."""
        return self.connection.url

    async def close(self) -> None:
        """Close the connections. What runs on the server continues. Idempotent.

        Raises:
            Conflict: The client belongs to another event loop.
        """
        if self.connection.is_closed:
            return
        self.connection.check_loop()
        for waiter in list(self._begun_waiters):
            waiter.cancel()
        await self._stream.close()
        await self.connection.close()

    async def __aenter__(self) -> AsyncClient:
        if self.connection.is_closed:
            raise ClientClosed()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def is_ready(self) -> bool:
        """Return whether the server accepts jobs. Needs no credentials."""
        response = await self.connection.request("GET", "/readyz", accept_errors=True)
        return response.status_code == httpx.codes.OK

    async def subscribe(self, subscriber: Callable[[Event], object]) -> Subscription:
        """Call ``subscriber`` with every event from now on, in the event loop, until it is closed.

        Exceptions of ``subscriber`` are logged. After an interrupted connection, some events are missing. If
        the server is away for too long, the subscription ends, and a warning is logged.
        """
        check_callable("the subscriber", subscriber, arguments=1, instead=IN_THE_LOOP)
        opened = asyncio.get_running_loop().create_future()

        def receive(item: Item) -> None:
            if isinstance(item, JobServerError):
                if not opened.done():
                    opened.set_exception(item)
                elif not self._stream.is_closed:
                    _log.warning("no more events of %s: %s", self.url, item)
            elif item is not GAP:
                try:
                    subscriber(item)
                except Exception:  # noqa: BLE001 - the code belongs to the user
                    _log.exception("a subscriber has failed")
            elif not opened.done():
                opened.set_result(None)

        subscription = Subscription(lambda: self._stream.remove(None, receive))
        self._stream.add(None, receive)
        try:
            timeout = self.connection.options.response_timeout
            if not (await asyncio.wait({opened}, timeout=timeout))[0]:
                raise ResultTimeout(what=f"GET {self.url}/events", seconds=timeout)
            opened.result()
        except BaseException:
            subscription.close()
            raise
        return subscription

    async def servers(self) -> list[ServerStatus]:
        """Return the servers that share the database, oldest first."""
        return [server_of(record) for record in await self.connection.get_list("/servers")]

    async def storage(self) -> list[StorageUsage]:
        """Return what uses how much storage, and its limits. May take long."""
        response = await self.connection.request("GET", "/storage", slow=True)
        return [storage_of(usage) for usage in decoded_list(response)]

    async def prune(self) -> dict[str, int]:
        """Remove now what the hourly sweep would remove; return how many of each kind. May take long."""
        response = await self.connection.request("POST", "/storage/prune", slow=True)
        removed: dict[str, int] = decoded(response)["removed"]
        return removed

    # -- binaries ----------------------------------------------------------------------------------

    async def upload(
        self, name: str, type: BinaryType | str, data: bytes | BinaryIO | Iterable[bytes]
    ) -> Binary:
        """Store a new version of a binary. ``type`` may be its name: ``"jar"``, ``"egg"`` or ``"wheel"``."""
        path, media_type = path_to("binaries", check_binary_name(name)), BinaryType.of(type).media_type
        await self._send_file(path, media_type, body_of(data))
        return await self.binary(name)

    async def _send_file(
        self, path: str, media_type: str, content: bytes | FileBody, params: Params | None = None
    ) -> httpx.Response:
        headers = {"Content-Type": media_type}
        if isinstance(content, FileBody) and content.size is not None:
            headers["Content-Length"] = str(content.size)
        return await self.connection.request(
            "POST", path, params=params, content=content, headers=headers, slow=True
        )

    async def binaries(self) -> list[Binary]:
        """Return the newest version of every binary, sorted by name."""
        records: JsonMapping = await self.connection.get("/binaries")
        return sorted((binary_of(*item) for item in records.items()), key=lambda binary: binary.name)

    async def binary(self, name: str) -> Binary:
        """Return the newest version of a binary."""
        return binary_of(name, await self.connection.get(path_to("binaries", name)))

    async def binary_versions(self, name: str) -> list[Binary]:
        """Return all versions of a binary, newest first."""
        records = await self.connection.get_list(path_to("binaries", name, "versions"))
        return [binary_of(name, record) for record in records]

    async def delete_binary(self, name: str) -> list[Binary]:
        """Remove every version of a binary, and return them."""
        versions = await self.binary_versions(name)
        await self.connection.request("DELETE", path_to("binaries", name))
        return versions

    # -- contexts ----------------------------------------------------------------------------------

    async def create_context(self, name: str, settings: JsonMapping | None = None) -> AsyncWaiter[Context]:
        """Begin to start a context; the waiter has it once jobs can run, or raises the error."""
        settings = {} if settings is None else settings
        check_settings(settings, "settings")
        text = config_text({"spark": {"context-settings": settings}}) if settings else ""

        async def create() -> Context:
            await self.connection.request(
                "POST",
                path_to("contexts", check_context_name(name)),
                content=text.encode(),
                headers={"Content-Type": "text/plain; charset=utf-8"},
                timeout=self.connection.options.operation_timeout,
            )
            return await self.context(name)

        return self._begin(create, f"context {name}")

    async def contexts(self, query: ContextQuery | None = None) -> list[Context]:
        """Return the live contexts, newest first.

        Raises:
            InvalidRequest: A query was given, which the HTTP API does not take.
        """
        if query is not None:
            raise InvalidRequest(message="the HTTP API lists the live contexts only, without a query")
        records = await self.connection.get_list("/contexts", details="true")
        contexts = [context_of(record) for record in records]
        live = [context for context in contexts if not context.state.final]
        return sorted(live, key=lambda context: context.started_at, reverse=True)

    async def context(self, name: str) -> Context:
        """Return the newest context of a name, or the one with an id.

        Raises:
            ContextNotFound: There is none.
        """
        return context_of(await self.connection.get(path_to("contexts", name)))

    async def context_waiter(self, name: str) -> AsyncWaiter[Context]:
        """Return a waiter for a context that somebody has begun to start.

        See :meth:`Client.context_waiter`.
        """
        context = await self._living_context(name)
        if context.state is ContextState.STOPPING:
            raise ContextStopping(name=name)

        async def ready() -> Context:
            found = await self._context_when(
                context, lambda found: found.state is ContextState.RUNNING or found.state.final
            )
            if found.state.final:
                raise never_ready(found)
            return found

        return AsyncWaiter(ready, f"context {name}", self.connection.check_loop)

    async def _living_context(self, name: str) -> Context:
        context = await self.context(name)
        if context.state.final:
            raise ContextNotFound(name=name, reason=context.failure)
        return context

    async def _context_when(self, context: Context, reached: Callable[[Context], bool]) -> Context:
        if reached(context):
            return context
        return await self._stream.until(
            context.id,
            lambda: self.context(context.id),
            lambda event: event.context if isinstance(event, ContextChanged) else None,
            reached,
        )

    async def ended_contexts(self, limit: int = 50) -> list[Context]:
        """Return the newest contexts that have ended, newest first.

        At most ``limit`` (1 to 10,000) are returned.
        """
        check_limit(limit, least=1)
        records = await self.connection.get_list("/contexts", ended="true", limit=str(limit))
        return [context_of(record) for record in records]

    async def context_before(self, context: Context) -> Context | None:
        """Return the supervised context whose death led to this one: its ``error`` is the restart's reason.

        Returns None if this one is no restart, or the record was removed since.
        """
        check_kind("the context", context, Context, "a Context")
        if not context.restarts:
            return None
        try:
            record = await self.connection.get(path_to("contexts", context.id))
            before = record.get("lastRestart")
            return await self.context(before["id"]) if before else None
        except ContextNotFound:
            return None

    async def stop_context(self, name: str) -> AsyncWaiter[Context]:
        """Begin to stop a context; the waiter has it once it has ended."""
        return await self._end_context(name, force=False)

    async def kill_context(self, name: str) -> AsyncWaiter[Context]:
        """End a context by force; the waiter has it once it has ended."""
        return await self._end_context(name, force=True)

    async def _end_context(self, name: str, *, force: bool) -> AsyncWaiter[Context]:
        context = await self._living_context(name)

        async def end() -> Context:
            params = {"force": "true"} if force else None
            timeout = self.connection.options.operation_timeout
            await self.connection.request("DELETE", path_to("contexts", name), params=params, timeout=timeout)
            return await self._stream.until(
                context.id,
                lambda: self.context(name),
                lambda event: event.context if isinstance(event, ContextChanged) else None,
                lambda found: found.state.final or found.id != context.id,
            )

        return self._begin(end, f"context {name}")

    async def reset_contexts(self) -> AsyncWaiter[None]:
        """Stop every context, and start those of the configuration again."""

        async def reset() -> None:
            timeout = self.connection.options.operation_timeout
            await self.connection.request("PUT", "/contexts", params={"reset": "reboot"}, timeout=timeout)

        return self._begin(reset, "reset of the contexts")

    # -- jobs --------------------------------------------------------------------------------------

    async def submit(self, request: JobRequest) -> AsyncJobHandle:
        """Accept a job: once this returns, the server has recorded it."""
        call = submit_call(request)
        response = await self.connection.request(
            "POST",
            "/jobs",
            params=call.params,
            content=call.body,
            headers=call.headers,
            slow=True,
            accept_errors=True,
        )
        if not is_refusal(response):
            return self._handle(job_of(decoded(response)))
        body = _object(response)
        denied = response.status_code in (401, 403)  # while the job was accepted; the message names it
        if "jobId" in body and not denied:  # the job was accepted, and has failed before its code ran
            return await self.job_handle(body["jobId"])
        error = error_from(response)
        if isinstance(error, InvalidCallbackUrl) and scheme_of(request.callback_url or "") == "call":
            reason = (
                "call: is for functions in the process of the server; to call a function of this program, "
                "use handle.add_done_callback(function)"
            )
            raise InvalidCallbackUrl(url=error.url, reason=reason)
        raise error

    async def jobs(self, query: JobQuery | None = None) -> JobPage:
        """Return a page of jobs, newest first."""
        params = list_params(JobQuery() if query is None else query)
        response = await self.connection.request("GET", "/jobs", params=params)
        jobs = tuple(job_of(record) for record in decoded_list(response))
        following = response.links.get("next", {}).get("url")
        cursor = parse_qs(urlsplit(following).query)["cursor"][0] if following else None
        return JobPage(jobs=jobs, next=cursor)

    async def job(self, job_id: str) -> Job:
        """Return a job as it is recorded."""
        return job_of(await self._record(job_id))

    async def _record(self, job_id: str) -> JsonMapping:
        record: JsonMapping = await self.connection.get(path_to("jobs", job_id), result="false")
        return record

    async def job_handle(self, job_id: str) -> AsyncJobHandle:
        """Return a handle to wait for a job, whenever it was submitted."""
        return self._handle(await self.job(job_id))

    def _handle(self, job: Job) -> AsyncJobHandle:
        def when(reached: Callable[[Job], bool]) -> AsyncWaiter[Job]:
            check_loop = self.connection.check_loop
            return AsyncWaiter(lambda: self._job_when(job, reached), f"job {job.id}", check_loop)

        started, finished = when(_has_started), when(_has_ended)
        return AsyncJobHandle(job, started=started, finished=finished, open_result=self.open_result)

    async def _job_when(self, job: Job, reached: Callable[[Job], bool]) -> Job:
        if reached(job):
            return job
        return await self._stream.until(
            job.id,
            lambda: self.job(job.id),
            lambda event: event.job if isinstance(event, JobChanged) else None,
            reached,
        )

    async def job_config(self, job_id: str) -> str:
        """Return the job's configuration as JSON text."""
        return (await self.connection.request("GET", path_to("jobs", job_id, "config"))).text

    async def open_result(self, job_id: str) -> AsyncResultReader | None:
        """Open a finished job's result for reading in chunks; None when it has none."""
        unpacked = {"Accept-Encoding": "identity"}  # so that the size is known
        opened = self.connection.current(path_to("jobs", job_id, "result"), unpacked)
        self.connection.check_loop()
        try:
            return await AsyncResultReader.open(opened, self.connection.check_loop)
        except ClientClosed:
            raise
        except Conflict:
            return None

    async def deliveries(self, job_id: str) -> list[Delivery]:
        """Return the callback deliveries of a job, with their attempts and states, but without their URL."""
        return deliveries_of(job_id, (await self._record(job_id)).get("callbacks", ()))

    async def kill_job(self, job_id: str, *, force: bool = False) -> AsyncWaiter[Job]:
        """Begin to end a job, as :meth:`Client.kill_job` does."""
        job = await self.job(job_id)
        path = path_to("jobs", job_id)
        if job.state.final:
            raise JobAlreadyFinal(job_id=job_id, state=job.state)

        async def kill() -> Job:
            params = {"force": "true"} if force else None
            timeout = self.connection.options.operation_timeout
            with suppress(JobAlreadyFinal):
                await self.connection.request("DELETE", path, params=params, timeout=timeout)
            return await self._job_when(job, _has_ended)

        return self._begin(kill, f"job {job_id}")

    # -- logs and data files -----------------------------------------------------------------------

    async def logs(self, job_id: str, *, follow: bool = False) -> AsyncGenerator[str, None]:
        """Yield the lines of a job's output, as :meth:`Client.logs` does."""
        opened = (
            self.followed_job_log(job_id)
            if follow
            else self.connection.current(path_to("jobs", job_id, "logs"))
        )
        async with opened as response:
            async for line in response.aiter_lines():
                yield line

    def followed_job_log(self, job_id: str) -> AbstractAsyncContextManager[httpx.Response]:
        """Open a job's output as bytes, until the job has ended. See :meth:`logs`."""

        async def has_ended() -> bool:
            return (await self.job(job_id)).state.final

        return followed_log(self.connection, path_to("jobs", job_id, "logs"), has_ended)

    async def context_logs(self, name: str, *, follow: bool = False) -> AsyncGenerator[str, None]:
        """Yield the lines of the log of a context's driver, as :meth:`Client.context_logs` does."""
        path = path_to("contexts", name, "logs")
        async with self.followed_context_log(name) if follow else self.connection.current(path) as response:
            async for line in response.aiter_lines():
                yield line

    @asynccontextmanager
    async def followed_context_log(self, name: str) -> AsyncIterator[httpx.Response]:
        """Open the log of a context's driver as bytes, until the context has ended."""
        found = await self.context(name)  # another one may get the name later

        async def has_ended() -> bool:
            return (await self.context(found.id)).state.final

        path = path_to("contexts", found.id, "logs")
        async with followed_log(self.connection, path, has_ended) as response:
            yield response

    async def add_data_file(
        self, prefix: str, data: bytes | BinaryIO | Iterable[bytes], *, ending: str | None = None
    ) -> DataFile:
        """Store a data file, as :meth:`Client.add_data_file` does."""
        body = body_of(data)
        prefix, ending = data_file_name(prefix, ending)
        to, params = path_to("data", prefix), {"ending": ending}
        response = await self._send_file(to, "application/octet-stream", body, params)
        path = Path(decoded(response)["result"]["filename"])
        size = len(body) if isinstance(body, bytes) else body.sent
        date = response.headers.get("Date")  # the server's time
        created = parsedate_to_datetime(date) if date else datetime.now(timezone.utc)
        return DataFile(path=path, size=size, created_at=created)

    async def data_files(self) -> list[PurePosixPath]:
        """Return the paths of the data files on the server's machine, sorted."""
        return [PurePosixPath(name) for name in await self.connection.get_list("/data")]

    async def delete_data_file(self, name: str | PathLike[str]) -> None:
        """Remove a data file by its full path or its plain name."""
        await self.connection.request("DELETE", path_to("data", name))

    async def reset_data_files(self) -> None:
        """Remove every data file."""
        await self.connection.request("PUT", "/data", params={"reset": "reboot"})


def _has_started(job: Job) -> bool:
    return job.state is not JobState.STARTED or job.waiting


def _has_ended(job: Job) -> bool:
    return job.state.final


def _object(response: httpx.Response) -> Json:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
