"""Logs of jobs and contexts, which any server reads."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from jobserver_core import ContextNotFound, JobNotFound, LogNotFound, Unavailable
from jobserver_core.running import requests
from jobserver_core.running.logs import REMOTE_CHUNK_SIZE
from serving import a_request, upload
from several_servers import Fleet, Member


class LogsOfOthers(Fleet):
    def _job_log(self, member: Member, job: str) -> Path:
        return member.server._services.data_directory.job_log(job)

    def test_a_log_of_another_server_is_read_while_it_grows(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        job = owner.running_job("shared")
        path = self._job_log(owner, job)
        with other.server.open_job_log(job) as log:
            assert log.read() == b""
            path.write_bytes(b"one\n")
            assert (log.read(), log.read()) == (b"one\n", b"")
            with path.open("ab") as file:
                file.write(b"two\n")
            assert (log.read(2), log.read()) == (b"tw", b"o\n")
            path.write_bytes(b"new\n")
            assert log.read() == b"new\n"
            replacement = path.with_suffix(".other")
            replacement.write_bytes(b"another file\n")
            replacement.replace(path)
            assert log.read() == b"another file\n"
        assert other.server._services.metadata.requests_to(owner.id) == []

    def test_the_end_of_a_log_of_another_server_is_read_alone(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        context = owner.server.context("shared")
        path = owner.server._services.data_directory.context_log(context.id)
        path.write_bytes(b"first\nlast\n")
        with other.server.open_context_log("shared", last=5).open() as log:
            assert (log.remaining, log.read(), log.remaining) == (5, b"last\n", 0)

    def test_a_large_log_of_another_server_arrives_whole(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        job = owner.running_job("shared")
        content = random.Random(1).randbytes(3 * REMOTE_CHUNK_SIZE + 1)
        self._job_log(owner, job).write_bytes(content)
        found = b""
        with other.server.open_job_log(job).open() as log:
            assert log.remaining == len(content)
            while chunk := log.read(len(content)):
                found += chunk
        assert found == content

    def test_a_log_that_does_not_exist_anywhere_is_not_found(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        job = owner.running_job("shared")
        for member in (owner, other):
            with pytest.raises(LogNotFound, match=f"log of job {job} not found"):
                member.server.open_job_log(job).open()
            with pytest.raises(JobNotFound):
                member.server.open_job_log("nobody")
            with pytest.raises(ContextNotFound):
                member.server.open_context_log("nobody")

    def test_a_reader_goes_on_once_a_dead_server_was_taken_over(self, members: list[Member]) -> None:
        owner, other, reader = self.boot(), self.boot(), self.boot()
        upload(owner.server)
        job = owner.server.submit(a_request("w.Any")).id
        self._job_log(owner, job).write_bytes(b"on the first server\n")
        with reader.server.open_job_log(job) as log:
            assert log.read() == b"on the first server\n"
            owner.server._services.notices.close()
            reader.server._services.metadata.remove_server(owner.id)
            with pytest.raises(Unavailable, match="is being taken over by another server; try again"):
                log.read()
            other.renew()
            other.ready()
            assert other.server.context(other.server.job(job).context_name).owner == other.id
            assert log.read() == b""
            self._job_log(other, job).write_bytes(b"on the second server\n")
            assert log.read() == b"on the second server\n"

    def test_the_log_of_what_has_ended_is_found_on_the_server_that_has_it(
        self, members: list[Member]
    ) -> None:
        owner, other = self.owner_and_other()
        job = owner.running_job("shared")
        self._job_log(owner, job).write_bytes(b"text\n")
        self.expire(owner.id)
        other.renew()
        assert other.server.context("shared").owner == other.id
        with pytest.raises(LogNotFound):
            other.server.open_job_log(job).open()
        owner.renew()  # it was only paused
        for member in members:
            with member.server.open_job_log(job) as log:
                assert log.read() == b"text\n"

    def test_a_server_that_hangs_is_reported_when_its_log_is_read(
        self, members: list[Member], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owner, other = self.owner_and_other()
        self._job_log(owner, job := owner.running_job("shared")).write_bytes(b"text\n")
        owner.server._services.notices.close()
        monkeypatch.setattr(requests, "ANSWER_TIMEOUT", 0.01)
        monkeypatch.setattr(requests, "ANSWER_POLL_INTERVAL", 0.01)
        with pytest.raises(Unavailable, match=f"the server of the log of job {job} does not respond"):
            other.server.open_job_log(job).open()
        assert other.server._services.metadata.requests_to(owner.id) == []
