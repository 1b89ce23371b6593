from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from file_servers import FtpServer, HttpServer
from jobserver_fsspec import FsspecFetcher

MakeFetcher = Callable[..., FsspecFetcher]


@pytest.fixture
def server() -> Iterator[HttpServer]:
    server = HttpServer()
    yield server
    if server.gate is not None:
        server.gate.set()
    server.close()


@pytest.fixture
def other_server() -> Iterator[HttpServer]:
    server = HttpServer()
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def make_fetcher(cache: Path) -> Iterator[MakeFetcher]:
    """Makes fetchers over one cache, each closed at the end; nothing unfinished may stay in the cache."""
    made = []

    def make(**options: Any) -> FsspecFetcher:
        made.append(FsspecFetcher(**{"cache_directory": cache, "timeout": 20.0} | options))
        return made[-1]

    yield make
    for fetcher in made:
        fetcher.close()
    assert list(cache.glob("parts/*")) == []
    assert list(cache.glob("locks/*")) == []


@pytest.fixture
def fetcher(make_fetcher: MakeFetcher) -> FsspecFetcher:
    return make_fetcher()


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[FtpServer]:
    directory = tmp_path / "ftp"
    directory.mkdir()
    server = FtpServer(directory, "hunter2")
    yield server
    server.close()


def kept_files(cache: Path) -> list[Path]:
    return sorted(cache.glob("contents/*"))
