"""Connecting to a server, and logging in."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from command_line import CommandLine
from jobserver_cli import saved_servers
from jobserver_cli.exits import ExitCode
from jobserver_core import Settings
from jobserver_http import running
from jobserver_http.credential_files import hash_password, hash_token
from loopback import Loopback
from serving import a_server

PASSWORD = "correct horse"
TOKEN = "battery-staple"


@pytest.fixture
def guarded(
    jobserver: CommandLine, start_guarded: Callable[[str, str], AbstractContextManager[str]]
) -> Iterator[CommandLine]:
    """The command, with a server that wants a log-in: ann may do everything, bob only read jobs."""
    passwords = f"ann:{hash_password(PASSWORD)}:*\nbob:{hash_password(PASSWORD)}:jobs:read\n"
    with start_guarded(passwords, f"robot:{hash_token(TOKEN)}:jobs\n") as url:
        jobserver.environment.setenv("JOBSERVER_URL", url)
        yield jobserver


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a certificate and its key."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    return chain, key


@pytest.fixture
def stranger() -> Iterator[str]:
    """The address of a web server that is not a job server."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def do_POST(self) -> None:
            self.send_error(404)

        def log_message(self, *_arguments: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_unreachable_server_exits_with_3_and_advice(jobserver: CommandLine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        done = jobserver("jobs", "--server", url)
    assert (done.code, done.out) == (3, "")
    assert f"no job server answers at {url}" in done.err
    assert "jobserver serve" in done.err


@pytest.mark.parametrize("given", ["localhost", "http://localhost", "http://127.0.0.1/jobs"])
def test_an_address_without_a_port_says_which_one_servers_listen_on(
    jobserver: CommandLine, given: str
) -> None:
    done = jobserver("jobs", "--server", given)
    assert done.code == 3
    host = "127.0.0.1:8090/jobs" if "127" in given else "localhost:8090"
    assert f"no port, which means 80; servers listen on 8090 by default: --server http://{host}\n" in done.err
    assert "jobserver serve" not in done.err


def test_a_name_that_is_not_saved_may_be_that_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    hint = saved_servers.not_saved("prod") or ""
    assert hint.startswith("No server is saved as prod. Save one with: ")
    assert hint.endswith("If it is the name of a machine, add the port: --server prod:8090")


@pytest.mark.parametrize(
    "arguments", [("jobs",), ("submit", "a.B", "--cp", "a"), ("logs", "x"), ("binaries",)]
)
def test_a_connection_that_is_cut_off_has_code_3(jobserver: CommandLine, arguments: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if not connection.recv(65536):
                        return

        thread = threading.Thread(target=hang_up)
        thread.start()
        done = jobserver(*arguments, "--server", f"127.0.0.1:{listener.getsockname()[1]}")
        socket.create_connection(listener.getsockname()).close()  # ends the thread
        thread.join()
    assert done.code == 3
    assert "the connection to" in done.err


def test_a_server_that_is_not_a_job_server_is_recognized(jobserver: CommandLine, stranger: str) -> None:
    done = jobserver("jobs", "--server", stranger)
    assert done.code == 3
    assert f"{stranger} does not look like a job server" in done.err
    done = jobserver("submit", "a.B", "--cp", "a", "--server", stranger)
    assert (done.code, "does not look like a job server (it answered 404 Not Found)" in done.err) == (3, True)
    assert "Check --server and JOBSERVER_URL" in done.err


@pytest.mark.parametrize("found", [b'["warm"]', b'{"warm": 1}', b"null"])
@pytest.mark.parametrize("command", [("contexts", "--ended"), ("contexts", "--spares"), ("jobs",)])
def test_a_list_in_the_form_of_another_version_is_no_bug_of_the_command(
    jobserver: CommandLine, command: tuple[str, ...], found: bytes
) -> None:
    """Older servers answer ``?ended=true`` with the names of live contexts."""
    with Loopback(lambda handler: handler.say(200, found)) as web:
        done = jobserver(*command, "--server", web.url(""))
    assert (done.code, "Traceback" in done.err) == (4, False)
    assert f"does not list /{command[0]} as this version of jobserver expects" in done.err
    assert "An older server may lack this list" in done.err


@pytest.mark.parametrize(
    ("proxy", "problem"),
    [
        (
            "foo://proxy",
            "the proxy of the environment (HTTPS_PROXY, HTTP_PROXY or ALL_PROXY) has no valid address",
        ),
        ("ftp://me:pa55@proxy", "has no valid address; expected a URL such as http://proxy.example.com:3128"),
        ("http://me:pa55@proxy:port", "has no valid address"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_an_error_of_the_environment(
    jobserver: CommandLine, proxy: str, problem: str
) -> None:
    jobserver.environment.setenv("HTTP_PROXY", proxy)
    jobserver.environment.delenv("http_proxy", raising=False)
    done = jobserver("jobs", "--server", "http://jobs.invalid")
    assert (done.code, done.out) == (2, "")
    assert problem in done.err
    assert "NO_PROXY" in done.err
    assert "pa55" not in done.err


def test_a_proxy_is_not_used_for_a_server_on_this_machine(client: CommandLine) -> None:
    client.environment.setenv("HTTP_PROXY", "foo")
    client.environment.setenv("ALL_PROXY", "foo")
    assert client("binaries").code == 0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host",
        "http://",
        "http://host:0",
        "http://host:99999",
        "http://h?a=b",
        "http://ann:pw1@host",
    ],
)
def test_a_malformed_address_is_a_usage_error(jobserver: CommandLine, url: str) -> None:
    done = jobserver("jobs", "--server", url)
    assert done.code == 2
    assert "expected a URL such as http://host:8090" in done.err
    assert "pw1" not in done.err


def test_https_to_a_server_without_tls_says_to_try_http(client: CommandLine) -> None:
    url = os.environ["JOBSERVER_URL"]
    done = client("jobs", "--server", url.replace("http:", "https:"))
    message = " ".join(done.err.split())
    assert done.code == ExitCode.UNREACHABLE
    assert f"the server does not use TLS; try {url}" in message
    assert "SSL" not in message
    assert "jobserver serve" not in message


def test_a_certificate_that_is_not_trusted_leads_to_its_authority(
    jobserver: CommandLine, certificate: tuple[Path, Path]
) -> None:
    chain, key = certificate
    http = {"port": 0, "tls-certificate": str(chain), "tls-key": str(key)}
    with running(a_server(settings=Settings.from_mapping({"jobserver": {"http": http}}))) as url:
        for command in (("jobs",), ("logs", "0" * 36), ("submit", "a.B", "--cp", "a")):
            done = jobserver(*command, "--server", url)
            assert done.code == ExitCode.UNREACHABLE
            assert f"the certificate of {url} is not trusted: unable to get local issuer" in done.err
            assert "Give its authority (PEM) with --ca-file or JOBSERVER_CA_FILE." in done.err
            assert "jobserver serve" not in done.err
        jobserver.environment.setenv("JOBSERVER_CA_FILE", str(chain.with_name("ca.pem")))
        assert jobserver("jobs", "--server", url).code == 0
        done = jobserver("jobs", "--server", url.replace("127.0.0.1", "localhost"))
        assert (done.code, "is not trusted: Hostname mismatch" in done.err) == (3, True), done.err
        assert "--ca-file" not in done.err


def test_http_to_a_server_with_tls_says_to_try_https(
    jobserver: CommandLine, certificate: tuple[Path, Path]
) -> None:
    chain, key = certificate
    http = {"port": 0, "tls-certificate": str(chain), "tls-key": str(key)}
    with running(a_server(settings=Settings.from_mapping({"jobserver": {"http": http}}))) as url:
        done = jobserver("jobs", "--server", url.replace("https:", "http:"))
    assert done.code == ExitCode.UNREACHABLE
    assert f"The server uses TLS. Try: --server {url}" in " ".join(done.err.split())


def test_http_to_a_proxy_with_tls_that_refuses_it_says_to_try_https(
    jobserver: CommandLine, certificate: tuple[Path, Path]
) -> None:
    chain, key = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)

    def answer(listener: socket.socket) -> None:
        """Answer one plain request, and shake hands once."""
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection, _ = listener.accept()
        with suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        done = jobserver("jobs", "--server", address)
        thread.join(10)
    assert done.code == ExitCode.REFUSED
    assert f"The server uses TLS. Try: --server https://{address}" in " ".join(done.err.split())


def test_an_address_needs_no_scheme(client: CommandLine) -> None:
    url = os.environ["JOBSERVER_URL"]
    assert client("jobs", "--server", url.removeprefix("http://")).code == 0


def test_a_protected_server_requires_credentials(guarded: CommandLine) -> None:
    done = guarded("jobs")
    assert done.code == 6
    assert "JOBSERVER_PASSWORD" in done.err


def test_the_password_comes_from_the_environment(guarded: CommandLine) -> None:
    guarded.environment.setenv("JOBSERVER_PASSWORD", PASSWORD)
    assert guarded("jobs", "--user", "ann").code == 0
    guarded.environment.setenv("JOBSERVER_USER", "ann")
    assert guarded("jobs").code == 0


def test_without_a_terminal_a_missing_password_is_not_waited_for(guarded: CommandLine) -> None:
    done = guarded("jobs", "--user", "ann")
    assert (done.code, "JOBSERVER_PASSWORD" in done.err) == (2, True)


def test_a_wrong_password_has_code_6_and_is_not_repeated(guarded: CommandLine) -> None:
    guarded.environment.setenv("JOBSERVER_PASSWORD", "incorrect horse")
    done = guarded("jobs", "--user", "ann")
    assert done.code == 6
    assert "incorrect horse" not in done.out + done.err
    assert "Wrong user or password. Check the user ann" in " ".join(done.err.split())
    assert "Log in with" not in done.err


@pytest.mark.parametrize("command", [("submit", "w.C", "--cp", "w"), ("logs", "@last")])
def test_a_wrong_token_is_said_to_be_wrong(guarded: CommandLine, command: tuple[str, ...]) -> None:
    done = guarded(*command, "--token", "no-such-token")
    assert done.code == 6
    assert "The token is wrong or has been revoked" in " ".join(done.err.split())
    assert "Log in with" not in done.err


def test_a_missing_permission_has_code_6_and_is_named(guarded: CommandLine) -> None:
    guarded.environment.setenv("JOBSERVER_PASSWORD", PASSWORD)
    done = guarded("context", "create", "etl", "--user", "bob")
    assert (done.code, "contexts:start" in done.err) == (6, True)


def test_a_token_lets_in_from_the_option_or_the_environment(guarded: CommandLine) -> None:
    assert guarded("jobs", "--token", TOKEN).code == 0
    guarded.environment.setenv("JOBSERVER_TOKEN", TOKEN)
    assert guarded("jobs").code == 0


def test_help_does_not_show_the_secrets_of_the_environment(guarded: CommandLine) -> None:
    guarded.environment.setenv("JOBSERVER_TOKEN", TOKEN)
    guarded.environment.setenv("JOBSERVER_PASSWORD", PASSWORD)
    shown = guarded("jobs", "--help")
    assert shown.code == 0
    assert TOKEN not in shown.out
    assert PASSWORD not in shown.out


def test_a_ca_file_that_cannot_be_read_is_a_mistake_of_the_command_line(jobserver: CommandLine) -> None:
    done = jobserver("jobs", "--server", "https://127.0.0.1:9", "--ca-file", "nowhere.pem")
    assert (done.code, "nowhere.pem" in done.err) == (2, True)
    assert "Check --server, --user, --token and --ca-file, or JOBSERVER_URL" in done.err


def test_a_ca_file_in_another_format_leads_to_pem(jobserver: CommandLine, tmp_path: Path) -> None:
    store = tmp_path / "truststore.jks"
    store.write_bytes(b"\xfe\xed\xfe\xed")
    done = jobserver("jobs", "--server", "https://127.0.0.1:9", "--ca-file", store)
    assert done.code == 2
    assert f"from {store}: it contains no certificates in PEM format\n" in done.err


def test_credentials_that_cannot_be_sent_are_named_and_not_shown(client: CommandLine) -> None:
    client.environment.setenv("JOBSERVER_TOKEN", "secret\n")
    done = client("jobs")
    assert (done.code, "token must be printable ASCII" in done.err, "secret" in done.err) == (2, True, False)
    client.environment.setenv("JOBSERVER_TOKEN", "")
    client.environment.setenv("JOBSERVER_PASSWORD", "secret\udcf6")
    done = client("jobs", "--user", "ann")
    expected = "user and password must be valid Unicode"
    assert (done.code, expected in done.err, "secret" in done.err) == (2, True, False)


def test_proxies_of_the_environment_do_not_stand_before_a_server_of_this_machine(client: CommandLine) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        client.environment.setenv(name, "http://127.0.0.1:9")
    assert client("jobs").code == 0
