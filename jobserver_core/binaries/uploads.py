"""Uploading, listing and deleting binaries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

from jobserver_core.binaries.archives import check_archive
from jobserver_core.environment import Environment
from jobserver_core.errors import BinaryNotFound, TooLarge
from jobserver_core.models.binaries import Binary, BinaryType
from jobserver_core.models.names import check_binary_name
from jobserver_core.ports import BlobWriter

__all__ = ["BinaryService", "Upload", "chunks_of"]

CHUNK = 1024 * 1024
"""How many bytes of a file are read at a time."""


def chunks_of(data: bytes | BinaryIO | Iterable[bytes]) -> Iterable[bytes]:
    """Read bytes, a file or an iterable in pieces of bounded size."""
    if isinstance(data, bytes):
        yield data
    elif hasattr(data, "read"):
        while chunk := data.read(CHUNK):
            yield chunk
    else:
        yield from data


class Upload:
    """An upload in progress: :meth:`write` pieces, then :meth:`finish`.

    Use it in a ``with`` block: leaving without :meth:`finish` drops what was written. Used by
    one thread at a time.
    """

    def __init__(self, environment: Environment, name: str, type: BinaryType) -> None:
        self._environment = environment
        self._name = name
        self._type = type
        self._size = 0
        environment.folders.verify()
        self._writer: BlobWriter = environment.blobs.create()

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises TooLarge over the configured ``upload-size``."""
        limit = self._environment.settings.limits.upload_size
        self._size += len(data)
        if self._size > limit:
            self.discard()
            raise TooLarge(what=f"binary {self._name}", limit=limit)
        self._writer.write(data)

    def finish(self) -> Binary:
        """Check the archive and record it as the newest version of its name; all or nothing.

        Raises NotAnArchive, StorageError.
        """
        env = self._environment
        with self, env.deposits.making():
            blob = self._writer.commit()
            with env.blobs.open(blob.digest) as file:
                check_archive(file, self._type)
            binary = Binary(
                id=env.ids.new(),
                name=self._name,
                type=self._type,
                uploaded_at=env.clock.now(),
                digest=blob.digest,
                size=blob.size,
            )
            env.folders.verify()
            env.metadata.add_binary(binary)
        return binary

    def discard(self) -> None:
        """Drop what was written; after :meth:`finish`, or repeated, this does nothing."""
        self._writer.discard()

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.discard()


class BinaryService:
    """The use cases of binaries."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def begin_upload(self, name: str, type: BinaryType) -> Upload:
        """Return an upload to write to. Raises InvalidName, ServerClosed."""
        self._environment.admission.check()
        return Upload(self._environment, check_binary_name(name), type)

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
        return self._environment.metadata.binaries()

    def get(self, name: str) -> Binary:
        """Return the newest version of a binary. Raises BinaryNotFound."""
        binary = self._environment.metadata.binary(name)
        if binary is None:
            raise BinaryNotFound(name=name)
        return binary

    def versions(self, name: str) -> list[Binary]:
        """Return all versions of a binary, newest first. Raises BinaryNotFound."""
        versions = self._environment.metadata.binary_versions(name)
        if not versions:
            raise BinaryNotFound(name=name)
        return versions

    def delete(self, name: str) -> list[Binary]:
        """Remove every version of a binary; its bytes go with the next sweep."""
        return self._environment.metadata.delete_binary(name)
