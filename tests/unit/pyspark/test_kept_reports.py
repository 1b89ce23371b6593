"""The reports that a host keeps for the next server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobserver_pyspark.host.reports import JobReports
from jobserver_pyspark.protocol.frames import Channel
from jobserver_pyspark.protocol.messages import (
    HostToServer,
    JobEnded,
    JobProgressed,
    JobRunning,
    LogWarning,
    Reattachment,
    ResultChunk,
    ServerToHost,
)
from jobserver_pyspark.protocol.reattachment import proof_of, proves


class Spec:
    """The part of a host's spec that concerns reports."""

    def __init__(self, work_dir: Path, limit: int) -> None:
        self.work_dir = work_dir
        self.result_limit = limit
        self.reattachment: Reattachment | None = Reattachment(server_file=work_dir / "s", timeout_ms=1)


class Link:
    """A connection between a host and a server."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(30.0)
        self.host: Channel[HostToServer, ServerToHost] = Channel(ours, ServerToHost)
        self.server: Channel[ServerToHost, HostToServer] = Channel(theirs, HostToServer)

    def received(self, count: int) -> list[HostToServer]:
        return [self.server.receive() for _ in range(count)]

    def close(self) -> None:
        self.host.close()
        self.server.close()


class World:
    """A host's reports, and the connections that it had."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._links: list[Link] = []
        self._reports: list[JobReports] = []

    def link(self) -> Link:
        self._links.append(Link())
        return self._links[-1]

    def reports(self, link: Link, *, limit: int = 0, keep: bool = True) -> JobReports:
        spec: Any = Spec(self._work_dir, limit)
        if not keep:
            spec.reattachment = None
        self._reports.append(JobReports(link.host, spec, lambda: True))
        return self._reports[-1]

    def close(self) -> None:
        for link in self._links:
            link.close()
        for reports in self._reports:
            reports.acknowledge("j")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def chunk(data: bytes) -> ResultChunk:
    return ResultChunk(job_id="j", stream=False, data=data)


RUNNING, ENDED = JobRunning(job_id="j"), JobEnded(job_id="j")


def test_reports_are_sent_at_once_and_again_until_the_job_is_acknowledged(world: World) -> None:
    first, second, third = (world.link() for _ in range(3))
    reports = world.reports(first)
    reports.begin("j")
    for message in (RUNNING, chunk(b"1"), chunk(b"2")):
        reports.send(message)
    assert first.received(3) == [RUNNING, chunk(b"1"), chunk(b"2")]
    first.close()
    reports.send(chunk(b"3"))
    reports.resume(second.host)
    assert second.received(2) == [RUNNING, chunk(b"123")]
    reports.send(chunk(b"4"))
    reports.end(ENDED)
    assert second.received(2) == [chunk(b"4"), ENDED]
    assert reports.kept == ("j",)
    reports.acknowledge("j")
    assert not reports.kept
    reports.resume(third.host)
    reports.send(LogWarning(text="next"))
    assert third.received(1) == [LogWarning(text="next")]


def test_the_last_progress_is_sent_again(world: World) -> None:
    first, second = world.link(), world.link()
    reports = world.reports(first)
    reports.begin("j")
    for done in (1, 2):
        progress = JobProgressed(job_id="j", stages_done=0, stages_total=1, tasks_done=done, tasks_total=2)
        reports.send(progress)
    reports.resume(second.host)
    assert second.received(1) == [progress]


def test_no_more_of_a_result_is_kept_than_the_server_accepts(world: World) -> None:
    first, second = world.link(), world.link()
    reports = world.reports(first, limit=10)
    first.close()
    reports.begin("j")
    for _ in range(5):
        reports.send(chunk(b"x" * 8))
    reports.end(ENDED)
    reports.resume(second.host)
    assert second.received(2) == [chunk(b"x" * 16), ENDED]


def test_a_result_that_cannot_be_kept_fails_only_for_the_next_server(world: World, tmp_path: Path) -> None:
    first, second = world.link(), world.link()
    (tmp_path / "results").write_text("in the way")
    reports = world.reports(first)
    reports.begin("j")
    reports.send(chunk(b"x"))
    reports.end(ENDED)
    assert first.received(2) == [chunk(b"x"), ENDED]
    reports.resume(second.host)
    (ended,) = second.received(1)
    assert isinstance(ended, JobEnded)
    assert ended.failure == "result"
    assert ended.error is not None
    assert "could not be kept for the next server" in ended.error.message


def test_nothing_is_kept_without_reattachment(world: World) -> None:
    first = world.link()
    reports = world.reports(first, keep=False)
    reports.begin("j")
    reports.send(RUNNING)
    assert first.received(1) == [RUNNING]
    assert not reports.kept


def test_a_proof_belongs_to_one_side_one_secret_and_one_connection() -> None:
    proof = proof_of("host", "secret", "a", "b")
    assert proves(proof, proof_of("host", "secret", "a", "b"))
    for other in (
        proof_of("server", "secret", "a", "b"),
        proof_of("host", "other", "a", "b"),
        proof_of("host", "secret", "c", "b"),
        proof_of("host", "secret", "a", "c"),
    ):
        assert not proves(proof, other)
