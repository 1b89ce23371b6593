"""Limiting the number of connections, and how long they may be idle.

A client can connect and send nothing, send a request byte by byte, or never read the response. That costs it
nothing, but the server a file descriptor, and without free descriptors it can neither accept connections nor
open its own files. So there is a limit in total, and one for each client network.

At a limit, the connection that has been idle the longest is closed to make room. HTTP clients handle this, so
idle connections never keep other clients out. A new connection is not idle: in a burst, its request may be
waiting in the socket, and closing it would reset the connection. Only if every connection is in use is a
request refused, with 503. Refused connections do not count under the limits. A reserve of them waits for the
request, so that the client, which may still be sending, reads the response. Beyond the reserve, the response
is sent at once, what has arrived of the request is discarded, and the connection is closed. A client that is
still sending then may find its connection reset.

Loopback and trusted proxies are exempt from the limit per network, because many clients can be behind them.

If descriptors run out nevertheless, asyncio stops accepting for a second, but reports the error once for each
attempt, up to the length of the backlog. Here, these reports become one log line per minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
from collections.abc import Mapping
from typing import Any, cast

import attrs
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from jobserver_core.repeats import Repeats
from jobserver_http.addresses import is_loopback, network_of, within
from jobserver_http.bodies import BodyGuard
from jobserver_http.errors import StatusResponse
from jobserver_http.responses import respond

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

HEAD_TIMEOUT = 20.0
"""Seconds from the first byte of a request to the end of its head."""
UNREAD_TIMEOUT = 60.0
"""Seconds for which a client may stop reading while more of the response is waiting to be sent."""
FIRST_REQUEST_TIMEOUT = 1.0
"""Seconds for which a new connection is in use although nothing of its first request has been read."""
RESERVE = 128
"""Refused connections that wait for their requests. A burst is accepted in parts, which are smaller."""
_DISCARDED = 256 * 1024
"""How many bytes of a request are discarded at most when a connection is closed at once."""
TOO_MANY = "too_many_connections"
_REFUSAL = StatusResponse(
    status=503,
    result="the server has too many connections; try again later",
    code=TOO_MANY,
    headers={"Retry-After": "5", "Connection": "close"},
)


@attrs.define(kw_only=True, eq=False)
class Connections:
    """The open connections of one server, limited in total and per client network.

    ``idle_timeout`` is the number of seconds for which a connection may be open without a request. Not
    thread-safe: it belongs to one event loop.
    """

    total: int = 4000
    per_network: int = 1000
    idle_timeout: float = 60.0
    proxies: tuple[str, ...] = ()
    _open: dict[LimitedProtocol, str] = attrs.field(factory=dict, init=False)
    _refused: set[LimitedProtocol] = attrs.field(factory=set, init=False)

    def admit(self, connection: LimitedProtocol, address: str) -> bool:
        """Count a new connection. At a limit, close an idle one to make room.

        Returns False if every connection is in use. The new one is then not counted.
        """
        network = network_of(address)
        room = True
        if not is_loopback(address) and not within(address, self.proxies):
            same = [connection for connection, other in self._open.items() if other == network]
            room = self._room(same, self.per_network)
        room = room and self._room(list(self._open), self.total)
        if room:
            self._open[connection] = network
        return room

    def reserve(self, connection: LimitedProtocol) -> bool:
        """Let a refused connection wait for its request; return False if too many do already."""
        if len(self._refused) >= RESERVE:
            return False
        self._refused.add(connection)
        return True

    def remove(self, connection: LimitedProtocol) -> None:
        """Stop counting a connection. Idempotent."""
        self._open.pop(connection, None)
        self._refused.discard(connection)

    def _room(self, connections: list[LimitedProtocol], limit: int) -> bool:
        if len(connections) < limit:
            return True
        idle = [connection for connection in connections if connection.idle]
        if len(connections) - len(idle) >= limit:
            return False
        oldest = min(idle, key=lambda connection: connection.idle_since)
        self.remove(oldest)
        oldest.transport.close()
        return True


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, plus limits on connections, request heads and slow readers."""

    def __init__(self, *args: Any, connections: Connections, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._shared = connections
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._in_head = False
        self._silent = True
        self.idle_since = self.loop.time()
        """When the last request ended, in the loop's time."""

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def idle(self) -> bool:
        """Whether no request is being answered, and none is expected at any moment."""
        fresh = self._silent and self.loop.time() < self.idle_since + FIRST_REQUEST_TIMEOUT
        return not (self.busy or fresh)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection and wait for the first request."""
        super().connection_made(cast("asyncio.Transport", transport))
        admitted = self._shared.admit(self, self.client[0] if self.client else "")
        if not admitted and not self._shared.reserve(self):
            self._refuse_at_once()
            return
        if not admitted:
            self.app = _refuse
        self._wait(self._shared.idle_timeout if admitted else HEAD_TIMEOUT)

    def data_received(self, data: bytes) -> None:
        """Process received bytes. Between requests, they start the head of the next one."""
        self._silent = False
        super().data_received(data)
        if self.busy:
            self._stop_waiting()
        elif not self._in_head and not self.transport.is_closing():
            self._wait(HEAD_TIMEOUT)
            self._in_head = True

    def on_response_complete(self) -> None:
        """Remember when the connection became idle."""
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Start the timeout for a client that does not read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancel the timeout, because the client has read."""
        self._stop_unread()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting the connection, and cancel its timers."""
        self._shared.remove(self)
        self._stop_waiting()
        self._stop_unread()
        super().connection_lost(exc)

    def _refuse_at_once(self) -> None:
        """Send the response, and close the connection without unread input, which would reset it."""
        self.transport.write(_refusal())
        with contextlib.suppress(OSError):  # nothing has arrived, or the client is gone
            os.read(self.transport.get_extra_info("socket").fileno(), _DISCARDED)
        self.transport.abort()

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._time_out)

    def _stop_waiting(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _time_out(self) -> None:
        self._stop_waiting()
        if not self.busy:
            self.transport.close()


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    guard = BodyGuard(scope, receive, send)
    await respond(_REFUSAL)(scope, guard.receive, guard.send)


def _refusal() -> bytes:
    """Return the refusal as it is sent, to a client whose request was not read."""
    response = respond(_REFUSAL)
    lines = [b"HTTP/1.1 503 Service Unavailable", *(b"%s: %s" % header for header in response.raw_headers)]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
SHARE = 2
"""One ``SHARE``-th of the file descriptors is for connections. The rest is for storage and contexts."""


def within_descriptor_limit(connections: int) -> int:
    """Reduce a number of connections to what the descriptor limit allows, with a warning in the log."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft // SHARE >= connections:
        return connections
    _log.warning(
        "the number of connections is limited to %d instead of %d, because the limit of open files is %d "
        "(ulimit -n)",
        soft // SHARE,
        connections,
        soft,
    )
    return max(1, soft // SHARE)


def report_starvation(loop: asyncio.AbstractEventLoop, context: Mapping[str, object]) -> None:
    """Handle an exception of the event loop: log missing descriptors once a minute, others as usual.

    For each attempt that failed, asyncio plans to accept again, and fails if the server has stopped listening
    meanwhile. That is not logged.
    """
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in OUT_OF_DESCRIPTORS and "socket" in context:
        _repeats.warning(
            "accept",
            "cannot accept connections: %s; raise the limit of open files (ulimit -n) "
            "or lower jobserver.http.max-connections",
            error.strerror,
        )
    elif not (isinstance(error, ValueError) and "._start_serving(" in str(context.get("message"))):
        loop.default_exception_handler(dict(context))
