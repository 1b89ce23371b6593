"""What is read and written about contexts, each inside a transaction of the caller's."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, exists, insert, select, update

from jobserver_core.errors import ContextExists, DuplicateId, JobServerError, StaleState
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.lifecycle import CONTEXTS, ContextState
from jobserver_sql.pages import LIMIT, OFFSET, REACH, newest_first, state_parameter
from jobserver_sql.tables import columns_of, contexts, jobs, row_of

__all__ = ["add", "advance", "by_id", "conflict", "newest_of", "remove_ended", "selected"]

_COLUMNS = columns_of(Context, contexts)
_NAMES = tuple(column.name for column in _COLUMNS)
_BY_ID = select(*_COLUMNS).where(contexts.c.id == bindparam("id"))
_NEWEST_OF = (
    select(*_COLUMNS)
    .where(contexts.c.name == bindparam("name"))
    .order_by(contexts.c.started_at.desc(), contexts.c.seq.desc())
    .limit(1)
)
_ADVANCE = update(contexts).where(
    contexts.c.id == bindparam("key"),
    contexts.c.state == bindparam("expected", type_=contexts.c.state.type),
)
_EVERYTHING = 2**62


def add(connection: Connection, context: Context) -> None:
    """Write a new context; the index of live names refuses a second one."""
    connection.execute(insert(contexts), row_of(context))


def conflict(connection: Connection, context: Context, *, new: bool) -> JobServerError | None:
    """Return why a context could not be written."""
    if new and by_id(connection, context.id):
        return DuplicateId(kind="context", id=context.id, holder=context.id)
    rivals = select(contexts.c.seq).where(
        contexts.c.name == context.name,
        contexts.c.id != context.id,
        contexts.c.state.in_(CONTEXTS.live_states),
    )
    return ContextExists(name=context.name) if connection.scalar(rivals.limit(1)) is not None else None


def by_id(connection: Connection, context_id: str) -> Context | None:
    """Return a context by its id."""
    row = connection.execute(_BY_ID, {"id": context_id}).first()
    return None if row is None else Context(**row._mapping)


def newest_of(connection: Connection, name: str) -> Context | None:
    """Return the newest context of a name."""
    row = connection.execute(_NEWEST_OF, {"name": name}).first()
    return None if row is None else Context(**row._mapping)


def selected(connection: Connection, query: ContextQuery) -> list[Context]:
    """Return the contexts that a query selects, newest first."""
    states = tuple(ContextState) if query.states is None else tuple(dict.fromkeys(query.states))
    if not states:
        return []
    filters = {name: value for name in ("name", "owner") if (value := getattr(query, name)) is not None}
    statement = newest_first(contexts, _NAMES, ("started_at", "seq"), len(states), tuple(filters))
    limit = _EVERYTHING if query.limit is None else query.limit
    values: dict[str, Any] = {state_parameter(number): state for number, state in enumerate(states)}
    values |= filters | {LIMIT: limit, OFFSET: 0, REACH: limit}
    return [Context(**row._mapping) for row in connection.execute(statement, values)]


def advance(connection: Connection, context: Context, expected: ContextState) -> None:
    """Write a context if its stored state is the expected one. Raises StaleState."""
    values = {**row_of(context), "key": context.id, "expected": expected}
    if connection.execute(_ADVANCE, values).rowcount != 1:
        found = connection.scalar(select(contexts.c.state).where(contexts.c.id == context.id))
        raise StaleState(
            kind=CONTEXTS.kind,
            id=context.id,
            expected=expected.value,
            found=None if found is None else found.value,
        )


def remove_ended(connection: Connection, ended_before: datetime, limit: int) -> list[str]:
    """Delete final contexts that ended before a time and that no job refers to, oldest first.

    A final context is given to no new job, so what is read here stays true until it is deleted.
    """
    chosen = (
        select(contexts.c.id)
        .where(
            contexts.c.ended_at < ended_before,
            contexts.c.state.not_in(CONTEXTS.live_states),
            ~exists().where(jobs.c.context_id == contexts.c.id),
        )
        .order_by(contexts.c.ended_at, contexts.c.seq)
        .limit(limit)
        .with_for_update()
    )
    ids = list(connection.scalars(chosen))
    connection.execute(delete(contexts).where(contexts.c.id.in_(ids)))
    return ids
