"""The blob port: immutable bytes, named by their sha256."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import attrs

from jobserver_core.models.validation import non_negative, sha256
from jobserver_core.ports.backend import Backend

__all__ = ["Blob", "BlobStore", "BlobWriter"]


@attrs.frozen(kw_only=True)
class Blob:
    """A stored blob: the sha256 of its content in lower-case hex, and its size in bytes."""

    digest: str = attrs.field(validator=sha256)
    size: int = attrs.field(validator=non_negative)


class BlobWriter(ABC):
    """Takes a blob's bytes in pieces. Used by one thread at a time.

    As a context manager it discards on the way out what was not committed.
    """

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Append bytes. Raises StorageError when they cannot be kept."""

    @abstractmethod
    def commit(self) -> Blob:
        """Make the blob visible, all of it at once, and durable; return its name.

        When the store holds the same content already, that stays and is returned; its
        ``modified_at`` becomes now, so that a sweep which is under way does not take it.
        """

    @abstractmethod
    def discard(self) -> None:
        """Drop everything written. After a commit, or repeated, this does nothing."""

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.discard()


class BlobStore(Backend):
    """Content-addressed bytes, streamed in and out, never whole in memory.

    Half a write is nothing: a crash at any moment leaves either the whole blob or no blob, and
    what it leaves of temporary files is removed by :meth:`sweep`.
    """

    kind = "blobs"

    @abstractmethod
    def create(self) -> BlobWriter:
        """Return a writer for a new blob. Raises StorageError when the store cannot be written to."""

    def put(self, chunks: Iterable[bytes]) -> Blob:
        """Store the chunks as one blob; when iterating raises, nothing is stored."""
        with self.create() as writer:
            for chunk in chunks:
                writer.write(chunk)
            return writer.commit()

    @abstractmethod
    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading, seekable. Raises BlobNotFound. The caller closes it.

        A blob that is deleted while it is open can be read to its end.
        """

    @abstractmethod
    def local_path(self, digest: str) -> AbstractContextManager[Path]:
        """Give a path on this machine whose content is the blob, valid inside the ``with`` block.

        Raises BlobNotFound. The file must not be changed. A local store gives its own file.
        """

    @abstractmethod
    def size(self, digest: str) -> int | None:
        """Return the blob's size in bytes, or None when it is not here."""

    @abstractmethod
    def delete(self, digest: str) -> None:
        """Remove a blob; one that is not here is no error."""

    @abstractmethod
    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        """Iterate over the blobs that were last committed before a time, in any order."""

    def sweep(self, *, modified_before: datetime) -> None:
        """Remove temporary files of writers that never committed and are older than the time."""
        return

    def check(self) -> None:
        """Raise StorageError when the store cannot be written to; cheap enough for a readiness probe."""
        return

    def close(self) -> None:
        """Let go of connections and temporary files; repeating this is allowed."""
        return
