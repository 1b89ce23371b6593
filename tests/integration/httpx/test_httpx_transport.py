"""The HTTP transport against real servers on loopback."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trustme

from jobserver_core.config.settings import CallbackSettings, Secret, Settings
from jobserver_core.errors import InvalidCallbackUrl, InvalidSetting
from jobserver_core.ports.transport import Message, Transport
from jobserver_core.testing.transport import message
from jobserver_httpx import HttpxTransport, Signer
from jobserver_net import AddressPolicy
from loopback import Handler, Loopback, refused_port

PROMPT = 15.0
"""Seconds within which a call with a limit of half a second ends, even on a busy machine."""

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def a_message(url: str, **changes: Any) -> Message:
    return attrs.evolve(message(url), **{"headers": {}, **changes})


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as server:
        yield server


# -- requests --------------------------------------------------------------------------------------


def test_the_request_is_a_post_of_json(server: Loopback) -> None:
    answer = HttpxTransport().send(a_message(server.url("/a%20b?c=d")), timeout=5)
    (call,) = server.calls
    assert answer.accepted
    assert (call.method, call.path, call.body) == (
        "POST",
        "/a%20b?c=d",
        b'{"jobId": "job-1", "result": 42}',
    )
    assert call.headers["content-type"] == "application/json"
    assert call.headers["user-agent"].startswith("jobserver-core/")
    assert call.headers["host"] == f"127.0.0.1:{server.port}"
    assert call.headers["webhook-id"] == "delivery-1"
    assert call.headers["webhook-timestamp"] == "1700000000"
    assert "webhook-signature" not in call.headers


def test_a_secret_signs_id_timestamp_and_body(server: Loopback) -> None:
    HttpxTransport(signer=Signer(SECRET)).send(a_message(server.url()), timeout=5)
    (call,) = server.calls
    signed = b'delivery-1.1700000000.{"jobId": "job-1", "result": 42}'
    mac = hmac.new(bytes(range(32)), signed, hashlib.sha256).digest()
    assert call.headers["webhook-signature"] == "v1," + base64.b64encode(mac).decode()


def test_credentials_of_the_url_are_sent_as_basic_authentication(server: Loopback) -> None:
    url = server.url().replace("://", "://al%20ice:p%40ss%3Aword@")
    HttpxTransport().send(a_message(url), timeout=5)
    (call,) = server.calls
    assert base64.b64decode(call.headers["authorization"].removeprefix("Basic ")) == b"al ice:p@ss:word"
    assert "p%40ss" not in call.path


def test_cookies_are_not_kept(server: Loopback) -> None:
    server.behave = lambda handler: handler.say(200, set_cookie="session=1")
    transport = HttpxTransport()
    for _ in range(2):
        transport.send(a_message(server.url()), timeout=5)
    assert [call.headers.get("cookie") for call in server.calls] == [None, None]


def test_proxies_of_the_environment_are_not_used(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{refused_port()}")
    assert HttpxTransport().send(a_message(server.url()), timeout=5).accepted


def test_ipv6_is_spoken() -> None:
    with Loopback(host="::1") as server:
        assert HttpxTransport().send(a_message(server.url()), timeout=5).accepted
        assert server.calls[0].headers["host"] == f"[::1]:{server.port}"


# -- failures --------------------------------------------------------------------------------------


def test_a_refused_connection_is_a_failure_that_says_so() -> None:
    answer = HttpxTransport().send(a_message(f"http://127.0.0.1:{refused_port()}/"), timeout=5)
    assert answer.error == "no response: Connection refused"


def test_a_reset_connection_is_a_failure(server: Loopback) -> None:
    server.behave = Handler.reset
    answer = HttpxTransport().send(a_message(server.url()), timeout=5)
    assert answer.status is None
    assert answer.error
    assert answer.error.startswith("no response:")


def test_a_host_that_does_not_resolve_is_a_failure() -> None:
    def resolver(host: str, port: int) -> list[str]:
        raise OSError(-2, "Name or service not known")

    answer = HttpxTransport(resolver=resolver).send(a_message("http://nowhere.example/"), timeout=5)
    assert answer.error == "no response: host nowhere.example cannot be resolved: Name or service not known"


def test_an_answer_that_is_not_http_is_a_failure(server: Loopback) -> None:
    def behave(handler: Handler) -> None:
        handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        handler.close_connection = True

    server.behave = behave
    answer = HttpxTransport().send(a_message(server.url()), timeout=5)
    assert (answer.status, answer.error is not None) == (None, True)


def drip(handler: Handler, data: bytes, stop: threading.Event) -> None:
    for byte in data:
        if stop.wait(0.05):
            return
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    stop = threading.Event()
    yield stop
    stop.set()


def test_a_response_that_trickles_in_hits_the_time_limit(server: Loopback, stop: threading.Event) -> None:
    server.behave = lambda handler: drip(handler, b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 500, stop)
    began = time.monotonic()
    answer = HttpxTransport().send(a_message(server.url()), timeout=0.5)
    assert answer.error == "no response within 0.5 s"
    assert 0.45 < time.monotonic() - began < PROMPT


def test_an_endless_body_is_not_awaited(server: Loopback, stop: threading.Event) -> None:
    def behave(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        drip(handler, b"x" * 1000, stop)

    server.behave = behave
    began = time.monotonic()
    assert HttpxTransport().send(a_message(server.url()), timeout=60).status == 200
    assert time.monotonic() - began < PROMPT


def test_a_huge_answer_is_not_read(server: Loopback) -> None:
    written: list[int] = []

    def behave(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while sum(written) < 1 << 30:
                written.append(handler.connection.send(bytes(1 << 20)))
        except OSError:
            return

    server.behave = behave
    assert HttpxTransport().send(a_message(server.url()), timeout=5).status == 200
    time.sleep(0.2)
    assert sum(written) < 64 << 20  # no more than fits in the kernel's buffers


def test_endless_headers_are_a_failure(server: Loopback) -> None:
    def behave(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        try:
            for number in range(1_000_000):
                handler.wfile.write(b"x-%d: %s\r\n" % (number, b"y" * 1000))
        except OSError:
            return

    server.behave = behave
    answer = HttpxTransport().send(a_message(server.url()), timeout=5)
    assert answer.status is None


def test_a_receiver_that_does_not_read_hits_the_time_limit() -> None:
    import socket

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        began = time.monotonic()
        answer = HttpxTransport().send(a_message(url, body=bytes(32 << 20)), timeout=0.5)
    assert answer.error == "no response within 0.5 s"
    assert time.monotonic() - began < PROMPT


def test_a_resolver_that_hangs_hits_the_time_limit(stop: threading.Event) -> None:
    def resolver(host: str, port: int) -> list[str]:
        stop.wait(60)
        return ["127.0.0.1"]

    began = time.monotonic()
    answer = HttpxTransport(resolver=resolver).send(a_message("http://slow-dns.example/"), timeout=0.3)
    assert answer.error == "no response within 0.3 s"
    assert time.monotonic() - began < PROMPT


def test_the_second_address_is_tried_when_the_first_refuses(server: Loopback) -> None:
    transport = HttpxTransport(resolver=lambda host, port: ["127.0.0.9", "127.0.0.1"])
    assert transport.send(a_message(server.url(host="two.example")), timeout=5).accepted


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120.0), ("0", 0.0), ("-5", None), ("soon", None), ("9" * 400, None), ("1.5", None)],
)
def test_retry_after_in_seconds_is_understood(server: Loopback, header: str, seconds: float | None) -> None:
    server.behave = lambda handler: handler.say(429, retry_after=header)
    answer = HttpxTransport().send(a_message(server.url()), timeout=5)
    assert (answer.status, answer.retry_after) == (429, seconds)


def test_retry_after_as_a_date_counts_from_the_attempt(server: Loopback) -> None:
    server.behave = lambda handler: handler.say(503, retry_after=formatdate(1_700_000_090, usegmt=True))
    assert HttpxTransport().send(a_message(server.url()), timeout=5).retry_after == 90


# -- redirects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_gets_the_same_post(server: Loopback, status: int) -> None:
    server.plan["/done"] = lambda handler: handler.say(status, location="/moved?x=1")
    answer = HttpxTransport(signer=Signer(SECRET)).send(a_message(server.url()), timeout=5)
    first, second = server.calls
    assert answer.status == 200
    assert (second.method, second.path, second.body) == ("POST", "/moved?x=1", first.body)
    assert second.headers["webhook-signature"] == first.headers["webhook-signature"]


def test_see_other_is_followed_by_a_get(server: Loopback) -> None:
    server.plan["/done"] = lambda handler: handler.say(303, location="/status")
    answer = HttpxTransport().send(a_message(server.url()), timeout=5)
    assert answer.status == 200
    assert (server.calls[1].method, server.calls[1].path, server.calls[1].body) == ("GET", "/status", b"")
    assert "content-type" not in server.calls[1].headers


def test_the_answer_behind_a_redirect_counts(server: Loopback) -> None:
    server.plan["/done"] = lambda handler: handler.say(308, location="/moved")
    server.plan["/moved"] = lambda handler: handler.say(410)
    assert HttpxTransport().send(a_message(server.url()), timeout=5).status == 410


def test_a_redirect_loop_is_a_failure(server: Loopback) -> None:
    server.behave = lambda handler: handler.say(302, location="/done")
    answer = HttpxTransport().send(a_message(server.url()), timeout=5)
    assert answer.error == "not delivered: it was redirected more than 5 times"
    assert len(server.calls) == 6


def test_a_redirect_without_a_target_is_a_failure(server: Loopback) -> None:
    server.behave = lambda handler: handler.say(302)
    answer = HttpxTransport().send(a_message(server.url()), timeout=5)
    assert answer.error == "not delivered: it was redirected without saying where to"


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://127.0.0.1/", "http://[broken/"])
def test_a_redirect_to_a_non_http_url_is_a_failure(server: Loopback, location: str) -> None:
    server.behave = lambda handler: handler.say(302, location=location)
    answer = HttpxTransport().send(a_message(server.url()), timeout=5)
    assert answer.error
    assert answer.error.startswith("not delivered: it was redirected to ")
    assert len(server.calls) == 1


def test_a_redirect_to_a_denied_host_is_not_followed(server: Loopback) -> None:
    with Loopback(host="127.0.0.2") as internal:
        server.behave = lambda handler: handler.say(307, location=internal.url())
        section = "jobserver.callbacks"
        policy = AddressPolicy(schemes=("http", "https"), denied_networks=["127.0.0.2/32"], section=section)
        answer = HttpxTransport(policy=policy).send(a_message(server.url()), timeout=5)
        assert internal.calls == []
    assert answer.error
    assert answer.error.startswith("not delivered: it was redirected to ")
    assert answer.error.endswith(
        f"127.0.0.2 is not allowed: its address is denied by {section}.denied-networks"
    )


def test_credentials_do_not_follow_a_redirect_to_another_origin(server: Loopback) -> None:
    with Loopback() as other:
        server.behave = lambda handler: handler.say(307, location=other.url())
        url = server.url().replace("://", "://user:password@")
        assert HttpxTransport().send(a_message(url), timeout=5).accepted
        assert "authorization" in server.calls[0].headers
        assert "authorization" not in other.calls[0].headers


def test_the_time_limit_covers_all_redirects(server: Loopback) -> None:
    def behave(handler: Handler) -> None:
        time.sleep(0.2)
        handler.say(307, location="/done")

    server.behave = behave
    answer = HttpxTransport().send(a_message(server.url()), timeout=0.5)
    assert answer.error == "no response within 0.5 s"


# -- where callbacks may go ------------------------------------------------------------------------


def only(**lists: Any) -> AddressPolicy:
    return AddressPolicy(schemes=("http", "https"), **lists)


@pytest.mark.parametrize(
    ("policy", "url"),
    [
        (only(denied_hosts=["internal.example"]), "http://internal.example/"),
        (only(denied_hosts=["internal.example"]), "http://INTERNAL.example.:8080/"),
        (only(denied_hosts=["*.example"]), "https://deep.internal.example/"),
        (only(allowed_hosts=["hooks.example"]), "https://other.example/"),
        (only(denied_networks=["169.254.0.0/16"]), "http://169.254.169.254/latest/meta-data"),
        (only(denied_networks=["127.0.0.0/8"]), "http://[::ffff:127.0.0.1]/"),
        (only(), "ftp://host/"),
        (only(), "http://"),
        (only(), "http:///path"),
        (only(), "http://host:99999/"),
        (only(), "http://host:0/"),
        (only(), "http://host\\@other/"),
    ],
)
def test_a_uri_that_can_never_be_allowed_is_refused_at_submit(policy: AddressPolicy, url: str) -> None:
    with pytest.raises(InvalidCallbackUrl):
        HttpxTransport(policy=policy).check(url)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "0.0.0.0", "::"]
)
def test_a_name_that_leads_to_a_denied_network_is_not_called(server: Loopback, address: str) -> None:
    policy = only(denied_networks=["127.0.0.0/8", "::1/128"])
    transport = HttpxTransport(policy=policy, resolver=lambda host, port: [address])
    url = server.url(host="innocent.example")
    transport.check(url)
    answer = transport.send(a_message(url), timeout=5)
    assert answer.error
    assert answer.error.startswith("not allowed:")
    assert server.calls == []


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "017700000001"])
def test_other_spellings_of_an_address_do_not_get_past_the_policy(server: Loopback, host: str) -> None:
    policy = only(denied_networks=["127.0.0.0/8"])
    answer = HttpxTransport(policy=policy).send(a_message(server.url(host=host)), timeout=5)
    assert answer.status is None
    assert server.calls == []


def test_a_name_that_changes_its_meaning_does_not_get_past_the_policy(server: Loopback) -> None:
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    asked = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), 2) - 1]

    with Loopback(host="127.0.0.2", port=server.port) as internal:
        policy = only(denied_networks=["127.0.0.2/32"])
        transport = HttpxTransport(policy=policy, resolver=rebinding)
        assert transport.send(a_message(server.url(host="rebinding.example")), timeout=5).accepted
        assert asked == ["rebinding.example"]  # resolved once: the checked address is the one connected to
        assert not transport.send(a_message(server.url(host="rebinding.example")), timeout=5).accepted
        assert internal.calls == []
    assert len(server.calls) == 1
    assert server.calls[0].headers["host"] == f"rebinding.example:{server.port}"


def test_only_allowed_networks_are_called(server: Loopback) -> None:
    transport = HttpxTransport(policy=only(allowed_networks=["10.0.0.0/8"]))
    with pytest.raises(InvalidCallbackUrl):
        transport.check(server.url())
    assert not transport.send(a_message(server.url()), timeout=5).accepted
    assert server.calls == []


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Loopback]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("receiver.example", "127.0.0.1").configure_cert(context)
    with Loopback(tls=context) as server:
        yield server


def test_an_own_authority_is_trusted_when_configured(secure: Loopback, ca_file: Path) -> None:
    transport = HttpxTransport(ca_file=ca_file, resolver=lambda host, port: ["127.0.0.1"])
    assert transport.send(a_message(secure.url(host="receiver.example")), timeout=5).accepted
    assert transport.send(a_message(secure.url()), timeout=5).accepted


def test_an_unknown_authority_is_not_trusted(secure: Loopback) -> None:
    answer = HttpxTransport().send(a_message(secure.url()), timeout=5)
    assert answer.error
    assert "the certificate is not trusted" in answer.error
    assert secure.calls == []


def test_a_certificate_of_another_name_is_not_trusted(secure: Loopback, ca_file: Path) -> None:
    transport = HttpxTransport(ca_file=ca_file, resolver=lambda host, port: ["127.0.0.1"])
    answer = transport.send(a_message(secure.url(host="other.example")), timeout=5)
    assert answer.error
    assert "the certificate is not trusted" in answer.error
    assert secure.calls == []


def test_a_redirect_from_https_to_http_is_not_followed(
    secure: Loopback, server: Loopback, ca_file: Path
) -> None:
    secure.behave = lambda handler: handler.say(308, location=server.url())
    answer = HttpxTransport(ca_file=ca_file).send(a_message(secure.url()), timeout=5)
    assert answer.error == "not delivered: it was redirected from https to http, which is not followed"
    assert server.calls == []


def test_a_redirect_from_http_to_https_is_followed(secure: Loopback, server: Loopback, ca_file: Path) -> None:
    server.behave = lambda handler: handler.say(301, location=secure.url())
    assert HttpxTransport(ca_file=ca_file).send(a_message(server.url()), timeout=5).accepted
    assert secure.calls[0].method == "POST"


def test_a_tls_handshake_that_hangs_hits_the_time_limit() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/"
        began = time.monotonic()
        answer = HttpxTransport().send(a_message(url), timeout=0.4)
    assert answer.error == "no response within 0.4 s"
    assert time.monotonic() - began < PROMPT


# -- from the settings -----------------------------------------------------------------------------


def test_the_settings_make_the_transport(secure: Loopback, ca_file: Path, tmp_path: Path) -> None:
    callbacks = CallbackSettings(
        ca_file=ca_file, signing_secret=Secret(SECRET), denied_hosts=("internal.example",)
    )
    transport = HttpxTransport.from_settings(Settings(callbacks=callbacks), tmp_path)
    assert transport.send(a_message(secure.url()), timeout=5).accepted
    assert secure.calls[0].headers["webhook-signature"].startswith("v1,")
    with pytest.raises(InvalidCallbackUrl, match="denied"):
        transport.check("https://internal.example/")


def test_a_file_without_certificates_is_an_invalid_setting(tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.write_text("")
    for path in (missing, empty):
        with pytest.raises(InvalidSetting, match="ca-file"):
            HttpxTransport(ca_file=path)


def test_it_is_registered_as_a_plugin() -> None:
    from jobserver_core.plugins import registered

    assert registered(Transport)["httpx"].load() is HttpxTransport


def test_httpx_is_not_asked_to_log_the_url(server: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    HttpxTransport().send(a_message(server.url("/done?signature=geheim")), timeout=5)
    assert "geheim" not in caplog.text
    assert httpx.URL(server.url()).host == "127.0.0.1"


def test_a_transport_that_has_sent_nothing_has_not_imported_its_http_client() -> None:
    script = (
        "import sys; from jobserver_httpx import HttpxTransport\n"
        "HttpxTransport().close(); print('httpcore' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "False\n"
