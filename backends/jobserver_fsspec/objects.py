"""Blobs on file systems of fsspec: object stores, HDFS, SFTP and others."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar

from jobserver_core.disk_cache import DiskCache, Part
from jobserver_core.errors import BlobNotFound, JobServerError, StorageError
from jobserver_core.models.arguments import digest_of
from jobserver_core.ports.blobs import Blob, BlobStore, BlobWriter
from jobserver_fsspec.writers import DigestingWriter

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")

_DIGEST = re.compile(r"[0-9a-f]{64}")
_WITH_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "obs", "tos"})
"""Protocols of object stores. A bucket has no directories, so a new one would be a new bucket."""
_SHARD = re.compile(r"[0-9a-f]{2}")
_TEMPORARY = "tmp"
_BLOCK = 5 * 1024 * 1024
"""The bytes that a writer keeps in memory: the least that S3 allows for a part of an upload."""
_LARGEST_SHARE = 4
"""Blobs of more than a quarter of the cache are not cached while they are written."""
_Info: TypeAlias = Mapping[str, Any]
"""What a driver says about an object; the members depend on the driver."""
_TIME_KEYS = ("LastModified", "last_modified", "mtime", "updated")
_TIME_KEY_OF_HDFS = "modificationTime"
"""In milliseconds."""


class ObjectBlobStore(BlobStore):
    """Blobs as objects ``ab/cd/<digest>`` below a root. Until a commit, an object has a key below ``tmp``.

    A commit moves the object. Object stores implement this as a server-side copy, which becomes visible when
    it is complete. Blobs are read from local copies, whose hash is checked, so that readers can seek, and can
    continue after the object is deleted. A new blob is also written to the cache, unless it is too large for
    it, so reading it soon afterwards downloads nothing.
    """

    def __init__(
        self,
        filesystem: AbstractFileSystem,
        root: str,
        *,
        copies: DiskCache,
        name: str,
        redact: Callable[[str], str],
        block_size: int | None = _BLOCK,
    ) -> None:
        self._files = filesystem
        self._root = root.rstrip("/")
        self._copies = copies
        self._name = name
        self._redact = redact
        self._block_size = block_size
        protocols = filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)
        self._webhdfs = "webhdfs" in protocols
        in_bucket = not _WITH_BUCKETS.isdisjoint(protocols)
        self._bucket = self._root.lstrip("/").partition("/")[0] if in_bucket else None

    def create(self) -> BlobWriter:
        key = f"{self._root}/{_TEMPORARY}/{secrets.token_hex(16)}"
        with self.translated("write to"):
            file = self._making_parent(key, lambda: self._files.open(key, "wb", block_size=self._block_size))
        return _ObjectWriter(self, key, file, _Copy(self._copies))

    def open(self, digest: str) -> BinaryIO:
        with self.local_path(digest) as path:
            return path.open("rb")

    @contextmanager
    def local_path(self, digest: str) -> Iterator[Path]:
        size = self.size(digest)
        if size is None:
            raise BlobNotFound(digest=digest)
        with self.translated("copy to this machine"):
            lease = self._copies.obtain(digest, lambda path: self._download(digest, path), size=size)
        with lease:
            yield lease.path

    def size(self, digest: str) -> int | None:
        if not _DIGEST.fullmatch(digest):
            return None
        with self.translated("read from"):
            info = self._info(self._key(digest))
        return None if info is None else int(info["size"])

    def delete(self, digest: str) -> None:
        if _DIGEST.fullmatch(digest):
            with self.translated("delete from"):
                try:
                    self._files.rm_file(self._key(digest))
                except FileNotFoundError:
                    self._check_bucket()
                self._copies.discard(digest)

    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        """Iterate over the blobs whose object is older than a time, listing one of 256 shards at a time."""
        for key, info in self._objects():
            if self._older(key, info, modified_before):
                yield key.rpartition("/")[2]

    def usage(self) -> tuple[int, int]:
        """Return the number of blobs and their bytes, from the same listings as :meth:`digests`."""
        sizes = [int(info["size"]) for _, info in self._objects()]
        return len(sizes), sum(sizes)

    def sweep(self, *, modified_before: datetime) -> None:
        for key, info in self._list(f"{self._root}/{_TEMPORARY}"):
            if self._older(key, info, modified_before):
                with self.translated("sweep"):
                    self._remove(key)

    def check(self) -> None:
        key = f"{self._root}/{_TEMPORARY}/{secrets.token_hex(16)}"
        with self.translated("write to"):
            self._making_parent(key, lambda: self._files.pipe_file(key, b"readiness probe"))
            self._remove(key)

    def close(self) -> None:
        """Remove the local copies if they are in a temporary directory."""
        self._copies.close()

    @contextmanager
    def translated(self, action: str) -> Iterator[None]:
        """Translate errors of the file system to StorageError, with the secrets of its options redacted."""
        try:
            yield
        except JobServerError:
            raise
        except Exception as error:  # noqa: BLE001 - drivers raise errors of their own libraries
            reason = self._redact(str(error) or type(error).__name__)
            raise StorageError(message=f"cannot {action} the blobs at {self._name}: {reason}") from None

    def publish(self, temporary: str, digest: str, size: int) -> None:
        """Move a complete object to its final key. An existing object is replaced, which renews its time."""
        key = self._key(digest)
        try:
            self._making_parent(key, lambda: self._move(temporary, key))
        except FileExistsError:  # a file system whose move does not replace
            self._remove(key)
            self._move(temporary, key)
        if (found := self.size(digest)) != size:
            self._remove(key)
            raise StorageError(message=f"{self._name} stored {found} bytes of a blob of {size} bytes")

    def _move(self, temporary: str, key: str) -> None:
        if self._webhdfs:  # the driver's own move ignores that HDFS refuses it, and never replaces
            self._files._call(
                "RENAME", method="put", path=temporary, destination=key, renameoptions="OVERWRITE"
            )
        else:
            self._files.mv(temporary, key)

    def _key(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest[2:4]}/{digest}"

    def _making_parent(self, key: str, action: Callable[[], T]) -> T:
        """Run an action on a key, and create its parent directory if the file system needs one."""
        try:
            return action()
        except FileNotFoundError:
            if self._bucket is not None:
                raise
            self._files.makedirs(key.rpartition("/")[0], exist_ok=True)
            return action()

    def _info(self, key: str) -> _Info | None:
        self._files.invalidate_cache(key.rpartition("/")[0])
        try:
            info: _Info = self._files.info(key)
        except FileNotFoundError:
            self._check_bucket()
            return None
        return info if info.get("type") == "file" else None

    def _check_bucket(self) -> None:
        """Check that the bucket exists, after an object was not found.

        Raises:
            StorageError: It does not, or cannot be listed.
        """
        if self._bucket is None:
            return
        self._files.invalidate_cache(self._bucket)
        if not self._files.exists(self._bucket):
            problem = "does not exist, or these credentials may not list it"
            raise StorageError(message=f"the bucket of {self._name} {problem}")

    def _objects(self) -> Iterator[tuple[str, _Info]]:
        """Iterate over the keys of all blobs, with what the listing says about them."""
        for shard in self._shards():
            for key, info in self._list(f"{self._root}/{shard}"):
                if _DIGEST.fullmatch(key.rpartition("/")[2]):
                    yield key, info

    def _shards(self) -> list[str]:
        """Return the names of the shards that have blobs."""
        with self.translated("list"):
            self._files.invalidate_cache(self._root)
            try:
                paths = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                self._check_bucket()
                return []
        names = (str(path).rstrip("/").rpartition("/")[2] for path in paths)
        return [name for name in names if _SHARD.fullmatch(name)]

    def _list(self, prefix: str) -> list[tuple[str, _Info]]:
        with self.translated("list"):
            self._files.invalidate_cache(prefix)
            try:
                found = self._files.find(prefix, detail=True)
            except FileNotFoundError:
                return []
            return [(key, info) for key, info in found.items() if info.get("type") != "directory"]

    def _older(self, key: str, info: _Info, limit: datetime) -> bool:
        """Whether an object is older than a time. False if it was removed, or has no time."""
        with self.translated("list"):
            try:
                at = next((info[name] for name in _TIME_KEYS if info.get(name) is not None), None)
                if _TIME_KEY_OF_HDFS in info:
                    at = info[_TIME_KEY_OF_HDFS] / 1000
                modified = _time(self._files.modified(key) if at is None else at)
            except (FileNotFoundError, NotImplementedError):  # the latter from a file system without times
                return False
        return modified is not None and modified < limit

    def _remove(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(key)

    def _download(self, digest: str, path: Path) -> None:
        with self.translated("read from"):
            try:
                self._files.get_file(self._key(digest), str(path))
            except FileNotFoundError:
                self._check_bucket()
                raise BlobNotFound(digest=digest) from None
            with path.open("rb") as file:
                found = digest_of(file)
        if found != digest:
            raise StorageError(message=f"blob {digest} at {self._name} is damaged: its hash does not match")


class _Copy:
    """The local copy of a blob that is being written. If the disk fails, there is no copy."""

    def __init__(self, copies: DiskCache) -> None:
        self._copies = copies
        self._part: Part | None = None
        with suppress(OSError):
            self._part = copies.new_part()

    def write(self, data: bytes) -> None:
        """Append bytes, unless the blob is too large for a copy."""
        if self._part is None:
            return
        if self._part.size + len(data) > self._copies.limit // _LARGEST_SHARE:
            self.drop()
            return
        try:
            self._part.write(data)
        except OSError:
            self.drop()

    def keep(self, digest: str) -> None:
        """Add the complete copy to the cache."""
        if self._part is not None:
            with suppress(OSError):
                self._copies.publish(digest, self._part).release()
            self.drop()

    def drop(self) -> None:
        """Remove the copy. Idempotent."""
        part, self._part = self._part, None
        if part is not None:
            with suppress(OSError):
                part.close()


class _ObjectWriter(DigestingWriter[Any]):
    def __init__(self, store: ObjectBlobStore, key: str, file: Any, copy: _Copy) -> None:
        super().__init__(file)
        self._store = store
        self._key = key
        self._copy = copy

    def _append(self, file: Any, data: bytes) -> None:
        with self._store.translated("write to"):
            file.write(data)
        self._copy.write(data)

    def _publish(self, file: Any, blob: Blob) -> None:
        with self._store.translated("write to"):
            file.close()
            self._store.publish(self._key, blob.digest, blob.size)
        self._copy.keep(blob.digest)

    def _abandon(self, file: Any) -> None:
        self._copy.drop()
        with suppress(Exception):
            _abandon(file)
        with suppress(Exception):  # a later sweep removes what is left
            self._store._remove(self._key)


def _abandon(file: Any) -> None:
    """Close a file without completing what was written, where the file system can do that.

    Parts of an upload that is neither completed nor aborted are kept, and have to be paid for.
    """
    from fsspec.spec import AbstractBufferedFile  # noqa: PLC0415 - only with a driver, which has imported it

    if not isinstance(file, AbstractBufferedFile):
        file.close()
        return
    file.closed = True  # or else its destructor would complete the upload
    file.discard()


def _time(value: Any) -> datetime | None:
    """Parse a time of a file system: seconds, an ISO string, or a datetime. Without an offset, it is UTC.

    Anything else is no time.
    """
    if isinstance(value, (int, float)):
        return datetime.fromtimestamp(value, tz=timezone.utc)
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=timezone.utc)
