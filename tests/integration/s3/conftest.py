from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.session import AioSession

from jobserver_fsspec import FsspecBlobStore
from s3_server import ROOT_KEY, ROOT_SECRET, MakeStore, S3Proxy, S3Server, s3_server


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def api() -> AioSession:
    """The description of the S3 API, which takes longer to read than most tests to run."""
    return AioSession()


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[S3Proxy]:
    proxy = S3Proxy(s3.port)
    yield proxy
    proxy.close()


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> str:
    """The name of a new bucket."""
    name = f"b{abs(hash(tmp_path))}"
    s3.files.call_s3("create_bucket", Bucket=name)
    return name


@pytest.fixture
def make_store(api: AioSession, bucket: str, tmp_path: Path) -> Iterator[MakeStore]:
    """Makes stores in the bucket, each with connections and a cache of its own."""
    made: list[FsspecBlobStore] = []

    def make(url: str, **options: Any) -> FsspecBlobStore:
        given = {"key": ROOT_KEY, "secret": ROOT_SECRET, "endpoint_url": url}
        given |= {"session": api, "skip_instance_cache": True}
        cache = tmp_path / f"cache-{len(made)}"
        made.append(FsspecBlobStore(f"s3://{bucket}/blobs", options=given | options, cache_directory=cache))
        return made[-1]

    yield make
    for store in made:
        store.close()
    assert [*tmp_path.glob("cache-*/parts/*"), *tmp_path.glob("cache-*/locks/*")] == []
