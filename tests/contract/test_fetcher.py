"""Every built-in fetcher passes the contract of the fetcher port."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import fsspec
import pytest

from file_servers import FtpServer, HttpServer, Route
from jobserver_core.config.settings import Settings
from jobserver_core.memory import MemoryFetcher
from jobserver_core.ports.fetcher import Fetcher
from jobserver_core.testing.fetcher import FetcherContract, files_in
from jobserver_core.testing.options import BackendOptions
from jobserver_fsspec import FsspecFetcher
from jobserver_net import AddressPolicy

DENIED_HOST = "sub.denied.example"
DENIED = AddressPolicy(schemes=["http", "https", "ftp"], denied_hosts=["*.denied.example", "203.0.113.0/24"])


class TestMemoryFetcher(FetcherContract):
    entry_point = "memory"

    @pytest.fixture
    def fetcher(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryFetcher:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        self.directory = tmp_path
        return MemoryFetcher(denied_hosts=[DENIED_HOST], max_size=self.max_size)

    def backend_options(self, directory: Path) -> BackendOptions:
        return BackendOptions(backend=MemoryFetcher, accepted=[{}], refused=[])

    def publish(self, fetcher: Fetcher, name: str, content: bytes) -> str:
        assert isinstance(fetcher, MemoryFetcher)
        uri = f"http://host.example/directory/{quote(name)}"
        fetcher.publish(uri, content)
        return uri

    def withdraw(self, fetcher: Fetcher, uri: str) -> None:
        assert isinstance(fetcher, MemoryFetcher)
        fetcher.withdraw(uri)

    def missing(self) -> str:
        return f"http://user:{self.secret}@host.example/missing.jar?key={self.secret}"

    def refused(self) -> list[str]:
        return [f"http://user:{self.secret}@sub.denied.example/x?y={self.secret}", "s3://bucket/key"]

    def files(self, fetcher: Fetcher) -> set[str]:
        return files_in(self.directory)


class FsspecFetching(FetcherContract):
    """What the fetcher keeps, for every scheme."""

    entry_point = "fsspec"

    def backend_options(self, directory: Path) -> BackendOptions:
        key = "jobserver.fetcher.options.s3"
        accepted = [{}, {f"{key}.anon": True}]
        return BackendOptions(backend=FsspecFetcher, accepted=accepted, refused=[({key: "anon"}, key)])

    def make(self, tmp_path: Path, policy: AddressPolicy, directories: Iterable[Path] = ()) -> FsspecFetcher:
        self.cache = tmp_path / "cache"
        return FsspecFetcher(
            policy=policy,
            allowed_folders=directories,
            max_size=self.max_size,
            timeout=20,
            cache_directory=self.cache,
        )

    def files(self, fetcher: Fetcher) -> set[str]:
        return files_in(self.cache) if self.cache.exists() else set()


@pytest.mark.real
class TestFilesOfFsspecFetcher(FsspecFetching):
    @pytest.fixture
    def fetcher(self, tmp_path: Path) -> Iterator[FsspecFetcher]:
        self.directory = tmp_path / "files"
        self.directory.mkdir()
        fetcher = self.make(tmp_path, AddressPolicy(schemes=["file", "local"]), [self.directory])
        yield fetcher
        fetcher.close()

    def publish(self, fetcher: Fetcher, name: str, content: bytes) -> str:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return f"file://{quote(str(path))}"

    def withdraw(self, fetcher: Fetcher, uri: str) -> None:
        os.unlink(unquote(urlsplit(uri).path))

    def spellings(self, uri: str) -> list[str]:
        path = urlsplit(uri).path
        return [f"file:{path}", f"file://localhost{path}", f"local:{path}", f"local://{path}", f"FILE:{path}"]

    def missing(self) -> str:
        return f"file://{self.directory}/missing.jar"

    def refused(self) -> list[str]:
        return [
            "file:///etc/passwd",
            f"local:{self.directory}/../outside.jar",
            f"file://{self.directory}-not/x.jar",
            "http:x",
        ]


@pytest.mark.real
class TestHttpOfFsspecFetcher(FsspecFetching):
    @pytest.fixture
    def fetcher(self, tmp_path: Path) -> Iterator[FsspecFetcher]:
        self.server = HttpServer()
        fetcher = self.make(tmp_path, DENIED)
        yield fetcher
        fetcher.close()
        self.server.close()

    def publish(self, fetcher: Fetcher, name: str, content: bytes) -> str:
        self.server.routes[f"/directory/{quote(name)}"] = Route(content=content)
        return f"{self.server.url}/directory/{quote(name)}"

    def withdraw(self, fetcher: Fetcher, uri: str) -> None:
        del self.server.routes[urlsplit(uri).path]

    def spellings(self, uri: str) -> list[str]:
        return [uri.replace("http", "HTTP"), uri + "#fragment", uri.replace("http://", "http://user:pw@")]

    def missing(self) -> str:
        return f"http://user:{self.secret}@{self.server.authority}/missing.jar?key={self.secret}"

    def refused(self) -> list[str]:
        return [
            f"http://user:{self.secret}@sub.denied.example/x",
            f"https://203.0.113.7/x?key={self.secret}",
            "http://[::ffff:203.0.113.7]/x",
        ]


@pytest.mark.real
class TestFtpOfFsspecFetcher(FsspecFetching):
    @pytest.fixture
    def fetcher(self, tmp_path: Path) -> Iterator[FsspecFetcher]:
        directory = tmp_path / "ftp"
        directory.mkdir()
        self.server = FtpServer(directory, self.secret)
        fetcher = self.make(tmp_path, DENIED)
        yield fetcher
        fetcher.close()
        self.server.close()

    def publish(self, fetcher: Fetcher, name: str, content: bytes) -> str:
        path = self.server.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return f"ftp://{self.server.authority}/{quote(name)}"

    def withdraw(self, fetcher: Fetcher, uri: str) -> None:
        (self.server.directory / unquote(urlsplit(uri).path[1:])).unlink()

    def spellings(self, uri: str) -> list[str]:
        return [uri.replace("ftp://", f"ftp://user:{self.secret}@"), uri + ";type=i"]

    def missing(self) -> str:
        return f"ftp://user:{self.secret}@{self.server.authority}/missing.jar"

    def refused(self) -> list[str]:
        return [f"ftp://user:{self.secret}@sub.denied.example/x", "ftp://203.0.113.7/x"]


@pytest.mark.real
class TestDriversOfFsspecFetcher(FsspecFetching):
    """fsspec's in-memory file system represents the other file systems that it has drivers for."""

    @pytest.fixture
    def fetcher(self, tmp_path: Path) -> Iterator[FsspecFetcher]:
        self.root = f"/{tmp_path.name}"
        self.store = fsspec.filesystem("memory")
        fetcher = self.make(tmp_path, AddressPolicy(schemes=["memory"]))
        yield fetcher
        fetcher.close()
        if self.store.exists(self.root):
            self.store.rm(self.root, recursive=True)

    def publish(self, fetcher: Fetcher, name: str, content: bytes) -> str:
        self.store.pipe_file(f"{self.root}/{name}", content)
        return f"memory:/{quote(self.root)}/{quote(name)}"

    def withdraw(self, fetcher: Fetcher, uri: str) -> None:
        self.store.rm_file(unquote(urlsplit(uri).path) if ":///" in uri else f"/{unquote(uri[9:])}")

    def missing(self) -> str:
        return f"memory:/{self.root}/missing.jar"

    def refused(self) -> list[str]:
        return [f"http://user:{self.secret}@host.example/x", "file:///etc/passwd", "s3://bucket/key"]


def _named_in_contract_tests() -> set[str]:
    suites = [value for value in globals().values() if isinstance(value, type)]
    return {suite.entry_point for suite in suites if hasattr(suite, "entry_point")}


def test_every_registered_fetcher_is_held_to_the_contract() -> None:
    entry_points = distribution("jobserver-core").entry_points.select(group="jobserver.fetcher")
    assert {entry_point.name for entry_point in entry_points} == _named_in_contract_tests()


@pytest.mark.parametrize("kind", [MemoryFetcher, FsspecFetcher])
def test_every_fetcher_is_created_from_settings(kind: type[Fetcher], tmp_path: Path) -> None:
    made = kind.from_settings(Settings(), tmp_path)
    made.check("http://host.example/x.jar")
    made.close()
