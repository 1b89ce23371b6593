"""Results on their way in from a launcher and out to whoever asks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from jobserver_core.errors import TooLarge
from jobserver_core.models.jobs import JobResult, ResultKind
from jobserver_core.ports import BlobStore, BlobWriter, ResultSink

__all__ = ["ResultReader", "ResultWriter"]

CHUNK = 256 * 1024
"""How many bytes of a result are read at a time."""


class ResultReader:
    """A stored result, to be read in pieces or as a value. Close it, or use it in a ``with`` block."""

    def __init__(self, result: JobResult, blobs: BlobStore) -> None:
        self.kind = result.kind
        self.size = result.size
        self._file: BinaryIO
        if result.digest is None:
            self._file = io.BytesIO((result.text or "").encode())
        else:
            self._file = blobs.open(result.digest)

    def read(self, size: int = CHUNK) -> bytes:
        """Return the next bytes, at most ``size``; empty at the end."""
        return self._file.read(size)

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read():
            yield chunk

    def value(self) -> Any:
        """Return the whole result as Python values (a streamed one as bytes), and close."""
        with self:
            data = b"".join(self)
        return data if self.kind is ResultKind.STREAM else json.loads(data)

    def close(self) -> None:
        """Let go of the file; repeating this is allowed."""
        self._file.close()

    def __enter__(self) -> ResultReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class ResultWriter(ResultSink):
    """Keeps a small result in memory, and lets a larger or a streamed one flow into the blob store."""

    def __init__(self, blobs: BlobStore, *, stream: bool, inline_limit: int, max_size: int) -> None:
        self._blobs = blobs
        self._stream = stream
        self._inline_limit = 0 if stream else inline_limit
        self._max_size = max_size
        self._buffer = bytearray()
        self._size = 0
        self._writer: BlobWriter | None = blobs.create() if stream else None

    def write(self, data: bytes) -> None:
        """Take the next bytes; raises TooLarge over the configured limit."""
        self._size += len(data)
        if self._size > self._max_size:
            self.discard()
            raise TooLarge(what="the job's result", limit=self._max_size)
        if self._writer is None and self._size > self._inline_limit:
            self._writer = self._blobs.create()
            self._writer.write(bytes(self._buffer))
            self._buffer.clear()
        if self._writer is None:
            self._buffer += data
        else:
            self._writer.write(data)

    def finish(self) -> JobResult:
        """Store what was written, and return where it is."""
        if self._writer is None:
            return JobResult(kind=ResultKind.INLINE, size=self._size, text=self._buffer.decode())
        blob = self._writer.commit()
        kind = ResultKind.STREAM if self._stream else ResultKind.STORED
        return JobResult(kind=kind, size=blob.size, digest=blob.digest)

    def discard(self) -> None:
        """Drop what was written; repeating this is allowed."""
        self._buffer.clear()
        if self._writer is not None:
            self._writer.discard()
