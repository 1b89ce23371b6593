"""A blob store in a directory: one file for each blob, named by its digest.

A writer writes to a temporary file and renames it when it commits. A rename is atomic, so a crash leaves
either the whole blob or a temporary file, which `sweep` removes.

Left out, for brevity: the directory entry is not synced, so a power cut may undo a rename, and all blobs
are in one directory.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from jobserver_core import BlobNotFound, InvalidSetting, Settings, StorageError
from jobserver_core.ports import Blob, BlobStore, BlobWriter

_DIGEST = re.compile("[0-9a-f]{64}")


class DirectoryBlobStore(BlobStore):
    """Blobs in a directory. The option ``path`` names it; the default is ``blobs`` in the data directory."""

    def __init__(self, directory: Path) -> None:
        self.blobs = directory / "blobs"
        self.temporary = directory / "temporary"
        with _translated():
            for path in (self.blobs, self.temporary):
                path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        """Refuse unknown options, and a path of the wrong type."""
        for key in settings.blobs.options.keys() - {"path"}:
            raise InvalidSetting(
                key=f"jobserver.blobs.options.{key}", message="is not an option; expected path"
            )
        settings.option_path("jobserver.blobs.options.path", settings.data_dir)

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> DirectoryBlobStore:
        """Create the store that the settings describe."""
        return cls(settings.option_path("jobserver.blobs.options.path", data_dir / "blobs"))

    def create(self) -> BlobWriter:
        """Open a temporary file."""
        with _translated():
            return _Writer(self)

    def open(self, digest: str) -> BinaryIO:
        """Open the blob's file. An open file can be read to its end, even after it was deleted."""
        with self._existing(digest) as path:
            return path.open("rb")

    @contextmanager
    def local_path(self, digest: str) -> Iterator[Path]:
        """Return the blob's file itself."""
        if self.size(digest) is None:
            raise BlobNotFound(digest=digest)
        yield self._path(digest)

    def size(self, digest: str) -> int | None:
        """Return the size of the blob's file."""
        try:
            with self._existing(digest) as path:
                return path.stat().st_size
        except BlobNotFound:
            return None

    def delete(self, digest: str) -> None:
        """Remove the blob's file."""
        with suppress(BlobNotFound), self._existing(digest) as path:
            path.unlink()

    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        """List the files; those that disappear meanwhile are skipped."""
        return (path.name for path in _older(self.blobs, modified_before))

    def sweep(self, *, modified_before: datetime) -> None:
        """Remove old temporary files."""
        with _translated():
            for path in _older(self.temporary, modified_before):
                path.unlink(missing_ok=True)

    def check(self) -> None:
        """Write a temporary file, and remove it."""
        with self.create() as writer:
            writer.write(b"check")

    @contextmanager
    def _existing(self, digest: str) -> Iterator[Path]:
        """Yield the file of a blob. It is BlobNotFound only if the directory is there."""
        with _translated():
            try:
                yield self._path(digest)
            except FileNotFoundError:
                self.blobs.stat()
                raise BlobNotFound(digest=digest) from None

    def _path(self, digest: str) -> Path:
        """Return the file of a blob. A malformed digest could be a path to any file, so it is not found."""
        if not _DIGEST.fullmatch(digest):
            raise BlobNotFound(digest=digest)
        return self.blobs / digest


class _Writer(BlobWriter):
    def __init__(self, store: DirectoryBlobStore) -> None:
        self._store = store
        descriptor, path = tempfile.mkstemp(dir=store.temporary)
        self._path = Path(path)
        self._file: BinaryIO | None = os.fdopen(descriptor, "wb")
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append to the temporary file; after an error it cannot be committed any more."""
        file = self._open_file()
        try:
            with _translated():
                file.write(data)
        except StorageError:
            self.discard()
            raise
        self._hash.update(data)

    @property
    def digest(self) -> str:
        """Return the hash so far."""
        return self._hash.hexdigest()

    def commit(self) -> Blob:
        """Sync the file, and rename it to its digest."""
        file = self._open_file()
        try:
            with _translated():
                file.flush()
                os.utime(file.fileno())  # the time of a blob is that of its commit
                os.fsync(file.fileno())
                blob = Blob(digest=self.digest, size=file.tell())
                self._path.rename(self._store.blobs / blob.digest)
            return blob
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the temporary file, if it was not renamed."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise StorageError(message="this writer was committed or discarded already")
        return self._file


def _older(directory: Path, limit: datetime) -> Iterator[Path]:
    with _translated():
        for name in os.listdir(directory):
            with suppress(FileNotFoundError):
                if (directory / name).stat().st_mtime < limit.timestamp():
                    yield directory / name


@contextmanager
def _translated() -> Iterator[None]:
    """Raise StorageError for errors of the operating system."""
    try:
        yield
    except OSError as error:
        raise StorageError(message=f"blob store: {error}") from error
