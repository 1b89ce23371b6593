"""Store results: small ones with the job's record, large ones in the blob store.

A result must be JSON, unless it is streamed. A launcher that does not promise this may be faulty, and its
job should end with an error that says so. Parsing 100 MB would take seconds and a gigabyte of memory. So only
results up to 1 MiB are parsed. Of a larger one, three things are checked as it arrives, which takes a tenth
of a second for 100 MB: that its first MiB is the beginning of JSON, that all of it is UTF-8, and that it ends
with the bracket or quote that belongs to its first one. This finds the ``repr`` of an object, a pickle, and
what is cut off. Only those who read the result find a mistake in its middle.
"""

from __future__ import annotations

import codecs
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
        self._large = _LargeJson()
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
            data = bytes(self._buffer) + data
            self._buffer.clear()
        if self._writer is None:
            self._buffer += data
        else:
            data = bytes(data)
            if self._unchecked:
                self._large.check(data)
            self._writer.write(data)

    def finish(self) -> JobResult:
        """Store the written bytes, and return their location. Idempotent once they are stored.

        Raises:
            StorageError: The bytes could not be stored.
            LaunchError: They are not JSON, as far as that is checked.
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
        if self._unchecked:
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
        fault = _fault(self._buffer) if self._writer is None else self._large.end()
        if fault:
            message = f"the launcher {self._unchecked} wrote a result that is not JSON: {fault}"
            raise LaunchError(message=message)

    def _commit(self, writer: BlobWriter) -> Blob:
        self._pinned.enter_context(self._pins.pinned(writer.digest))
        return writer.commit()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed")


def _fault(data: bytes | bytearray, *, cut: bool = False) -> str:
    """Return why bytes are not JSON or, if they are ``cut`` off, why no JSON begins with them; else empty."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=not cut)
        json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        at_the_end = error.pos >= len(text.rstrip()) - _LONGEST_WORD or error.msg.startswith(
            "Unterminated string"
        )
        return "" if cut and at_the_end else str(error)
    except (ValueError, RecursionError) as error:
        return str(error)
    return ""


_LONGEST_WORD = len("-Infinity")
"""How far before the end of a text that is cut off an error may be that only the cut has caused."""
_LAST = {b"{": b"}", b"[": b"]", b'"': b'"'}
"""How JSON ends that begins with these bytes."""
_SPACE = b" \t\r\n"


class _LargeJson:
    """Checks the parts of a large result, as far as that is cheap."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._fault = ""
        self._first = self._last = b""

    def check(self, data: bytes) -> None:
        """Check the next bytes; the first ones are larger than the buffer."""
        if self._fault:
            return
        if not self._first:
            self._fault = _fault(data[:BUFFER], cut=True)
            self._first = data.lstrip(_SPACE)[:1]
        self._last = data.rstrip(_SPACE)[-1:] or self._last
        try:
            self._decoder.decode(data)
        except ValueError as error:
            self._fault = self._fault or str(error)

    def end(self) -> str:
        """Return what is wrong about the whole; empty if nothing was found."""
        if not self._fault and self._last != _LAST.get(self._first, self._last):
            first, last = self._first.decode(), _LAST[self._first].decode()
            return f"it begins with {first}, but does not end with {last}"
        return self._fault


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
