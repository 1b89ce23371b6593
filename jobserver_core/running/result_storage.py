"""Store results: small ones with the job's record, large ones in the blob store."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

import attrs

from jobserver_core.binaries.pins import BlobPins
from jobserver_core.errors import InvalidRequest, JobServerError, LaunchError, StorageError, TooLarge
from jobserver_core.models.jobs import JobResult, ResultKind
from jobserver_core.ports import Blob, BlobStore, BlobWriter, ResultSink
from jobserver_core.ports.faults import release
from jobserver_core.running.results import ResultReader

if TYPE_CHECKING:
    from jobserver_core.config.settings import JobLimits

BUFFER = 1024 * 1024
"""The maximum number of bytes of a result to keep in memory."""


class ResultWriter(ResultSink):
    """Keeps a small result in memory, and streams a larger one to the blob store.

    If storing a result from memory fails, :meth:`finish` may be repeated. A streamed result cannot be stored
    again, because its bytes are no longer in memory once they are written. The blob of a result is pinned
    until :meth:`discard`; do not call that before a record refers to the blob.
    """

    def __init__(
        self, blobs: BlobStore, pins: BlobPins, limits: JobLimits, *, stream: bool, unchecked: str
    ) -> None:
        self._blobs = blobs
        self._pins = pins
        self._unchecked = "" if stream else unchecked
        self._pinned = ExitStack()
        self._kind = ResultKind.STREAM if stream else ResultKind.STORED
        self._inline_limit = -1 if stream else limits.inline_result_limit
        self._max_size = limits.max_result_size
        self._buffer = bytearray()
        self._size = 0
        self._writer: BlobWriter | None = None
        self._result: JobResult | None = None
        self._discarded = False
        self._refused: JobServerError | None = None

    @property
    def repeatable(self) -> bool:
        """Whether :meth:`finish` may be repeated after it failed."""
        return self._writer is None and not self._discarded

    def write(self, data: bytes) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            # A result without this chunk would be wrong.
            message = f"a chunk of a result must be bytes, not {type(data).__name__}"
            raise self._refuse(InvalidRequest(message=message))
        self._size += len(data)
        if self._size > self._max_size:
            raise self._refuse(TooLarge(what="the job's result", limit=self._max_size))
        if self._discarded:
            return  # the job has ended in the meantime
        if self._writer is None and self._size > max(self._inline_limit, BUFFER):
            self._writer = self._blobs.create()
            if self._discarded:  # just now, by another thread that saw no writer
                release("a part of a result", self._writer.discard)
                return
            self._writer.write(bytes(self._buffer))
            self._buffer.clear()
        if self._writer is None:
            self._buffer += data
        else:
            self._writer.write(data)

    def finish(self) -> JobResult:
        """Store the written bytes, and return their location. Idempotent once they are stored.

        Raises:
            StorageError: The bytes could not be stored.
            LaunchError: They are not JSON. This is not found in a result that is larger than the buffer.
            JobServerError: :meth:`write` has raised it.
        """
        if self._result is None:
            if self._discarded:
                raise self._refused or StorageError(message="the result was discarded")
            self._result = self._store()
            self._buffer.clear()
        return self._result

    def discard(self) -> None:
        """Discard the bytes that are not stored. They cannot be stored afterwards. Idempotent."""
        self._discarded = True
        self._pinned.close()
        self._buffer.clear()
        if self._writer is not None:
            release("a part of a result", self._writer.discard)

    def _refuse(self, error: JobServerError) -> JobServerError:
        """Discard the result, and return the error, which the launcher may swallow."""
        self._refused = error
        self.discard()
        return error

    def _store(self) -> JobResult:
        if self._unchecked and self._writer is None:
            self._check_json()
        if self._writer is not None:
            blob = self._commit(self._writer)
        elif self._size <= self._inline_limit:
            return JobResult(kind=ResultKind.INLINE, size=self._size, text=self._buffer.decode())
        else:
            with self._blobs.create() as writer:
                writer.write(bytes(self._buffer))
                blob = self._commit(writer)
        return JobResult(kind=self._kind, size=blob.size, digest=blob.digest)

    def _check_json(self) -> None:
        try:
            json.loads(self._buffer.decode(), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            message = f"the launcher {self._unchecked} wrote a result that is not JSON: {error}"
            raise LaunchError(message=message) from error

    def _commit(self, writer: BlobWriter) -> Blob:
        self._pinned.enter_context(self._pins.pinned(writer.digest))
        return writer.commit()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed")


@attrs.frozen(eq=False)
class ResultStore:
    """Stores small results with the job's record, and large ones in the blob store.

    ``launcher`` is the name of the launcher that writes the results. ``checks``: whether they are checked to
    be JSON, because it does not ensure that itself.
    """

    _blobs: BlobStore
    _pins: BlobPins
    _limits: JobLimits
    launcher: str = ""
    _checks: bool = False

    def writer(self, *, stream: bool) -> ResultWriter:
        """Return the sink for one result."""
        unchecked = self.launcher if self._checks else ""
        return ResultWriter(self._blobs, self._pins, self._limits, stream=stream, unchecked=unchecked)

    def open(self, result: JobResult) -> ResultReader:
        """Open a stored result.

        Raises:
            BlobNotFound: It no longer exists.
            StorageError: It could not be opened.
        """
        return ResultReader(result, self._blobs, launcher=self.launcher)
