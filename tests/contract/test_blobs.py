"""Every built-in blob store passes the contract of the blob port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timedelta, timezone
from importlib.metadata import distribution
from pathlib import Path

import fsspec
import pytest

from jobserver_core.memory import MemoryBlobStore
from jobserver_core.ports.blobs import BlobStore
from jobserver_core.testing.blobs import (
    BlobStoreContract,
    PersistentBlobStoreContract,
    moved_away,
    replaced_by_a_file,
)
from jobserver_core.testing.options import BackendOptions
from jobserver_fsspec import FsspecBlobStore


def _now() -> datetime:
    return datetime.now(timezone.utc)


class TestMemoryBlobStore(BlobStoreContract):
    entry_point = "memory"

    @pytest.fixture
    def blobs(self) -> MemoryBlobStore:
        return MemoryBlobStore()

    def backend_options(self, directory: Path) -> BackendOptions:
        return BackendOptions(backend=MemoryBlobStore, accepted=[{}], refused=[])

    def reopen(self, blobs: BlobStore) -> BlobStore:
        return blobs

    def stored(self, blobs: BlobStore, digest: str) -> bytes | None:
        assert isinstance(blobs, MemoryBlobStore)
        return blobs._blobs[digest][0] if digest in blobs._blobs else None

    def leftovers(self, blobs: BlobStore) -> list[str]:
        return []

    def make_older(self, blobs: BlobStore, digest: str, age: timedelta) -> None:
        assert isinstance(blobs, MemoryBlobStore)
        content, _ = blobs._blobs[digest]
        blobs._blobs[digest] = (content, _now() - age)


@pytest.mark.real
class TestDirectoryOfFsspecBlobStore(PersistentBlobStoreContract):
    entry_point = "fsspec"

    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Iterator[FsspecBlobStore]:
        self.root = tmp_path / "data" / "blobs"
        store = FsspecBlobStore(self.root)
        yield store
        store.close()

    def backend_options(self, directory: Path) -> BackendOptions:
        return BackendOptions(
            backend=FsspecBlobStore,
            accepted=[{}, {"jobserver.blobs.url": f"file://{directory}/elsewhere"}],
            refused=[({"jobserver.blobs.options.key": "k"}, "jobserver.blobs.options.key")],
        )

    def reopen(self, blobs: BlobStore) -> BlobStore:
        return FsspecBlobStore(f"file://{self.root}")

    def broken(self, blobs: BlobStore) -> AbstractContextManager[None]:
        return replaced_by_a_file(self.root)

    def gone(self, blobs: BlobStore) -> AbstractContextManager[None]:
        return moved_away(self.root)

    def _path(self, digest: str) -> Path:
        return self.root / digest[:2] / digest[2:4] / digest

    def stored(self, blobs: BlobStore, digest: str) -> bytes | None:
        path = self._path(digest)
        return path.read_bytes() if path.exists() else None

    def leftovers(self, blobs: BlobStore) -> list[str]:
        files = (path for path in self.root.rglob("*") if not path.is_dir())
        return sorted(str(path) for path in files if path != self._path(path.name))

    def make_older(self, blobs: BlobStore, digest: str, age: timedelta) -> None:
        at = (_now() - age).timestamp()
        os.utime(self._path(digest), (at, at))


@pytest.mark.real
class TestRemoteFileSystemOfFsspecBlobStore(BlobStoreContract):
    """fsspec's in-memory file system represents object stores: keys without directories, no touch."""

    entry_point = "fsspec"
    protocol = "memory"

    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Iterator[FsspecBlobStore]:
        self.cache = tmp_path / "cache"
        self.root = f"/{tmp_path.name}/blobs"
        self.files = fsspec.filesystem(self.protocol)
        store = FsspecBlobStore(f"{self.protocol}:/{self.root}", cache_directory=self.cache)
        yield store
        store.close()
        assert [*self.cache.glob("parts/*"), *self.cache.glob("locks/*")] == []
        if self.files.exists(self.root):
            self.files.rm(self.root, recursive=True)

    def backend_options(self, directory: Path) -> BackendOptions:
        url = {"jobserver.blobs.url": f"memory://{directory.name}/blobs"}
        return BackendOptions(
            backend=FsspecBlobStore,
            accepted=[url, {**url, "jobserver.blobs.options.cache-size": "1 MiB"}],
            refused=[({"jobserver.blobs.url": "no-such-protocol://x"}, "jobserver.blobs.url")],
        )

    def reopen(self, blobs: BlobStore) -> BlobStore:
        return FsspecBlobStore(f"{self.protocol}:/{self.root}")

    def _key(self, digest: str) -> str:
        return f"{self.root}/{digest[:2]}/{digest[2:4]}/{digest}"

    def stored(self, blobs: BlobStore, digest: str) -> bytes | None:
        key = self._key(digest)
        return bytes(self.files.cat_file(key)) if self.files.exists(key) else None

    def leftovers(self, blobs: BlobStore) -> list[str]:
        keys = self.files.find(self.root) if self.files.exists(self.root) else []
        return [key for key in keys if key != self._key(key.rpartition("/")[2])]

    def make_older(self, blobs: BlobStore, digest: str, age: timedelta) -> None:
        self.files.store[self._key(digest)].modified = _now() - age


def _named_in_contract_tests() -> set[str]:
    suites = [value for value in globals().values() if isinstance(value, type)]
    return {suite.entry_point for suite in suites if hasattr(suite, "entry_point")}


def test_every_registered_blob_store_is_held_to_the_contract() -> None:
    entry_points = distribution("jobserver-core").entry_points.select(group="jobserver.blobs")
    assert {entry_point.name for entry_point in entry_points} == _named_in_contract_tests()


@pytest.mark.parametrize("store", [MemoryBlobStore, FsspecBlobStore])
def test_every_blob_store_is_created_from_settings(store: type[BlobStore], tmp_path: Path) -> None:
    from jobserver_core.config.settings import Settings

    made = store.from_settings(Settings(), tmp_path)
    blob = made.put([b"content"])
    assert made.size(blob.digest) == 7
    made.close()
