"""Fetching from real HTTP servers that behave well, badly, and maliciously."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from conditions import wait_until
from file_servers import HttpServer, Route, silent_server
from jobserver_core.errors import FetchError, TooLarge
from jobserver_core.ports.fetcher import Cancellation
from jobserver_fsspec import FsspecFetcher

MakeFetcher = Callable[..., FsspecFetcher]
CONTENT = os.urandom(300_000)
OLD = time.time() - 3600


def fetched(fetcher: FsspecFetcher, uri: str) -> bytes:
    with fetcher.fetch(uri) as found:
        return found.path.read_bytes()


def stack_of(thread: threading.Thread) -> list[str]:
    """The names of the functions that a thread is in."""
    frame = sys._current_frames().get(thread.ident or 0)
    return [entry.name for entry in traceback.extract_stack(frame)] if frame else []


def reason(fetcher: FsspecFetcher, uri: str) -> str:
    with pytest.raises(FetchError) as caught, fetcher.fetch(uri):
        pytest.fail("the block was entered")
    return str(caught.value.reason)


# -- the cache -------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [{"etag": True}, {"etag": False, "modified": OLD}])
def test_unchanged_content_is_not_downloaded_again(
    server: HttpServer, fetcher: FsspecFetcher, route: dict[str, float]
) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT, **route)
    assert [fetched(fetcher, f"{server.url}/x.jar") for _ in range(3)] == [CONTENT] * 3
    assert server.bodies == ["/x.jar"]
    assert len(server.requests) == 3


def test_unchanged_content_is_not_downloaded_again_after_a_restart(
    server: HttpServer, make_fetcher: MakeFetcher
) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT)
    for _ in range(2):
        fetcher = make_fetcher()
        assert fetched(fetcher, f"{server.url}/x.jar") == CONTENT
        fetcher.close()
    assert server.bodies == ["/x.jar"]


def test_a_recent_modification_time_does_not_prove_a_file_unchanged(
    server: HttpServer, fetcher: FsspecFetcher
) -> None:
    now = time.time()
    for content in (b"first", b"second"):
        server.routes["/x.jar"] = Route(content=content, etag=False, modified=now)
        assert fetched(fetcher, f"{server.url}/x.jar") == content


def test_a_source_without_validators_is_fetched_every_time_and_not_kept(
    server: HttpServer, fetcher: FsspecFetcher, cache: Path
) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT, etag=False)
    for _ in range(2):
        with fetcher.fetch(f"{server.url}/x.jar") as found:
            assert found.path.read_bytes() == CONTENT
            assert list(cache.glob("contents/*")) == [found.path]
    assert server.bodies == ["/x.jar"] * 2
    assert list(cache.glob("contents/*")) == []


def test_one_uri_with_two_users_is_kept_twice(server: HttpServer, fetcher: FsspecFetcher) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT)
    for user in ("anna", "bert"):
        assert fetched(fetcher, f"http://{user}:pw@{server.authority}/x.jar") == CONTENT
    assert server.bodies == ["/x.jar"] * 2


def test_two_fetches_at_once_download_once(server: HttpServer, fetcher: FsspecFetcher) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT)
    server.gate = threading.Event()
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetched(fetcher, f"{server.url}/x.jar")))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.bodies)
    server.gate.set()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 5
    assert server.bodies == ["/x.jar"]


def test_two_fetches_at_once_download_once_even_without_a_version(
    server: HttpServer, fetcher: FsspecFetcher
) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT, etag=False)
    server.gate = threading.Event()
    both = threading.Barrier(2, timeout=20)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with fetcher.fetch(f"{server.url}/x.jar") as found:
                both.wait()
                assert found.path.read_bytes() == CONTENT
        except BaseException as error:
            errors.append(error)

    first, second = threading.Thread(target=run), threading.Thread(target=run)
    first.start()
    wait_until(lambda: server.bodies)
    second.start()
    time.sleep(
        0.1
    )  # the second has begun before the first is done, or else it downloads itself and fails below
    server.gate.set()
    first.join()
    second.join()
    assert errors == []
    assert server.bodies == ["/x.jar"]


def test_a_fetch_of_another_uri_does_not_wait(server: HttpServer, fetcher: FsspecFetcher) -> None:
    server.routes["/slow.jar"] = Route(content=CONTENT)
    server.routes["/none.jar"] = Route(status=404)
    server.gate = threading.Event()
    thread = threading.Thread(target=lambda: fetched(fetcher, f"{server.url}/slow.jar"))
    thread.start()
    wait_until(lambda: server.bodies)
    assert "404" in reason(fetcher, f"{server.url}/other.jar")
    server.gate.set()
    thread.join()


# -- answers that are final ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 410, 429])
def test_an_answer_that_is_not_the_file_is_final(
    server: HttpServer, fetcher: FsspecFetcher, status: int
) -> None:
    server.routes["/x.jar"] = Route(status=status)
    assert f"HTTP {status}" in reason(fetcher, f"{server.url}/x.jar")
    assert len(server.requests) == 1


def test_a_server_in_trouble_is_asked_again_a_few_times(server: HttpServer, fetcher: FsspecFetcher) -> None:
    server.routes["/x.jar"] = Route(status=503)
    assert "HTTP 503" in reason(fetcher, f"{server.url}/x.jar")
    assert len(server.requests) == 3


def test_a_refused_connection_is_an_error_with_the_reason(fetcher: FsspecFetcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "refused" in reason(fetcher, f"http://127.0.0.1:{port}/x.jar")


def test_an_unknown_host_is_an_error_with_the_reason(fetcher: FsspecFetcher) -> None:
    assert "host no-such-host.invalid" in reason(fetcher, "http://no-such-host.invalid/x.jar")


def test_an_encoding_that_was_not_asked_for_is_refused(server: HttpServer, fetcher: FsspecFetcher) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT, encoding="gzip")
    assert "gzip" in reason(fetcher, f"{server.url}/x.jar")


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "route",
    [{}, {"chunked": True}, {"length": 10_000_000_000}],
    ids=["honest length", "no length", "far too long a length"],
)
def test_too_large_a_file_is_refused(
    server: HttpServer, make_fetcher: MakeFetcher, cache: Path, route: dict[str, int]
) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT, **route)
    fetcher = make_fetcher(max_size=100_000)
    with pytest.raises(TooLarge) as caught, fetcher.fetch(f"{server.url}/x.jar"):
        pytest.fail("the block was entered")
    assert caught.value.limit == 100_000
    assert list(cache.glob("*/*")) == []


def test_a_length_that_is_too_short_cuts_the_file_and_no_more_is_read(
    server: HttpServer, fetcher: FsspecFetcher
) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT, length=1000)
    assert fetched(fetcher, f"{server.url}/x.jar") == CONTENT[:1000]


def test_a_length_that_is_too_long_is_an_interruption(server: HttpServer, fetcher: FsspecFetcher) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT, length=len(CONTENT) + 5, ranges=False)
    assert reason(fetcher, f"{server.url}/x.jar")
    assert len(server.requests) >= 3


@pytest.mark.parametrize(
    "route", [Route(content=CONTENT, drip=0.05), Route(drip_headers=True)], ids=["body", "head"]
)
def test_the_time_limit_covers_the_whole_attempt_and_ends_a_trickle(
    server: HttpServer, make_fetcher: MakeFetcher, cache: Path, route: Route
) -> None:
    server.routes["/x.jar"] = route
    begun = time.monotonic()
    assert "longer than 0.5 s" in reason(make_fetcher(timeout=0.5), f"{server.url}/x.jar")
    assert time.monotonic() - begun < 5
    assert list(cache.glob("*/*")) == []


def test_a_server_that_never_answers_runs_into_the_time_limit(make_fetcher: MakeFetcher) -> None:
    with silent_server() as port:
        begun = time.monotonic()
        assert "longer than 0.4 s" in reason(make_fetcher(timeout=0.4), f"http://127.0.0.1:{port}/x.jar")
        assert "longer than 0.4 s" in reason(make_fetcher(timeout=0.4), f"https://127.0.0.1:{port}/x.jar")
    assert time.monotonic() - begun < 5


def test_waiting_for_another_fetch_respects_the_time_limit(
    server: HttpServer, make_fetcher: MakeFetcher
) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT)
    server.gate = threading.Event()
    patient, hasty = make_fetcher(), make_fetcher(timeout=0.3)
    thread = threading.Thread(target=lambda: fetched(patient, f"{server.url}/x.jar"))
    thread.start()
    wait_until(lambda: server.bodies)
    assert "longer than 0.3 s" in reason(hasty, f"{server.url}/x.jar")
    server.gate.set()
    thread.join()


# -- interruptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("validator", [{"etag": True}, {"etag": False, "modified": OLD}])
def test_an_interrupted_download_resumes_where_it_stopped(
    server: HttpServer, fetcher: FsspecFetcher, validator: dict[str, float], chunked: bool
) -> None:
    route = Route(content=CONTENT, cut=[100_000, 50_000], chunked=chunked, **validator)
    server.routes["/x.jar"] = route
    assert fetched(fetcher, f"{server.url}/x.jar") == CONTENT
    ranges = [request.headers.get("Range") for request in server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert all("If-Range" in request.headers for request in server.requests[1:])


def test_a_server_without_ranges_sends_it_all_again(server: HttpServer, fetcher: FsspecFetcher) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT, cut=[100_000], ranges=False)
    assert fetched(fetcher, f"{server.url}/x.jar") == CONTENT


@pytest.mark.parametrize("validator", [{"etag": False}, {"weak": True}], ids=["none", "weak"])
def test_without_a_strong_validator_it_is_not_put_together_from_pieces(
    server: HttpServer, fetcher: FsspecFetcher, validator: dict[str, bool]
) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT, cut=[100_000], **validator)
    assert fetched(fetcher, f"{server.url}/x.jar") == CONTENT
    assert [request.headers.get("Range") for request in server.requests] == [None, None]


def test_a_file_that_changes_between_two_pieces_is_fetched_from_its_beginning(
    server: HttpServer, fetcher: FsspecFetcher
) -> None:
    changed = os.urandom(200_000)
    server.routes["/x.jar"] = Route(content=CONTENT, cut=[100_000])

    def change(done: int, total: int | None) -> None:
        server.routes["/x.jar"].content = changed

    with fetcher.fetch(f"{server.url}/x.jar", progress=change) as found:
        assert found.path.read_bytes() == changed


def test_a_range_that_was_not_asked_for_is_refused(server: HttpServer, fetcher: FsspecFetcher) -> None:
    answer = f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}"
    server.routes["/x.jar"] = Route(content=CONTENT, cut=[100_000], answer_range=answer)
    assert "range that was not requested" in reason(fetcher, f"{server.url}/x.jar")


def test_a_remote_file_shorter_than_the_partial_download_is_fetched_again(
    server: HttpServer, fetcher: FsspecFetcher
) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT, cut=[100_000], etag=False, modified=OLD)

    def change(done: int, total: int | None) -> None:
        server.routes["/x.jar"].content = b"short"

    with fetcher.fetch(f"{server.url}/x.jar", progress=change) as found:
        assert found.path.read_bytes() == b"short"


def test_a_connection_that_keeps_breaking_is_abandoned(
    server: HttpServer, fetcher: FsspecFetcher, cache: Path
) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT, cut=[1000] + [0] * 50)
    assert reason(fetcher, f"{server.url}/x.jar")
    assert len(server.requests) == 4
    assert list(cache.glob("*/*")) == []


# -- cancellation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hang", ["name", "head", "body", "handshake", "ftp"])
def test_a_fetch_that_hangs_ends_at_once_when_cancelled(
    server: HttpServer, make_fetcher: MakeFetcher, cache: Path, hang: str
) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT)
    server.gate = threading.Event()
    resolving = threading.Event()

    def resolver(host: str, port: int) -> list[str]:
        resolving.set()
        if hang == "name":
            server.gate.wait(60)  # type: ignore[union-attr]
        return ["127.0.0.1"]

    scheme = {"handshake": "https", "ftp": "ftp"}.get(hang, "http")
    with silent_server() as silent:
        port = server.port if hang == "body" else silent
        fetcher, cancellation = make_fetcher(resolver=resolver, timeout=120.0), Cancellation()
        reasons: list[str] = []

        def run() -> None:
            with (
                pytest.raises(FetchError) as caught,
                fetcher.fetch(f"{scheme}://host.example:{port}/x.jar", cancellation=cancellation),
            ):
                pytest.fail("the block was entered")
            reasons.append(caught.value.reason)

        thread = threading.Thread(target=run)
        thread.start()
        assert resolving.wait(20)
        if hang == "body":
            wait_until(lambda: server.bodies)
        elif hang != "name":
            wait_until(lambda: {"recv", "recv_into", "do_handshake", "read"} & set(stack_of(thread)))
        cancellation.cancel("the caller has left")
        thread.join(20)
        assert not thread.is_alive()
    assert reasons == ["the caller has left"]
    assert list(cache.glob("*/*")) == []


# -- secrets ---------------------------------------------------------------------------------------


def test_a_password_is_in_no_log_no_error_and_no_file(
    server: HttpServer, fetcher: FsspecFetcher, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.routes["/x.jar?token=hunter3"] = Route(content=CONTENT, password="hunter2")
    uri = f"http://user:hunter2@{server.authority}/x.jar?token=hunter3"
    assert fetched(fetcher, uri) == CONTENT
    error = reason(fetcher, f"http://user:hunter2@{server.authority}/y.jar?token=hunter3")
    entries = [path.name + path.read_text() for path in cache.glob("entries/*")]
    contents = [path.name for path in cache.glob("contents/*")]
    assert len(entries) == len(contents) == 1
    for secret in ("hunter2", "hunter3", "dXNlcjpodW50ZXIy"):
        assert secret not in "".join([caplog.text, error, *entries, *contents])


def test_a_wrong_password_gets_nothing_from_the_cache(server: HttpServer, fetcher: FsspecFetcher) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT, password="hunter2")
    assert fetched(fetcher, f"http://user:hunter2@{server.authority}/x.jar") == CONTENT
    assert "HTTP 401" in reason(fetcher, f"http://user:guess@{server.authority}/x.jar")
