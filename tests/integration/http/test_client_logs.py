"""Following a log while the server restarts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from cutting_proxy import cutting
from jobserver_client import AsyncClient, Client, ServerUnreachable
from jobserver_core import BinaryType, JobNotFound, JobServer, Settings
from jobserver_core.memory import InlineJob
from jobserver_http import running
from loopback import Loopback, refused_port
from scripted_log import ScriptedLog
from serving import WAIT, a_request, a_server, archive

LOG = "".join(f"zeile {number} größer\n" for number in range(500)).encode()


def write(job: InlineJob) -> None:
    for line in LOG.decode().splitlines():
        job.print(line)


@pytest.fixture
def server() -> Iterator[tuple[JobServer, str]]:
    """A server with the binary ``words``, and its address."""
    server = a_server(settings=Settings.from_mapping({"jobserver": {"http": {"port": 0}}}))
    server._services.launcher.register("w.Write", write)  # type: ignore[attr-defined]
    with running(server) as url:
        server.upload("words", BinaryType.EGG, archive())
        yield server, url


def followed(log: ScriptedLog) -> bytes:
    with Loopback(log) as web, Client(web.url("")) as client, client.followed_job_log("j1") as response:
        return b"".join(response.iter_bytes())


@pytest.mark.parametrize("cut", [True, False], ids=["broken off", "ended"])
@pytest.mark.parametrize("ends", [[0], [1000], [len(LOG)], [13, 13, 0, 5000]])
def test_following_continues_at_the_byte_where_it_was(ends: list[int], cut: bool) -> None:
    assert followed(ScriptedLog(LOG, ends, cut)) == LOG


def test_a_log_that_has_started_over_meanwhile_is_read_from_its_new_start() -> None:
    def start_over(script: ScriptedLog, _number: int) -> None:
        script.log = b"again\n" + LOG

    assert followed(ScriptedLog(LOG, [1000], after=start_over)) == LOG[:1000] + b"again\n" + LOG


def test_what_was_written_between_the_end_of_the_response_and_that_of_the_job_is_read() -> None:
    def write_more(script: ScriptedLog, number: int) -> None:
        if number == 1:
            script.log += b"the end\n"

    assert followed(ScriptedLog(LOG, [], after=write_more)) == LOG + b"the end\n"


def test_a_log_that_was_cut_while_it_was_read_is_not_repeated() -> None:
    def cut_log(script: ScriptedLog, _number: int) -> None:
        script.log = b"the rest\n"

    assert followed(ScriptedLog(LOG, [], after=cut_log)) == LOG


def test_lines_are_whole_although_the_connection_breaks_within_a_character(
    server: tuple[JobServer, str],
) -> None:
    script = ScriptedLog(LOG, [LOG.index("ö".encode()) + 1])

    async def read(url: str) -> list[str]:
        async with AsyncClient(url) as client:
            return [line async for line in client.logs("j1", follow=True)]

    with Loopback(script) as web:
        assert asyncio.run(read(web.url(""))) == LOG.decode().splitlines()


@pytest.mark.parametrize("seen", [0, 300, 2000])
def test_logs_of_jobs_and_contexts_are_followed_over_connections_that_break(
    server: tuple[JobServer, str], seen: int
) -> None:
    server[0].create_context("warm").result(WAIT)
    with cutting(server[1]) as proxy, Client(proxy.url) as client:
        handle = client.submit(a_request("w.Write", context="warm"))
        handle.result(WAIT)
        proxy.cut_all()
        proxy.cut_after = [seen] if seen else []
        assert list(client.logs(handle.id, follow=True)) == LOG.decode().splitlines()
        server[0].stop_context("warm").result(WAIT)
        whole = list(client.context_logs("warm"))
        assert list(client.context_logs("warm", follow=True)) == whole


def test_a_server_is_away_since_the_connection_was_lost_and_not_since_the_last_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, now, hours = threading.Event(), time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + hours[0])

    def be_quiet_for_an_hour(_script: ScriptedLog, number: int) -> None:
        assert seen.wait(WAIT)
        hours[0] = 3600.0 * number

    script = ScriptedLog(LOG, [1000, 2000], after=be_quiet_for_an_hour)
    with Loopback(script) as web, Client(web.url("")) as client, client.followed_job_log("j1") as response:
        chunks = response.iter_bytes()
        first = next(chunks)
        seen.set()
        assert first + b"".join(chunks) == LOG


def test_a_server_that_does_not_come_back_ends_the_log_with_an_error() -> None:
    def go_away(script: ScriptedLog, _number: int) -> None:
        script.away = True

    with Loopback(ScriptedLog(LOG, [1000], after=go_away)) as web:
        client = Client(web.url(""), retries=0, reconnect_timeout=0.2)
        with client, client.followed_job_log("j1") as log, pytest.raises(ServerUnreachable):
            list(log.iter_bytes())


def test_an_unknown_job_and_an_absent_server_fail_at_once(server: tuple[JobServer, str]) -> None:
    with Client(server[1]) as client, pytest.raises(JobNotFound):
        next(client.logs("none", follow=True))
    with Client(f"http://127.0.0.1:{refused_port()}", retries=0) as client, pytest.raises(ServerUnreachable):
        next(client.logs("none", follow=True))
