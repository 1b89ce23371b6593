"""Real databases that fail under load: accepted work is never lost, and refused work leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from outage import BusyServer

from conditions import wait_until
from jobserver_sql.testing import PostgresqlServer, missing

LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
connection.execute("ROLLBACK")
"""

FULL_DISK = """
import pathlib, resource, signal, sys
directory = pathlib.Path(sys.argv[1])
sys.path[:0] = sys.argv[2:]
from outage import BusyServer
busy = BusyServer(f"sqlite:///{directory}/metadata.db", directory, lock_timeout=1)
busy.begin()
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
busy.await_refusals(20)
assert any(busy.server.check_storage().values()), "a full disk passes the check"
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
busy.await_progress()
busy.settle()
busy.close()
print("settled", len(busy.accepted), len(busy.refused))
"""

FULL_FILE_SYSTEM = """
import pathlib, subprocess, sys
directory = pathlib.Path(sys.argv[1])
sys.path[:0] = sys.argv[2:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(directory)], check=True)
from outage import BusyServer
busy = BusyServer(f"sqlite:///{directory}/metadata.db", directory, lock_timeout=1)
busy.begin()
filler = directory / "filler"
with filler.open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
busy.await_refusals(20)
assert any(busy.server.check_storage().values()), "a full disk passes the check"
filler.unlink()
busy.await_progress()
busy.settle()
busy.close()
print("settled", len(busy.accepted), len(busy.refused))
"""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let another process hold SQLite's write lock inside the block."""
    command = [sys.executable, "-c", LOCKER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            other.stdin.close()
            other.wait()


def test_a_database_locked_by_another_process_ends_no_jobs_or_contexts(tmp_path: Path) -> None:
    busy = BusyServer(f"sqlite:///{tmp_path}/metadata.db", tmp_path, lock_timeout=0.2)
    try:
        busy.begin()
        for _ in range(2):
            with locked(tmp_path / "metadata.db"):
                busy.await_refusals(8)
                assert "locked" in str(busy.refused[-1])
                wait_until(lambda: busy.server.check_storage()["metadata"] is not None, "the check passes")
            wait_until(lambda: busy.server.check_storage()["metadata"] is None, "the check still fails")
            busy.await_progress()
        busy.settle()
    finally:
        busy.close()


def run_apart(script: str, directory: Path, *prefix: str) -> str:
    """Run a script in a separate process, because it restricts what the whole process can write."""
    command = [*prefix, sys.executable, "-c", script, str(directory), *sys.path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_files_that_cannot_grow_end_no_jobs_or_contexts(tmp_path: Path) -> None:
    assert run_apart(FULL_DISK, tmp_path).startswith("settled")


def test_a_full_file_system_ends_no_jobs_or_contexts(tmp_path: Path) -> None:
    apart = ("unshare", "--user", "--map-root-user", "--mount")
    probe = [*apart, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    try:
        subprocess.run(probe, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs user namespaces, to mount a small file system")
    assert run_apart(FULL_FILE_SYSTEM, tmp_path, *apart).startswith("settled")


@pytest.mark.postgresql
def test_a_postgresql_restart_and_a_crash_under_load_end_no_jobs_or_contexts(tmp_path: Path) -> None:
    if problem := missing():
        pytest.skip(f"needs {problem}")
    with PostgresqlServer(durable=True) as database:
        busy = BusyServer(database.url(database.database("jobs")), tmp_path)
        try:
            busy.begin()
            for abruptly in (False, True):
                database.stop(abruptly=abruptly)
                busy.await_refusals(8)
                assert busy.server.check_storage()["metadata"] is not None
                database.start()
                busy.await_progress()
            busy.settle()
        finally:
            busy.close()
