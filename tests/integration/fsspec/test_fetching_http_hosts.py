"""Fetching over HTTP: which hosts are connected to, and redirects between them."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_fetching_http import CONTENT, MakeFetcher, fetched, reason

from file_servers import HttpServer, Route
from jobserver_core.errors import FetchError, MalformedUrl
from jobserver_fsspec import FsspecFetcher
from jobserver_net import AddressPolicy

# -- redirects -------------------------------------------------------------------------------------


def test_redirects_are_followed(server: HttpServer, other_server: HttpServer, fetcher: FsspecFetcher) -> None:
    server.routes["/a"] = Route(redirect="/b?c=d")
    server.routes["/b?c=d"] = Route(redirect=f"{other_server.url}/x.jar")
    other_server.routes["/x.jar"] = Route(content=CONTENT)
    assert fetched(fetcher, f"{server.url}/a") == CONTENT


def test_a_redirect_loop_is_an_error(server: HttpServer, fetcher: FsspecFetcher) -> None:
    server.routes["/a"] = Route(redirect="/a")
    assert "more than 5 times" in reason(fetcher, f"{server.url}/a")
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://sub.denied.example/x", "http://", "gopher://x/y"],
)
def test_a_redirect_that_the_policy_refuses_is_not_followed(
    server: HttpServer, make_fetcher: MakeFetcher, target: str
) -> None:
    policy = AddressPolicy(denied_hosts=["*.denied.example"])
    server.routes["/a"] = Route(redirect=target)
    assert "redirected" in reason(make_fetcher(policy=policy), f"{server.url}/a")


def test_a_redirect_to_a_denied_address_is_not_followed(
    server: HttpServer, other_server: HttpServer, make_fetcher: MakeFetcher
) -> None:
    policy = AddressPolicy(denied_networks=["::1/128", "127.0.0.2/32"])
    server.routes["/a"] = Route(redirect=f"http://127.0.0.2:{other_server.port}/x.jar")
    assert "redirected" in reason(make_fetcher(policy=policy), f"{server.url}/a")
    assert other_server.requests == []


def test_a_password_is_sent_to_its_own_server_only(
    server: HttpServer, other_server: HttpServer, fetcher: FsspecFetcher
) -> None:
    server.routes["/a"] = Route(redirect="/b", password="hunter2")
    server.routes["/b"] = Route(redirect=f"{other_server.url}/c", password="hunter2")
    other_server.routes["/c"] = Route(redirect=f"{server.url}/d")
    server.routes["/d"] = Route(content=CONTENT)
    assert fetched(fetcher, f"http://user:hunter2@{server.authority}/a") == CONTENT
    sent = ["Authorization" in request.headers for request in server.requests]
    assert sent == [True, True, False]
    assert ["Authorization" in request.headers for request in other_server.requests] == [False]


# -- hosts -----------------------------------------------------------------------------------------


def test_a_name_is_checked_by_its_resolved_address(server: HttpServer, make_fetcher: MakeFetcher) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT)
    uri = f"http://localhost:{server.port}/x.jar"
    allowed = make_fetcher(policy=AddressPolicy(allowed_networks=["127.0.0.0/8", "::1/128"]))
    assert fetched(allowed, uri) == CONTENT
    for policy in (
        AddressPolicy(denied_hosts=["127.0.0.0/8", "::1"]),
        AddressPolicy(denied_networks=["127.0.0.0/8", "::1/128"]),
        AddressPolicy(allowed_networks=["10.0.0.0/8"]),
        AddressPolicy(allowed_hosts=["10.0.0.0/8"]),
    ):
        fetcher = make_fetcher(policy=policy)
        fetcher.check(uri)
        with pytest.raises(MalformedUrl, match="localhost"), fetcher.fetch(uri):
            pytest.fail("the block was entered")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"]
)
def test_a_denied_address_in_disguise_is_denied(
    server: HttpServer, make_fetcher: MakeFetcher, host: str
) -> None:
    fetcher = make_fetcher(policy=AddressPolicy(denied_networks=["127.0.0.0/8"]))
    with pytest.raises((MalformedUrl, FetchError)), fetcher.fetch(f"http://{host}:{server.port}/x.jar"):
        pytest.fail("the block was entered")
    assert server.requests == []


def test_the_checked_address_is_the_one_connected_to(server: HttpServer, make_fetcher: MakeFetcher) -> None:
    """DNS rebinding: the first answer is allowed, every later one leads to a denied address."""
    server.routes["/x.jar"] = Route(content=CONTENT)
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    policy = AddressPolicy(denied_networks=["127.0.0.2/32"])
    fetcher = make_fetcher(policy=policy, resolver=rebinding)
    uri = f"http://rebinding.example:{server.port}/x.jar"
    assert fetched(fetcher, uri) == CONTENT
    assert asked == ["rebinding.example"]
    assert server.requests[0].headers["Host"] == f"rebinding.example:{server.port}"
    with pytest.raises(MalformedUrl, match="denied"), fetcher.fetch(uri):
        pytest.fail("the block was entered")
    assert len(server.requests) == 1


def test_every_redirect_is_resolved_and_checked_again(server: HttpServer, make_fetcher: MakeFetcher) -> None:
    server.routes["/a"] = Route(redirect=f"http://inside.example:{server.port}/x.jar")
    addresses = {"outside.example": ["127.0.0.1"], "inside.example": ["169.254.169.254"]}
    fetcher = make_fetcher(resolver=lambda host, port: addresses[host])
    assert "link-local" in reason(fetcher, f"http://outside.example:{server.port}/a")
    assert [request.path for request in server.requests] == ["/a"]


def test_a_second_address_is_tried_when_the_first_refuses(
    server: HttpServer, make_fetcher: MakeFetcher
) -> None:
    server.routes["/x.jar"] = Route(content=CONTENT)
    fetcher = make_fetcher(resolver=lambda host, port: ["127.0.0.9", "127.0.0.1"])
    assert fetched(fetcher, f"http://two.example:{server.port}/x.jar") == CONTENT


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_a_resolver_that_hangs_hits_the_time_limit(make_fetcher: MakeFetcher, scheme: str) -> None:
    stop = threading.Event()

    def resolver(host: str, port: int) -> list[str]:
        stop.wait(60)
        return ["127.0.0.1"]

    try:
        fetcher = make_fetcher(resolver=resolver, timeout=0.3)
        assert reason(fetcher, f"{scheme}://slow-dns.example/x.jar") == "it took longer than 0.3 s"
    finally:
        stop.set()


# -- HTTPS -----------------------------------------------------------------------------------------


@pytest.fixture
def tls_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-keyout", str(key), "-out", str(certificate)),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = HttpServer(context)
    yield server
    server.close()


def test_https_is_fetched_and_its_certificate_is_checked(
    tls_server: HttpServer, make_fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls_server.routes["/x.jar"] = Route(content=CONTENT)
    assert fetched(make_fetcher(), f"{tls_server.url}/x.jar") == CONTENT
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "the certificate is not trusted" in reason(make_fetcher(), f"{tls_server.url}/x.jar")


def test_a_redirect_from_https_to_http_is_not_followed(
    tls_server: HttpServer, server: HttpServer, fetcher: FsspecFetcher
) -> None:
    tls_server.routes["/a"] = Route(redirect=f"{server.url}/x.jar")
    assert "from https to http" in reason(fetcher, f"{tls_server.url}/a")
    assert server.requests == []


@pytest.mark.parametrize("route", [{"drip": 0.05}, {"drip_headers": True}], ids=["body", "head"])
def test_the_time_limit_also_ends_a_trickle_over_tls(
    tls_server: HttpServer, make_fetcher: MakeFetcher, route: dict[str, float]
) -> None:
    tls_server.routes["/x.jar"] = Route(content=CONTENT, **route)
    assert "longer than 0.6 s" in reason(make_fetcher(timeout=0.6), f"{tls_server.url}/x.jar")
