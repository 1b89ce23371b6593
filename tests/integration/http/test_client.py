"""The client over connections that break, to servers that are not there, and with credentials."""

from __future__ import annotations

import asyncio
import gc
import math
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme

from conditions import wait_until
from cutting_proxy import CuttingProxy, cutting
from jobserver_client import (
    AccessDenied,
    AsyncClient,
    Client,
    ClientClosed,
    ServerUnreachable,
    UnexpectedResponse,
    options,
)
from jobserver_core import (
    BinaryType,
    InvalidRequest,
    JobQuery,
    JobRequest,
    JobServer,
    JobState,
    ResultTimeout,
    Settings,
    Waiter,
)
from jobserver_core.memory import InlineJob
from jobserver_http import running
from jobserver_http.credential_files import hash_password, hash_token
from loopback import Handler, Loopback, refused_port
from scripted_log import JSON, a_record
from serving import WAIT, a_request, a_server, archive

GATE = threading.Event()


def gated(job: InlineJob) -> str:
    """Wait until the test opens the gate."""
    while not GATE.is_set():
        job.sleep(0.02)
    return "through"


def _settings(**rest: Any) -> Settings:
    return Settings.from_mapping({"jobserver": {"http": {"port": 0, "drain-timeout": "0 s"}, **rest}})


@pytest.fixture
def server() -> Iterator[tuple[JobServer, str]]:
    """A server with the binary ``words``, and its address."""
    GATE.clear()
    server = a_server(settings=_settings())
    server._services.launcher.register("w.Gated", gated)  # type: ignore[attr-defined]
    with running(server) as url:
        server.upload("words", BinaryType.EGG, archive())
        yield server, url


@pytest.fixture
def proxy(server: tuple[JobServer, str]) -> Iterator[CuttingProxy]:
    """A proxy in front of the server."""
    with cutting(server[1]) as proxy:
        yield proxy


@pytest.mark.parametrize("seen", [0, 20])
def test_a_connection_cut_during_a_submit_makes_exactly_one_job(
    server: tuple[JobServer, str], proxy: CuttingProxy, seen: int
) -> None:
    """The server gets the request, but its response never arrives whole."""
    proxy.cut_after = [seen, seen]
    with Client(proxy.url) as client:
        handle = client.submit(a_request("w.Echo", "value = 5"))
        assert handle.result(WAIT) == 5
    assert proxy.connections >= 3
    [job] = server[0].jobs(JobQuery()).jobs
    assert job.id == handle.id


def test_a_call_that_may_have_been_carried_out_is_not_repeated(proxy: CuttingProxy) -> None:
    proxy.cut_after = [0]
    with Client(proxy.url) as client, pytest.raises(ServerUnreachable):
        client.prune()
    assert proxy.connections == 1


def test_reading_is_repeated_until_the_retries_are_used_up(proxy: CuttingProxy) -> None:
    proxy.cut_after = [0, 0]
    with Client(proxy.url, retries=2) as client:
        assert [binary.name for binary in client.binaries()] == ["words"]
    proxy.cut_after = [0, 0, 0]
    with Client(proxy.url, retries=2) as client, pytest.raises(ServerUnreachable):
        client.binaries()


def test_a_wait_survives_lost_connections_and_an_absent_server(proxy: CuttingProxy) -> None:
    with Client(proxy.url, retries=0) as client:
        handle = client.submit(a_request("w.Gated"))
        outcome: list[Any] = []
        client.subscribe(lambda _event: None)  # the event stream is open from here on
        handle.add_done_callback(lambda done: outcome.append(done.job.id))
        for _ in range(2):
            proxy.away = True
            proxy.cut_all()
            before = proxy.connections
            wait_until(lambda before=before: proxy.connections > before, "another attempt")
            proxy.away = False
        GATE.set()
        assert handle.result(WAIT) == "through"
        wait_until(lambda: outcome == [handle.id])


def test_an_end_that_happens_while_the_connection_is_lost_is_noticed(
    server: tuple[JobServer, str], proxy: CuttingProxy
) -> None:
    with Client(proxy.url) as client:
        handle = client.submit(a_request("w.Gated"))
        assert not handle.done()
        client.subscribe(lambda _event: None)
        proxy.away = True
        proxy.cut_all()
        GATE.set()
        wait_until(lambda: server[0].job(handle.id).state.final)
        proxy.away = False
        assert handle.result(WAIT) == "through"


def test_one_stream_serves_all_waits(server: tuple[JobServer, str], proxy: CuttingProxy) -> None:
    """Waiting for many jobs needs few connections."""

    async def scenario() -> list[Any]:
        async with AsyncClient(proxy.url) as client:
            await (await client.create_context("warm"))
            request = a_request("w.Gated", context="warm")
            handles = [await client.submit(request) for _ in range(40)]
            waits = [asyncio.create_task(handle.result(WAIT)) for handle in handles]
            await asyncio.to_thread(wait_until, lambda: proxy.connections > 1)
            GATE.set()
            return await asyncio.gather(*waits)

    assert asyncio.run(scenario()) == ["through"] * 40
    assert proxy.connections < 40


def test_a_result_that_is_cut_off_is_an_error_and_never_a_part(
    server: tuple[JobServer, str], proxy: CuttingProxy
) -> None:
    server[0]._services.launcher.register("w.Large", lambda _job: "x" * 3_000_000)  # type: ignore[attr-defined]
    handle = server[0].submit(a_request("w.Large"))
    handle.result(WAIT)
    with Client(proxy.url) as client:
        for _ in range(2):
            proxy.cut_after = [1_000_000]
            reader = client.open_result(handle.id)
            assert reader is not None
            with reader, pytest.raises(ServerUnreachable):
                b"".join([reader.read(10), *reader])  # the reset may overtake even the first bytes
        assert len(client.job_handle(handle.id).result(WAIT)) == 3_000_000


def test_logs_are_read_and_followed(server: tuple[JobServer, str]) -> None:
    with Client(server[1]) as client:
        handle = client.submit(a_request("w.Sleep"))
        lines = client.logs(handle.id, follow=True)
        assert next(lines) == "sleeping"
        client.kill_job(handle.id).result(WAIT)
        assert list(lines) == []
        assert list(client.logs(handle.id)) == ["sleeping"]


def test_an_absent_server_is_unreachable_and_a_silent_one_times_out() -> None:
    with Client(f"http://127.0.0.1:{refused_port()}", retries=1) as client, pytest.raises(ServerUnreachable):
        client.jobs()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, timeout=0.2) as client, pytest.raises(ResultTimeout):
            client.jobs()


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener whose system accepts connections; nobody reads what is sent, or answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def _url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


LARGE = bytes(64 * 1024 * 1024)
"""More than the system takes for a connection from which nobody reads."""
CALLS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "submit": ("POST", lambda client: client.submit(a_request("w.Echo"))),
    "upload": ("POST", lambda client: client.upload("words", "egg", archive())),
    "upload-of-much": ("POST", lambda client: client.upload("words", "egg", LARGE)),
    "add_data_file": ("POST", lambda client: client.add_data_file("rates.csv", b"1")),
    "subscribe": ("GET", lambda client: client.subscribe(print)),
    "storage": ("GET", lambda client: client.storage()),
    "prune": ("POST", lambda client: client.prune()),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_to_a_silent_server_ends_after_the_timeout(silent: socket.socket, call: str) -> None:
    method, begin = CALLS[call]
    expected = rf"^{method} {_url_of(silent)}/\S+ not done after 0\.2 s$"

    async def scenario() -> None:
        async with AsyncClient(_url_of(silent), timeout=0.2, retries=0) as client:
            with pytest.raises(ResultTimeout, match=expected):
                await begin(client)

    with Client(_url_of(silent), timeout=0.2) as client, pytest.raises(ResultTimeout, match=expected):
        begin(client)
    asyncio.run(scenario())


@pytest.mark.parametrize(
    "begin", [lambda client: client.create_context("warm"), lambda client: client.reset_contexts()]
)
def test_an_operation_has_a_limit_of_its_own_which_is_longer(
    silent: socket.socket, begin: Callable[[Client], Waiter[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Settings().contexts
    assert limits.start_queue_timeout + limits.creation_timeout < options.OPERATION_TIMEOUT
    monkeypatch.setattr(options, "OPERATION_TIMEOUT", 1.0)
    with Client(_url_of(silent), timeout=0.2) as client, pytest.raises(ResultTimeout, match=r"after 1\.0 s"):
        begin(client).result(WAIT)


def test_following_a_log_of_a_silent_server_ends_after_the_timeout(silent: socket.socket) -> None:
    with Client(_url_of(silent), timeout=0.2) as client, pytest.raises(ResultTimeout):
        next(iter(client.logs("j1", follow=True)))


def test_a_submit_may_take_longer_than_other_calls_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "RESPONSE_TIMEOUT", 0.2)
    limits = Settings()
    assert limits.fetcher.timeout + limits.jobs.start_timeout < options.SLOW_TIMEOUT
    held = threading.Event()

    def hold(handler: Handler) -> None:
        held.wait(WAIT)
        handler.say(200, a_record("RUNNING"), content_type=JSON)

    with Loopback(hold) as web, Client(web.url("")) as client, ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(client.submit, a_request("w.Echo"))
        wait_until(lambda: len(web.calls) == 1, "the submit")
        with pytest.raises(ResultTimeout):
            client.jobs()
        held.set()
        assert submitted.result(WAIT).id == "j1"


def test_a_client_may_have_no_timeout(server: tuple[JobServer, str]) -> None:
    with Client(server[1], timeout=math.inf) as client, client.subscribe(lambda _event: None):
        assert client.submit(a_request("w.Echo", "value = 5")).result(WAIT) == 5


def test_a_call_to_a_silent_server_ends_when_another_thread_closes_the_client(silent: socket.socket) -> None:
    client = Client(_url_of(silent), retries=0)
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(client.submit, a_request("w.Echo"))
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1)
            client.close()
            assert isinstance(submitted.exception(WAIT), ClientClosed)


@pytest.mark.parametrize("call", ["jobs", "contexts", "data_files", "servers", "storage"])
def test_an_object_instead_of_a_list_is_an_unexpected_response(call: str) -> None:
    with (
        Loopback(lambda handler: handler.say(200, b"{}", content_type=JSON)) as web,
        Client(web.url("")) as client,
        pytest.raises(UnexpectedResponse, match="the response is not a JSON array"),
    ):
        getattr(client, call)()


def test_a_redirect_is_an_error_that_names_its_target_without_secrets() -> None:
    target = "https://ann:secret@login.example.com/start?token=secret"
    with (
        Loopback(lambda handler: handler.say(302, b"<html>", location=target)) as web,
        Client(web.url("")) as client,
    ):
        for call in (client.jobs, lambda: client.submit(a_request("w.Echo")), client.prune):
            with pytest.raises(UnexpectedResponse) as caught:
                call()  # type: ignore[operator]
            assert "answered 302: it redirects to https://***@login.example.com/start" in str(caught.value)
            assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["jobs", "", None])
def test_a_request_needs_a_path_with_a_slash(path: Any) -> None:
    with Client("http://127.0.0.1:1") as client:
        with pytest.raises(InvalidRequest, match="the path must begin with '/', such as /jobs"):
            client.request("GET", path)
        with pytest.raises(InvalidRequest, match="the path must begin with '/'"), client.stream(path):
            pass


def test_a_page_of_a_web_server_is_not_taken_for_a_response() -> None:
    status = 200
    with Loopback(lambda handler: handler.say(status, b"<html>")) as web, Client(web.url("")) as client:
        with pytest.raises(UnexpectedResponse, match="not JSON"):
            client.jobs()
        status = 502
        with pytest.raises(UnexpectedResponse, match="502"):
            client.submit(a_request("w.Echo"))


@pytest.mark.parametrize("url", ["", "ftp://host", "http://user:secret@host", "http://host?x=1", "http://:0"])
def test_an_invalid_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Client(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["größe", "a\nb", " a"])
def test_an_idempotency_key_that_a_header_cannot_carry_is_refused(
    server: tuple[JobServer, str], key: str
) -> None:
    with Client(server[1]) as client, pytest.raises(InvalidRequest, match="printable ASCII"):
        client.submit(a_request("w.Echo", "value = 1", idempotency_key=key))


def test_a_closed_client_says_so_and_ends_waits(server: tuple[JobServer, str]) -> None:
    client = Client(server[1])
    handle = client.submit(a_request("w.Sleep"))
    failed: list[BaseException | None] = []
    handle.finished.add_done_callback(lambda _waiter: None)
    waiting = threading.Thread(target=lambda: failed.append(_error_of(handle.result)))
    waiting.start()
    client.close()
    client.close()
    waiting.join(WAIT)
    assert failed == [ClientClosed()]
    calls = (client.jobs, client.is_ready, lambda: client.subscribe(print), handle.finished.result)
    for call in calls:
        with pytest.raises(ClientClosed, match="this client is closed; create a new one"):
            call()
    with pytest.raises(ClientClosed), client:
        pass


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        ((), {}, r"missing 1 required positional argument: 'url'"),
        (("http://h", 10), {}, r"takes 2 positional arguments but 3 were given"),
        (("http://h",), {"tiemout": 3}, r"got an unexpected keyword argument 'tiemout'"),
    ],
)
def test_errors_about_arguments_name_the_client(
    kind: Any, arguments: tuple[Any, ...], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(TypeError, match=rf"^{kind.__name__}\.__init__\(\) {problem}$"):
        kind(*arguments, **options)


def test_a_client_can_be_extended_with_options_of_its_own() -> None:
    class Ours(Client):
        def __init__(self, team: str) -> None:
            super().__init__(f"http://{team}:8090")

    class Theirs(Ours):
        pass

    with Theirs("red") as client:
        assert client.url == "http://red:8090"


def test_a_client_that_nobody_has_closed_is_named_in_a_warning() -> None:
    client = Client("http://h")
    thread, inner = client._thread, client._remote
    asynchronous = AsyncClient("http://h")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del client
        gc.collect()
        del asynchronous
        gc.collect()
    thread.close(inner.close())
    assert [str(one.message) for one in caught] == [
        "unclosed Client: use it in a with block, or call close()",
        "unclosed AsyncClient: use it in an async with block, or await close()",
    ]


def test_a_closed_asynchronous_client_says_so(server: tuple[JobServer, str]) -> None:
    async def scenario() -> None:
        async with AsyncClient(server[1]) as client:
            handle = await client.submit(a_request("w.Sleep"))
        for call in (client.jobs, lambda: client.subscribe(print), handle.result):
            with pytest.raises(ClientClosed):
                await call()  # type: ignore[operator]
        with pytest.raises(ClientClosed):
            await client.__aenter__()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": None}, "the server's address must be a URL such as http://host:8090, not NoneType"),
        ({"token": "t", "user": "ann", "password": "p"}, "pass either a token, or a user and a password"),
        ({"token": "t", "password": "p"}, "pass either a token, or a user and a password"),
        ({"password": "p"}, "a password needs a user"),
        ({"retries": -1}, "retries must be 0 or more, got -1"),
        ({"timeout": 0}, "timeout must be more than 0, got 0"),
        ({"timeout": -1.5}, "timeout must be more than 0, got -1.5"),
        ({"connect_timeout": 0}, "connect_timeout must be more than 0, got 0"),
        ({"reconnect_timeout": -1}, "reconnect_timeout must be 0 or more, got -1"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    kind: type[Client | AsyncClient], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        kind(**{"url": "http://127.0.0.1:1", **arguments})


def test_a_client_subscribes_only_what_can_be_called(server: tuple[JobServer, str]) -> None:
    with Client(server[1]) as client, pytest.raises(InvalidRequest, match="must be a function, not NoneType"):
        client.subscribe(None)  # type: ignore[arg-type]


def _error_of(call: Any) -> BaseException | None:
    try:
        call()
    except Exception as error:
        return error
    return None


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """A server that requires a login: ann may do everything, the token only read jobs."""
    passwords, tokens = tmp_path / "passwords", tmp_path / "tokens"
    passwords.write_text(f"ann:{hash_password('correct horse')}:*\n")
    tokens.write_text(f"robot:{hash_token('battery-staple')}:jobs:read\n")
    auth = {"backend": "file", "password-file": str(passwords), "token-file": str(tokens)}
    with running(a_server(settings=_settings(auth=auth))) as url:
        yield url


def test_users_log_in_with_a_password_or_a_token(guarded: str) -> None:
    with Client(guarded, user="ann", password="correct horse") as client:
        client.upload("words", BinaryType.EGG, archive())
        assert client.submit(a_request("w.Echo", "value = 1")).result(WAIT) == 1
    with Client(guarded, token="battery-staple") as client:
        assert client.jobs().jobs[0].state is JobState.FINISHED
        with pytest.raises(AccessDenied) as refused:
            client.prune()
        assert refused.value.reason == "permission_denied"
        assert "battery-staple" not in repr(client.__dict__)
    for credentials in ({}, {"user": "ann", "password": "wrong"}, {"token": "wrong"}):
        with Client(guarded, **credentials) as client, pytest.raises(AccessDenied) as denied:
            client.jobs()
        assert denied.value.reason == "unauthenticated"


def test_the_certificate_authority_may_be_a_file_or_a_context(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key, trusted = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(trusted))
    http = {"port": 0, "tls-certificate": str(chain), "tls-key": str(key)}
    with running(a_server(settings=Settings.from_mapping({"jobserver": {"http": http}}))) as url:
        with Client(url, ca_file=trusted) as client:
            assert client.is_ready()
        with Client(url, ssl_context=ssl.create_default_context(cafile=trusted)) as client:
            assert client.binaries() == []
        with Client(url) as client, pytest.raises(ServerUnreachable, match="certificate"):
            client.binaries()
    with pytest.raises(InvalidRequest, match="certificate authorities"):
        Client(url, ca_file=tmp_path / "missing.pem")


def test_further_packages_of_a_job_arrive_in_order() -> None:
    settings = Settings.from_mapping({"jobserver.http.port": 0})
    with a_server(settings=settings) as server, running(server) as url, Client(url) as client:
        for name in ("words", "rates", "taxes"):
            client.upload(name, BinaryType.EGG, archive())
        job = client.submit(JobRequest(class_name="w.Sources", class_path="words", packages="taxes,rates"))
        assert job.result(WAIT) == ["words", "taxes", "rates"]
        assert [entry.source for entry in client.job(job.id).class_path] == ["words", "taxes", "rates"]


def test_what_the_api_cannot_express_is_refused_before_anything_is_sent() -> None:
    with Client(f"http://127.0.0.1:{refused_port()}") as client:
        for request in (
            a_request("w.Echo", submitted_by="ann"),
            JobRequest(class_name="w.Echo", class_path=("http://x/a,b.jar",)),
            JobRequest(class_name="w.Echo", class_path="words", packages=("http://x/a,b.whl",)),
        ):
            with pytest.raises(InvalidRequest):
                client.submit(request)
        with pytest.raises(InvalidRequest):
            client.jobs(JobQuery(context_id="c"))
