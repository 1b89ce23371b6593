"""Reads and writes of contexts, inside a transaction of the caller."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, exists, insert, literal_column, select

from jobserver_core.errors import ContextExists, DuplicateId, JobServerError
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.lifecycle import CONTEXTS, ContextState
from jobserver_sql.pages import END, LIMIT, OFFSET, newest_first, state_parameter
from jobserver_sql.statements import CompareAndSet, DriverConnection, Statement, literal_states
from jobserver_sql.tables import columns_of, contexts, jobs, values_of

_COLUMNS = columns_of(Context, contexts)
_NAMES = tuple(column.name for column in _COLUMNS)

by_id = Statement(
    select(*_COLUMNS).where(contexts.c.id == bindparam("id")), ("id",), columns=_COLUMNS, make=Context
)
"""The context with an id."""
live_of = Statement(
    select(*_COLUMNS)
    .where(contexts.c.name == bindparam("name"), literal_states(contexts.c.state, CONTEXTS.live_states))
    .limit(literal_column("1"))
    .offset(literal_column("0")),
    ("name",),
    columns=_COLUMNS,
    make=Context,
)
"""The only context of a name that is not final."""
newest_of = Statement(
    select(*_COLUMNS)
    .where(contexts.c.name == bindparam("name"))
    .order_by(contexts.c.started_at.desc(), contexts.c.seq.desc())
    .limit(literal_column("1"))
    .offset(literal_column("0")),
    ("name",),
    columns=_COLUMNS,
    make=Context,
)
"""The newest context of a name."""
advance = CompareAndSet(CONTEXTS, contexts, _COLUMNS, by_id)
"""Writes a context, if its stored state is the expected one."""
_ADD = Statement[None](insert(contexts).values({name: bindparam(name) for name in _NAMES}), _NAMES)
_RIVAL = Statement[None](
    select(contexts.c.seq)
    .where(
        contexts.c.name == bindparam("name"),
        contexts.c.id != bindparam("own"),
        literal_states(contexts.c.state, CONTEXTS.live_states),
    )
    .limit(literal_column("1"))
    .offset(literal_column("0")),
    ("name", "own"),
)
_EVERYTHING = 2**62


def add(connection: DriverConnection, context: Context) -> None:
    """Write a new context; the index of live names refuses a second one."""
    connection.run(_ADD, *values_of(context))


def replace(
    connection: DriverConnection,
    context: Context,
    *,
    expected: ContextState,
    epoch: int | None,
    successor: Context,
) -> None:
    """Write a context that has ended, and the new one that takes its name. Raises StaleState."""
    advance(connection, context, expected=expected, epoch=epoch)
    add(connection, successor)


def conflict(connection: DriverConnection, context: Context, *, new: bool) -> JobServerError | None:
    """Return why a context could not be written."""
    if new and connection.row(by_id, context.id) is not None:
        return DuplicateId(kind="context", id=context.id, holder=context.id)
    rival = connection.row(_RIVAL, context.name, context.id)
    return None if rival is None else ContextExists(name=context.name)


def selected(connection: Connection, query: ContextQuery) -> list[Context]:
    states = tuple(ContextState) if query.states is None else tuple(dict.fromkeys(query.states))
    if not states:
        return []
    filters = {name: value for name in ("name", "owner") if (value := getattr(query, name)) is not None}
    statement = newest_first(contexts, _NAMES, ("started_at", "seq"), len(states), tuple(filters))
    limit = _EVERYTHING if query.limit is None else query.limit
    values: dict[str, object] = {state_parameter(number): state for number, state in enumerate(states)}
    values |= filters | {LIMIT: limit, OFFSET: 0, END: limit}
    return [Context(**row._mapping) for row in connection.execute(statement, values)]


def remove_ended(connection: Connection, ended_before: datetime, limit: int) -> list[str]:
    """Delete final contexts that ended before a time and that no job refers to, oldest first.

    A final context gets no new jobs, so the rows read here stay valid until the context is deleted.
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
