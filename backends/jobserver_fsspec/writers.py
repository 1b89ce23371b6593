"""What the writers of both stores share: the digest, and that a failure leaves nothing of the blob."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import Generic, TypeVar

from jobserver_core.errors import StorageError
from jobserver_core.ports.blobs import Blob, BlobWriter

F = TypeVar("F")


class DigestingWriter(BlobWriter, Generic[F]):
    """Writes a blob to an open file, which a subclass knows how to publish."""

    def __init__(self, file: F) -> None:
        self._file: F | None = file
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        try:
            self._append(self._opened(), data)
        except StorageError:
            self.discard()  # an unknown part of the data was written, so the blob must not be committed
            raise
        self._hash.update(data)
        self._size += len(data)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def commit(self) -> Blob:
        blob = Blob(digest=self.digest, size=self._size)
        try:
            self._publish(self._opened(), blob)
        except StorageError:
            self.discard()
            raise
        self._file = None
        return blob

    def discard(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            self._abandon(file)

    def _opened(self) -> F:
        if self._file is None:
            raise StorageError(message="cannot write to a blob that was committed or discarded")
        return self._file

    @abstractmethod
    def _append(self, file: F, data: bytes) -> None:
        """Write all of the data.

        Raises:
            StorageError: The file system refused the data.
        """

    @abstractmethod
    def _publish(self, file: F, blob: Blob) -> None:
        """Make the blob visible and durable, and close the file.

        Raises:
            StorageError: The file system failed.
        """

    @abstractmethod
    def _abandon(self, file: F) -> None:
        """Close the file, and remove it."""
