"""Blobs in a directory on this machine."""

from __future__ import annotations

import errno
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
from jobserver_fsspec.writers import DigestingWriter

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = "tmp"
_DIRECTORY_MODE = 0o700
"""Only the server's user may list or read blobs, which are code and results of all users."""
_BLOB_MODE = 0o444
"""Nobody writes to a blob, because its name is the hash of its content."""


class DirectoryBlobStore(BlobStore):
    """Blobs as read-only files ``ab/cd/<digest>`` below a directory that only its owner can access.

    A blob is written to a file in ``tmp`` below the same directory, synced to the disk, and renamed. So a
    committed blob survives a power cut. Several processes can use the same directory.

    The directory is created for the first blob. If it is removed, replaced or unmounted later, nothing is
    written to what is there instead, and no blob counts as missing. Only its inode is compared: a mount that
    returns may be another device.
    """

    def __init__(self, directory: Path) -> None:
        self._root = Path(os.path.abspath(directory))
        self._temporaries = self._root / _TEMPORARY
        self._inode: int | None = None

    def create(self) -> BlobWriter:
        with _translated(self._root, "write to"):
            self._verify()
            return _DirectoryWriter(self, *self._create_temporary())

    def open(self, digest: str) -> BinaryIO:
        with self._existing(digest, "read from") as path:
            return path.open("rb")

    @contextmanager
    def local_path(self, digest: str) -> Iterator[Path]:
        with self._existing(digest, "read from") as path:
            path.stat()
        yield path

    def size(self, digest: str) -> int | None:
        with suppress(BlobNotFound), self._existing(digest, "read from") as path:
            return path.stat().st_size
        return None

    def delete(self, digest: str) -> None:
        with suppress(BlobNotFound), self._existing(digest, "delete from") as path:
            path.unlink()

    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        limit = modified_before.timestamp()
        with _translated(self._root, "list"):
            self._check_there()
            for entry in self._blobs():
                if _older(entry, limit):
                    yield entry.name

    def usage(self) -> tuple[int, int]:
        count = size = 0
        with _translated(self._root, "list"):
            self._check_there()
            for entry in self._blobs():
                with suppress(FileNotFoundError):  # removed meanwhile
                    size += entry.stat(follow_symlinks=False).st_size
                    count += 1
        return count, size

    def sweep(self, *, modified_before: datetime) -> None:
        limit = modified_before.timestamp()
        with _translated(self._root, "sweep"):
            self._check_there()
            for entry in _scan(self._temporaries):
                if _older(entry, limit):
                    with suppress(FileNotFoundError):
                        os.unlink(entry.path)

    def check(self) -> None:
        with self.create() as writer:
            writer.write(b"readiness probe")

    @contextmanager
    def _existing(self, digest: str, action: str) -> Iterator[Path]:
        """Yield the path of a blob. What the block raises if there is none becomes BlobNotFound."""
        with _translated(self._root, action):
            try:
                yield self._path(digest)
            except FileNotFoundError:
                self._check_there()
                raise BlobNotFound(digest=digest) from None

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise BlobNotFound(digest=digest)
        return self._root.joinpath(digest[:2], digest[2:4], digest)

    def _verify(self) -> None:
        """Create the directory for the first blob; later, check that it is still there.

        Raises:
            StorageError: It is another one.
        """
        if self._inode is None:
            _make_directory(self._root)
            self._inode = self._root.stat().st_ino
        else:
            self._check_there()

    def _check_there(self) -> None:
        """Check that the directory is the one that this store has written to before, if any.

        Raises:
            StorageError: It is another one.
        """
        if self._inode is None:
            return
        try:
            lost = "was replaced" if self._root.stat().st_ino != self._inode else None
        except FileNotFoundError:
            lost = "is gone"
        if lost is not None:
            raise StorageError(
                message=f"the blob directory {self._root} {lost} while the server was running: "
                "put the original back, or restart the server"
            )

    def _create_temporary(self) -> tuple[Path, int]:
        """Create a temporary file, and its directory if this is the first one."""
        path = self._temporaries / secrets.token_hex(16)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return path, os.open(path, flags, 0o600)
        except FileNotFoundError:
            _make_directory(self._temporaries)
            return path, os.open(path, flags, 0o600)

    def _publish(self, temporary: Path, digest: str, size: int) -> None:
        target = self._path(digest)
        try:
            if target.stat().st_size == size:
                os.utime(target)
                temporary.unlink(missing_ok=True)
                return
        except OSError as error:  # a network drive may still know a file that is deleted
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        _make_directory(target.parent)
        temporary.replace(target)
        _sync_directory(target.parent)

    def _blobs(self) -> Iterator[os.DirEntry[str]]:
        for first in _shards(self._root):
            for second in _shards(first):
                yield from (entry for entry in _scan(second) if _DIGEST.fullmatch(entry.name))


class _DirectoryWriter(DigestingWriter[BinaryIO]):
    def __init__(self, store: DirectoryBlobStore, path: Path, descriptor: int) -> None:
        super().__init__(os.fdopen(descriptor, "wb", buffering=0))
        self._store = store
        self._path = path

    def _append(self, file: BinaryIO, data: bytes) -> None:
        with _translated(self._path.parent.parent, "write to"):
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]

    def _publish(self, file: BinaryIO, blob: Blob) -> None:
        with _translated(self._path.parent.parent, "write to"):
            os.fchmod(file.fileno(), _BLOB_MODE)
            os.utime(file.fileno())  # the time of a blob is that of its commit, not of the last write
            os.fsync(file.fileno())
            self._store._publish(self._path, blob.digest, blob.size)
            file.close()

    def _abandon(self, file: BinaryIO) -> None:
        file.close()
        with suppress(OSError):
            self._path.unlink()


@contextmanager
def _translated(root: Path, action: str) -> Iterator[None]:
    """Translate errors of the operating system to StorageError."""
    try:
        yield
    except OSError as error:
        message = f"cannot {action} the blob directory {root}: {error.strerror or error}"
        raise StorageError(message=message) from error


def _make_directory(directory: Path) -> None:
    """Create a private directory with its missing parents, and sync the directories that contain them."""
    missing = [directory]
    while not missing[-1].parent.is_dir():
        missing.append(missing[-1].parent)
    for path in reversed(missing):
        with suppress(FileExistsError):
            path.mkdir(mode=_DIRECTORY_MODE)
            _sync_directory(path.parent)
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _scan(directory: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _shards(directory: str | Path) -> Iterator[str]:
    for entry in _scan(directory):
        if len(entry.name) == 2 and entry.is_dir(follow_symlinks=False):
            yield entry.path


def _older(entry: os.DirEntry[str], limit: float) -> bool:
    """Whether a regular file is older than a time. False if it was removed in the meantime."""
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_mtime < limit
