"""Blobs in a folder of this machine."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from jobserver_core.errors import BlobNotFound, StorageError
from jobserver_core.ports.blobs import Blob, BlobStore, BlobWriter

__all__ = ["FolderBlobStore"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = "tmp"
_FOLDER_MODE = 0o700
_BLOB_MODE = 0o444


class FolderBlobStore(BlobStore):
    """Blobs as read-only files ``ab/cd/<digest>`` below a folder that only its owner may enter.

    A blob is written to a file in ``tmp`` beside them, synced to the disk, and renamed, so that it
    survives a power cut once it is committed. Several processes may use one folder.
    """

    def __init__(self, folder: Path) -> None:
        self._root = Path(os.path.abspath(folder))
        self._temporaries = self._root / _TEMPORARY

    def create(self) -> BlobWriter:
        """Open a temporary file. Raises StorageError when the folder takes none."""
        with _translated(self._root, "write to"):
            return _FolderWriter(self, *self._create_temporary())

    def open(self, digest: str) -> BinaryIO:
        """Open the blob's own file. Raises BlobNotFound."""
        with _translated(self._root, "read from"):
            try:
                return self._path(digest).open("rb")
            except FileNotFoundError:
                raise BlobNotFound(digest=digest) from None

    @contextmanager
    def local_path(self, digest: str) -> Iterator[Path]:
        """Give the blob's own file. Raises BlobNotFound."""
        if self.size(digest) is None:
            raise BlobNotFound(digest=digest)
        yield self._path(digest)

    def size(self, digest: str) -> int | None:
        """Return the blob's size in bytes, or None."""
        with _translated(self._root, "read from"):
            try:
                return self._path(digest).stat().st_size
            except (FileNotFoundError, BlobNotFound):
                return None

    def delete(self, digest: str) -> None:
        """Remove the blob's file, if it is there."""
        with _translated(self._root, "delete from"), suppress(FileNotFoundError, BlobNotFound):
            self._path(digest).unlink()

    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        """Iterate over the blobs whose file is older than a time, one folder at a time."""
        limit = modified_before.timestamp()
        with _translated(self._root, "list"):
            for folder in self._shards():
                for entry in _scan(folder):
                    if _DIGEST.fullmatch(entry.name) and _older(entry, limit):
                        yield entry.name

    def sweep(self, *, modified_before: datetime) -> None:
        """Remove temporary files that nobody has written to since the time."""
        limit = modified_before.timestamp()
        with _translated(self._root, "sweep"):
            for entry in _scan(self._temporaries):
                if _older(entry, limit):
                    with suppress(FileNotFoundError):
                        os.unlink(entry.path)

    def check(self) -> None:
        """Write and remove a small file. Raises StorageError."""
        with self.create() as writer:
            writer.write(b"readiness probe")

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise BlobNotFound(digest=digest)
        return self._root / digest[:2] / digest[2:4] / digest

    def _create_temporary(self) -> tuple[Path, int]:
        """Make the file's folder when it is missing, which it is once in the life of a store."""
        path = self._temporaries / secrets.token_hex(16)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return path, os.open(path, flags, 0o600)
        except FileNotFoundError:
            _make_folder(self._temporaries)
            return path, os.open(path, flags, 0o600)

    def _publish(self, temporary: Path, digest: str, size: int) -> None:
        target = self._path(digest)
        with suppress(FileNotFoundError):
            if target.stat().st_size == size:
                os.utime(target)
                temporary.unlink(missing_ok=True)
                return
        _make_folder(target.parent)
        temporary.replace(target)
        _sync_folder(target.parent)

    def _shards(self) -> Iterator[str]:
        for first in _scan(self._root):
            if len(first.name) == 2 and first.is_dir(follow_symlinks=False):
                for second in _scan(first.path):
                    if len(second.name) == 2 and second.is_dir(follow_symlinks=False):
                        yield second.path


class _FolderWriter(BlobWriter):
    def __init__(self, store: FolderBlobStore, path: Path, descriptor: int) -> None:
        self._store = store
        self._path = path
        self._file: BinaryIO | None = os.fdopen(descriptor, "wb", buffering=0)
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        file = self._opened()
        try:
            with _translated(self._path.parent.parent, "write to"):
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
        except StorageError:
            self.discard()  # how much of it was written is not known, so it must not be committed
            raise
        self._hash.update(data)
        self._size += len(data)

    def commit(self) -> Blob:
        file = self._opened()
        blob = Blob(digest=self._hash.hexdigest(), size=self._size)
        try:
            with _translated(self._path.parent.parent, "write to"):
                os.fchmod(file.fileno(), _BLOB_MODE)
                os.utime(file.fileno())  # the time of a blob is that of its commit, not of the last write
                os.fsync(file.fileno())
                self._store._publish(self._path, blob.digest, blob.size)
        except StorageError:
            self.discard()
            raise
        self._close()
        return blob

    def discard(self) -> None:
        if self._file is not None:
            self._close()
            with suppress(OSError):
                self._path.unlink()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise StorageError(message="this blob was committed or discarded; nothing more can be written")
        return self._file


@contextmanager
def _translated(root: Path, action: str) -> Iterator[None]:
    """Raise what the operating system says as a StorageError."""
    try:
        yield
    except OSError as error:
        message = f"cannot {action} the blob folder {root}: {error.strerror or error}"
        raise StorageError(message=message) from error


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, all private, and sync what they are listed in."""
    missing = [folder]
    while not missing[-1].parent.is_dir():
        missing.append(missing[-1].parent)
    for path in reversed(missing):
        with suppress(FileExistsError):
            path.mkdir(mode=_FOLDER_MODE)
            _sync_folder(path.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(folder))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _older(entry: os.DirEntry[str], limit: float) -> bool:
    """Whether a regular file is older than a time; one that has gone meanwhile is not."""
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_mtime < limit
