"""The daemon of Python workers: PySpark's own, with modules in place of that of the workers."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from conditions import wait_until
from jobserver_pyspark import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses Unix sockets")

WORKER = """
def main(infile, outfile):
    outfile.write(b"what Spark does not read any more")
    infile.read()  # until Spark closes the connection
    {then}
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path that is short enough for Unix sockets in it."""
    with TemporaryDirectory() as directory:
        yield Path(directory)


def errors_of_worker(directory: Path, then: str) -> str:
    """Return what a worker prints whose connection is closed while it serves."""
    (directory / "pyspark_worker_of_test.py").write_text(WORKER.format(then=then))
    environment = {
        **os.environ,
        "PYTHONPATH": str(directory),
        "PYTHON_UNIX_DOMAIN_ENABLED": "true",
        "PYTHON_WORKER_FACTORY_SOCK_DIR": str(directory),
        "SPARK_REUSE_WORKER": "1",
        "PYTHON_DAEMON_KILL_WORKER_ON_FLUSH_FAILURE": "true",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "jobserver_pyspark.daemon", "pyspark_worker_of_test"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as daemon:
        assert daemon.stdout is not None
        (length,) = struct.unpack(">i", daemon.stdout.read(4))
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(daemon.stdout.read(length).decode())
            (worker,) = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))
        wait_until(lambda: processes.start_time(worker) is None, "the worker ends")
        _, errors = daemon.communicate()
    return errors.decode()


def test_a_worker_whose_connection_was_closed_prints_nothing(directory: Path) -> None:
    assert errors_of_worker(directory, "pass") == ""


def test_a_worker_that_fails_prints_why(directory: Path) -> None:
    assert "ValueError: broken" in errors_of_worker(directory, "raise ValueError('broken')")
