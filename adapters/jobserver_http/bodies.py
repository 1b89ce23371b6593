"""Reading request bodies in chunks, within limits of size and time."""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from email.message import Message as Headers
from typing import Any

import anyio
from starlette.types import Message, Receive, Scope, Send

from jobserver_core.errors import InvalidConfig
from jobserver_http.errors import BodyTooLarge, Rejected

CHUNK_SIZE = 1024 * 1024
"""How many bytes are collected before they are passed on, to limit the overhead of large uploads."""
STALL_TIMEOUT = 60.0
"""Seconds without a byte after which a request is rejected."""
MAX_DRAINED = 8 * 1024 * 1024
"""How many bytes of an unread body are discarded, so that the client can read the response."""
DRAIN_TIMEOUT = 3.0
"""Seconds for the rest of an unread body, so that a slow client cannot hold up its response for long."""


class Disconnected(Exception):
    """The client disconnected before its request was complete."""


async def stream_body(receive: Receive, *, limit: int, what: str) -> AsyncIterator[bytes]:
    """Yield the body in chunks of about a megabyte.

    Raises:
        BodyTooLarge: More than ``limit`` bytes have arrived.
        Rejected: Nothing has arrived for a minute (408).
        Disconnected: The connection was closed before the end of the body.
    """
    collected, size, more = bytearray(), 0, True
    while more:
        message = await _next(receive)
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(what=what, limit=limit)
        collected += chunk
        if collected and (len(collected) >= CHUNK_SIZE or not more):
            yield bytes(collected)
            collected.clear()


async def read_body(receive: Receive, *, limit: int, what: str) -> bytes:
    """Return the whole body.

    Raises:
        JobServerError: As :func:`stream_body` does.
    """
    return b"".join([chunk async for chunk in stream_body(receive, limit=limit, what=what)])


def refuse_form(content_type: str | None) -> None:
    """Reject a multipart form, as ``curl -F`` sends it: its envelope would be taken for the content.

    Raises:
        Rejected: The body is one (415).
    """
    if (content_type or "").partition(";")[0].strip().lower() == "multipart/form-data":
        raise Rejected(
            415,
            "the body is a multipart form (multipart/form-data), expected the content itself; "
            "with curl, send a file with --data-binary @FILE instead of -F",
        )


_CHARSETS = re.compile(
    r"ascii|utf-(8|16|32)(-(le|be|sig))?|iso8859-\d+|cp\d+|koi8-[rtu]|mac-\w+|big5\w*|euc_\w+|gb\w+|shift_jis\w*"
)
"""Python's names of the supported charsets. Codecs that are not charsets, such as punycode, are excluded."""


def decoded(body: bytes, content_type: str | None, *, fallback: str | None = None) -> str:
    """Decode a body with its declared charset, or as UTF-8.

    ``fallback`` is the charset of a body that declares none and is not valid UTF-8.

    Raises:
        InvalidConfig: The body is not valid in the charset.
        Rejected: The charset is unknown, or the body is a multipart form (415).
    """
    refuse_form(content_type)
    headers = Headers()
    headers["Content-Type"] = content_type or ""
    declared = headers.get_content_charset()
    charset = declared or "utf-8"
    name = ""
    if re.fullmatch(r"[\w.:+-]{1,40}", charset, re.ASCII):
        with suppress(LookupError):
            name = codecs.lookup(charset).name
    if not _CHARSETS.fullmatch(name):
        message = f"charset {charset[:40]!a} is not supported; send UTF-8"
        raise Rejected(415, message, code="unsupported_charset")
    try:
        return body.decode(name)
    except UnicodeDecodeError as error:
        if declared is None and fallback is not None:
            return body.decode(fallback)
        raise InvalidConfig(message=f"byte {error.start + 1} of the body is not valid {charset}") from None


async def _next(receive: Receive) -> Message:
    with anyio.move_on_after(STALL_TIMEOUT):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        return message
    raise Rejected(408, f"no data of the body arrived for {STALL_TIMEOUT:g} seconds")


class BodyGuard:
    """Wraps the ``receive`` and ``send`` of a connection, and takes care of unread request bodies.

    A response that is sent before the body was read must still reach the client, which is busy sending. So a
    part of the body is read and discarded first. If there is still more, the connection is closed after the
    response, so that an endless body costs nothing.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        self.ambiguous = b"content-length" in headers and b"transfer-encoding" in headers
        """Whether a proxy and this server could disagree on where the request ends (RFC 9112, 6.3)."""
        self._waits = headers.get(b"expect", b"").lower() == b"100-continue"
        self._receive = receive
        self._send = send
        self._begun = False
        self.empty = b"transfer-encoding" not in headers and length.strip() in (b"", b"0")
        """Whether the request has no body."""
        self._complete = self.empty
        self.declared = int(length) if length.isdigit() and len(length) < 19 else None

    async def receive(self) -> Message:
        """Return the next message, and remember when the body is complete."""
        self._begun = True
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._complete = True
        return message

    async def send(self, message: Message) -> None:
        """Send a message. Before the first one, handle a body that was not read."""
        if message["type"] == "http.response.start" and not self._complete:
            if self._begun or not self._waits:
                await self._drain()
            if not self._complete:
                headers: list[Any] = list(message.get("headers", []))
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
        await self._send(message)

    async def _drain(self) -> None:
        discarded = 0
        # A server that stops cancels what still waits. The response then leaves without the rest of the body.
        with suppress(asyncio.CancelledError), anyio.move_on_after(DRAIN_TIMEOUT):
            while not self._complete and discarded < MAX_DRAINED:
                message = await self.receive()
                discarded += len(message.get("body", b""))
