"""What to plan for: memory of a server, of each waiting job, and of each context; database growth by jobs.

    python benchmarks/sizing.py [--contexts 2] [--without-spark]

The server of the first rows is ``inline_server.py`` with SQLite. That of the others has Spark on
``local[2]`` with default settings. Memory is the proportional set size, so that pages which processes share
count once.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from jobserver_core import BinaryType, JobRequest, JobServer, load_settings
from jobserver_core.ports import MetadataStore
from jobserver_pyspark.demo import CLASS_NAME, build_example_wheel
from jobserver_sql import SqlMetadataStore

MIB = 1024 * 1024
WAITING = 4000
ENDED = 3000


def main() -> None:
    """Print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, default=2)
    parser.add_argument("--without-spark", action="store_true")
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as directory:
        without_spark(Path(directory))
    if not arguments.without_spark:
        with tempfile.TemporaryDirectory(prefix="js") as directory:
            with_spark(Path(directory), arguments.contexts)


def without_spark(directory: Path) -> None:
    """Measure the server and its database."""
    store: MetadataStore = SqlMetadataStore(f"sqlite:///{directory}/metadata.db")
    store.close()
    with inline_server(directory) as (pid, connection):
        egg = directory / "b.egg"
        with zipfile.ZipFile(egg, "w") as file:
            file.writestr("b.py", "")
        post(connection, "/binaries/b", egg.read_bytes())
        post(connection, "/contexts/warm", b"")
        for _ in range(200):
            post(connection, "/jobs?appName=b&classPath=b.Nothing&context=warm&sync=true", b"")
        print(f"server, idle after 200 jobs: {memory(pid) / MIB:.0f} MiB")
        size = database_size(directory)
        for _ in range(ENDED):
            post(connection, "/jobs?appName=b&classPath=b.Nothing&context=warm&sync=true", b"x = 1")
        print(f"database, each ended job: {(database_size(directory) - size) / ENDED:.0f} bytes")
        before = memory(pid)
        for _ in range(WAITING):
            post(connection, "/jobs?appName=b&classPath=b.Gated&context=warm", b"x = 1")
        print(f"server, each waiting job: {(memory(pid) - before) / WAITING / 1024:.1f} KiB")
        (directory / "gate").touch()


@contextmanager
def inline_server(directory: Path) -> Iterator[tuple[int, http.client.HTTPConnection]]:
    """Run ``inline_server.py``, and return its process and a connection."""
    script = Path(__file__).with_name("inline_server.py")
    process = subprocess.Popen([sys.executable, script, directory], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with closing(http.client.HTTPConnection("127.0.0.1", int(process.stdout.readline()))) as connection:
            yield process.pid, connection
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def post(connection: http.client.HTTPConnection, path: str, body: bytes) -> None:
    """Send a POST that must succeed."""
    content_type = "application/python-egg" if path.startswith("/binaries") else "text/plain"
    connection.request("POST", path, body, {"Content-Type": content_type})
    response = connection.getresponse()
    text = response.read()
    assert response.status < 300, (path, response.status, text)


def memory(*pids: int) -> int:
    """Return the proportional set size of processes in bytes."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def database_size(directory: Path) -> int:
    """Return the size of the database in bytes, once its log is part of it."""
    with closing(sqlite3.connect(directory / "metadata.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
        size: int = connection.execute("PRAGMA page_size").fetchone()[0]
    return pages * size


def with_spark(directory: Path, contexts: int) -> None:
    """Measure contexts before and after a job."""
    overrides = {"jobserver.data-dir": str(directory / "data"), "spark.master": "local[2]"}
    overrides["jobserver.contexts.creation-timeout"] = "5 minutes"
    with JobServer.from_settings(load_settings(overrides=overrides)) as server:
        wheel = build_example_wheel(directory)
        server.upload("words", BinaryType.WHEEL, wheel.read_bytes())
        for number in range(1, contexts + 1):
            before = memory(*descendants(os.getpid()))
            server.create_context(f"c{number}").result(300)
            time.sleep(5)  # until its spare processes are there
            started = memory(*descendants(os.getpid())) - before
            for _ in range(20):
                server.submit(
                    JobRequest(
                        class_name=CLASS_NAME,
                        class_path="words",
                        context=f"c{number}",
                        config={"input": {"string": "a b"}},
                    )
                ).result(120)
            used = memory(*descendants(os.getpid())) - before
            count = len(descendants(os.getpid()))
            print(
                f"context {number}: {started / MIB:.0f} MiB after its start, "
                f"{used / MIB:.0f} MiB after 20 jobs, {count} processes in all"
            )


if __name__ == "__main__":
    main()
