"""Reads and writes of contexts, inside a transaction of the caller."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, exists, insert, select

from jobserver_core.errors import ContextExists, DuplicateId, JobServerError
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.lifecycle import CONTEXTS, ContextState
from jobserver_sql.pages import END, LIMIT, OFFSET, newest_first, state_parameter
from jobserver_sql.statements import CompareAndSet, DriverConnection, Statement, first, literal_states
from jobserver_sql.tables import columns_of, contexts, jobs, read, values_of

_COLUMNS = columns_of(Context, contexts)
_NAMES = tuple(column.name for column in _COLUMNS)

_LIVE = literal_states(contexts.c.state, CONTEXTS.live_states)
_OF_NAME = select(*_COLUMNS).where(contexts.c.name == bindparam("name"))


def _made_by(query: Select[Any], parameter: str) -> Statement[Context]:
    return Statement(query, (parameter,), columns=_COLUMNS, make=Context)


by_id = _made_by(select(*_COLUMNS).where(contexts.c.id == bindparam("id")), "id")
"""The context with an id."""
live_of = _made_by(first(_OF_NAME.where(_LIVE)), "name")
"""The only context of a name that is not final."""
newest_of = _made_by(first(_OF_NAME.order_by(contexts.c.started_at.desc(), contexts.c.seq.desc())), "name")
"""The newest context of a name."""
advance = CompareAndSet(CONTEXTS, contexts, _COLUMNS, by_id)
"""Writes a context, if its stored state is the expected one."""
_ADD = Statement[None](insert(contexts).values({name: bindparam(name) for name in _NAMES}), _NAMES)
_RIVAL = Statement[None](
    first(_OF_NAME.where(contexts.c.id != bindparam("own"), _LIVE).with_only_columns(contexts.c.seq)),
    ("name", "own"),
)
_EVERYTHING = 2**62
"""More contexts than any table has: the statement of a page always has a limit."""


def add(connection: DriverConnection, context: Context) -> None:
    """Write a new context; the index of live names refuses a second one."""
    connection.run(_ADD, *values_of(context))


def conflict(connection: DriverConnection, context: Context, *, new: bool) -> JobServerError | None:
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
    return read(connection, Context, statement, values)


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
