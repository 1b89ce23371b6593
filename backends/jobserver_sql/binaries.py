"""Reads and writes of binaries, inside a transaction of the caller."""

from __future__ import annotations

import functools
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, insert, select, tuple_

from jobserver_core.errors import BinaryInUse, BinaryNotFound, DuplicateId
from jobserver_core.models.binaries import Binary
from jobserver_sql.statements import DriverConnection, Statement, first
from jobserver_sql.tables import binaries, columns_of, job_holds, jobs, read, values_of

_COLUMNS = columns_of(Binary, binaries)
_NAMES = tuple(column.name for column in _COLUMNS)
_VERSIONS = select(*_COLUMNS).order_by(binaries.c.uploaded_at.desc(), binaries.c.seq.desc())


newest = Statement(
    first(_VERSIONS.where(binaries.c.name == bindparam("name"))), ("name",), columns=_COLUMNS, make=Binary
)
"""The newest version of a name."""
_ADD = Statement[None](insert(binaries).values({name: bindparam(name) for name in _NAMES}), _NAMES)
_KNOWN = Statement[None](select(binaries.c.seq).where(binaries.c.id == bindparam("id")), ("id",))


def add(connection: DriverConnection, binary: Binary) -> None:
    connection.run(_ADD, *values_of(binary))


def conflict(connection: DriverConnection, binary: Binary) -> DuplicateId | None:
    known = connection.row(_KNOWN, binary.id)
    return None if known is None else DuplicateId(kind="binary", id=binary.id, holder=binary.id)


def versions(connection: Connection, name: str) -> list[Binary]:
    return read(connection, Binary, _VERSIONS.where(binaries.c.name == name))


def newest_of_all(connection: Connection) -> list[Binary]:
    return read(connection, Binary, _newest_of_all())


@functools.cache
def _newest_of_all() -> Select[Any]:
    """Skip from name to name along the index, so that many versions of few names cost little."""
    names = select(func.min(binaries.c.name).label("name")).cte("names", recursive=True)
    following = select(func.min(binaries.c.name)).where(binaries.c.name > names.c.name).scalar_subquery()
    names = names.union_all(select(following).where(names.c.name.is_not(None)))
    newest_seq = (
        select(binaries.c.seq)
        .where(binaries.c.name == names.c.name)
        .order_by(binaries.c.uploaded_at.desc(), binaries.c.seq.desc())
        .limit(1)
        .scalar_subquery()
    )
    chosen = select(newest_seq.label("seq")).where(names.c.name.is_not(None))
    return select(*_COLUMNS).where(binaries.c.seq.in_(chosen)).order_by(binaries.c.name)


def remove(connection: Connection, name: str) -> list[Binary]:
    """Delete every version of a name and return them.

    The versions are locked first: a job that is added at the same time has either committed its
    reference to them, or waits and finds them removed.

    Raises:
        BinaryNotFound: No binary has this name.
        BinaryInUse: Jobs that have not ended use it.
    """
    chosen = select(binaries.c.id).where(binaries.c.name == name).order_by(binaries.c.id).with_for_update()
    ids = list(connection.scalars(chosen))
    if not ids:
        raise BinaryNotFound(name=name)
    users = (
        select(jobs.c.id)
        .where(jobs.c.id.in_(select(job_holds.c.job_id).where(job_holds.c.binary_id.in_(ids))))
        .order_by(jobs.c.submitted_at, jobs.c.id)
    )
    if job_ids := tuple(connection.scalars(users)):
        raise BinaryInUse(name=name, job_ids=job_ids)
    removed = read(connection, Binary, _VERSIONS.where(binaries.c.id.in_(ids)))
    connection.execute(delete(binaries).where(binaries.c.id.in_(ids)))
    return removed


def remove_old(connection: Connection, uploaded_before: datetime, keep: int, limit: int) -> list[Binary]:
    """Delete versions uploaded before a time, except the newest of each name and those in use; return them.

    They are locked before checking again which of them are in use, as in :func:`remove`.
    """
    newer = binaries.alias("newer")
    enough_newer = (
        select(newer.c.seq)
        .where(newer.c.name == binaries.c.name)
        .where(tuple_(newer.c.uploaded_at, newer.c.seq) > tuple_(binaries.c.uploaded_at, binaries.c.seq))
        .correlate(binaries)
        .limit(1)
        .offset(keep - 1)
        .exists()
    )
    in_use = binaries.c.id.in_(select(job_holds.c.binary_id).where(job_holds.c.binary_id.is_not(None)))
    chosen = (
        select(binaries.c.id)
        .where(binaries.c.uploaded_at < uploaded_before, enough_newer, ~in_use)
        .order_by(binaries.c.uploaded_at, binaries.c.seq)
        .limit(limit)
        .with_for_update(of=binaries)
    )
    ids = list(connection.scalars(chosen))
    oldest_first = select(*_COLUMNS).order_by(binaries.c.uploaded_at, binaries.c.seq)
    removed = read(connection, Binary, oldest_first.where(binaries.c.id.in_(ids), ~in_use))
    connection.execute(delete(binaries).where(binaries.c.id.in_([binary.id for binary in removed])))
    return removed
