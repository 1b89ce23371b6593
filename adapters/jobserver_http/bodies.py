"""Reading request bodies: in pieces, within limits of size and of patience."""

from __future__ import annotations

import codecs
import re
from collections.abc import AsyncIterator
from email.message import Message as Headers
from typing import Any

import anyio
from starlette.types import Message, Receive, Scope, Send

from jobserver_core.errors import InvalidConfig
from jobserver_http.errors import BodyTooLarge, Rejected

__all__ = ["BodyGuard", "Disconnected", "decoded", "read_body", "stream_body"]

PIECE = 1024 * 1024
"""Bytes that are gathered before they are handed on, so that a large upload takes few hops."""
STALLED = 60.0
"""Seconds without a byte after which a body is given up."""
DRAINED = 8 * 1024 * 1024
"""Bytes of a body that nobody wanted which are read, so that the client gets to see the answer."""
DRAIN_TIME = 3.0


class Disconnected(Exception):
    """The client went away before its request was complete; nobody is there for an answer."""


async def stream_body(receive: Receive, *, limit: int, what: str) -> AsyncIterator[bytes]:
    """Yield the body in pieces of about a megabyte.

    Raises BodyTooLarge as soon as more than ``limit`` bytes came, Rejected (408) when nothing comes
    for a minute, Disconnected when the connection ends before the body does.
    """
    gathered, size, more = bytearray(), 0, True
    while more:
        message = await _next(receive)
        piece = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(piece)
        if size > limit:
            raise BodyTooLarge(what=what, limit=limit)
        gathered += piece
        if gathered and (len(gathered) >= PIECE or not more):
            yield bytes(gathered)
            gathered.clear()


async def read_body(receive: Receive, *, limit: int, what: str) -> bytes:
    """Return the whole body. Raises as :func:`stream_body`."""
    return b"".join([piece async for piece in stream_body(receive, limit=limit, what=what)])


_CHARSETS = re.compile(
    r"ascii|utf-(8|16|32)(-(le|be|sig))?|iso8859-\d+|cp\d+|koi8-[rtu]|mac-\w+|big5\w*|euc_\w+|gb\w+|shift_jis\w*"
)
"""Python's names of the charsets that a body may have: no codecs that only Python has, such as punycode."""


def decoded(body: bytes, content_type: str | None) -> str:
    """Return the text of a body in its declared charset; without one it is UTF-8.

    Raises InvalidConfig for bytes that are not of the charset, Rejected (415) for an unknown charset.
    """
    headers = Headers()
    headers["Content-Type"] = content_type or ""
    charset = headers.get_content_charset() or "utf-8"
    name = _codec(charset)
    if name is None:
        raise Rejected(
            415, f"charset {charset[:40]!a} is not supported; send UTF-8", code="unsupported_charset"
        )
    try:
        return body.decode(name)
    except UnicodeDecodeError as error:
        raise InvalidConfig(message=f"byte {error.start + 1} of the body is not {charset}") from None


def _codec(charset: str) -> str | None:
    if not re.fullmatch(r"[\w.:+-]{1,40}", charset, re.ASCII):
        return None
    try:
        name = codecs.lookup(charset).name
    except LookupError:
        return None
    return name if _CHARSETS.fullmatch(name) else None


async def _next(receive: Receive) -> Message:
    with anyio.move_on_after(STALLED):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        return message
    raise Rejected(408, f"the body did not go on for {STALLED:g} seconds")


class BodyGuard:
    """Stands between a connection and the application, and watches the request's body.

    An answer that comes before the body was read must still reach the client, who is busy
    sending: some of the body is read and dropped first. When there is more, the connection is closed
    after the answer, so that a body without end costs nothing.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        self.ambiguous = b"content-length" in headers and b"transfer-encoding" in headers
        """Whether two servers in a row could disagree on where the request ends (RFC 9112, 6.3)."""
        self._expected = b"transfer-encoding" in headers or length.strip() not in (b"", b"0")
        self._waits = headers.get(b"expect", b"").lower() == b"100-continue"
        self._receive = receive
        self._send = send
        self._begun = False
        self._complete = not self._expected
        self.declared = int(length) if length.isdigit() and len(length) < 19 else None

    async def receive(self) -> Message:
        """Hand on the next message, and note when the body is complete."""
        self._begun = True
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._complete = True
        return message

    async def send(self, message: Message) -> None:
        """Hand on a message; before the first one see to a body that was not read."""
        if message["type"] == "http.response.start" and not self._complete:
            if self._begun or not self._waits:
                await self._drain()
            if not self._complete:
                headers: list[Any] = list(message.get("headers", []))
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
        await self._send(message)

    async def _drain(self) -> None:
        dropped = 0
        with anyio.move_on_after(DRAIN_TIME):
            while not self._complete and dropped < DRAINED:
                message = await self.receive()
                dropped += len(message.get("body", b""))
