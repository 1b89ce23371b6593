"""Running the server: binding safely, draining on a signal, stopping faster on a second one, TLS."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from conditions import wait_until
from jobserver_core import Settings
from jobserver_core.errors import InvalidSetting, StorageError
from jobserver_core.memory import MemoryMetadataStore
from jobserver_http import running, serve
from serving import WAIT, a_server, archive

TESTS = Path(__file__).resolve().parents[2]
PROGRAM = textwrap.dedent(
    """
    import logging, sys, threading
    from serving import FUNCTIONS, a_server
    from jobserver_core import Settings
    from jobserver_http import serve

    def stubborn(job):
        threading.Event().wait(float(job.config["seconds"]))

    FUNCTIONS["w.Stubborn"] = stubborn
    logging.basicConfig(level=logging.INFO)
    http = {"port": 0, "drain-timeout": sys.argv[1]}
    contexts = {"deletion-timeout": "20 s"}
    server = a_server(settings=Settings.from_mapping({"jobserver": {"http": http, "contexts": contexts}}))
    serve(
        server,
        on_listening=lambda host, port: print(f"http://{host}:{port}", flush=True),
        on_draining=lambda: print("draining", flush=True),
    )
    print("closed", flush=True)
    """
)


class Served:
    """A server in its own process."""

    def __init__(self, drain: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, drain],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        self.client = httpx.Client(base_url=self.line(), timeout=WAIT)
        self.client.post(
            "/binaries/words", content=archive(), headers={"Content-Type": "application/python-wheel"}
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def submit(self, class_name: str, body: str = "") -> str:
        response = self.client.post(
            "/jobs", params={"appName": "words", "classPath": class_name}, content=body
        )
        job_id: str = response.json()["jobId"]
        while self.client.get(f"/jobs/{job_id}").json()["status"] != "RUNNING":
            time.sleep(0.01)
        return job_id

    def listens(self) -> bool:
        try:
            return self.client.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def served() -> Iterator[Any]:
    made: list[Served] = []

    def begin(drain: str) -> Served:
        made.append(Served(drain))
        return made[-1]

    yield begin
    for one in made:
        one.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_with_zero_on_a_signal(served: Any, number: int) -> None:
    one = served("30 s")
    one.process.send_signal(number)
    assert one.process.wait(WAIT) == 0
    assert [one.line(), one.line()] == ["draining", "closed"]


def test_a_draining_server_refuses_new_work_and_lets_jobs_finish(served: Any) -> None:
    one = served("30 s")
    job_id = one.submit("w.Stubborn", "seconds = 5")
    one.process.send_signal(signal.SIGTERM)
    assert one.line() == "draining"
    refused = one.client.post("/jobs?appName=words&classPath=w.Echo")
    assert refused.status_code == 503
    assert "accepts no new work" in refused.json()["result"]
    for method, path in (
        ("POST", "/contexts/new"),
        ("PUT", "/contexts?reset=reboot"),
        ("POST", "/binaries/new"),
        ("POST", "/jars/new"),
        ("POST", "/data/new"),
        ("PUT", "/data?reset=reboot"),
    ):
        headers = {"Content-Type": "application/python-wheel"}
        body = b"" if "contexts" in path else archive()
        refused = one.client.request(method, path, content=body, headers=headers)
        assert refused.status_code == 503, path
        assert refused.json()["code"] == "server_closed"
    assert one.client.get("/readyz").status_code == 503
    assert one.client.get("/healthz").status_code == 200
    assert one.client.get(f"/jobs/{job_id}").json()["status"] == "RUNNING"
    assert one.process.wait(25) == 0, "it ends with the job, not with the drain-timeout"
    assert one.line() == "closed"


def test_draining_waits_for_a_job_no_longer_than_the_drain_timeout(served: Any) -> None:
    one = served("500 ms")
    one.submit("w.Sleep")
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(WAIT) == 0


def test_a_wait_that_times_out_explains_what_happens_to_the_job(served: Any) -> None:
    one = served("500 ms")
    told: list[httpx.Response] = []

    def wait() -> None:
        query = {"appName": "words", "classPath": "w.Sleep", "sync": "true", "timeout": 60}
        told.append(one.client.post("/jobs", params=query))

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: [job["status"] for job in one.client.get("/jobs").json()] == ["RUNNING"])
    one.process.send_signal(signal.SIGTERM)
    waiting.join(WAIT)
    assert [response.status_code for response in told] == [503]
    body = told[0].json()
    assert (body["status"], body["code"]) == ("ERROR", "job_interrupted")
    assert f"shutting down while job {body['jobId']} is running" in body["result"]
    assert "ends as ERROR with its context" in body["result"]
    assert told[0].headers["Retry-After"]
    assert one.process.wait(WAIT) == 0


def test_an_upload_that_a_shutdown_interrupts_is_refused_with_503(served: Any) -> None:
    one = served("0 s")
    url = one.client.base_url
    with socket.create_connection((url.host, url.port), timeout=WAIT) as client:
        client.sendall(
            b"POST /binaries/slow HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/java-archive\r\nContent-Length: 1000\r\n\r\nPK\x03\x04"
        )
        assert one.listens()  # the upload, which came first, is being read
        one.process.send_signal(signal.SIGTERM)
        response = client.recv(65536)
    assert response.startswith(b"HTTP/1.1 503 "), response
    assert one.process.wait(WAIT) == 0


def test_a_second_signal_hurries(served: Any) -> None:
    one = served("60 s")
    one.submit("w.Sleep")
    one.process.send_signal(signal.SIGTERM)
    assert one.line() == "draining"
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(WAIT) == 0


def test_a_second_signal_while_contexts_stop_kills_them(served: Any) -> None:
    one = served("0 s")
    one.submit("w.Stubborn", "seconds = 60")
    one.process.send_signal(signal.SIGTERM)
    assert one.line() == "draining"
    wait_until(lambda: not one.listens())  # from then on it stops its contexts
    time.sleep(0.5)
    begun = time.monotonic()
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(19) == 0
    assert time.monotonic() - begun < 15


def test_streams_end_when_the_server_does(served: Any) -> None:
    one = served("30 s")
    with one.client.stream("GET", "/events") as response:
        lines = response.iter_lines()
        assert next(lines) == ": listening"
        one.process.send_signal(signal.SIGTERM)
        assert "event: job" not in list(lines)
    assert one.process.wait(WAIT) == 0


def in_http(**http: Any) -> Settings:
    return Settings.from_mapping({"jobserver": {"http": http}})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_server_without_authentication_refuses_to_bind_to_public_addresses(host: str) -> None:
    server = a_server(settings=in_http(host=host, port=0))
    with pytest.raises(InvalidSetting, match=r"jobserver\.http\.host.*allow-unauthenticated"):
        serve(server)
    server.close()


def test_an_open_server_is_bound_anywhere_when_a_flag_says_so() -> None:
    server = a_server(settings=in_http(**{"host": "0.0.0.0", "port": 0, "allow-unauthenticated": True}))
    with running(server) as url:
        port = httpx.URL(url).port
        response = httpx.get(f"http://127.0.0.1:{port}/healthz", headers={"Host": "any.example"})
    assert response.status_code == 200


def test_a_port_in_use_is_reported_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = a_server(settings=in_http(port=port))
        with pytest.raises(InvalidSetting, match=f"cannot listen on 127.0.0.1 port {port}: Address already"):
            serve(server)
        server.close()


def test_a_server_that_cannot_start_says_why_and_leaves_no_thread() -> None:
    class Broken(MemoryMetadataStore):
        def jobs(self, query: Any) -> Any:
            raise StorageError(message="no such table")

        def contexts(self, query: Any) -> Any:
            raise StorageError(message="no such table")

    before = threading.active_count()
    with pytest.raises(StorageError, match="no such table"), running(a_server(metadata=Broken())):
        raise AssertionError("it must not run")
    wait_until(lambda: threading.active_count() <= before, threading.enumerate)


def test_a_request_that_a_hanging_store_keeps_from_ending_is_answered_when_the_server_stops() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Hanging(MemoryMetadataStore):
        def job(self, job_id: str) -> Any:
            if job_id == "hangs":
                entered.set()
                go_on.wait(WAIT)
            return super().job(job_id)

    responses: list[httpx.Response] = []

    def ask(url: str) -> None:
        responses.append(httpx.delete(f"{url}/jobs/hangs", timeout=WAIT))
        go_on.set()

    settings = in_http(port=0, **{"drain-timeout": "0 s"})
    with running(a_server(metadata=Hanging(), settings=settings)) as url:
        asking = threading.Thread(target=ask, args=(url,))
        asking.start()
        assert entered.wait(WAIT)
    asking.join()
    assert responses[0].status_code == 503
    assert responses[0].json()["code"] == "server_closed"
    assert "it may have been carried out" in responses[0].json()["result"]
    assert responses[0].headers["Retry-After"]


def test_ipv6_loopback_is_served() -> None:
    with running(a_server(settings=in_http(host="::1", port=0))) as url:
        assert url.startswith("http://[::1]:")
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_https_is_served_with_certificate_and_key(tmp_path: Path) -> None:
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for part in certificate.cert_chain_pems:
        part.write_to_path(str(tmp_path / "cert.pem"), append=True)
    settings = in_http(
        **{"port": 0, "tls-certificate": str(tmp_path / "cert.pem"), "tls-key": str(tmp_path / "key.pem")}
    )
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    with running(a_server(settings=settings)) as url:
        assert url.startswith("https://")
        assert httpx.get(f"{url}/healthz", verify=trusted).status_code == 200


def test_an_unreadable_certificate_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nonsense")
    settings = in_http(
        **{"port": 0, "tls-certificate": str(tmp_path / "cert.pem"), "tls-key": str(tmp_path / "cert.pem")}
    )
    with pytest.raises(InvalidSetting, match="tls-certificate"), running(a_server(settings=settings)):
        raise AssertionError("it must not run")


def test_a_key_that_needs_a_pass_phrase_is_reported_without_a_prompt(tmp_path: Path) -> None:
    import trustme
    from cryptography.hazmat.primitives import serialization

    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "key.pem").write_bytes(encrypted)
    settings = in_http(
        **{"port": 0, "tls-certificate": str(tmp_path / "cert.pem"), "tls-key": str(tmp_path / "key.pem")}
    )
    expected = r"tls-key': .*key\.pem is encrypted; write it without a pass phrase: openssl pkey -in "
    with pytest.raises(InvalidSetting, match=expected), running(a_server(settings=settings)):
        raise AssertionError("it must not run")
