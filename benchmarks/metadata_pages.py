"""What a page of fifty jobs costs among a thousand jobs and among a million.

    python benchmarks/metadata_pages.py [few] [many]

Prints medians in milliseconds and the ratio of the two, taken in turns in one run. Nearly all jobs
are final and share one context and one class, so that a filter alone selects nearly everything, and
one for live jobs nearly nothing. PostgreSQL is measured when its programs are installed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path

from sqlalchemy import text

from jobserver_core.models.jobs import JobQuery
from jobserver_core.models.lifecycle import JobState
from jobserver_core.testing.builders import EPOCH, a_job, at
from jobserver_sql import SqlMetadataStore, tables
from jobserver_sql.testing import PostgresqlServer, missing

ROUNDS = 100
LIVE = (JobState.STARTED, JobState.RUNNING, JobState.RESTARTING)


def fill(store: SqlMetadataStore, count: int) -> None:
    """Copy one job many times, inside the database, each a second after the one before."""
    first = a_job(id="first", state=JobState.FINISHED, ended_at=at(1))
    store.add_job(first, config="{}")
    changes = {
        "id": "'job-' || CAST(n.i + 100000000 AS TEXT)",
        "submitted_at": "submitted_at + n.i * 1000000",
        "ended_at": "ended_at + n.i * 1000000",
        "state": "CASE n.i % 10 WHEN 0 THEN 'ERROR' ELSE 'FINISHED' END",
    }
    names = [column.name for column in tables.jobs.c]
    values = ", ".join(changes.get(name, name) for name in names)
    copy = (
        f"INSERT INTO jobs ({', '.join(names)}) "
        "WITH RECURSIVE n(i) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < :count) "
        f"SELECT {values} FROM jobs, n WHERE jobs.id = 'first'"
    )
    with store._database.write() as connection:
        connection.execute(text(copy), {"count": count - 1})
    for number in range(3):
        live = a_job(id=f"live-{number}", state=JobState.RUNNING, submitted_at=at(number * count // 3))
        store.add_job(live, config="{}")
    if connection.dialect.name == "postgresql":
        with store._database.write() as connection:
            connection.execute(text("ANALYZE"))


def queries(store: SqlMetadataStore, count: int) -> dict[str, JobQuery]:
    middle = EPOCH + timedelta(seconds=count // 2)
    deep = store.jobs(JobQuery(until=middle, limit=1)).next
    return {
        "the newest": JobQuery(),
        "the next page": JobQuery(after=store.jobs(JobQuery()).next),
        "a page in the middle": JobQuery(after=deep),
        "finished": JobQuery(states=(JobState.FINISHED,)),
        "failed": JobQuery(states=(JobState.ERROR, JobState.KILLED)),
        "live": JobQuery(states=LIVE),
        "of one context": JobQuery(context_name="shared"),
        "live, of one context": JobQuery(states=LIVE, context_name="shared"),
        "failed, of one class": JobQuery(states=(JobState.ERROR,), class_name="jobs.WordCount"),
        "of a time": JobQuery(since=EPOCH, until=middle),
    }


def median(taken: Iterable[float]) -> float:
    return statistics.median(taken) * 1e3


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def compare(name: str, make: Callable[[str], SqlMetadataStore], few: int, many: int) -> None:
    stores = {count: make(f"jobs{count}") for count in (few, many)}
    for count, store in stores.items():
        print(f"{name}: {count} jobs stored in {timed(partial(fill, store, count)):.1f} s")
    asked = {count: queries(store, count) for count, store in stores.items()}
    for title in asked[few]:
        times: dict[int, list[float]] = {few: [], many: []}
        for _ in range(ROUNDS):
            for count, store in stores.items():
                query = asked[count][title]
                times[count].append(timed(partial(store.jobs, query)))
        small, large = median(times[few]), median(times[many])
        print(f"    {title:24} {small:8.3f} ms   {large:8.3f} ms   ratio {large / small:5.2f}")
    for store in stores.values():
        store.close()


def main() -> None:
    few, many = (int(argument) for argument in (*sys.argv[1:], "1000", "1000000")[:2])
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobserver-benchmark-")))
        compare("SQLite", lambda name: SqlMetadataStore(f"sqlite:///{directory / name}.db"), few, many)
        if problem := missing():
            print(f"PostgreSQL: not measured, needs {problem}")
            return
        server = stack.enter_context(PostgresqlServer())
        compare("PostgreSQL", lambda name: SqlMetadataStore(server.url(server.database(name))), few, many)


if __name__ == "__main__":
    main()
