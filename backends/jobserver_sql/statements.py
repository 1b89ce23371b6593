"""Statements that run for every job: compiled once, then executed by the driver directly.

Theory
======

The problem: for a statement that SQLite executes in ten microseconds, SQLAlchemy spends ten times as much on
finding the compiled form, on its execution context, on events and on rows.

The idea: a hot statement is still a SQLAlchemy construct, so it names the tables and the types of the
columns like every other. But it is compiled once for each kind of database, to the driver's text, the order
of its parameters, and the conversions of its types. From then on :class:`DriverConnection` passes these to
the driver. Rare statements (lists, deletes, the schema) use SQLAlchemy's own execution.

The invariant: both ways convert a value by its column's type, so rows that one way writes can be read by the
other.

Deliberately not handled: statements whose text depends on their values, such as ``IN`` with a list. Constants
have to be literals (:func:`literal_states`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
from sqlalchemy import Column, Dialect, Select, Table, bindparam, literal_column, update
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement, ColumnElement
from sqlalchemy.types import TypeEngine

from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context
from jobserver_core.models.lifecycle import Lifecycle
from jobserver_sql.tables import values_of

if TYPE_CHECKING:
    import sqlite3

    import psycopg
    from psycopg.rows import TupleRow

    RawConnection = sqlite3.Connection | psycopg.Connection[TupleRow]

R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S", bound="Context | Delivery")

Encode = Callable[[Any], Any]
Decode = Callable[[Any], Any]


class Statement(Generic[R_co]):
    """A construct, the names of its parameters in the order of their values, and a factory for its rows.

    ``columns`` are those of the rows; ``make`` is called with their values by name.
    """

    def __init__(
        self,
        construct: ClauseElement,
        parameters: Iterable[str],
        *,
        columns: Sequence[Column[Any]] = (),
        make: Callable[..., R_co] | None = None,
    ) -> None:
        self._construct = construct
        self._parameters = list(parameters)
        self._columns = columns
        self._make = make
        self.on = functools.cache(self._compiled)
        """Returns the statement for one kind of database, by SQLAlchemy's name."""

    def _compiled(self, database: str) -> _Compiled[R_co]:
        dialect = _dialect(database)
        compiled = self._construct.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        names = compiled.positiontup or []
        return _Compiled(
            compiled.string,
            [(self._parameters.index(name), _encoder(compiled.binds[name].type, dialect)) for name in names],
            [(column.name, _decoder(column.type, dialect)) for column in self._columns],
            self._make,
        )


@attrs.frozen(eq=False)
class _Compiled(Generic[R_co]):
    text: str
    _slots: list[tuple[int, Encode | None]]
    _fields: list[tuple[str, Decode | None]]
    _make: Callable[..., R_co] | None

    def parameters(self, values: Sequence[object]) -> list[object]:
        """Return the driver's values, in the order of the parameters."""
        return [values[n] if code is None else code(values[n]) for n, code in self._slots]

    def record(self, row: Sequence[Any]) -> R_co:
        """Return the object made of a row."""
        assert self._make is not None
        fields = zip(self._fields, row, strict=True)
        return self._make(**{name: cell if code is None else code(cell) for (name, code), cell in fields})


class DriverConnection:
    """A driver's connection (of sqlite3 or psycopg) that executes hot statements."""

    def __init__(self, database: str, connection: RawConnection) -> None:
        self.database = database
        self.driver = connection

    def run(self, statement: Statement[object], *values: object) -> int:
        """Execute a statement that changes rows, and return their number."""
        compiled = statement.on(self.database)
        return self.driver.execute(compiled.text, compiled.parameters(values)).rowcount

    def row(self, statement: Statement[object], *values: object) -> Sequence[Any] | None:
        """Return the first row with the database's own values, or None."""
        compiled = statement.on(self.database)
        return self.driver.execute(compiled.text, compiled.parameters(values)).fetchone()

    def record(self, statement: Statement[R_co], *values: object) -> R_co | None:
        """Return the object made of the first row, or None."""
        compiled = statement.on(self.database)
        row = self.driver.execute(compiled.text, compiled.parameters(values)).fetchone()
        return None if row is None else compiled.record(row)


class CompareAndSet(Generic[S]):
    """Writes a whole record of a table, if its stored state and epoch are the expected ones.

    ``by_id`` reads the record, and ``columns`` are those that it has.
    """

    def __init__(
        self,
        lifecycle: Lifecycle[Any, Any],
        table: Table,
        columns: Sequence[Column[Any]],
        by_id: Statement[S],
    ) -> None:
        self._lifecycle = lifecycle
        self._by_id = by_id
        same = (
            table.c.id == bindparam("key"),
            table.c.state == bindparam("state", type_=table.c.state.type),
            table.c.epoch == bindparam("held"),
        )
        new = {column.name: bindparam(f"new_{column.name}", type_=column.type) for column in columns}
        names = (f"new_{name}" for name in new)
        self._write = Statement[None](
            update(table).where(*same).values(**new), ("key", "state", "held", *names)
        )

    def __call__(self, connection: DriverConnection, record: S, *, expected: Enum, epoch: int | None) -> None:
        """Write the record; ``epoch`` is the record's by default.

        Raises:
            StaleState: The stored state or epoch is not the expected one.
        """
        held = record.epoch if epoch is None else epoch
        if connection.run(self._write, record.id, expected, held, *values_of(record)) == 1:
            return
        stored = connection.record(self._by_id, record.id)
        raise self._lifecycle.stale(record.id, expected, None if stored is None else stored.state)


@functools.cache
def encode(columns: tuple[Column[Any], ...], database: str) -> Callable[[Sequence[object]], list[object]]:
    """Return a function that converts a value for each column to the database's own."""
    codes = [_encoder(column.type, _dialect(database)) for column in columns]

    def convert(values: Sequence[object]) -> list[object]:
        pairs = zip(codes, values, strict=True)
        return [value if code is None else code(value) for code, value in pairs]

    return convert


def first(query: Select[Any]) -> Select[Any]:
    """Return the query for its first row only. The limit is a literal, as every constant has to be."""
    return query.limit(literal_column("1")).offset(literal_column("0"))


def literal_states(column: Column[Any], states: Iterable[Enum]) -> ColumnElement[bool]:
    """Return the condition that a column is one of some states, written into the statement's text.

    A planner uses a partial index only for a condition that it can read.
    """
    return column.in_([literal_column(f"'{state.value}'") for state in states])


def _encoder(kind: TypeEngine[Any], dialect: Dialect) -> Encode | None:
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _decoder(kind: TypeEngine[Any], dialect: Dialect) -> Decode | None:
    return kind.dialect_impl(dialect).result_processor(dialect, None)


@functools.cache
def _dialect(database: str) -> Dialect:
    """Return a dialect that writes parameters by position."""
    if database == "sqlite":
        from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite  # noqa: PLC0415 - one of two

        return SQLiteDialect_pysqlite(paramstyle="qmark")
    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg  # noqa: PLC0415 - one of two

    made: Dialect = PGDialect_psycopg(paramstyle="format")  # type: ignore[no-untyped-call]  # theirs
    return made
