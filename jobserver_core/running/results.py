"""Results: written by launchers, read by callers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, BinaryIO

from jobserver_core.binaries.sweep_lock import SweepLock
from jobserver_core.errors import StorageError, TooLarge
from jobserver_core.models.jobs import JobResult, ResultKind
from jobserver_core.models.json_values import Json, loads
from jobserver_core.ports import BlobStore, BlobWriter, ResultSink

if TYPE_CHECKING:
    from jobserver_core.config.settings import JobLimits

__all__ = ["ResultReader", "ResultStore", "ResultWriter"]

CHUNK = 256 * 1024
"""The number of bytes of a result to read at a time."""
BUFFER = 1024 * 1024
"""The number of bytes up to which a result is kept in memory."""


class ResultReader:
    """A stored result, to be read in chunks or as a value. Close it, or use it in a ``with`` block."""

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

    def value(self) -> Json:
        """Return the whole result as Python values (a streamed one as bytes), and close.

        A number that a float would round keeps its text: ``str(value)`` gives every digit of a decimal.
        """
        with self:
            data = b"".join(self)
        return data if self.kind is ResultKind.STREAM else loads(data.decode())

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()

    def __enter__(self) -> ResultReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class ResultWriter(ResultSink):
    """Keeps a small result in memory, and streams a larger one to the blob store.

    If storing a result from memory fails, :meth:`finish` may be repeated. A streamed result cannot be
    stored again, because its bytes are no longer in memory once they are written.
    """

    def __init__(self, blobs: BlobStore, *, stream: bool, inline_limit: int, max_size: int) -> None:
        self._blobs = blobs
        self._kind = ResultKind.STREAM if stream else ResultKind.STORED
        self._inline_limit = -1 if stream else inline_limit
        self._max_size = max_size
        self._buffer = bytearray()
        self._size = 0
        self._writer: BlobWriter | None = None
        self._result: JobResult | None = None
        self._discarded = False

    @property
    def repeatable(self) -> bool:
        """Whether :meth:`finish` may be repeated after it failed."""
        return self._writer is None and not self._discarded

    @property
    def digest(self) -> str | None:
        """The blob that holds the result, once it is stored in one."""
        return self._result.digest if self._result is not None else None

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises TooLarge over the configured limit, StorageError."""
        self._size += len(data)
        if self._size > self._max_size:
            self.discard()
            raise TooLarge(what="the job's result", limit=self._max_size)
        if self._writer is None and self._size > max(self._inline_limit, BUFFER):
            self._writer = self._blobs.create()
            self._writer.write(bytes(self._buffer))
            self._buffer.clear()
        if self._writer is None:
            self._buffer += data
        else:
            self._writer.write(data)

    def finish(self) -> JobResult:
        """Store the written bytes, and return their location. Idempotent once they are stored.

        Raises StorageError.
        """
        if self._result is None:
            if self._discarded:
                raise StorageError(message="the result was discarded")
            self._result = self._stored()
            self._buffer.clear()
        return self._result

    def discard(self) -> None:
        """Discard the written bytes, which cannot be stored afterwards. Idempotent."""
        self._discarded = True
        self._buffer.clear()
        if self._writer is not None:
            self._writer.discard()

    def _stored(self) -> JobResult:
        if self._writer is not None:
            blob = self._writer.commit()
        elif self._size <= self._inline_limit:
            return JobResult(kind=ResultKind.INLINE, size=self._size, text=self._buffer.decode())
        else:
            with self._blobs.create() as writer:
                writer.write(bytes(self._buffer))
                blob = writer.commit()
        return JobResult(kind=self._kind, size=blob.size, digest=blob.digest)


class ResultStore:
    """Stores small results with the job's record, and large ones in the blob store."""

    def __init__(self, blobs: BlobStore, sweep_lock: SweepLock, limits: JobLimits) -> None:
        self._blobs = blobs
        self._sweep_lock = sweep_lock
        self._limits = limits

    def writer(self, *, stream: bool) -> ResultWriter:
        """Return the sink for one result."""
        limits = self._limits
        return ResultWriter(
            self._blobs,
            stream=stream,
            inline_limit=limits.inline_result_limit,
            max_size=limits.max_result_size,
        )

    def open(self, result: JobResult) -> ResultReader:
        """Open a stored result. Raises BlobNotFound, StorageError."""
        return ResultReader(result, self._blobs)

    def storing(self) -> AbstractContextManager[None]:
        """Keep the blob of a result inside the block, which must store the record that refers to it."""
        return self._sweep_lock.shared()
