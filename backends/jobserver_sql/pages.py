"""Pages of records, newest first, at a cost that is independent of the number of records.

A page is read in two steps of one statement. For each wanted state, the keys of its newest
records are read from an index that begins with the filtered columns, then the state, then the
order; so no step reads more keys than a page holds, regardless of the planner's statistics.
The few keys left after merging fetch the records.
"""

from __future__ import annotations

import functools
from typing import Any

from sqlalchemy import FromClause, Select, Table, bindparam, select, tuple_, union_all
from sqlalchemy.sql.elements import ColumnElement

LIMIT, OFFSET, END = "page_limit", "page_offset", "page_end"
"""Names of the parameters: records on the page, records to skip, and the sum of both."""


def state_parameter(number: int) -> str:
    """Return the name of the parameter of one wanted state."""
    return f"page_state_{number}"


@functools.lru_cache(maxsize=1024)
def newest_first(
    table: Table, columns: tuple[str, ...], order: tuple[str, str], states: int, filters: tuple[str, ...]
) -> Select[Any]:
    """Return the statement of a page: ``columns`` of a table, by ``order`` descending.

    The second of ``order`` is unique. ``states`` is the number of wanted states; ``filters`` are
    names of columns, or ``since``, ``until`` (the first of ``order``) and ``after`` (both of it,
    as ``after_0`` and ``after_1``). Every value is a parameter of that name.
    """
    branches = [_keys(table, order, number, filters) for number in range(states)]
    merged = union_all(*branches).subquery()
    keys = _descending(select(merged.c[1]), merged, order).limit(bindparam(LIMIT)).offset(bindparam(OFFSET))
    wanted = select(*(table.c[name] for name in columns)).where(table.c[order[1]].in_(keys))
    return _descending(wanted, table, order)


def _keys(table: Table, order: tuple[str, str], number: int, filters: tuple[str, ...]) -> Select[Any]:
    keys = select(table.c[order[0]], table.c[order[1]])
    keys = keys.where(table.c.state == bindparam(state_parameter(number), type_=table.c.state.type))
    keys = keys.where(*(_condition(table, order, name) for name in filters))
    limited = _descending(keys, table, order).limit(bindparam(END)).subquery()
    return select(limited.c[0], limited.c[1])


def _descending(statement: Select[Any], source: FromClause, order: tuple[str, str]) -> Select[Any]:
    return statement.order_by(source.c[order[0]].desc(), source.c[order[1]].desc())


def _condition(table: Table, order: tuple[str, str], name: str) -> ColumnElement[bool]:
    if name == "after":
        position = [bindparam(f"{name}_{n}", type_=table.c[column].type) for n, column in enumerate(order)]
        return tuple_(*(table.c[column] for column in order)) < tuple_(*position)
    column = table.c[order[0] if name in ("since", "until") else name]
    value = bindparam(name, type_=column.type)
    return column >= value if name == "since" else column < value if name == "until" else column == value
