"""Files of the server on HDFS, over WebHDFS: the contract of blobs, and binaries from ``hdfs:`` URIs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from yarn_cluster import YarnCluster

from jobserver_core.errors import FetchError
from jobserver_core.ports.blobs import BlobStore
from jobserver_core.testing.blobs import PersistentBlobStoreContract
from jobserver_fsspec import FsspecBlobStore, FsspecFetcher
from jobserver_net.policy import AddressPolicy

pytestmark = [pytest.mark.real, pytest.mark.yarn]

USER = "alice"


class TestBlobsOnHdfs(PersistentBlobStoreContract):
    rounding = timedelta(seconds=1.1)
    sweeps = False

    @pytest.fixture
    def blobs(self, yarn: YarnCluster) -> Iterator[BlobStore]:
        self.hdfs = yarn.hdfs
        host, port = yarn.hdfs.address.split(":")
        self.files = fsspec.filesystem("webhdfs", host=host, port=int(port), user=USER)
        self.root = f"/user/{USER}/{uuid4()}"
        store = self.reopen()
        yield store
        store.close()

    def reopen(self, blobs: BlobStore | None = None) -> BlobStore:
        return FsspecBlobStore(f"webhdfs://{self.hdfs.address}{self.root}", options={"user": USER})

    @contextmanager
    def broken(self, blobs: BlobStore) -> Iterator[None]:
        """Without permission."""
        self.hdfs.change(self.root, op="SETPERMISSION", permission="000")
        try:
            yield
        finally:
            self.hdfs.change(self.root, op="SETPERMISSION", permission="755")

    def _path(self, digest: str) -> str:
        return f"{self.root}/{digest[:2]}/{digest[2:4]}/{digest}"

    def stored(self, blobs: BlobStore, digest: str) -> bytes | None:
        path = self._path(digest)
        content: bytes | None = self.files.cat_file(path) if self.files.exists(path) else None
        return content

    def leftovers(self, blobs: BlobStore) -> list[str]:
        files: list[str] = self.files.find(self.root) if self.files.exists(self.root) else []
        return [path for path in files if path != self._path(path.rpartition("/")[2])]

    def make_older(self, blobs: BlobStore, digest: str, age: timedelta) -> None:
        at = datetime.now(timezone.utc) - age
        self.hdfs.change(self._path(digest), op="SETTIMES", modificationtime=str(int(at.timestamp() * 1000)))


def test_a_binary_is_fetched_from_an_hdfs_uri(yarn: YarnCluster, tmp_path: Path) -> None:
    content = b"a wheel" * 100_000
    file = tmp_path / "words.whl"
    file.write_bytes(content)
    yarn.hdfs.put("/wheels/words.whl", file)
    host, port = yarn.hdfs.address.split(":")
    options: dict[str, Any] = {"hdfs": {"driver": "webhdfs", "host": host, "port": int(port), "user": USER}}
    fetcher = FsspecFetcher(policy=AddressPolicy(schemes=["hdfs"]), options=options)
    for uri in ("hdfs:///wheels/words.whl", "hdfs://namenode:8020/wheels/words.whl"):
        with fetcher.fetch(uri) as fetched:
            assert fetched.digest == hashlib.sha256(content).hexdigest()
    with pytest.raises(FetchError, match="not found"), fetcher.fetch("hdfs:///wheels/other.whl"):
        pass
    fetcher.close()
