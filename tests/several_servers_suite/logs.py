"""Logs of jobs and contexts, which any server reads."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from conditions import wait_until
from jobserver_core import (
    ContextNotFound,
    JobNotFound,
    JobState,
    LogNotFound,
    LogServerGone,
    OnAnotherServer,
    Settings,
    Unavailable,
)
from jobserver_core.ports import ContextEnd
from jobserver_core.running import logs, requests
from jobserver_core.running.log_files import REMOTE_CHUNK_SIZE
from serving import WAIT, a_request, upload
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
        with pytest.raises(LogServerGone):
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

    def _moved_job(self) -> tuple[Member, Member, str]:
        """Return a paused server with the log of a job that runs on another server now."""
        first, second = self.boot(), self.boot()
        upload(first.server)
        first.server.create_context("shared", {"supervise": True})
        first.ready()
        job = first.running_job("shared", restartable=True)
        self._job_log(first, job).write_bytes(b"first run\n")
        return first, second, job

    def _move(self, first: Member, second: Member, job: str) -> None:
        self.expire(first.id)
        second.renew()

        def started() -> bool:
            second.clock.advance(0.5)
            return bool(second.launcher.handles)

        wait_until(started, "the new context", WAIT)
        second.ready()
        wait_until(lambda: ("submit", job) in second.launcher.handles[0].calls, "the job", WAIT)
        first.renew()

    def test_the_log_of_a_job_that_runs_elsewhere_now_is_not_that_of_its_earlier_run_here(
        self, members: list[Member]
    ) -> None:
        first, second, job = self._moved_job()
        self._move(first, second, job)
        with pytest.raises(LogNotFound):
            first.server.open_job_log(job).open()
        self._job_log(second, job).write_bytes(b"second run\n")
        for member in members:
            with member.server.open_job_log(job) as log:
                assert log.read() == b"second run\n"
        with pytest.raises(OnAnotherServer):
            first.server.job_log(job)

    def test_a_reader_follows_a_job_to_another_server(
        self, members: list[Member], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second, job = self._moved_job()
        third = self.boot()
        readers = [member.server.open_job_log(job) for member in (first, third)]
        for log in readers:
            assert (log.read(), log.read()) == (b"first run\n", b"")
        self._move(first, second, job)
        self._job_log(second, job).write_bytes(b"second run\n")
        assert readers[0].read() == b""  # it checks for another owner only from time to time
        monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + logs.SEARCH_INTERVAL)
        for log in readers:
            assert (log.read(), log.read()) == (b"second run\n", b"")
            log.close()

    def test_the_log_of_the_last_run_of_a_job_is_found_after_its_end(self, members: list[Member]) -> None:
        first, second, job = self._moved_job()
        self._move(first, second, job)
        self._job_log(second, job).write_bytes(b"second run\n")
        second.server.kill_context("shared")
        second.launcher.listeners[0].context_ended(ContextEnd.KILLED)
        assert first.server.job(job).state is JobState.ERROR
        third = self.boot()
        for member in (first, second, third):
            with member.server.open_job_log(job) as log:
                assert log.read() == b"second run\n"

    def test_only_the_server_that_has_a_log_is_asked_for_it(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        job = owner.running_job("shared")
        self._job_log(owner, job).write_bytes(b"text\n")
        self.expire(owner.id)
        other.renew()
        owner.renew()  # it was only paused
        hanging = self.boot()
        hanging.server._services.notices.close()
        with other.server.open_job_log(job) as log:
            assert log.read() == b"text\n"
        assert other.server._services.metadata.requests_to(hanging.id) == []

    def test_a_server_whose_lease_has_expired_is_named_but_not_asked(
        self, members: list[Member], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = Settings.from_mapping({"jobserver.servers.address": "host-1.example"})
        owner, other = self.owner_and_other(settings=settings)
        job = owner.running_job("shared")
        self._job_log(owner, job).write_bytes(b"text\n")
        self.expire(owner.id)

        def ask(*_arguments: object) -> None:
            raise AssertionError("it was asked")

        monkeypatch.setattr(other.server._services.requests, "ask", ask)
        text = r"is on server host-1\.example, which does not respond; context shared is being taken over"
        for log in (other.server.open_job_log(job), other.server.open_context_log("shared")):
            with pytest.raises(Unavailable, match=text):
                log.open()
        other.renew()
        for log in (other.server.open_job_log(job), other.server.open_context_log("shared")):
            with pytest.raises(LogServerGone) as caught:
                log.open()
            assert caught.value.server == "host-1.example"
        with pytest.raises(LogServerGone, match=r"host-1\.example"):
            other.server.job_log(job)
        assert other.server.open_job_log(job).read() == b""  # one that follows waits

    def test_a_server_of_a_copy_reads_the_copied_logs_of_a_server_that_has_ended(
        self, members: list[Member]
    ) -> None:
        owner, other = self.owner_and_other()
        job, context = owner.running_job("shared"), owner.server.context("shared").id
        self.expire(owner.id)
        other.renew()
        assert other.server.job(job).state.final
        copied = self._job_log(other, job)
        copied.write_bytes(b"earlier run\n")
        with pytest.raises(LogServerGone):
            other.server.open_job_log(job).open()
        copied.write_bytes(b"copied\n")
        other.server._services.data_directory.context_log(context).write_bytes(b"driver\n")
        with other.server.open_job_log(job) as log, other.server.open_context_log(context) as driver_log:
            assert (log.read(), driver_log.read()) == (b"copied\n", b"driver\n")
        assert other.server.job_log(job) == copied

    def test_a_kill_does_not_wait_for_a_log_that_is_slow_to_read(self, members: list[Member]) -> None:
        owner, other = self.owner_and_other()
        job = owner.running_job("shared")
        reading, go_on = threading.Event(), threading.Event()

        def read_slowly(_asked: object) -> dict[str, object]:
            reading.set()
            assert go_on.wait(WAIT)
            return {"file": "1", "size": 0, "head": "", "data": ""}

        owner.server._services.requests.on(requests.Action.READ_LOG, read_slowly)
        reader = threading.Thread(target=other.server.open_job_log(job).open)
        reader.start()
        assert reading.wait(WAIT)
        try:
            other.server.kill_job(job)
            assert ("kill_job", job) in owner.launcher.handles[0].calls
        finally:
            go_on.set()
            reader.join(WAIT)
