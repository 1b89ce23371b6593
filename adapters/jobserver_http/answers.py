"""Responses of the application: JSON, and results and logs that are streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from jobserver_core.models.jobs import ResultKind
from jobserver_core.models.json_values import Json, JsonMapping
from jobserver_core.running.results import ResultReader
from jobserver_http.errors import Answer
from jobserver_http.pools import Pools
from jobserver_http.wire import encoded

JSON = "application/json"
CHUNK_SIZE = 256 * 1024


def raw_json_response(
    text: str | bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with JSON that is already encoded."""
    return Response(text, status, headers, media_type=JSON)


def json_response(body: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a value, encoded as JSON."""
    return raw_json_response(encoded(body), status, headers)


def respond(answer: Answer) -> Response:
    """Return the response for an answer."""
    return json_response(answer.body, answer.status, answer.headers)


class ResultResponse(StreamingResponse):
    """A JSON object whose last member is a job's result, copied from storage without decoding it.

    It has a Content-Length, except for a streamed result, which the contract sends chunked. The reader is
    always closed, even if the client disconnects.
    """

    def __init__(self, members: JsonMapping, reader: ResultReader, pools: Pools) -> None:
        head = encoded(members)[:-1] + (b"," if members else b"") + b'"result":'
        empty = reader.size == 0
        self._reader = reader
        self._pools = pools
        super().__init__(self._chunks(head, empty), media_type=JSON)
        if reader.kind is not ResultKind.STREAM:
            self.headers["content-length"] = str(len(head) + (4 if empty else reader.size) + 1)

    async def _chunks(self, head: bytes, empty: bool) -> AsyncIterator[bytes]:
        yield head
        if empty:
            yield b"null"  # keeps the response valid JSON for a stream without bytes
        while chunk := await self._pools.quick.run(self._reader.read, CHUNK_SIZE):
            yield chunk
        yield b"}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            if scope["method"] == "HEAD":
                await send_head(self, send)
            else:
                await super().__call__(scope, receive, send)
        finally:
            self._reader.close()


class StreamedResponse(StreamingResponse):
    """A response that is sent in chunks. Its resource ``opened`` is always closed."""

    def __init__(
        self,
        chunks: AsyncIterator[str] | AsyncIterator[bytes],
        *,
        media_type: str,
        headers: Mapping[str, str] | None = None,
        opened: AbstractContextManager[Any] | None = None,
    ) -> None:
        super().__init__(chunks, headers=headers, media_type=media_type)
        self._opened = ExitStack()
        if opened is not None:
            self._opened.push(opened)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        with self._opened:
            if scope["method"] == "HEAD":
                await send_head(self, send)
            else:
                await super().__call__(scope, receive, send)


async def send_head(response: Response, send: Send) -> None:
    """Send status and headers without a body."""
    await send(
        {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
    )
    await send({"type": "http.response.body", "body": b"", "more_body": False})
