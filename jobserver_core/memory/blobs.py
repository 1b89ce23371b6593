"""Blobs in memory."""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from jobserver_core.errors import BlobNotFound, StorageError
from jobserver_core.forks import remove_with
from jobserver_core.models.arguments import check_kind
from jobserver_core.ports.blobs import Blob, BlobStore, BlobWriter
from jobserver_core.ports.clock import Clock, SystemClock


class MemoryBlobStore(BlobStore):
    """Blobs in the memory of the process, for tests and small embedded servers."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        check_kind("clock", clock, (Clock, type(None)), "an object of a subclass of Clock")
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._blobs: dict[str, tuple[bytes, datetime]] = {}
        self._files_lock = threading.Lock()
        self._files: dict[str, _SharedFile] = {}

    def create(self) -> BlobWriter:
        return _MemoryWriter(self)

    def open(self, digest: str) -> BinaryIO:
        return io.BytesIO(self._content(digest))

    @contextmanager
    def local_path(self, digest: str) -> Iterator[Path]:
        content = self._content(digest)
        with self._files_lock:
            file = self._files.get(digest)
            if file is None:
                file = self._files[digest] = _SharedFile(digest, content)
            file.users += 1
        try:
            yield file.path
        finally:
            with self._files_lock:
                file.users -= 1
                if not file.users:
                    del self._files[digest]
                    file.remove()

    def size(self, digest: str) -> int | None:
        with self._lock:
            found = self._blobs.get(digest)
        return None if found is None else len(found[0])

    def delete(self, digest: str) -> None:
        with self._lock:
            self._blobs.pop(digest, None)

    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        with self._lock:
            found = [digest for digest, (_, at) in self._blobs.items() if at < modified_before]
        return iter(found)

    def _content(self, digest: str) -> bytes:
        with self._lock:
            found = self._blobs.get(digest)
        if found is None:
            raise BlobNotFound(digest=digest)
        return found[0]

    def _add(self, digest: str, content: bytes) -> Blob:
        with self._lock:
            kept = self._blobs.get(digest, (content, None))[0]
            self._blobs[digest] = (kept, self._clock.now())
        return Blob(digest=digest, size=len(content))


class _SharedFile:
    """A blob as a temporary file, and the number of its users."""

    def __init__(self, digest: str, content: bytes) -> None:
        self.users = 0
        directory = Path(tempfile.mkdtemp(prefix="jobserver-blob-"))
        self.remove = remove_with(self, directory)
        self.path = directory / digest
        self.path.write_bytes(content)


class _MemoryWriter(BlobWriter):
    def __init__(self, store: MemoryBlobStore) -> None:
        self._store = store
        self._buffer: io.BytesIO | None = io.BytesIO()
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        self._open().write(data)
        self._hash.update(data)

    def commit(self) -> Blob:
        blob = self._store._add(self.digest, self._open().getvalue())
        self._buffer = None
        return blob

    def discard(self) -> None:
        self._buffer = None

    def _open(self) -> io.BytesIO:
        if self._buffer is None:
            raise StorageError(message="this blob was committed or discarded; nothing more can be written")
        return self._buffer
