"""Server-sent events: what happens in the job server, as it happens."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response

from jobserver_core.events import ContextChanged, Event, JobChanged, JobProgressed, Subscription
from jobserver_core.models.jobs import Job
from jobserver_core.server import JobServer
from jobserver_http.answers import StreamedText
from jobserver_http.calls import Call, first_of
from jobserver_http.namespaces import Namespace
from jobserver_http.routing import NO_JOB, Reply, Route
from jobserver_http.wire import context_report, delivery_report, encoded, job_report, timestamp

__all__ = ["ROUTES", "Listener", "follow_events", "follow_job", "server_sent"]

KEPT = 256
"""Events that are kept for a client which is slow; of more the oldest are lost, and counted."""
EVENT_STREAM = "text/event-stream"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Listener:
    """Gathers events for one client, from whatever thread they come, in bounded memory.

    Made and left inside the event loop that reads from it.
    """

    def __init__(self, server: JobServer, wanted: Callable[[Event], bool], *, kept: int = KEPT) -> None:
        self._server = server
        self._wanted = wanted
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque(maxlen=kept)
        self._ready = asyncio.Event()
        self._subscription: Subscription | None = None
        self.lost = 0

    def _happened(self, event: Event) -> None:
        if self._wanted(event):
            try:
                self._loop.call_soon_threadsafe(self._keep, event)
            except RuntimeError:  # the loop has ended, and with it the client's connection
                self.close()

    def _keep(self, event: Event) -> None:
        if len(self._events) == self._events.maxlen:
            self.lost += 1
        self._events.append(event)
        self._ready.set()

    async def wait(self) -> None:
        """Return once there is an event to take."""
        await self._ready.wait()

    def take(self) -> tuple[int, list[Event]]:
        """Return how many events were lost since the last time, and those that came after them."""
        lost, events = self.lost, list(self._events)
        self.lost = 0
        self._events.clear()
        self._ready.clear()
        return lost, events

    def close(self) -> None:
        """Hear nothing more; repeating this is allowed."""
        if self._subscription is not None:
            self._subscription.close()

    def __enter__(self) -> Listener:
        self._subscription = self._server.subscribe(self._happened)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def server_sent(name: str, data: Any) -> bytes:
    """Return one event in the text/event-stream format of the HTML standard."""
    return b"event: %s\ndata: %s\n\n" % (name.encode("ascii"), encoded(data))


def _told(event: Event, names: Namespace) -> bytes:
    at = timestamp(event.at)
    if isinstance(event, ContextChanged):
        return server_sent("context", {"at": at, **context_report(event.context, names)})
    if isinstance(event, JobProgressed):
        return server_sent("progress", {"at": at, **job_report(event.job, names)})
    if isinstance(event, JobChanged):
        return server_sent("job", {"at": at, **job_report(event.job, names)})
    report = delivery_report([event.delivery])[0]
    return server_sent("callback", {"at": at, "jobId": event.delivery.job_id, **report})


def _visible(names: Namespace) -> Callable[[Event], bool]:
    """Return which events a caller may see. Callbacks do not tell whose they are."""

    def visible(event: Event) -> bool:
        if isinstance(event, ContextChanged):
            return names.owns(event.context.name)
        if isinstance(event, (JobChanged, JobProgressed)):
            return names.owns(event.job.context_name)
        return names.owner is None

    return visible


async def follow_events(call: Call) -> Response:
    """Answer with every event from now on, until the client leaves or the server ends."""
    listener = Listener(call.server, _visible(call.names))
    return StreamedText(_all(call, listener), media_type=EVENT_STREAM, headers=HEADERS, opened=listener)


async def follow_job(call: Call) -> Response:
    """Answer with a job's record as it is, and then with what happens to it, until it has ended."""
    job = call.names.checked(await call.pools.quick.run(call.server.job, call.path["id"]))

    def wanted(event: Event) -> bool:
        if isinstance(event, (JobChanged, JobProgressed)):
            return event.job.id == job.id
        return not isinstance(event, ContextChanged) and event.delivery.job_id == job.id

    listener = Listener(call.server, wanted)
    return StreamedText(_one(call, listener, job), media_type=EVENT_STREAM, headers=HEADERS, opened=listener)


async def _all(call: Call, listener: Listener) -> AsyncIterator[bytes]:
    with listener:
        yield b": listening\n\n"
        async for event in _heard(call, listener):
            yield event if isinstance(event, bytes) else _told(event, call.names)


async def _one(call: Call, listener: Listener, job: Job) -> AsyncIterator[bytes]:
    # Listening begins before the record is read, so that no change falls between the two.
    with listener:
        job = await call.pools.quick.run(call.server.job, job.id)
        now = timestamp(job.ended_at or job.running_at or job.submitted_at)
        yield server_sent("job", {"at": now, **job_report(job, call.names)})
        if job.state.final:
            return
        async for event in _heard(call, listener):
            yield event if isinstance(event, bytes) else _told(event, call.names)
            if isinstance(event, JobChanged) and event.job.state.final:
                return


async def _heard(call: Call, listener: Listener) -> AsyncIterator[Event | bytes]:
    """Yield events, word of lost ones, and now and then a comment that keeps the connection alive."""
    closing = call.site.closing
    while not closing.is_set():
        await first_of(listener.wait(), closing.wait(), timeout=call.site.heartbeat)
        lost, events = listener.take()
        if lost:
            yield server_sent("lost", {"count": lost})
        for event in events:
            yield event
        if not events and not closing.is_set():
            yield b": still here\n\n"


ROUTES = (
    Route(
        name="follow_job",
        method="GET",
        path="/jobs/{id}/events",
        handler=follow_job,
        group="jobs",
        permission="jobs:read",
        summary="The job's states and progress as server-sent events, until it has ended",
        replies=(Reply(200, "The events", media_type=f"{EVENT_STREAM}; charset=utf-8"), *NO_JOB),
        extension=True,
    ),
    Route(
        name="follow_events",
        method="GET",
        path="/events",
        handler=follow_events,
        group="jobs",
        permission="jobs:read",
        summary="Everything that happens as server-sent events",
        replies=(Reply(200, "The events", media_type=f"{EVENT_STREAM}; charset=utf-8"),),
        extension=True,
    ),
)
