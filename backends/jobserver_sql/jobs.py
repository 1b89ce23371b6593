"""Reads and writes of jobs, inside a transaction of the caller."""

from __future__ import annotations

import functools
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    text,
    update,
)

from jobserver_core.errors import BinaryNotFound, ContextNotFound, ContextStopping, DuplicateId, ServerClosed
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.jobs import (
    Job,
    JobPage,
    JobProgress,
    JobQuery,
    JobResult,
    QueueLimits,
    decode_cursor,
)
from jobserver_core.models.lifecycle import CONTEXTS, DELIVERIES, JOBS, ContextState, JobState
from jobserver_core.models.storage import MetadataUsage
from jobserver_sql import deliveries as delivery_rows
from jobserver_sql.pages import END, LIMIT, OFFSET, newest_first, state_parameter
from jobserver_sql.statements import DriverConnection, Statement, encode, literal_states
from jobserver_sql.tables import (
    binaries,
    columns_of,
    contexts,
    deliveries,
    job_configs,
    job_holds,
    job_results,
    jobs,
    read,
    servers,
    values_of,
)

_COLUMNS = tuple(columns_of(Job, jobs))
_NAMES = tuple(column.name for column in _COLUMNS)
_STATE, _CLASS_PATH, _PROGRESS, _EPOCH = (
    _NAMES.index(name) for name in ("state", "class_path", "progress", "epoch")
)
_FINAL = {state.value for state in JobState if state.final}
_RESULT_NAMES = ("job_id", *(column.name for column in columns_of(JobResult, job_results)))

_ADD = Statement[None](insert(jobs), _NAMES)
_ADD_CONFIG = Statement[None](insert(job_configs), ("job_id", "config"))
_ADD_HOLD = Statement[None](insert(job_holds), ("job_id", "position", "binary_id", "digest"))
_RELEASE = Statement[None](delete(job_holds).where(job_holds.c.job_id == bindparam("job_id")), ("job_id",))
_LOCK_BINARY = Statement[None](
    select(binaries.c.id).where(binaries.c.id == bindparam("id")).with_for_update(read=True, key_share=True),
    ("id",),
)
_LOCK_CONTEXT = Statement[None](
    select(contexts.c.state, contexts.c.stop_requested, contexts.c.owner)
    .where(contexts.c.id == bindparam("id"))
    .with_for_update(),
    ("id",),
)
_DRAINING = Statement[None](
    select(servers.c.id).where(servers.c.id == bindparam("id"), servers.c.draining), ("id",)
)
_QUEUE = Statement[None](
    select(
        func.count(),
        func.count(jobs.c.dispatched_at),
        func.count().filter(jobs.c.dispatched_at.is_(None), jobs.c.submitted_by == bindparam("user")),
    ).where(jobs.c.context_id == bindparam("context_id"), literal_states(jobs.c.state, JOBS.live_states)),
    ("context_id", "user"),
)
_STORED = Statement[None](select(*_COLUMNS).where(jobs.c.id == bindparam("id")).with_for_update(), ("id",))
_upsert = text(
    f"INSERT INTO job_results ({', '.join(_RESULT_NAMES)})"  # noqa: S608 - names of our columns
    f" VALUES ({', '.join(f':{name}' for name in _RESULT_NAMES)}) ON CONFLICT (job_id) DO UPDATE"
    f" SET {', '.join(f'{name} = excluded.{name}' for name in _RESULT_NAMES[1:])}"
).bindparams(*(bindparam(name, type_=job_results.c[name].type) for name in _RESULT_NAMES))
_SET_RESULT = Statement[None](_upsert, _RESULT_NAMES)
_SET_PROGRESS = Statement[None](
    update(jobs)
    .where(jobs.c.id == bindparam("key"), literal_states(jobs.c.state, JOBS.live_states))
    .values(progress=bindparam("progress", type_=jobs.c.progress.type)),
    ("key", "progress"),
)


def _job_with(name: str) -> Statement[Job]:
    """Return the statement for the job with a value of a unique column."""
    query = select(*_COLUMNS).where(jobs.c[name] == bindparam(name))
    return Statement(query, (name,), columns=_COLUMNS, make=Job)


by_id = _job_with("id")
by_key = _job_with("idempotency_key")
config = Statement[str](
    select(job_configs.c.config).where(job_configs.c.job_id == bindparam("job_id")),
    ("job_id",),
    columns=(job_configs.c.config,),
    make=lambda config: config,
)
result = Statement[JobResult](
    select(*columns_of(JobResult, job_results)).where(job_results.c.job_id == bindparam("job_id")),
    ("job_id",),
    columns=columns_of(JobResult, job_results),
    make=JobResult,
)

_FILTERS = ("context_id", "context_name", "class_name", "since", "until")
_CHUNK = 1000
"""The most IDs in one statement: SQLite and PostgreSQL allow more than 30,000 parameters."""


# -- writing ---------------------------------------------------------------------------------------


def add(connection: DriverConnection, job: Job, text: str) -> None:
    """Write a new job and its configuration.

    The versions in the class path are locked against deletion until the job refers to them.

    Raises:
        BinaryNotFound: A version in its class path no longer exists.
    """
    connection.run(_ADD, *values_of(job))
    connection.run(_ADD_CONFIG, job.id, text)
    wanted = {entry.binary_id: entry.source for entry in job.class_path if entry.binary_id is not None}
    for binary_id in sorted(wanted):
        if connection.row(_LOCK_BINARY, binary_id) is None:
            raise BinaryNotFound(name=wanted[binary_id])
    _hold(connection, job)


def enqueue(connection: DriverConnection, job: Job, text: str, limits: QueueLimits) -> None:
    """Write a new job as :func:`add` does, if its context accepts jobs and has room.

    The lock on the context's row lets one job at a time count the others, and no change of the context's
    state come in between.
    """
    found = connection.row(_LOCK_CONTEXT, job.context_id)
    if found is None or CONTEXTS.final(ContextState(found[0])):
        raise ContextNotFound(name=job.context_name)
    if found[0] == ContextState.STOPPING.value or found[1]:
        raise ContextStopping(name=job.context_name)
    if connection.row(_DRAINING, found[2]) is not None:
        raise ServerClosed()
    live, running, of_user = connection.row(_QUEUE, job.context_id, job.submitted_by) or (0, 0, 0)
    name, user, waiting = job.context_name, job.submitted_by, live - running
    limits.check(name, user, running=running, waiting=waiting, waiting_of_user=of_user)
    add(connection, job, text)


def conflict(connection: DriverConnection, job: Job) -> DuplicateId | None:
    if connection.row(by_id, job.id) is not None:
        return DuplicateId(kind="job", id=job.id, holder=job.id)
    return _key_conflict(connection, job)


def advance(
    connection: DriverConnection,
    job: Job,
    *,
    expected: JobState,
    epoch: int | None,
    outcome: JobResult | None,
    delivery: Delivery | None,
) -> None:
    """Write a job, its result and its delivery if its stored state and epoch are the expected ones.

    Only the columns that differ are written: setting a column updates its indexes even if its value stays the
    same.

    Raises:
        StaleState: The stored state or epoch is another one.
    """
    stored = connection.row(_STORED, job.id)
    held = job.epoch if epoch is None else epoch
    if stored is None or stored[_STATE] != expected.value or stored[_EPOCH] != held:
        raise JOBS.stale(job.id, expected, None if stored is None else JobState(stored[_STATE]))
    row = encode(_COLUMNS, connection.database)(values_of(job))
    if job.progress is None:
        row[_PROGRESS] = stored[_PROGRESS]
    changed = tuple(n for n, cell in enumerate(row) if cell != stored[n])
    if changed:
        connection.run(_set(changed), job.id, *(getattr(job, _NAMES[n]) for n in changed))
    before, after = (None if cells[_STATE] in _FINAL else cells[_CLASS_PATH] for cells in (stored, row))
    if before != after:
        connection.run(_RELEASE, job.id)
        _hold(connection, job)
    if outcome is not None:
        connection.run(_SET_RESULT, job.id, *values_of(outcome))
    if delivery is not None:
        delivery_rows.add(connection, delivery)


@functools.cache
def _set(changed: tuple[int, ...]) -> Statement[None]:
    new = {_NAMES[n]: bindparam(f"new_{_NAMES[n]}", type_=_COLUMNS[n].type) for n in changed}
    statement = update(jobs).where(jobs.c.id == bindparam("key")).values(**new)
    return Statement(statement, ("key", *(f"new_{name}" for name in new)))


def advance_conflict(connection: DriverConnection, job: Job, delivery: Delivery | None) -> DuplicateId | None:
    """Return why an advance could not be written, other than by the job's state."""
    if delivery is not None and connection.row(delivery_rows.by_id, delivery.id) is not None:
        return DuplicateId(kind=DELIVERIES.kind, id=delivery.id, holder=delivery.id)
    return _key_conflict(connection, job)


def _key_conflict(connection: DriverConnection, job: Job) -> DuplicateId | None:
    key = job.idempotency_key
    holder = None if key is None else connection.record(by_key, key)
    if holder is None or holder.id == job.id:
        return None
    return DuplicateId(kind="idempotency key", id=key, holder=holder.id)


def _hold(connection: DriverConnection, job: Job) -> None:
    """Write the binaries that a job protects from deletion: none once it is final."""
    for position, entry in enumerate(() if job.state.final else job.class_path):
        connection.run(_ADD_HOLD, job.id, position, entry.binary_id, entry.digest)


def record_progress(connection: DriverConnection, job_id: str, progress: JobProgress) -> None:
    connection.run(_SET_PROGRESS, job_id, progress)


def remove_ended(connection: Connection, ended_before: datetime, limit: int) -> int:
    """Delete final jobs that ended before a time, oldest first; return how many.

    They are locked before checking again which of them wait for a delivery: one that was
    recorded since the first check keeps its job. "Not live" rather than "final" keeps the
    planner on the index of times, where the index of states has nearly every job.
    """
    chosen = (
        select(jobs.c.id)
        .where(jobs.c.ended_at < ended_before, jobs.c.state.not_in(JOBS.live_states), ~_undelivered())
        .order_by(jobs.c.ended_at, jobs.c.submitted_at, jobs.c.id)
        .limit(limit)
        .with_for_update()
    )
    ids = list(connection.scalars(chosen))
    removed = 0
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        free = list(connection.scalars(select(jobs.c.id).where(jobs.c.id.in_(part), ~_undelivered())))
        connection.execute(delete(jobs).where(jobs.c.id.in_(free)))
        for table in (job_configs, job_results, deliveries):
            connection.execute(delete(table).where(table.c.job_id.in_(free)))
        removed += len(free)
    return removed


def newest_excess(connection: Connection, keep: int | None, result_bytes: int | None) -> datetime | None:
    """Return the end of the newest job beyond a limit; jobs are read only if all results are too large."""
    ended = jobs.c.ended_at.is_not(None) & jobs.c.state.not_in(JOBS.live_states)
    found: list[datetime] = []
    if keep is not None:
        beyond = select(jobs.c.ended_at).where(ended).order_by(jobs.c.ended_at.desc()).offset(keep).limit(1)
        found += connection.scalars(beyond)
    stored = func.sum(job_results.c.size)
    if result_bytes is not None and (connection.scalar(select(stored)) or 0) > result_bytes:
        total = stored.over(order_by=jobs.c.ended_at.desc())
        sizes = (
            select(jobs.c.ended_at, total.label("total"))
            .join(job_results, job_results.c.job_id == jobs.c.id)
            .where(ended, job_results.c.size > 0)
            .subquery()
        )
        beyond = select(sizes.c.ended_at).where(sizes.c.total > result_bytes)
        found += connection.scalars(beyond.order_by(sizes.c.ended_at.desc()).limit(1))
    return max(found, default=None)


def _undelivered() -> ColumnElement[bool]:
    waiting = deliveries.c.state.in_(DELIVERIES.live_states)
    return exists().where(deliveries.c.job_id == jobs.c.id, waiting)


def usage(connection: Connection) -> MetadataUsage:
    tables = {"contexts": contexts, "jobs": jobs, "deliveries": deliveries}
    tables |= {"binaries": binaries, "results": job_results}
    queries = {name: select(func.count()).select_from(table) for name, table in tables.items()}
    sized = {"binary_bytes": binaries, "result_bytes": job_results}
    queries |= {name: select(func.sum(table.c.size)) for name, table in sized.items()}
    return MetadataUsage(**{name: int(connection.scalar(query) or 0) for name, query in queries.items()})


# -- reading ---------------------------------------------------------------------------------------


def page(connection: Connection, query: JobQuery) -> JobPage:
    states = tuple(JobState) if query.states is None else tuple(dict.fromkeys(query.states))
    filters = {name: value for name in _FILTERS if (value := getattr(query, name)) is not None}
    names, values = tuple(filters), dict[str, object](filters)
    if query.after is not None:
        values["after_0"], values["after_1"] = decode_cursor(query.after)
        names += ("after",)
    if not states or not query.limit:
        return JobPage(jobs=())
    values |= {state_parameter(number): state for number, state in enumerate(states)}
    values |= {LIMIT: query.limit + 1, OFFSET: query.offset, END: query.offset + query.limit + 1}
    statement = newest_first(jobs, _NAMES, ("submitted_at", "id"), len(states), names)
    return JobPage.of(read(connection, Job, statement, values), query.limit)
