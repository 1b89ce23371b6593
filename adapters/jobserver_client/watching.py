"""Waiting for jobs and contexts with one connection, however many there are.

The problem: a client may wait for thousands of jobs. A request for each that is answered at the end would
occupy as many connections, and asking again and again costs the server much and the client latency.

The idea: the server publishes every change on one event stream, so all waits and subscribers of a client
share one stream. It is opened when something needs it, and closed when nothing has for a while. Events alone
are not enough, since a change may happen before the stream is open, while the connection is interrupted, or
when a slow client loses events. In each of these cases, everyone gets :data:`GAP` in place of events, and
reads the current state instead.

With several servers behind a load balancer, a stream may have only the events of one of them. So a wait that
gets no event for a while reads the current state as well.

The invariant: between two GAPs, a listener gets every event. A listener that reads the state after each GAP,
and relies on events only after that, misses nothing.

A server that restarts, or a proxy that answers for it, counts as away. Not handled: a server that is away for
longer than ``reconnect_timeout`` ends all waits with an error.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Final, Literal, TypeVar

from httpx_sse import EventSource, ServerSentEvent

from jobserver_client.connection import Connection, delay
from jobserver_client.errors import ClientClosed, UnexpectedResponse, is_outage
from jobserver_client.records import event_of
from jobserver_core.errors import JobServerError
from jobserver_core.events import ContextChanged, DeliveryChanged, Event

T = TypeVar("T")

_log = logging.getLogger(__name__)

READ_TIMEOUT = 45.0
"""Seconds without a byte after which the stream counts as broken: servers send a comment every 15 seconds."""
LINGER = 5.0
"""Seconds for which the stream stays open when nobody listens."""
STABLE = 5.0
"""Seconds after which a stream that ends is opened again at once."""
READS = 16
"""How many waits read the current state at the same time."""
READ_INTERVAL = 5.0
"""Seconds without an event after which a wait reads the current state."""
READ_RATE = 20.0
"""How many such reads a client makes per second: with many waits, each of them reads less often."""


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
        self._reconnect_timeout = connection.options.reconnect_timeout
        self._listeners: defaultdict[str | None, list[Listener]] = defaultdict(list)
        self._reading: asyncio.Task[None] | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._is_open = False
        self.is_closed = False
        self._last_open = 0.0
        self._reads = asyncio.Semaphore(READS)

    def add(self, key: str | None, listener: Listener) -> None:
        """Call ``listener`` with the events of a job or context, or with all for None, from now on."""
        self._connection.check_loop()
        self._listeners[key].append(listener)
        self._stop_idle_timer()
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
        if not self._listeners and not self.is_closed:
            self._stop_idle_timer()
            self._idle_timer = asyncio.get_running_loop().call_later(LINGER, self._close_idle)

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()

    def _close_idle(self) -> None:
        """Close the stream that nobody needs. Closing takes a while, and somebody may need it until then."""
        if self._reading is not None and not self._reading.done():
            self._is_open = False
            self._reading.add_done_callback(self._reopen)
            self._reading.cancel()

    def _reopen(self, _ended: asyncio.Task[None]) -> None:
        if self._listeners and not self.is_closed:
            self._reading = asyncio.create_task(self._read())

    async def until(
        self,
        key: str,
        read: Callable[[], Awaitable[T]],
        seen: Callable[[Event], T | None],
        reached: Callable[[T], bool],
    ) -> T:
        """Wait until the job or context with this ID has reached a state, and return its record.

        ``read`` gets the current record, and ``seen`` returns the one that an event has.

        Raises:
            JobServerError: An error of ``read``, or the event stream cannot be read.
        """
        if not self._is_open:
            value = await self._read_current(read)
            if reached(value):
                return value
        items: asyncio.Queue[Item] = asyncio.Queue()
        listener = items.put_nowait
        self.add(key, listener)
        try:
            while True:
                item = await self._next(items)
                if isinstance(item, JobServerError):
                    raise item
                found = await self._read_current(read) if item is GAP else seen(item)
                if found is not None and reached(found):
                    return found
        finally:
            self.remove(key, listener)

    async def _next(self, items: asyncio.Queue[Item]) -> Item:
        seconds = max(READ_INTERVAL, len(self._listeners) / READ_RATE)
        try:
            return await asyncio.wait_for(items.get(), seconds)
        except asyncio.TimeoutError:
            return GAP

    async def _read_current(self, read: Callable[[], Awaitable[T]]) -> T:
        """Get the current record, as soon as the server is there."""
        since = time.monotonic()
        for attempt in itertools.count(1):
            try:
                async with self._reads:
                    return await read()
            except JobServerError as error:
                if not self._may_return(error, since):
                    raise
            await asyncio.sleep(delay(attempt))
        raise AssertionError("counting never ends")

    def _may_return(self, error: JobServerError, since: float) -> bool:
        """Whether to wait for a server that has been away since then."""
        is_over = time.monotonic() - since > self._reconnect_timeout
        return is_outage(error) and not is_over and not self._connection.is_closed

    async def close(self) -> None:
        """Close the stream, and end all waits with an error. Idempotent."""
        self.is_closed = True
        self._stop_idle_timer()
        self._fail(ClientClosed())
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        """Read the stream, and open it again whenever it ends, until the server is away for too long."""
        self._last_open = time.monotonic()
        failures = 0
        while True:
            opened = time.monotonic()
            try:
                await self._read_once()
            except JobServerError as error:
                if not self._may_return(error, self._last_open):
                    self._fail(error)
                    return
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait forever
                url = self._connection.url
                _log.exception("cannot read the events of %s", url)
                self._fail(UnexpectedResponse(url=f"{url}/events", status=200, reason=repr(error)))
                return
            failures = 0 if time.monotonic() - opened > STABLE else failures + 1
            await asyncio.sleep(delay(failures))

    async def _read_once(self) -> None:
        try:
            async with self._connection.stream("/events", read_timeout=READ_TIMEOUT) as response:
                self._is_open = True
                self._send_all(GAP)
                async for event in EventSource(response).aiter_sse():
                    self._receive(event)
        finally:
            if self._is_open:
                self._last_open = time.monotonic()
            self._is_open = False

    def _receive(self, event: ServerSentEvent) -> None:
        if event.event == "lost":
            self._send_all(GAP)
            return
        try:
            found = event_of(event.event, event.data)
        except (LookupError, TypeError, ValueError):  # perhaps of a newer release
            _log.warning("cannot read an event of %s", self._connection.url, exc_info=True)
            self._send_all(GAP)
            return
        if found is not None:
            self._send(found)

    def _send(self, event: Event) -> None:
        if isinstance(event, ContextChanged):
            key = event.context.id
        else:
            key = event.delivery.job_id if isinstance(event, DeliveryChanged) else event.job.id
        for listener in [*self._listeners.get(key, ()), *self._listeners.get(None, ())]:
            listener(event)

    def _fail(self, error: JobServerError) -> None:
        """Send an error to everyone, after which they get nothing more."""
        listeners, self._listeners = self._listeners, defaultdict(list)
        for listener in itertools.chain.from_iterable(listeners.values()):
            listener(error)

    def _send_all(self, item: Literal[_Gap.GAP]) -> None:
        for listener in list(itertools.chain.from_iterable(self._listeners.values())):
            listener(item)
