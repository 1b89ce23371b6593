"""The shipped configuration of nginx, with a real nginx: streams, uploads, addresses, browsers."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
import httpx
import httpx_sse
import pytest
import trustme

from conditions import wait_until
from jobserver_core import BinaryType, JobServer, Settings
from jobserver_core.memory import InlineJob, InlineLauncher
from jobserver_http import running
from serving import WAIT, archive

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "deploy" / "nginx" / "jobserver.conf"
GUIDE = ROOT / "docs" / "howto" / "use-the-web-ui.md"
NAME = "jobs.example.com"
JOBS = "/jobs?appName=words&classPath=words.Held"


@attrs.frozen
class Proxy:
    """A running nginx in front of a server: its port, and a client that trusts its certificate.

    ``below_path`` is the URL of the server below a path, without TLS.
    """

    port: int
    below_path: str
    client: httpx.Client
    server: JobServer
    gate: threading.Event
    directory: Path


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def below_path(port: int, upstream: str) -> str:
    """Return a site with the configuration of the guide to the web UI, which is below a path."""
    [block] = re.findall(r"```nginx\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert "127.0.0.1:8090/" in block
    return f"server {{ listen 127.0.0.1:{port};\n{block.replace('127.0.0.1:8090', upstream)}}}\n"


def configured(directory: Path, port: int, second: int, upstream: str) -> Path:
    """Write a configuration with the shipped file and that of the guide, on ports of this test."""
    authority = trustme.CA()
    certificate = authority.issue_cert(NAME)
    certificate.private_key_pem.write_to_path(directory / "jobs.key")
    (directory / "jobs.crt").unlink(missing_ok=True)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(directory / "jobs.crt", append=True)
    authority.cert_pem.write_to_path(directory / "ca.pem")
    shipped = CONFIG.read_text(encoding="utf-8")
    for old, new in (
        ("127.0.0.1:8090;", f"{upstream};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/nginx/tls/", f"{directory}/"),
    ):
        assert old in shipped
        shipped = shipped.replace(old, new)
    paths = "".join(
        f"{kind}_temp_path {directory}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = directory / "nginx.conf"
    file.write_text(
        f"daemon off;\nworker_processes 1;\npid {directory}/pid;\nerror_log {directory}/error.log warn;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{paths}{shipped}"
        f"{below_path(second, upstream)}}}\n",
        encoding="utf-8",
    )
    return file


def nginx_version(program: str) -> tuple[int, ...]:
    done = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=WAIT, check=True)
    [version] = re.findall(r"nginx/([\d.]+)", done.stderr)
    return tuple(map(int, version.split(".")))


def started(program: str, directory: Path, upstream: str) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start nginx on two free ports. It has ended if something else has taken one of them."""
    port, second = free_port(), free_port()
    file = configured(directory, port, second, upstream)
    process = subprocess.Popen([program, "-e", directory / "error.log", "-p", directory, "-c", file])
    try:
        wait_until(lambda: process.poll() is not None or (directory / "pid").exists(), "nginx listens")
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process, port, second


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None or nginx_version(program) < (1, 19, 5):
        pytest.skip("needs nginx 1.19.5 or newer")
    gate = threading.Event()

    def held(job: InlineJob) -> str:
        while not gate.wait(0.05):
            job.check()
        return "done"

    settings = Settings.from_mapping(
        {
            "jobserver.http": {
                "port": 0,
                "drain-timeout": "0 s",
                "allow-unauthenticated": True,
                "trusted-proxies": ["127.0.0.1"],
            }
        }
    )
    directory = tmp_path_factory.mktemp("nginx")
    server = JobServer.in_memory(settings=settings, launcher=InlineLauncher({"words.Held": held}))
    with running(server) as url:
        server.upload("words", BinaryType.EGG, archive())
        for _ in range(5):
            process, port, second = started(program, directory, url.removeprefix("http://"))
            if process.poll() is None:
                break
        try:
            assert process.poll() is None, (directory / "error.log").read_text()
            context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
            context.check_hostname = (
                False  # the certificate is for the name, the test connects to the address
            )
            with httpx.Client(
                base_url=f"https://127.0.0.1:{port}",
                verify=context,
                timeout=WAIT,
                headers={"Host": f"{NAME}:{port}"},
            ) as client:
                yield Proxy(port, f"http://127.0.0.1:{second}/spark", client, server, gate, directory)
        finally:
            gate.set()
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT)


def test_events_arrive_while_the_job_runs(proxy: Proxy) -> None:
    proxy.gate.clear()
    job_id = proxy.client.post(JOBS).json()["jobId"]
    with httpx_sse.connect_sse(proxy.client, "GET", f"/jobs/{job_id}/events") as source:
        states = []
        for event in source.iter_sse():
            if event.event == "job":
                states.append(event.json()["status"])
                if states[-1] == "RUNNING":
                    proxy.gate.set()  # the event came through before the job could end
    assert states[-1] == "FINISHED"


def test_an_upload_larger_than_nginx_allows_by_default_passes_without_a_copy_on_disk(proxy: Proxy) -> None:
    size = 8 * 1024 * 1024
    sent: list[int] = []

    def body() -> Iterator[bytes]:
        for _ in range(size // 65536):
            sent.append(65536)
            yield b"x" * 65536

    response = proxy.client.post("/data/numbers", content=body())
    assert response.status_code == 200, response.text
    assert sum(sent) == size
    [stored] = proxy.server.data_files()
    assert stored.size == size
    assert not any((proxy.directory / "client_body").rglob("*.*"))


def test_a_browser_at_the_public_name_may_change_things_and_other_sites_may_not(proxy: Proxy) -> None:
    own = proxy.client.post("/contexts/mine", headers={"Origin": f"https://{NAME}:{proxy.port}"})
    assert own.status_code == 200, own.text
    foreign = proxy.client.post("/contexts/theirs", headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403


def test_the_server_logs_the_address_that_nginx_reports(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        proxy.client.get("/contexts?x=1", headers={"X-Forwarded-For": "203.0.113.7"})
        wait_until(lambda: any("/contexts" in line for line in caplog.messages), "the request is logged")
    assert not re.search(r"203\.0\.113\.7", caplog.text), "a client chose its own address"


def test_the_server_works_below_a_path(proxy: Proxy) -> None:
    with httpx.Client(timeout=WAIT) as client:
        moved = client.get(proxy.below_path)
        assert (moved.status_code, moved.headers["location"].endswith("/spark/")) == (301, True)
        page = client.get(f"{proxy.below_path}/")
        assert (page.status_code, "text/html" in page.headers["content-type"]) == (200, True)
        script = re.findall(r'<script[^>]* src="([^":]+)"', page.text)[0]
        assert client.get(f"{proxy.below_path}/{script}").status_code == 200
        origin = {"Origin": proxy.below_path.removesuffix("/spark")}
        made = client.post(f"{proxy.below_path}/contexts/below", headers=origin)
        assert made.status_code == 200, made.text
