"""The blob port: immutable bytes, identified by their sha256."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

import attrs

from jobserver_core.models.validation import byte_count, sha256
from jobserver_core.plugins import Backend
from jobserver_core.ports.faults import release


@attrs.frozen(kw_only=True)
class Blob:
    """A stored blob: the sha256 of its content in lower-case hex, and its size in bytes."""

    digest: str = attrs.field(validator=sha256)
    size: int = attrs.field(validator=byte_count)


class BlobWriter(ABC):
    """Receives a blob's bytes in chunks. Used by one thread at a time.

    When used as a context manager, it discards uncommitted bytes at the end of the block. After a commit or a
    discard, :meth:`write` and :meth:`commit` raise StorageError.
    """

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            StorageError: They cannot be stored. The blob can no longer be committed.
        """

    @property
    @abstractmethod
    def digest(self) -> str:
        """The digest of the bytes written so far."""

    @abstractmethod
    def commit(self) -> Blob:
        """Make the blob visible, all at once, and durable; return its digest and size.

        The blob's time is the time of the commit, however long ago its bytes were written. If the store
        already has the same content, that is kept, but its time becomes now. Servers delete only old blobs,
        so a blob that has just been committed stays until a record can refer to it.

        Raises:
            StorageError: The blob cannot be stored. Nothing of it is left.
        """

    @abstractmethod
    def discard(self) -> None:
        """Drop everything that was written. Does nothing after a commit. Idempotent."""

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_exc: object) -> None:
        release("a part of a blob", self.discard)


class BlobStore(Backend):
    """Stores blobs under their digests. They are streamed in and out, never held in memory as a whole.

    A crash at any moment leaves either the whole blob or no blob. :meth:`sweep` removes temporary files that
    a crash left. Every method raises StorageError if the storage fails: a blob must not be reported as
    missing just because the store cannot check. For a string that is not a sha256 in lower-case hex, there is
    no blob.
    """

    kind = "blobs"

    @abstractmethod
    def create(self) -> BlobWriter:
        """Return a writer for a new blob."""

    def put(self, chunks: Iterable[bytes]) -> Blob:
        """Store the chunks as one blob. If iterating raises, nothing is stored."""
        with self.create() as writer:
            for chunk in chunks:
                writer.write(chunk)
            return writer.commit()

    @abstractmethod
    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading. The file is seekable, and the caller closes it.

        A blob that is deleted while it is open can still be read to its end.

        Raises:
            BlobNotFound: There is no such blob.
        """

    @abstractmethod
    def local_path(self, digest: str) -> AbstractContextManager[Path]:
        """Return a path on this machine with the content of the blob, valid inside the ``with`` block.

        Callers do not change the file, so a local store can return its own file.

        Raises:
            BlobNotFound: There is no such blob.
        """

    @abstractmethod
    def size(self, digest: str) -> int | None:
        """Return the blob's size in bytes, or None if there is no such blob."""

    @abstractmethod
    def delete(self, digest: str) -> None:
        """Remove a blob. Does nothing if there is no such blob."""

    @abstractmethod
    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        """Iterate over the digests of blobs last committed before a time, in any order.

        Blobs may be added and deleted during the iteration, even by the caller. Such blobs may or may not be
        listed.
        """

    def sweep(self, *, modified_before: datetime) -> None:
        """Remove temporary files of uncommitted writers that were last written to before a time."""
        return

    def usage(self) -> tuple[int, int]:
        """Return the number of blobs and their total size in bytes.

        The default looks up each blob. Override it if the storage can list sizes.
        """
        everything = datetime.max.replace(tzinfo=timezone.utc)
        found = [self.size(digest) for digest in self.digests(modified_before=everything)]
        sizes = [size for size in found if size is not None]
        return len(sizes), sum(sizes)

    def check(self) -> None:
        """Check that the store can be written to. Cheap enough for a readiness probe.

        Raises:
            StorageError: It cannot.
        """
        return

    def close(self) -> None:
        """Close connections, and remove temporary files. Idempotent."""
        return
