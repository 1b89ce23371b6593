"""Uploading, listing and deleting binaries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, BinaryIO, Generic, TypeVar

import attrs

from jobserver_core.binaries.archives import open_archive
from jobserver_core.binaries.packages import package_of
from jobserver_core.binaries.pins import BlobPins
from jobserver_core.data_directory import DataDirectory
from jobserver_core.errors import BinaryNotFound, TooLarge
from jobserver_core.models.arguments import chunks_of
from jobserver_core.models.binaries import Binary, BinaryType
from jobserver_core.models.validation import check_binary_name
from jobserver_core.ports import BlobStore, BlobWriter, Clock, Ids, MetadataStore
from jobserver_core.ports.faults import release

__all__ = ["BinaryService", "ChunkedUpload", "Upload"]

U = TypeVar("U", bound="ChunkedUpload[Any]")
T = TypeVar("T")


class ChunkedUpload(ABC, Generic[T]):
    """What uploads have in common. ``what`` names the data in the error for more than ``limit`` bytes."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._size = 0

    def write(self, data: bytes) -> None:
        """Write the next bytes.

        Raises:
            TooLarge: It has more bytes than the configured ``upload-size``.
            StorageError: The bytes cannot be stored.
        """
        self._size += len(data)
        if self._size > self._limit:
            self.discard()
            raise TooLarge(what=self._what, limit=self._limit)
        self._store(data)

    @abstractmethod
    def _store(self, data: bytes) -> None:
        """Store the next bytes."""

    @abstractmethod
    def finish(self) -> T:
        """Store what was written, completely or not at all."""

    @abstractmethod
    def discard(self) -> None:
        """Discard the written bytes. Idempotent; does nothing after :meth:`finish`."""

    def __enter__(self: U) -> U:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.discard()


class Upload(ChunkedUpload[Binary]):
    """A binary that is being uploaded: :meth:`write` chunks, then :meth:`finish`.

    Use it in a ``with`` block: leaving the block without :meth:`finish` discards the written bytes. Only one
    thread at a time may use it.
    """

    def __init__(
        self, name: str, limit: int, writer: BlobWriter, record: Callable[[BlobWriter], Binary]
    ) -> None:
        super().__init__(f"binary {name}", limit)
        self._writer = writer
        self._record = record

    def _store(self, data: bytes) -> None:
        self._writer.write(data)

    def finish(self) -> Binary:
        """Check the archive and record it as the newest version of its name, or change nothing.

        Raises:
            NotAnArchive: The bytes are not an archive of the given type.
            StorageError: They could not be stored.
        """
        with self:
            return self._record(self._writer)

    def discard(self) -> None:
        """Discard the written bytes. Idempotent; does nothing after :meth:`finish`."""
        release("a part of an upload", self._writer.discard)


@attrs.frozen(kw_only=True, eq=False)
class BinaryService:
    """The use cases of binaries, with the errors of JobServer. ``max_size`` limits an upload, in bytes."""

    _metadata: MetadataStore
    _blobs: BlobStore
    _pins: BlobPins
    _data_directory: DataDirectory
    _clock: Clock
    _ids: Ids
    _max_size: int

    def begin_upload(self, name: str, type: BinaryType) -> Upload:
        """Return an upload to write to."""
        check_binary_name(name)
        self._data_directory.verify()
        record = partial(self._record, name, type)
        return Upload(name, self._max_size, self._blobs.create(), record)

    def upload(
        self,
        name: str,
        type: BinaryType,
        data: bytes | BinaryIO | Iterable[bytes],
    ) -> Binary:
        """Store a new version of a binary, or nothing."""
        with self.begin_upload(name, type) as upload:
            for chunk in chunks_of(data):
                upload.write(chunk)
            return upload.finish()

    def newest(self) -> list[Binary]:
        """Return the newest version of every binary."""
        return self._metadata.binaries()

    def get(self, name: str) -> Binary:
        """Return the newest version of a binary."""
        binary = self._metadata.binary(name)
        if binary is None:
            raise BinaryNotFound(name=name)
        return binary

    def versions(self, name: str) -> list[Binary]:
        """Return all versions of a binary, newest first."""
        versions = self._metadata.binary_versions(name)
        if not versions:
            raise BinaryNotFound(name=name)
        return versions

    def delete(self, name: str) -> list[Binary]:
        """Remove every version of a binary; the next sweep removes its bytes."""
        return self._metadata.delete_binary(name)

    def _record(self, name: str, type: BinaryType, writer: BlobWriter) -> Binary:
        with self._pins.pinned(writer.digest):
            blob = writer.commit()
            with self._blobs.open(blob.digest) as file, open_archive(file, type) as archive:
                package = package_of(archive, type)
            binary = Binary(
                id=self._ids.new(),
                name=name,
                type=type,
                uploaded_at=self._clock.now(),
                digest=blob.digest,
                size=blob.size,
                package=package,
            )
            self._data_directory.verify()
            self._metadata.add_binary(binary)
        return binary
