"""How many connections a server holds, how long they may be quiet, and who goes when there are too many.

Holding a connection open costs a client nothing: it can connect and say nothing, send a request byte by byte,
or never read the answer. Each connection costs the server a descriptor, and a server without descriptors can
neither accept calls nor open its own files. So there is a limit in total and one for each client network.

At a limit, the connection that has been quiet for longest is closed to make room, since nobody waits for it
and every HTTP client copes with that. Idle connections therefore never keep anyone out. Only when every
connection is in use is a request refused: with 503, on a small reserve of connections beyond the limit.
Beyond the reserve, connections are dropped at once.

Loopback and trusted proxies are exempt from the limit for one network, since many clients are behind them.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import attrs
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from jobserver_http.addresses import is_loopback, network_of, within
from jobserver_http.answers import respond
from jobserver_http.bodies import BodyGuard
from jobserver_http.errors import Answer

__all__ = ["TOO_MANY", "Connections", "PatientProtocol"]

HEAD_TIME = 20.0
"""Seconds that the head of a request may take from its first byte."""
UNREAD_TIME = 60.0
"""Seconds that a client may leave an answer unread while more of it waits to be sent."""
RESERVE = 64
"""Connections beyond the limit on which requests are refused with 503."""
TOO_MANY = "too_many_connections"
_REFUSAL = Answer(
    status=503,
    result="the server has too many connections; try again later",
    code=TOO_MANY,
    headers={"Retry-After": "5", "Connection": "close"},
)


@attrs.define(kw_only=True, eq=False)
class Connections:
    """The connections of one server and their limits: ``total``, and ``per_network`` of one client.

    ``idle_timeout`` is how many seconds a connection may be open without a request. Not safe for threads:
    it belongs to an event loop.
    """

    total: int = 4000
    per_network: int = 1000
    idle_timeout: float = 60.0
    proxies: tuple[str, ...] = ()
    _open: dict[PatientProtocol, str] = attrs.field(factory=dict, init=False)

    def admit(self, connection: PatientProtocol, address: str) -> bool:
        """Count a new connection, after closing a quiet one if there is no room.

        Return False when every connection is in use. The new one is counted all the same, to be refused.
        """
        network = network_of(address)
        room = self._room_for(network, address) and self._room(list(self._open), self.total)
        self._open[connection] = network
        return room

    def remove(self, connection: PatientProtocol) -> None:
        """Stop counting a connection; idempotent."""
        self._open.pop(connection, None)

    @property
    def overfull(self) -> bool:
        """Whether the reserve for refusals is used up as well."""
        return len(self._open) > self.total + RESERVE

    def _room_for(self, network: str, address: str) -> bool:
        if is_loopback(address) or within(address, self.proxies):
            return True
        same = [connection for connection, other in self._open.items() if other == network]
        return self._room(same, self.per_network)

    def _room(self, connections: list[PatientProtocol], most: int) -> bool:
        if len(connections) < most:
            return True
        quiet = [connection for connection in connections if not connection.busy]
        if len(connections) - len(quiet) >= most:
            return False
        victim = min(quiet, key=lambda connection: connection.quiet_since)
        self.remove(victim)
        victim.transport.close()
        return True


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 connection with limits that uvicorn lacks: of number, heads and reading."""

    def __init__(self, *args: Any, connections: Connections, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._shared = connections
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._in_head = False
        self.quiet_since = self.loop.time()
        """When the connection was last of use, in the loop's time."""

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection and wait for the first request."""
        super().connection_made(cast("asyncio.Transport", transport))
        admitted = self._shared.admit(self, self.client[0] if self.client else "")
        if self._shared.overfull:
            self.transport.abort()
            return
        if not admitted:
            self.app = _refuse
        self._wait(self._shared.idle_timeout if admitted else HEAD_TIME)

    def data_received(self, data: bytes) -> None:
        """Take bytes; between requests they begin the next head."""
        super().data_received(data)
        if self.busy:
            self._stop_waiting()
        elif not self._in_head and not self.transport.is_closing():
            self._wait(HEAD_TIME)
            self._in_head = True

    def on_response_complete(self) -> None:
        """Note since when nobody waits for the connection."""
        self.quiet_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_TIME, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on, since the client has read."""
        self._stop_unread()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting the connection, and let go of the timers."""
        self._shared.remove(self)
        self._stop_waiting()
        self._stop_unread()
        super().connection_lost(exc)

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _stop_waiting(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _give_up(self) -> None:
        self._stop_waiting()
        if not self.busy:
            self.transport.close()


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    guard = BodyGuard(scope, receive, send)
    await respond(_REFUSAL)(scope, guard.receive, guard.send)
