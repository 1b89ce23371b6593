"""How long a metadata store takes to store and advance a job, against one bare commit of the same database.

    python benchmarks/metadata_writes.py [jobs]

Prints median and 95th percentile in milliseconds, and the median's ratio to a bare transaction of one
row through the database's driver, measured in the same run, in turns with what it is compared to.
PostgreSQL is measured when its programs are installed, with fsync on.
"""

from __future__ import annotations

import itertools
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import attrs

from jobserver_core.memory import MemoryMetadataStore
from jobserver_core.models.jobs import JobQuery
from jobserver_core.models.lifecycle import JobState
from jobserver_core.ports import MetadataStore
from jobserver_core.testing.builders import a_binary, a_delivery, a_job, a_result, at
from jobserver_sql import SqlMetadataStore
from jobserver_sql.testing import PostgresqlServer, missing

Baseline = Callable[[int], object]


def sqlite_baseline(path: Path, synchronous: str, stack: ExitStack) -> Baseline:
    connection = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("CREATE TABLE rows (id TEXT PRIMARY KEY, text TEXT)")

    def commit(number: int) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows VALUES (?, ?)", (str(number), "x" * 500))
        connection.execute("COMMIT")

    return commit


def postgresql_baseline(server: PostgresqlServer, stack: ExitStack) -> Baseline:
    connection = stack.enter_context(server.connect(server.url(server.database("baseline"))))
    connection.execute("CREATE TABLE rows (id TEXT PRIMARY KEY, text TEXT)")
    return lambda n: connection.execute("INSERT INTO rows VALUES (%s, %s)", (str(n), "x" * 500))


def measure(store: MetadataStore, baseline: Baseline | None, count: int) -> None:
    binary = a_binary("job")
    store.add_binary(binary)
    times: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], object]) -> None:
        begun = time.perf_counter()
        call()
        times.setdefault(name, []).append(time.perf_counter() - begun)

    for number in range(count):
        job = a_job(binary, submitted_at=at(number))
        running = attrs.evolve(job, state=JobState.RUNNING, running_at=at(number))
        ended = attrs.evolve(running, state=JobState.FINISHED, ended_at=at(number), has_result=True)
        if baseline is not None:
            timed("bare commit", partial(baseline, number))
        timed("add_job", partial(store.add_job, job, config='{"input": {"string": "a b c"}}'))
        timed("advance to RUNNING", partial(store.advance_job, running, expected=JobState.STARTED))
        finish = partial(store.advance_job, ended, expected=JobState.RUNNING, result=a_result())
        timed("advance to FINISHED", partial(finish, delivery=a_delivery(job)))
        timed("job", partial(store.job, job.id))
        timed("page of 50", partial(store.jobs, JobQuery()))
    report(times)


def report(times: dict[str, list[float]]) -> None:
    base = statistics.median(times["bare commit"]) if "bare commit" in times else None
    for name, taken in times.items():
        median, late = statistics.median(taken), statistics.quantiles(taken, n=20)[-1]
        ratio = f"   {median / base:5.1f} x a bare commit" if base else ""
        print(f"    {name:20} {median * 1e3:8.3f} ms   p95 {late * 1e3:8.3f} ms{ratio}")


def contended(store: MetadataStore, count: int, threads: int) -> None:
    numbers = itertools.count()

    def write() -> None:
        while next(numbers) < count:
            job = a_job()
            store.add_job(job, config="{}")
            store.advance_job(attrs.evolve(job, state=JobState.KILLED), expected=JobState.STARTED)

    writers = [threading.Thread(target=write) for _ in range(threads)]
    begun = time.perf_counter()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    print(f"    {threads} threads: {2 * count / (time.perf_counter() - begun):8.0f} writes per second")


def run(name: str, store: MetadataStore, baseline: Baseline | None, count: int) -> None:
    print(name)
    measure(store, baseline, count)
    for threads in (1, 8):
        contended(store, count, threads)
    store.close()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobserver-benchmark-")))
        run("memory", MemoryMetadataStore(), None, count)
        for synchronous in ("full", "normal"):
            store = SqlMetadataStore(f"sqlite:///{directory / synchronous}.db", synchronous=synchronous)
            baseline = sqlite_baseline(directory / f"{synchronous}-baseline.db", synchronous, stack)
            run(f"SQLite, synchronous={synchronous}", store, baseline, count)
        if problem := missing():
            print(f"PostgreSQL: not measured, needs {problem}")
            return
        server = stack.enter_context(PostgresqlServer(durable=True))
        store = SqlMetadataStore(server.url(server.database("store")))
        run("PostgreSQL, fsync on", store, postgresql_baseline(server, stack), count)


if __name__ == "__main__":
    main()
