"""Fetching with fsspec's drivers, represented by the one of its in-memory file system."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.implementations.webhdfs import WebHDFS

from jobserver_core.errors import FetchError
from jobserver_fsspec import FsspecFetcher
from jobserver_net import AddressPolicy

MakeFetcher = Callable[..., FsspecFetcher]


@pytest.fixture
def published(tmp_path: Path) -> Iterator[str]:
    store = fsspec.filesystem("memory")
    path = f"/{tmp_path.name}/x.jar"
    store.pipe_file(path, b"content")
    yield f"memory:/{path}"
    store.rm(f"/{tmp_path.name}", recursive=True)


def logins(driver: Any) -> list[Any]:
    """Return the options of the file systems that exist."""
    gc.collect()
    return [found.storage_options for found in gc.get_objects() if isinstance(found, driver)]


def test_a_login_ends_with_the_fetch(make_fetcher: MakeFetcher, published: str) -> None:
    fetcher = make_fetcher(
        policy=AddressPolicy(schemes=["memory"]), options={"memory": {"password": "hunter2"}}
    )
    with fetcher.fetch(published) as found:
        assert found.path.read_bytes() == b"content"
    assert {"password": "hunter2"} not in logins(MemoryFileSystem)


def test_a_login_of_the_uri_ends_with_a_failed_fetch(make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher(policy=AddressPolicy(schemes=["webhdfs"]))
    with pytest.raises(FetchError), fetcher.fetch("webhdfs://alice:hunter2@127.0.0.1:1/x.jar"):
        pytest.fail("the block was entered")
    assert not [login for login in logins(WebHDFS) if login["host"] == "127.0.0.1"]
