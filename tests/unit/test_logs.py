"""Reading the logs of a server that is alone. For those of other servers, see
``several_servers_suite/logs.py``."""

from __future__ import annotations

import os

import pytest

from jobserver_core import Conflict, InvalidRequest
from jobserver_core.running.logs import CHUNK_SIZE
from jobserver_pyspark.host.logs import BoundedLog
from serving import Scene


def test_a_log_that_is_cut_or_replaced_is_read_from_its_new_beginning() -> None:
    scene = Scene()
    job = scene.submit()
    path = scene.server._services.data_directory.job_log(job.id)
    with scene.server.open_job_log(job.id) as log:
        assert log.read() == b""
        path.write_bytes(b"one\n")
        assert log.read() == b"one\n"
        assert log.read() == b""
        path.write_bytes(b"2\n")
        assert log.read() == b"2\n"
        other = path.with_suffix(".other")
        other.write_bytes(b"three\n")
        os.replace(other, path)
        assert log.read() == b"three\n"
        path.unlink()
        assert log.read() == b""
    scene.launcher.close()
    scene.server.close(0)


def test_a_log_that_was_cut_is_read_from_its_new_start_even_if_it_has_grown_again_since() -> None:
    scene = Scene()
    job = scene.submit()
    output = BoundedLog(scene.server._services.data_directory.job_log(job.id), 2048)
    with scene.server.open_job_log(job.id) as log:
        output.write(b"start\n")
        assert log.read() == b"start\n"
        for number in range(2):
            for _ in range(40):
                output.write(b"%d" % number * 99 + b"\n")
            assert log.read(11).startswith(b"[")
    output.close()
    scene.launcher.close()
    scene.server.close(0)


def test_iterating_over_a_log_yields_chunks_up_to_its_current_end() -> None:
    scene = Scene()
    job = scene.submit()
    path = scene.server._services.data_directory.job_log(job.id)
    with scene.server.open_job_log(job.id) as log:
        assert list(log) == []
        path.write_bytes(b"x" * CHUNK_SIZE + b"one\n")
        assert list(log) == [b"x" * CHUNK_SIZE, b"one\n"]
        with path.open("ab") as file:
            file.write(b"two\n")
        assert list(log) == [b"two\n"]
    scene.launcher.close()
    scene.server.close(0)


def test_a_negative_size_reads_up_to_the_current_end_as_with_files() -> None:
    scene = Scene()
    job = scene.submit()
    path = scene.server._services.data_directory.job_log(job.id)
    with scene.server.open_job_log(job.id) as log:
        assert log.read(-1) == b""
        path.write_bytes(b"x" * CHUNK_SIZE + b"one\n")
        assert (log.read(2), log.read(-1), log.read(-1)) == (b"xx", b"x" * (CHUNK_SIZE - 2) + b"one\n", b"")
        with pytest.raises(InvalidRequest, match=r"^size must be a number of bytes, or -1 for all, not str$"):
            log.read("5")  # type: ignore[arg-type]
    scene.launcher.close()
    scene.server.close(0)


def test_a_closed_reader_says_that_it_is_closed() -> None:
    scene = Scene()
    job = scene.submit()
    scene.server._services.data_directory.job_log(job.id).write_bytes(b"one\n")
    with scene.server.open_job_log(job.id) as log:
        assert log.read() == b"one\n"
    for use in (log.read, log.open, lambda: list(log)):
        with pytest.raises(Conflict, match="this reader is closed; open the log again"):
            use()
    log.close()
    scene.launcher.close()
    scene.server.close(0)
