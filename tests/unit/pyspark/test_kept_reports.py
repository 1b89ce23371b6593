"""The reports that a host keeps for the next server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from jobserver_pyspark.host.reports import JobReports
from jobserver_pyspark.protocol.frames import Channel, proof_of, proves
from jobserver_pyspark.protocol.messages import (
    ErrorDetails,
    HostToServer,
    JobEnded,
    JobRunning,
    LogWarning,
    ProgressReport,
    Reattachment,
    ResultChunk,
    ServerToHost,
)


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


def result_failure(message: HostToServer) -> str:
    """Return why a job failed for its result."""
    assert isinstance(message, JobEnded)
    assert message.failure == "result"
    assert message.error is not None
    assert message.error.error_class == "ResultRefused"
    return message.error.message


RUNNING, ENDED = JobRunning(job_id="j"), JobEnded(job_id="j")


def test_reports_that_are_sent_with_the_end_of_a_job_are_kept_like_others(world: World) -> None:
    first, second = world.link(), world.link()
    reports = world.reports(first)
    reports.begin("j")
    reports.end(ENDED, [RUNNING, chunk(b"1")])
    assert first.received(3) == [RUNNING, chunk(b"1"), ENDED]
    reports.resume(second.host)
    assert second.received(3) == [RUNNING, chunk(b"1"), ENDED]


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
    reports.warn("next")
    assert third.received(1) == [LogWarning(text="next")]


def test_the_last_progress_is_sent_again(world: World) -> None:
    first, second = world.link(), world.link()
    reports = world.reports(first)
    reports.begin("j")
    for done in (1, 2):
        progress = ProgressReport(job_id="j", stages_done=0, stages_total=1, tasks_done=done, tasks_total=2)
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
    kept, ended = second.received(2)
    assert kept == chunk(b"x" * 16)
    assert "no more than 10 bytes of the result were kept for the next server" in result_failure(ended)


def test_a_result_up_to_the_limit_is_kept_in_full(world: World) -> None:
    first, second = world.link(), world.link()
    reports = world.reports(first, limit=16)
    first.close()
    reports.begin("j")
    for _ in range(2):
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
    assert "could not be kept for the next server" in result_failure(ended)


def test_a_job_that_ends_under_the_next_server_fails_if_it_lost_a_part_of_its_result(
    world: World, tmp_path: Path
) -> None:
    first, second, third = (world.link() for _ in range(3))
    (tmp_path / "results").write_text("in the way")
    reports = world.reports(first)
    reports.begin("j")
    for message in (RUNNING, chunk(b"lost")):
        reports.send(message)
    for later in (second, third):
        reports.resume(later.host)
        assert later.received(1) == [RUNNING]
    reports.send(chunk(b"the rest"))
    reports.end(ENDED)
    *_, ended = third.received(2)
    assert "could not be kept for the next server" in result_failure(ended)


def test_a_part_of_a_result_that_a_larger_limit_would_allow_is_not_a_whole_result(world: World) -> None:
    first, second = world.link(), world.link()
    reports = world.reports(first, limit=10)
    reports.begin("j")
    for _ in range(3):
        reports.send(chunk(b"x" * 8))
    reports.resume(second.host)
    assert second.received(1) == [chunk(b"x" * 16)]
    reports.send(chunk(b"y"))
    reports.end(ENDED)
    *_, ended = second.received(2)
    assert "no more than 10 bytes" in result_failure(ended)


@pytest.mark.parametrize(
    "ended",
    [
        JobEnded(job_id="j", killed=True),
        JobEnded(job_id="j", failure="raised", error=ErrorDetails(message="the job's own")),
    ],
)
def test_a_job_that_did_not_succeed_keeps_its_own_end_if_its_result_was_lost(
    world: World, tmp_path: Path, ended: JobEnded
) -> None:
    first, second = world.link(), world.link()
    (tmp_path / "results").write_text("in the way")
    reports = world.reports(first)
    reports.begin("j")
    reports.send(chunk(b"x"))
    reports.end(ended)
    reports.resume(second.host)
    assert second.received(1) == [ended]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep results in a file on a full disk, which accepts what is buffered and then fails."""

    def create(*_args: object, **_kwargs: object) -> IO[bytes]:
        return Path("/dev/full").open("r+b")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile", create)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_does_not_fail_the_acknowledgement_of_a_job(world: World) -> None:
    first = world.link()
    reports = world.reports(first)
    reports.begin("j")
    reports.send(chunk(b"x"))
    reports.end(ENDED)
    reports.acknowledge("j")
    assert not reports.kept
    assert first.received(2) == [chunk(b"x"), ENDED]


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_fails_only_the_jobs_that_have_a_result(world: World) -> None:
    first, second = world.link(), world.link()
    reports = world.reports(first)
    for job_id in ("j", "other"):
        reports.begin(job_id)
    reports.send(chunk(b"x"))
    reports.end(ENDED)
    reports.send(JobRunning(job_id="other"))
    reports.resume(second.host)
    ended, other = second.received(2)
    assert "the result could not be kept for the next server: No space left" in result_failure(ended)
    assert other == JobRunning(job_id="other")


def test_a_late_repetition_for_an_earlier_server_does_not_take_the_reports_from_the_present_one(
    world: World,
) -> None:
    first, second, third = (world.link() for _ in range(3))
    reports = world.reports(first)
    reports.begin("j")
    reports.send(RUNNING)
    reports.resume(third.host)
    assert third.received(1) == [RUNNING]
    reports._send_again(list(reports._kept.values()), second.host)  # a thread that had no time until now
    reports.send(chunk(b"x"))
    assert third.received(1) == [chunk(b"x")]


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
