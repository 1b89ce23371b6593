"""Read results. Clients import this module, so it depends on nothing from the server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from jobserver_core.errors import Conflict, LaunchError
from jobserver_core.models.arguments import check_size
from jobserver_core.models.jobs import JobResult, ResultKind
from jobserver_core.models.json_values import Json, loads

if TYPE_CHECKING:
    from jobserver_core.ports import BlobStore

__all__ = ["ResultReader"]

CHUNK = 256 * 1024
"""How many bytes of a result to read at a time."""


def reader_closed(what: str) -> Conflict:
    """Return the error for reading from a closed reader of a result or a log."""
    return Conflict(message=f"this reader is closed; open the {what} again")


def check_unread(*, closed: bool, begun: bool) -> None:
    """Check that a reader can still read the whole result.

    Raises:
        Conflict: It is closed, or a part has been read.
    """
    if closed:
        raise reader_closed("result")
    if begun:
        raise Conflict(message="a part of this result has been read; open the result again for its value")


def parse_result(data: bytes | str, launcher: str = "") -> Json:
    """Parse a result of JSON; nothing has checked yet that it is JSON.

    ``launcher`` is the name of the launcher that wrote it, if it is known.

    Raises:
        LaunchError: It is not.
    """
    try:
        return loads(data if isinstance(data, str) else data.decode())
    except ValueError as error:
        writer = f"the launcher {launcher}".strip()
        raise LaunchError(
            message=f"the result is not JSON: {error}; {writer} that wrote it is faulty"
        ) from error


class ResultReader:
    """A stored result, to be read in chunks or as a value. Close it, or use it in a ``with`` block.

    ``kind`` is the :class:`~jobserver_core.ResultKind`: STREAM for the bytes that the job yielded, any other
    for JSON. ``size`` is the number of bytes. Both are known before anything is read. Once it is closed,
    reading raises Conflict.
    """

    _closed = False
    _begun = False
    _launcher = ""

    def __init__(self, result: JobResult, blobs: BlobStore, *, launcher: str = "") -> None:
        self._launcher = launcher
        self.kind = result.kind
        self.size = result.size
        self._file: BinaryIO
        if result.digest is None:
            self._file = io.BytesIO((result.text or "").encode())
        else:
            self._file = blobs.open(result.digest)

    def read(self, size: int = CHUNK) -> bytes:
        """Return the next bytes, at most ``size``; empty at the end. A negative size reads to the end.

        Raises:
            Conflict: The reader is closed.
            InvalidRequest: The size is not a whole number.
        """
        if self._closed:
            raise reader_closed("result")
        check_size(size)
        self._begun = True
        return b"".join(self) if size < 0 else self._read(size)

    def _read(self, size: int) -> bytes:
        return self._file.read(size)

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read():
            yield chunk

    def value(self) -> Json:
        """Return the whole result as Python values (a streamed one as bytes), and close.

        A number that a float would round keeps its text: ``str(value)`` returns all of its decimal digits.

        Raises:
            Conflict: The reader is closed, or a part has been read.
            LaunchError: The launcher wrote a result that is not JSON.
        """
        check_unread(closed=self._closed, begun=self._begun)
        with self:
            data = b"".join(self)
        return data if self.kind is ResultKind.STREAM else parse_result(data, self._launcher)

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._closed = True
        self._file.close()

    def __enter__(self) -> ResultReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
