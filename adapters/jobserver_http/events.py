"""Handlers and routes of the event streams (server-sent events)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response

from jobserver_core.events import ContextChanged, Event, JobChanged, JobProgressed, Subscription
from jobserver_core.models.jobs import Job
from jobserver_core.models.json_values import Json
from jobserver_core.server import JobServer
from jobserver_http.access import Namespace
from jobserver_http.calls import Call, wait_for_first
from jobserver_http.responses import ClosingResponse
from jobserver_http.routing import NO_JOB, RouteResponse, Routes
from jobserver_http.wire import context_record, delivery_records, encoded, job_record, timestamp

BUFFER_SIZE = 256
"""How many events are buffered for a slow client. When the buffer is full, the oldest events are dropped."""
EVENT_STREAM = "text/event-stream"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

ROUTES = Routes()


class Listener:
    """Buffers events for one client. Events may come from any thread.

    Enter and leave it inside the event loop that reads from it.
    """

    def __init__(
        self, server: JobServer, wanted: Callable[[Event], bool], *, size: int = BUFFER_SIZE
    ) -> None:
        self._server = server
        self._wanted = wanted
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque(maxlen=size)
        self._ready = asyncio.Event()
        self._subscription: Subscription | None = None
        self.lost = 0

    def _receive(self, event: Event) -> None:
        if self._wanted(event):
            try:
                self._loop.call_soon_threadsafe(self._store, event)
            except RuntimeError:  # the loop was closed, and so was the client's connection
                self.close()

    def _store(self, event: Event) -> None:
        if len(self._events) == self._events.maxlen:
            self.lost += 1
        self._events.append(event)
        self._ready.set()

    async def wait(self) -> None:
        """Wait until there is an event to take."""
        await self._ready.wait()

    def take(self) -> tuple[int, list[Event]]:
        """Return the number of events that were dropped since the last call, and the buffered events."""
        lost, events = self.lost, list(self._events)
        self.lost = 0
        self._events.clear()
        self._ready.clear()
        return lost, events

    def close(self) -> None:
        """Stop receiving events. Idempotent."""
        if self._subscription is not None:
            self._subscription.close()

    def __enter__(self) -> Listener:
        self._subscription = self._server.subscribe(self._receive)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def server_sent(name: str, data: Json) -> bytes:
    """Encode one event in the text/event-stream format of the HTML standard."""
    return b"event: %s\ndata: %s\n\n" % (name.encode("ascii"), encoded(data))


def _encoded_event(event: Event, names: Namespace) -> bytes:
    at = timestamp(event.at)
    if isinstance(event, ContextChanged):
        return server_sent("context", {"at": at, **context_record(event.context, names)})
    if isinstance(event, JobProgressed):
        return server_sent("progress", {"at": at, **job_record(event.job, names)})
    if isinstance(event, JobChanged):
        return server_sent("job", {"at": at, **job_record(event.job, names)})
    record = delivery_records([event.delivery])[0]
    return server_sent("callback", {"at": at, "jobId": event.delivery.job_id, **record})


def _visible(names: Namespace) -> Callable[[Event], bool]:
    """Return a filter for the events that a caller may see. Deliveries do not name an owner."""

    def visible(event: Event) -> bool:
        if isinstance(event, ContextChanged):
            return names.owns(event.context.name)
        if isinstance(event, (JobChanged, JobProgressed)):
            return names.owns(event.job.context_name)
        return names.owner is None

    return visible


@ROUTES.add_extension(
    "GET /jobs/{id}/events",
    permission="jobs:read",
    summary="Stream the states and progress of a job as server-sent events, until it has ended",
    responses=(RouteResponse(200, "The events", media_type=f"{EVENT_STREAM}; charset=utf-8"), *NO_JOB),
)
async def follow_job(call: Call) -> Response:
    """Stream the current record of a job and then its events, until the job has ended.

    If another server runs the job, only the record of its end follows the first one.
    """
    job = await call.job()

    def wanted(event: Event) -> bool:
        if isinstance(event, (JobChanged, JobProgressed)):
            return event.job.id == job.id
        return not isinstance(event, ContextChanged) and event.delivery.job_id == job.id

    listener = Listener(call.server, wanted)
    return ClosingResponse(
        _one(call, listener, job.id), media_type=EVENT_STREAM, headers=HEADERS, opened=listener
    )


@ROUTES.add_extension(
    "GET /events",
    permission="jobs:read",
    summary="Stream all events of the server that responds as server-sent events",
    responses=(RouteResponse(200, "The events", media_type=f"{EVENT_STREAM}; charset=utf-8"),),
)
async def follow_events(call: Call) -> Response:
    """Stream all events from now on, until the client disconnects or is refused, or the server stops."""
    listener = Listener(call.server, _visible(call.names))
    return ClosingResponse(_all(call, listener), media_type=EVENT_STREAM, headers=HEADERS, opened=listener)


async def _all(call: Call, listener: Listener) -> AsyncIterator[bytes]:
    with listener:
        yield b": listening\n\n"
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async for event in _stream_events(call, listener, until=never):
            yield event if isinstance(event, bytes) else _encoded_event(event, call.names)


async def _one(call: Call, listener: Listener, job_id: str) -> AsyncIterator[bytes]:
    # Listen before reading the record, so that no change is missed between the two.
    with listener:
        handle = await call.threads.quick.run(call.server.job_handle, job_id)
        yield _current_record(handle.job, call.names)
        if handle.job.state.final:
            return
        with call.state.notified(handle.finished) as ended:
            async for event in _stream_events(call, listener, until=ended):
                yield event if isinstance(event, bytes) else _encoded_event(event, call.names)
                if isinstance(event, JobChanged) and event.job.state.final:
                    return
        if call.revoked:
            return
        # The server that runs the job publishes its events. On the others, only the record shows the end.
        job = await call.threads.quick.run(call.server.job, job_id)
        if job.state.final:
            yield _current_record(job, call.names)


def _current_record(job: Job, names: Namespace) -> bytes:
    at = timestamp(job.ended_at or job.running_at or job.submitted_at)
    return server_sent("job", {"at": at, **job_record(job, names)})


async def _stream_events(
    call: Call, listener: Listener, *, until: asyncio.Future[None]
) -> AsyncIterator[Event | bytes]:
    """Yield events, notices of dropped events, and comments that keep an idle connection alive.

    Ends once ``until`` is done, the caller's credentials are revoked, or the server stops.
    """
    closing = call.state.closing
    while not closing.is_set() and not until.done():
        # Unlike a cancelled await, a cancelled asyncio.wait leaves the future as it is.
        over = asyncio.wait({until})
        await wait_for_first(listener.wait(), closing.wait(), over, timeout=call.state.heartbeat)
        if call.revoked:
            return
        lost, events = listener.take()
        if lost:
            yield server_sent("lost", {"count": lost})
        for event in events:
            yield event
        if not events and not closing.is_set() and not until.done():
            yield b": still here\n\n"
