"""What is read and written about jobs, each inside a transaction of the caller's."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, exists, insert, select, update

from jobserver_core.errors import BinaryNotFound, DuplicateId, StaleState
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.jobs import Job, JobPage, JobProgress, JobQuery, JobResult
from jobserver_core.models.lifecycle import DELIVERIES, JOBS, JobState
from jobserver_core.models.pagination import decode_cursor, encode_cursor
from jobserver_sql import deliveries as delivery_rows
from jobserver_sql.pages import LIMIT, OFFSET, REACH, newest_first, state_parameter
from jobserver_sql.tables import (
    binaries,
    columns_of,
    deliveries,
    job_configs,
    job_holds,
    job_results,
    jobs,
    row_of,
)

__all__ = [
    "add",
    "advance",
    "advance_conflict",
    "by_id",
    "by_key",
    "config",
    "conflict",
    "page",
    "record_progress",
    "remove_ended",
    "result",
]

_COLUMNS = columns_of(Job, jobs)
_NAMES = tuple(column.name for column in _COLUMNS)
_BY_ID = select(*_COLUMNS).where(jobs.c.id == bindparam("id"))
_BY_KEY = select(*_COLUMNS).where(jobs.c.idempotency_key == bindparam("idempotency_key"))
_ADVANCE = update(jobs).where(
    jobs.c.id == bindparam("key"), jobs.c.state == bindparam("expected", type_=jobs.c.state.type)
)
_PROGRESS = update(jobs).where(jobs.c.id == bindparam("key"), jobs.c.state.in_(JOBS.live_states))
_HELD = (
    select(job_holds.c.position, job_holds.c.binary_id, job_holds.c.digest)
    .where(job_holds.c.job_id == bindparam("job_id"))
    .order_by(job_holds.c.position)
)
_RELEASE = delete(job_holds).where(job_holds.c.job_id == bindparam("job_id"))
_FORGET_RESULT = delete(job_results).where(job_results.c.job_id == bindparam("job_id"))
_FILTERS = ("context_id", "context_name", "class_name", "since", "until")
_CHUNK = 1000


# -- writing ---------------------------------------------------------------------------------------


def add(connection: Connection, job: Job, text: str) -> None:
    """Write a new job and its configuration. Raises BinaryNotFound.

    The versions in the class path are locked against deletion until the job holds them.
    """
    connection.execute(insert(jobs), row_of(job))
    connection.execute(insert(job_configs), {"job_id": job.id, "config": text})
    wanted = {entry.binary_id: entry.source for entry in job.class_path if entry.binary_id is not None}
    if wanted:
        chosen = select(binaries.c.id).where(binaries.c.id.in_(list(wanted))).order_by(binaries.c.id)
        there = set(connection.scalars(chosen.with_for_update(read=True, key_share=True)))
        for binary_id, source in wanted.items():
            if binary_id not in there:
                raise BinaryNotFound(name=source)
    _hold(connection, job)


def conflict(connection: Connection, job: Job) -> DuplicateId | None:
    """Return why a new job could not be written."""
    if connection.scalar(select(jobs.c.id).where(jobs.c.id == job.id)) is not None:
        return DuplicateId(kind="job", id=job.id, holder=job.id)
    return _key_conflict(connection, job)


def advance(
    connection: Connection,
    job: Job,
    expected: JobState,
    outcome: JobResult | None,
    delivery: Delivery | None,
) -> None:
    """Write a job if its stored state is the expected one, and what comes with it. Raises StaleState."""
    values: dict[str, Any] = {**row_of(job), "key": job.id, "expected": expected}
    if job.progress is None:
        del values["progress"]
    if connection.execute(_ADVANCE, values).rowcount != 1:
        raise _stale(connection, job, expected)
    _hold_anew(connection, job)
    if outcome is not None:
        connection.execute(_FORGET_RESULT, {"job_id": job.id})
        connection.execute(insert(job_results), {**row_of(outcome), "job_id": job.id})
    if delivery is not None:
        connection.execute(insert(deliveries), row_of(delivery))


def advance_conflict(connection: Connection, job: Job, delivery: Delivery | None) -> DuplicateId | None:
    """Return why an advance could not be written, other than by the job's state."""
    if delivery is not None and delivery_rows.by_id(connection, delivery.id) is not None:
        return DuplicateId(kind=DELIVERIES.kind, id=delivery.id, holder=delivery.id)
    return _key_conflict(connection, job)


def _key_conflict(connection: Connection, job: Job) -> DuplicateId | None:
    key = job.idempotency_key
    holder = None if key is None else by_key(connection, key)
    if holder is None or holder.id == job.id:
        return None
    return DuplicateId(kind="idempotency key", id=key, holder=holder.id)


def _hold(connection: Connection, job: Job) -> None:
    if rows := _holds(job):
        names = ("position", "binary_id", "digest")
        connection.execute(
            insert(job_holds), [{"job_id": job.id, **dict(zip(names, row, strict=True))} for row in rows]
        )


def _hold_anew(connection: Connection, job: Job) -> None:
    """Write what a job holds, unless that is what is stored: nearly always reading is all there is to do."""
    if [tuple(row) for row in connection.execute(_HELD, {"job_id": job.id})] != _holds(job):
        connection.execute(_RELEASE, {"job_id": job.id})
        _hold(connection, job)


def _holds(job: Job) -> list[tuple[int, str | None, str]]:
    """Return what a job keeps from being deleted: nothing once it is final."""
    entries = () if job.state.final else job.class_path
    return [(position, entry.binary_id, entry.digest) for position, entry in enumerate(entries)]


def _stale(connection: Connection, job: Job, expected: JobState) -> StaleState:
    found = connection.scalar(select(jobs.c.state).where(jobs.c.id == job.id))
    name = None if found is None else found.value
    return StaleState(kind=JOBS.kind, id=job.id, expected=expected.value, found=name)


def record_progress(connection: Connection, job_id: str, progress: JobProgress) -> None:
    """Write how far a job is, if it is not final."""
    connection.execute(_PROGRESS, {"key": job_id, "progress": progress})


def remove_ended(connection: Connection, ended_before: datetime, limit: int) -> int:
    """Delete final jobs that ended before a time, oldest first; return how many.

    They are locked before it is asked again which of them wait for a delivery: one that was
    recorded since the first look keeps its job. "Not live" rather than "final" keeps the
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


def _undelivered() -> Any:
    waiting = deliveries.c.state.in_(DELIVERIES.live_states)
    return exists().where(deliveries.c.job_id == jobs.c.id, waiting)


# -- reading ---------------------------------------------------------------------------------------


def by_id(connection: Connection, job_id: str) -> Job | None:
    """Return a job by its id."""
    row = connection.execute(_BY_ID, {"id": job_id}).first()
    return None if row is None else Job(**row._mapping)


def by_key(connection: Connection, idempotency_key: str) -> Job | None:
    """Return the job that has an idempotency key."""
    row = connection.execute(_BY_KEY, {"idempotency_key": idempotency_key}).first()
    return None if row is None else Job(**row._mapping)


def config(connection: Connection, job_id: str) -> str | None:
    """Return a job's configuration."""
    return connection.scalar(select(job_configs.c.config).where(job_configs.c.job_id == job_id))


def result(connection: Connection, job_id: str) -> JobResult | None:
    """Return where a job's result is."""
    columns = columns_of(JobResult, job_results)
    row = connection.execute(select(*columns).where(job_results.c.job_id == job_id)).first()
    return None if row is None else JobResult(**row._mapping)


def page(connection: Connection, query: JobQuery) -> JobPage:
    """Return one page of jobs. Raises InvalidRequest for a cursor that is none."""
    states = tuple(JobState) if query.states is None else tuple(dict.fromkeys(query.states))
    filters = {name: value for name in _FILTERS if (value := getattr(query, name)) is not None}
    names, values = tuple(filters), dict[str, Any](filters)
    if query.after is not None:
        values["after_0"], values["after_1"] = decode_cursor(query.after)
        names += ("after",)
    if not states or not query.limit:
        return JobPage(jobs=())
    values |= {state_parameter(number): state for number, state in enumerate(states)}
    values |= {LIMIT: query.limit + 1, OFFSET: query.offset, REACH: query.offset + query.limit + 1}
    statement = newest_first(jobs, _NAMES, ("submitted_at", "id"), len(states), names)
    found = [Job(**row._mapping) for row in connection.execute(statement, values)]
    shown = tuple(found[: query.limit])
    return JobPage(jobs=shown, next=encode_cursor(shown[-1]) if len(found) > len(shown) else None)
