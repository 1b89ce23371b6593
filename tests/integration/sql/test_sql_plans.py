"""The cost of a list depends only on its length, not on the number of records: counted, not timed."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
from sqlalchemy import event

from jobserver_core.models.binaries import BinaryType, ResolvedEntry
from jobserver_core.models.contexts import ContextQuery
from jobserver_core.models.jobs import JobQuery, JobResult, ResultKind
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.testing.builders import a_binary, a_context, a_delivery, a_job, at, digest_of
from jobserver_sql import SqlMetadataStore, tables

FEW, MANY = 500, 5_000
PAGE = 4096 + 24
"""The bytes of a page in SQLite's log."""
STATES = (None, (JobState.RUNNING,), (JobState.ERROR, JobState.KILLED))
FILTERS: dict[str, tuple[Any, ...]] = {
    "states": STATES,
    "context_id": (None, "context-1"),
    "context_name": (None, "shared"),
    "class_name": (None, "jobs.WordCount"),
    "since": (None, at(5)),
    "until": (None, at(50)),
    "after": (None, "cursor"),
}
JOB_QUERIES = [dict(zip(FILTERS, chosen, strict=True)) for chosen in itertools.product(*FILTERS.values())]


def fill(store: SqlMetadataStore, count: int) -> None:
    """Store records of every kind; one context, class and binary own nearly everything."""
    final = [state for state in JobState if state.final]
    with store._database.write() as connection:
        connection.execute(
            tables.jobs.insert(),
            [
                tables.row_of(a_job(state=final[n % 3], submitted_at=at(n), ended_at=at(n + 1)))
                for n in range(count)
            ],
        )
        connection.execute(
            tables.job_results.insert(),
            [
                {
                    "job_id": f"job-{n}",
                    "kind": ResultKind.STORED if n % 2 else ResultKind.INLINE,
                    "size": n,
                    "digest": digest_of(f"result {n}") if n % 2 else None,
                }
                for n in range(count)
            ],
        )
        connection.execute(
            tables.contexts.insert(),
            [
                tables.row_of(a_context(f"c{n % 7}", state=ContextState.ERROR, started_at=at(n)))
                for n in range(count)
            ],
        )
        connection.execute(
            tables.binaries.insert(),
            [tables.row_of(a_binary(f"b{n % 7}", uploaded_at=at(n))) for n in range(count)],
        )
        connection.execute(
            tables.deliveries.insert(),
            [
                tables.row_of(a_delivery(state=DeliveryState.DELIVERED, created_at=at(n), due_at=at(n)))
                for n in range(count)
            ],
        )
    for number in range(3):
        store.add_job(
            a_job(id=f"live-{number}", state=JobState.RUNNING, submitted_at=at(3 * number)), config="{}"
        )
    store.add_context(a_context("live", owner="server-2", started_at=at(3)))
    assert store.job("live-0")  # which opens the connection that single records are read with


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[SqlMetadataStore]]:
    """One store with few records, one with many."""
    directory = tmp_path_factory.mktemp("stores")
    made = [SqlMetadataStore(f"sqlite:///{directory / name}.db") for name in ("few", "many")]
    for store, count in zip(made, (FEW, MANY), strict=True):
        fill(store, count)
    yield made
    for store in made:
        store.close()


def steps(store: SqlMetadataStore, call: Callable[[SqlMetadataStore], Any]) -> int:
    """Count the instructions that SQLite's machine executes for a call, in tens."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    def watch(connection: Any, *_: Any) -> None:
        connection.connection.dbapi_connection.set_progress_handler(count, 10)

    (reader,) = store._database._sqlite._readers
    reader.driver.set_progress_handler(count, 10)
    event.listen(store._database._engine, "before_cursor_execute", watch)
    try:
        call(store)
    finally:
        event.remove(store._database._engine, "before_cursor_execute", watch)
        reader.driver.set_progress_handler(None, 0)
    assert counted, "nobody counted"
    return counted


CALLS: dict[str, Callable[[SqlMetadataStore], Any]] = {
    "jobs": lambda store: store.jobs(JobQuery()),
    "live jobs": lambda store: store.jobs(JobQuery(states=(JobState.STARTED, JobState.RUNNING))),
    "live jobs of a context": lambda s: s.jobs(JobQuery(states=(JobState.RUNNING,), context_name="shared")),
    "live jobs of a class": lambda s: s.jobs(
        JobQuery(states=(JobState.RUNNING,), class_name="jobs.WordCount")
    ),
    "jobs of an unknown context": lambda store: store.jobs(JobQuery(context_id="nobody")),
    "jobs of a time": lambda store: store.jobs(JobQuery(since=at(10), until=at(400))),
    "job by id": lambda store: store.job("live-1"),
    "job by key": lambda store: store.job_with_key("key"),
    "contexts": lambda store: store.contexts(ContextQuery(limit=50)),
    "live contexts": lambda s: s.contexts(ContextQuery(states=(ContextState.STARTED, ContextState.RUNNING))),
    "contexts of an owner": lambda store: store.contexts(ContextQuery(owner="server-2")),
    "contexts of a name": lambda store: store.contexts(ContextQuery(name="live")),
    "context named": lambda store: store.context_named("c1"),
    "binaries": lambda store: store.binaries(),
    "binary": lambda store: store.binary("b1"),
    "due deliveries": lambda store: store.due_deliveries(now=at(10**6), limit=10),
    "deliveries of a job": lambda store: store.deliveries_of("job"),
    "deliveries being sent": lambda store: store.deliveries_in(DeliveryState.SENDING, limit=10),
    "delivered": lambda store: store.deliveries_in(DeliveryState.DELIVERED, limit=10),
    "blobs in use": lambda store: store.unreferenced([digest_of(str(n)) for n in range(10)]),
    "old jobs to delete": lambda store: store.delete_jobs(ended_before=at(0), limit=100),
}


def test_a_job_writes_only_few_pages_of_the_database(tmp_path: Path) -> None:
    with closing(SqlMetadataStore(f"sqlite:///{tmp_path / 'metadata.db'}")) as store:
        store.add_binary(a_binary("words", id="words"))
        log = tmp_path / "metadata.db-wal"
        begun = log.stat().st_size
        for number in range(20):
            entry = ResolvedEntry(
                source="words", type=BinaryType.WHEEL, digest=digest_of("words"), size=5, binary_id="words"
            )
            job = a_job(class_path=(entry,), submitted_at=at(number), dispatched_at=at(number))
            store.add_job(job, config="{}")
            ended = attrs.evolve(
                job, state=JobState.FINISHED, running_at=at(number), ended_at=at(number + 1), has_result=True
            )
            result = JobResult(kind=ResultKind.INLINE, size=4, text="null")
            store.advance_job(ended, expected=JobState.STARTED, result=result)
        pages = (log.stat().st_size - begun) / 20 / PAGE
    assert pages < 25


@pytest.mark.parametrize("name", CALLS)
def test_the_cost_of_a_call_does_not_grow_with_the_number_of_records(
    stores: list[SqlMetadataStore], name: str
) -> None:
    few, many = (steps(store, CALLS[name]) for store in stores)
    assert many <= 1.5 * few + 20, f"{few}0 steps among {FEW} records, {many}0 among {MANY}"


def test_the_second_page_and_a_far_page_take_as_many_steps_as_the_first(
    stores: list[SqlMetadataStore],
) -> None:
    many = stores[1]
    cursor = many.jobs(JobQuery()).next
    far = many.jobs(JobQuery(until=at(MANY // 2), limit=1)).next
    queries = [JobQuery(after=after) for after in (None, cursor, far)]
    first, second, middle = (steps(many, partial(SqlMetadataStore.jobs, query=query)) for query in queries)
    assert max(second, middle) <= 1.5 * first + 20


def test_results_that_fit_are_counted_without_reading_the_jobs(sqlite_url: str) -> None:
    with closing(SqlMetadataStore(sqlite_url)) as store:
        with store._database.write() as connection:
            ended = [tables.row_of(a_job(state=JobState.FINISHED, ended_at=at(n))) for n in range(MANY)]
            connection.execute(tables.jobs.insert(), ended)
        assert store.job("unknown") is None  # which opens the connection that single records are read with
        assert steps(store, lambda store: store.newest_excess_job(jobs=None, result_bytes=1)) < 50


def test_no_query_for_jobs_scans_the_table(sqlite_url: str) -> None:
    with closing(SqlMetadataStore(sqlite_url)) as store:
        for number in range(2):
            store.add_job(a_job(submitted_at=at(number)), config="{}")
        cursor = store.jobs(JobQuery(limit=1)).next
        seen: list[tuple[str, Any]] = []
        event.listen(
            store._database._engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, values, *_: seen.append((statement, values)),
        )
        for query in JOB_QUERIES:
            store.jobs(JobQuery(**{**query, "after": query["after"] and cursor}))
        selects = {statement: values for statement, values in seen if statement.startswith("SELECT")}
        assert len(selects) == len(JOB_QUERIES)
        with store._database.read() as connection:
            for statement, values in selects.items():
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
                scans = [step.detail for step in plan if "SCAN jobs" in step.detail]
                assert not scans, f"{scans}\n{statement}"


def test_a_page_of_jobs_reads_neither_configurations_nor_results(sqlite_url: str) -> None:
    with closing(SqlMetadataStore(sqlite_url)) as store:
        store.add_job(a_job(), config="{}")
        seen: list[str] = []
        event.listen(
            store._database._engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, *_: seen.append(statement),
        )
        assert len(store.jobs(JobQuery()).jobs) == 1
    assert len([statement for statement in seen if statement.startswith("SELECT")]) == 1
    assert not [s for s in seen if "job_configs" in s or "job_results" in s or "job_holds" in s]
