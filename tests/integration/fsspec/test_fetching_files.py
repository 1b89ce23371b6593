"""Fetching files of this machine."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobserver_core.errors import FetchError, MalformedUrl
from jobserver_fsspec import FsspecFetcher

MakeFetcher = Callable[..., FsspecFetcher]
OLD = time.time() - 3600


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "files"
    directory.mkdir()
    return directory


def old_file(path: Path, content: bytes = b"content") -> Path:
    path.write_bytes(content)
    os.utime(path, (OLD, OLD))
    return path


def fetched(fetcher: FsspecFetcher, path: Path) -> bytes:
    with fetcher.fetch(f"file:{path}") as found:
        return found.path.read_bytes()


def reason(fetcher: FsspecFetcher, path: Path) -> str:
    with pytest.raises(FetchError) as caught, fetcher.fetch(f"file:{path}"):
        pytest.fail("the block was entered")
    return str(caught.value.reason)


def test_only_regular_files_are_accepted(files: Path, fetcher: FsspecFetcher) -> None:
    os.mkfifo(files / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(files / "socket"))
        for path in (files, files / "fifo", files / "socket", Path("/dev/zero"), Path("/dev/tty")):
            assert "not a regular file" in reason(fetcher, path)


def test_a_missing_file_is_an_error_with_the_reason(files: Path, fetcher: FsspecFetcher) -> None:
    assert "No such file" in reason(fetcher, files / "missing")
    (files / "dangling").symlink_to("nowhere")
    assert "No such file" in reason(fetcher, files / "dangling")
    (files / "loop").symlink_to("loop")
    assert reason(fetcher, files / "loop")


def test_a_file_of_the_kernel_that_has_no_size_is_refused(fetcher: FsspecFetcher) -> None:
    assert "0 bytes" in reason(fetcher, Path("/proc/self/environ"))


def test_links_are_followed_within_the_allowed_directories_only(
    files: Path, tmp_path: Path, make_fetcher: MakeFetcher
) -> None:
    outside = old_file(tmp_path / "outside.jar", b"secret")
    inside = old_file(files / "inside.jar")
    (files / "good").symlink_to(inside)
    (files / "bad").symlink_to(outside)
    (files / "directory").symlink_to(tmp_path)
    fetcher = make_fetcher(allowed_folders=[files])
    assert fetched(fetcher, files / "good") == b"content"
    for path in (files / "bad", files / "directory" / "outside.jar"):
        with pytest.raises(MalformedUrl, match="not in an allowed directory"), fetcher.fetch(f"file:{path}"):
            pytest.fail("the block was entered")


def test_an_allowed_directory_may_itself_be_a_link(
    files: Path, tmp_path: Path, make_fetcher: MakeFetcher
) -> None:
    old_file(files / "x.jar")
    (tmp_path / "link").symlink_to(files)
    fetcher = make_fetcher(allowed_folders=[tmp_path / "link"])
    assert fetched(fetcher, tmp_path / "link" / "x.jar") == b"content"


def test_an_unchanged_file_is_read_only_once(
    files: Path, fetcher: FsspecFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old_file(files / "x.jar", os.urandom(100_000))
    # What was changed just now may change again unseen; so let the clock say that it was long ago.
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 60_000_000_000)
    reads: list[int] = []
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, count: reads.append(1) or read(descriptor, count))
    first = fetched(fetcher, path)
    assert reads
    reads.clear()
    assert fetched(fetcher, path) == first
    assert reads == []
    stamp = path.stat()
    path.write_bytes(first[::-1])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the same size and time, by intention
    assert fetched(fetcher, path) == first[::-1]


def test_a_file_that_changed_just_now_is_read_again(files: Path, fetcher: FsspecFetcher, cache: Path) -> None:
    path = files / "x.jar"
    for content in (b"one", b"two", b"six"):
        path.write_bytes(content)
        assert fetched(fetcher, path) == content
        assert list(cache.glob("entries/*")) == []


def test_a_file_that_is_written_to_all_the_time_is_an_error(files: Path, fetcher: FsspecFetcher) -> None:
    path = old_file(files / "x.jar", bytes(1_000_000))

    def write(done: int, total: int | None) -> None:
        os.utime(path, ns=(done, os.stat(path).st_mtime_ns + 1))

    with (
        pytest.raises(FetchError, match="modified while it was read"),
        fetcher.fetch(f"file:{path}", progress=write),
    ):
        pytest.fail("the block was entered")


def test_a_file_that_is_changed_once_while_it_is_read_is_read_again(
    files: Path, fetcher: FsspecFetcher
) -> None:
    path = old_file(files / "x.jar", bytes(1_000_000))
    changes = [b"changed" * 100_000]

    def write(done: int, total: int | None) -> None:
        if changes:
            path.write_bytes(changes.pop())

    with fetcher.fetch(f"file:{path}", progress=write) as found:
        assert found.path.read_bytes() == b"changed" * 100_000
