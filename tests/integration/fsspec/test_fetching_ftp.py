"""Fetching from a real FTP server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from file_servers import DTPHandler, FtpServer, silent_server
from jobserver_core.errors import FetchError, MalformedUrl, TooLarge
from jobserver_fsspec import FsspecFetcher
from jobserver_net import AddressPolicy

MakeFetcher = Callable[..., FsspecFetcher]
CONTENT = os.urandom(300_000)
OLD = time.time() - 3600


def published(server: FtpServer, name: str, content: bytes = CONTENT) -> str:
    path = server.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (OLD, OLD))
    return f"ftp://{server.authority}/{name}"


def fetched(fetcher: FsspecFetcher, uri: str) -> bytes:
    with fetcher.fetch(uri) as found:
        return found.path.read_bytes()


def reason(fetcher: FsspecFetcher, uri: str) -> str:
    with pytest.raises(FetchError) as caught, fetcher.fetch(uri):
        pytest.fail("the block was entered")
    return str(caught.value.reason)


def test_anonymous_and_named_users_can_fetch(ftp: FtpServer, fetcher: FsspecFetcher) -> None:
    uri = published(ftp, "deep/directory/x.jar")
    assert fetched(fetcher, uri) == CONTENT
    assert fetched(fetcher, uri.replace("ftp://", "ftp://user:hunter2@")) == CONTENT
    assert [line for line in ftp.commands if line.startswith("USER")] == ["USER anonymous", "USER user"]


def test_a_wrong_password_is_an_error_that_does_not_show_it(ftp: FtpServer, fetcher: FsspecFetcher) -> None:
    uri = published(ftp, "x.jar").replace("ftp://", "ftp://user:guess@")
    text = reason(fetcher, uri)
    assert "530" in text
    assert "guess" not in text


def test_a_server_that_repeats_the_password_does_not_make_us_show_it(
    tmp_path: Path, fetcher: FsspecFetcher
) -> None:
    def refuse(self: Any, line: str) -> None:
        self.respond(f"530 {line} is wrong")
        self.close_when_done()

    server = FtpServer(tmp_path, "x", ftp_PASS=refuse)
    try:
        text = reason(fetcher, f"ftp://user:hunter2@{server.authority}/x.jar")
        assert "*** is wrong" in text
        assert "hunter2" not in text
    finally:
        server.close()


def test_an_unchanged_file_is_not_sent_again_and_a_changed_one_is(
    ftp: FtpServer, fetcher: FsspecFetcher
) -> None:
    uri = published(ftp, "x.jar")
    for _ in range(3):
        assert fetched(fetcher, uri) == CONTENT
    assert ftp.commands.count("RETR x.jar") == 1
    (ftp.directory / "x.jar").write_bytes(CONTENT[::-1])
    assert fetched(fetcher, uri) == CONTENT[::-1]


def test_a_missing_file_or_a_directory_is_an_error(ftp: FtpServer, fetcher: FsspecFetcher) -> None:
    published(ftp, "directory/x.jar")
    assert "550" in reason(fetcher, f"ftp://{ftp.authority}/y.jar")
    assert "550" in reason(fetcher, f"ftp://{ftp.authority}/directory")
    assert "path of a directory" in reason(fetcher, f"ftp://{ftp.authority}/directory/")


def cut_after(*counts: int) -> dict[str, Any]:
    """An FTP handler that closes data connections after some bytes, and says that it failed."""
    left = list(counts)

    class Cutting(DTPHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.limit = left.pop(0) if left else None

        def send(self, data: bytes) -> int:
            if self.limit is not None:
                data = data[: self.limit]
                self.limit -= len(data)
                if not data:
                    self.cmd_channel.respond("426 Connection closed; transfer aborted.")
                    self.close()
                    return 0
            return int(super().send(data))

        def use_sendfile(self) -> bool:
            return False

    return {"dtp_handler": Cutting, "use_sendfile": False}


def test_an_interrupted_transfer_resumes_where_it_stopped(tmp_path: Path, fetcher: FsspecFetcher) -> None:
    server = FtpServer(tmp_path, "x", **cut_after(100_000, 50_000))
    try:
        assert fetched(fetcher, published(server, "x.jar")) == CONTENT
        assert [line for line in server.commands if line.startswith("REST")] == ["REST 100000", "REST 150000"]
    finally:
        server.close()


def test_a_server_without_sizes_and_times_is_read_whole_every_time(
    tmp_path: Path, fetcher: FsspecFetcher
) -> None:
    def unknown(self: Any, line: str) -> None:
        self.respond("502 Command not implemented.")

    server = FtpServer(tmp_path, "x", ftp_SIZE=unknown, ftp_MDTM=unknown)
    try:
        uri = published(server, "x.jar")
        assert [fetched(fetcher, uri) for _ in range(2)] == [CONTENT] * 2
        assert server.commands.count("RETR x.jar") == 2
    finally:
        server.close()


def test_an_oversized_file_is_refused_with_or_without_a_declared_size(
    ftp: FtpServer, make_fetcher: MakeFetcher, tmp_path: Path, cache: Path
) -> None:
    def lying(self: Any, line: str) -> None:
        self.respond("213 10")

    liar = FtpServer(tmp_path, "x", ftp_SIZE=lying)
    try:
        for server in (ftp, liar):
            with pytest.raises(TooLarge), make_fetcher(max_size=1000).fetch(published(server, "x.jar")):
                pytest.fail("the block was entered")
    finally:
        liar.close()
    assert list(cache.glob("*/*")) == []


def test_a_server_that_never_greets_runs_into_the_time_limit(make_fetcher: MakeFetcher) -> None:
    with silent_server() as port:
        begun = time.monotonic()
        assert "longer than 0.4 s" in reason(make_fetcher(timeout=0.4), f"ftp://127.0.0.1:{port}/x.jar")
        assert time.monotonic() - begun < 5


def test_a_transfer_that_stalls_runs_into_the_time_limit(tmp_path: Path, make_fetcher: MakeFetcher) -> None:
    def retrieve(self: Any, line: str) -> None:
        self.respond("150 Opening data connection, some day.")

    server = FtpServer(tmp_path, "x", ftp_RETR=retrieve)
    try:
        assert "longer than 0.5 s" in reason(make_fetcher(timeout=0.5), published(server, "x.jar"))
    finally:
        server.close()


def test_a_denied_address_is_not_connected_to(ftp: FtpServer, make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher(policy=AddressPolicy(schemes=["ftp"], denied_networks=["127.0.0.0/8", "::1/128"]))
    with pytest.raises(MalformedUrl), fetcher.fetch(f"ftp://localhost:{ftp.port}/x.jar"):
        pytest.fail("the block was entered")
    assert ftp.commands == []


def test_a_server_cannot_send_us_to_another_host(tmp_path: Path, fetcher: FsspecFetcher) -> None:
    """The bounce attack: the answer to PASV names another machine's address, which is not connected to."""
    server = FtpServer(tmp_path, "x", masquerade_address="203.0.113.1")
    try:
        assert fetched(fetcher, published(server, "x.jar")) == CONTENT
    finally:
        server.close()
