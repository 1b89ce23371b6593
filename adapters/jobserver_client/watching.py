"""Waiting for jobs and contexts with one connection, however many there are.

The problem: a client may wait for thousands of jobs. A request for each that is answered at the end would
occupy as many connections, and asking again and again costs the server much and the client latency.

The idea: the server publishes every change on one event stream, so all waits and subscribers of a client
share one stream. It is opened when something needs it, and closed when nothing has for a while. Events alone
are not enough, since a change may happen before the stream is open, while the connection is interrupted, or
when a slow client loses events. In each of these cases, everyone gets :data:`GAP` in place of events, and
looks at the current state instead.

The invariant: between two GAPs, a listener gets every event. A listener that looks after each GAP, and relies
on events only after that, misses nothing.

Not handled: a server that is away for longer than ``reconnect_timeout`` ends all waits with an error.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Final, Literal, TypeVar

from httpx_sse import EventSource

from jobserver_client.connection import Connection, delay
from jobserver_client.errors import ServerUnreachable
from jobserver_client.reports import event_of
from jobserver_core.errors import JobServerError, ResultTimeout, Unavailable
from jobserver_core.events import ContextChanged, DeliveryChanged, Event

__all__ = ["GAP", "EventStream", "Item"]

T = TypeVar("T")

READ_TIMEOUT = 60.0
"""Seconds without a byte after which the stream counts as broken. Servers send a comment every 15 seconds."""
LINGER = 5.0
"""Seconds for which the stream stays open when nobody listens."""
STABLE = 5.0
"""Seconds after which a stream that ends is opened again at once."""
LOOKS = 16
"""How many waits look at the current state at the same time."""


class _Gap(Enum):
    GAP = "gap"


GAP: Final = _Gap.GAP
"""Takes the place of events that may have been missed."""
Item = Event | Literal[_Gap.GAP] | JobServerError
"""What listeners get. After an error, nothing follows."""
Listener = Callable[[Item], None]


class EventStream:
    """The events of a server for everyone in this client who needs them. Belongs to one event loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._patience = connection.options.reconnect_timeout
        self._listeners: defaultdict[str | None, list[Listener]] = defaultdict(list)
        self._reading: asyncio.Task[None] | None = None
        self._is_open = False
        self._last_open = 0.0
        self._looks = asyncio.Semaphore(LOOKS)

    def add(self, key: str | None, listener: Listener) -> None:
        """Call ``listener`` with the events of a job or context, or with all for None, from now on."""
        self._listeners[key].append(listener)
        if self._is_open:
            listener(GAP)
        elif self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())

    def remove(self, key: str | None, listener: Listener) -> None:
        """End what :meth:`add` began. Idempotent."""
        if listener in self._listeners[key]:
            self._listeners[key].remove(listener)
        if not self._listeners[key]:
            del self._listeners[key]
        if not self._listeners:
            asyncio.get_running_loop().call_later(LINGER, self._close_if_idle)

    async def until(
        self,
        key: str,
        look: Callable[[], Awaitable[T]],
        seen: Callable[[Event], T | None],
        reached: Callable[[T], bool],
    ) -> T:
        """Wait until the job or context with this ID has reached a state, and return its record.

        ``look`` gets the current record, and ``seen`` returns the one that an event has.

        Raises:
            JobServerError: An error of ``look``, or the event stream cannot be read.
        """
        if not self._is_open:
            value = await self._look(look)
            if reached(value):
                return value
        items: asyncio.Queue[Item] = asyncio.Queue()
        listener = items.put_nowait
        self.add(key, listener)
        try:
            while True:
                item = await items.get()
                if isinstance(item, JobServerError):
                    raise item
                found = await self._look(look) if item is GAP else seen(item)
                if found is not None and reached(found):
                    return found
        finally:
            self.remove(key, listener)

    async def _look(self, look: Callable[[], Awaitable[T]]) -> T:
        """Get the current record, as soon as the server is there."""
        since = time.monotonic()
        for attempt in itertools.count(1):
            try:
                async with self._looks:
                    return await look()
            except (ServerUnreachable, ResultTimeout):
                if time.monotonic() - since > self._patience:
                    raise
            await asyncio.sleep(delay(attempt))
        raise AssertionError("counting never ends")

    async def close(self) -> None:
        """Close the stream, and end all waits with an error. Idempotent."""
        self._send_all(Unavailable(message="this client was closed"))
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def _close_if_idle(self) -> None:
        if not self._listeners and self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        """Read the stream, and open it again whenever it ends, until the server is away for too long."""
        self._last_open = time.monotonic()
        failures = 0
        while True:
            opened = time.monotonic()
            try:
                await self._read_once()
            except (ServerUnreachable, ResultTimeout) as error:
                if time.monotonic() - self._last_open > self._patience:
                    self._send_all(error)
                    return
            except JobServerError as error:
                self._send_all(error)
                return
            failures = 0 if time.monotonic() - opened > STABLE else failures + 1
            await asyncio.sleep(delay(failures))

    async def _read_once(self) -> None:
        try:
            async with self._connection.stream("/events", read_timeout=READ_TIMEOUT) as response:
                self._is_open = True
                self._send_all(GAP)
                async for event in EventSource(response).aiter_sse():
                    if event.event == "lost":
                        self._send_all(GAP)
                    elif (found := event_of(event.event, event.data)) is not None:
                        self._send(found)
        finally:
            if self._is_open:
                self._last_open = time.monotonic()
            self._is_open = False

    def _send(self, event: Event) -> None:
        if isinstance(event, ContextChanged):
            key = event.context.id
        else:
            key = event.delivery.job_id if isinstance(event, DeliveryChanged) else event.job.id
        for listener in [*self._listeners.get(key, ()), *self._listeners.get(None, ())]:
            listener(event)

    def _send_all(self, item: Item) -> None:
        for listeners in list(self._listeners.values()):
            for listener in list(listeners):
                listener(item)
