"""Responses of the application: JSON, and results and logs that are streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from jobserver_core.models.jobs import ResultKind
from jobserver_core.models.json_values import Json, JsonMapping
from jobserver_core.running.results import ResultReader
from jobserver_http.errors import StatusResponse
from jobserver_http.thread_pools import ThreadPools
from jobserver_http.wire import encoded

JSON = "application/json"
CHUNK_SIZE = 256 * 1024
"""Bytes of a result to send at a time: few calls on other threads, and little memory for each reader."""


def raw_json_response(
    text: str | bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with JSON that is already encoded."""
    return Response(text, status, headers, media_type=JSON)


class ValueResponse(Response):
    """A response with a value, encoded as JSON. It may have error objects, but not the result of a job."""

    media_type = JSON

    def encode_again(self, value: object) -> None:
        """Replace the value."""
        self.body = encoded(value)
        self.headers["content-length"] = str(len(self.body))


def json_response(body: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a value, encoded as JSON."""
    return ValueResponse(encoded(body), status, headers)


def respond(response: StatusResponse) -> Response:
    """Return a response of the contract, ready to send."""
    return json_response(response.body, response.status, response.headers)


def success(text: str | None = None, status: int = 200, warnings: Iterable[str] = ()) -> Response:
    """Return the contract's response for an operation that has succeeded."""
    return respond(StatusResponse(status=status, label="SUCCESS", result=text, warnings=tuple(warnings)))


class ClosingResponse(StreamingResponse):
    """A response that is sent in chunks. Its resource ``opened`` is always closed."""

    def __init__(
        self,
        chunks: AsyncIterator[str] | AsyncIterator[bytes],
        *,
        media_type: str,
        headers: Mapping[str, str] | None = None,
        opened: AbstractContextManager[object] | None = None,
    ) -> None:
        super().__init__(chunks, headers=headers, media_type=media_type)
        self._opened = ExitStack()
        if opened is not None:
            self._opened.push(opened)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        with self._opened:
            if scope["method"] != "HEAD":
                await super().__call__(scope, receive, send)
                return
            headers = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **headers})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def result_response(members: JsonMapping, reader: ResultReader, threads: ThreadPools) -> Response:
    """Return a JSON object whose last member is a job's result, copied from storage without decoding it.

    It has a Content-Length, except for a streamed result, which the contract sends chunked.
    """
    # Of a stream without bytes, null keeps the response valid JSON.
    head = encoded(members)[:-1] + b',"result":' + (b"" if reader.size else b"null")

    async def framed() -> AsyncIterator[bytes]:
        yield head
        async for chunk in chunks_of_result(reader, threads):
            yield chunk
        yield b"}"

    length = {"content-length": str(len(head) + reader.size + 1)}
    headers = None if reader.kind is ResultKind.STREAM else length
    return ClosingResponse(framed(), media_type=JSON, headers=headers, opened=reader)


async def chunks_of_result(reader: ResultReader, threads: ThreadPools) -> AsyncIterator[bytes]:
    """Yield the bytes of a result, without blocking the event loop."""
    while chunk := await threads.quick.run(reader.read, CHUNK_SIZE):
        yield chunk
