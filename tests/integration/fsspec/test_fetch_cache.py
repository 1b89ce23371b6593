"""The cache of fetched files: bounded, safe for files in use, for other processes, and for crashes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from file_servers import HttpServer, Route
from jobserver_core.config.settings import FetcherSettings, Settings
from jobserver_core.errors import FetchError, InvalidSetting
from jobserver_fsspec import FsspecFetcher

MakeFetcher = Callable[..., FsspecFetcher]
SIZE = 10_000


def routes(server: HttpServer, count: int) -> list[str]:
    for number in range(count):
        server.routes[f"/{number}"] = Route(content=bytes([number]) * SIZE)
    return [f"{server.url}/{number}" for number in range(count)]


def touch(fetcher: FsspecFetcher, uri: str) -> None:
    with fetcher.fetch(uri) as found:
        assert found.path.stat().st_size == SIZE


def test_the_files_used_longest_ago_go_first(
    server: HttpServer, make_fetcher: MakeFetcher, cache: Path
) -> None:
    fetcher = make_fetcher(cache_size=3 * SIZE)
    uris = routes(server, 4)
    for uri in [*uris[:3], uris[0], uris[3]]:
        touch(fetcher, uri)
    assert len(list(cache.glob("contents/*"))) == len(list(cache.glob("entries/*"))) == 3
    server.bodies.clear()
    for uri in (uris[0], uris[2], uris[3]):
        touch(fetcher, uri)
    assert server.bodies == []
    touch(fetcher, uris[1])
    assert server.bodies == ["/1"]


def test_files_in_use_stay_even_over_the_limit(
    server: HttpServer, make_fetcher: MakeFetcher, cache: Path
) -> None:
    fetcher = make_fetcher(cache_size=0)
    with ExitStack() as stack:
        used = [stack.enter_context(fetcher.fetch(uri)) for uri in routes(server, 3)]
        again = stack.enter_context(fetcher.fetch(f"{server.url}/0"))
        assert [found.path.read_bytes()[0] for found in [*used, again]] == [0, 1, 2, 0]
    assert list(cache.glob("*/*")) == []


def test_a_changed_file_replaces_the_old_one(server: HttpServer, fetcher: FsspecFetcher, cache: Path) -> None:
    for content in (b"old", b"new"):
        server.routes["/x"] = Route(content=content)
        with fetcher.fetch(f"{server.url}/x"):
            pass
    assert [path.read_bytes() for path in cache.glob("contents/*")] == [b"new"]


def test_a_damaged_entry_or_file_is_fetched_again(
    server: HttpServer, fetcher: FsspecFetcher, cache: Path
) -> None:
    uri = routes(server, 1)[0]
    touch(fetcher, uri)
    (entry,), (content,) = cache.glob("entries/*"), cache.glob("contents/*")
    content.chmod(0o600)
    os.truncate(content, 5)
    touch(fetcher, uri)
    content.unlink()
    touch(fetcher, uri)
    for broken in (b"{", b"[]", b"{}", json.dumps({"digest": "x", "size": "y", "stamp": 3}).encode()):
        entry.write_bytes(broken)
        touch(fetcher, uri)
    assert len(server.bodies) == 7


def test_the_cache_is_private_and_its_files_read_only(
    server: HttpServer, fetcher: FsspecFetcher, cache: Path
) -> None:
    touch(fetcher, routes(server, 1)[0])
    assert {path.stat().st_mode & 0o777 for path in cache.iterdir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in cache.glob("contents/*")} == {0o444}


def test_a_fetcher_without_a_configured_directory_removes_its_own(server: HttpServer) -> None:
    fetcher = FsspecFetcher()
    with fetcher.fetch(routes(server, 1)[0]) as found:
        directory = found.path.parent.parent
    assert directory.is_dir()
    fetcher.close()
    assert not directory.exists()


def test_failing_to_create_the_cache_is_a_fetch_error(server: HttpServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fetcher = FsspecFetcher(cache_directory=tmp_path / "file" / "cache")
    with pytest.raises(FetchError, match="cannot store it"), fetcher.fetch(routes(server, 1)[0]):
        pytest.fail("the block was entered")


SCRIPT = """
import sys
from pathlib import Path
from jobserver_fsspec import FsspecFetcher
cache, uri, size = sys.argv[1:]
def tell(done, total):
    print(done, flush=True)
with FsspecFetcher(cache_directory=Path(cache), cache_size=int(size)).fetch(uri, progress=tell) as found:
    print(found.path.read_bytes()[0], flush=True)
    sys.stdin.readline()
    print(found.path.read_bytes()[0], flush=True)
"""


def start(cache: Path, uri: str, size: int = 10**9) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(cache), uri, str(size)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_download_once_and_keep_files_the_other_uses(
    server: HttpServer, make_fetcher: MakeFetcher, cache: Path
) -> None:
    server.routes["/x"] = Route(content=b"\7" * SIZE)
    server.routes["/y"] = Route(content=b"\3" * SIZE)
    processes = [start(cache, f"{server.url}/x") for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        wait_for_line(process, "7")
    assert server.bodies == ["/x"]
    touch(make_fetcher(cache_size=0), f"{server.url}/y")
    for process in processes:
        output, _ = process.communicate("go\n", timeout=30)
        assert output.split() == ["7"]


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    while (line := process.stdout.readline().strip()) != text:
        assert line, "the process ended"


def test_a_killed_process_leaves_no_lock_and_its_part_is_removed_later(
    server: HttpServer, make_fetcher: MakeFetcher, cache: Path
) -> None:
    server.routes["/x"] = Route(content=bytes(SIZE), drip=0.01)
    process = start(cache, f"{server.url}/x")
    wait_for_line(process, "20")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (part,) = cache.glob("parts/*")
    server.routes["/x"] = Route(content=bytes(SIZE))
    touch(make_fetcher(), f"{server.url}/x")
    assert part.exists()  # for a minute it could be one that was just made
    os.utime(part, (time.time() - 120,) * 2)
    touch(make_fetcher(), f"{server.url}/x")
    assert not part.exists()


def test_the_settings_are_heeded(tmp_path: Path, server: HttpServer) -> None:
    settings = Settings(
        fetcher=FetcherSettings(
            allowed_schemes=["http"],
            denied_hosts=["denied.example"],
            denied_networks=["10.0.0.0/8"],
            max_size=SIZE,
            timeout="10 s",
            cache_size=SIZE,
        )
    )
    fetcher = FsspecFetcher.from_settings(settings, tmp_path)
    touch(fetcher, routes(server, 1)[0])
    assert len(list((tmp_path / "cache" / "fetched" / "contents").iterdir())) == 1
    fetcher.close()
    for uri in ("file:///x", "http://denied.example/x", "http://10.1.2.3/x"):
        with pytest.raises(Exception, match="Malformed URL"):
            fetcher.check(uri)


def test_options_that_are_not_objects_are_refused(tmp_path: Path) -> None:
    settings = Settings(fetcher=FetcherSettings(options={"s3": "key"}))
    with pytest.raises(InvalidSetting, match=r"jobserver\.fetcher\.options\.s3"):
        FsspecFetcher.from_settings(settings, tmp_path)
