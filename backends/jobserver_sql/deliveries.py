"""Reads and writes of callback deliveries, inside a transaction of the caller."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Connection, bindparam, insert, or_, select

from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.lifecycle import DELIVERIES, DeliveryState
from jobserver_sql.statements import CompareAndSet, DriverConnection, Statement
from jobserver_sql.tables import columns_of, deliveries, read, values_of

_COLUMNS = columns_of(Delivery, deliveries)
_ALL = select(*_COLUMNS)
_AGE = (deliveries.c.created_at, deliveries.c.id)

by_id = Statement(_ALL.where(deliveries.c.id == bindparam("id")), ("id",), columns=_COLUMNS, make=Delivery)
"""The delivery with an id."""
advance = CompareAndSet(DELIVERIES, deliveries, _COLUMNS, by_id)
"""Writes a delivery, if its stored state is the expected one."""
_ADD = Statement[None](insert(deliveries), [column.name for column in _COLUMNS])


def add(connection: DriverConnection, delivery: Delivery) -> None:
    connection.run(_ADD, *values_of(delivery))


def of_job(connection: Connection, job_id: str) -> list[Delivery]:
    return read(connection, Delivery, _ALL.where(deliveries.c.job_id == job_id).order_by(*_AGE))


def in_state(
    connection: Connection, state: DeliveryState, limit: int, excluding: Iterable[str]
) -> list[Delivery]:
    statement = _ALL.where(deliveries.c.state == state)
    if left_out := list(excluding):
        statement = statement.where(or_(deliveries.c.owner.is_(None), deliveries.c.owner.not_in(left_out)))
    return read(connection, Delivery, statement.order_by(*_AGE).limit(limit))


def due(connection: Connection, now: datetime, limit: int, excluding: Iterable[str]) -> list[Delivery]:
    statement = _ALL.where(deliveries.c.state == DeliveryState.PENDING, deliveries.c.due_at <= now)
    if left_out := list(excluding):
        statement = statement.where(deliveries.c.receiver.not_in(left_out))
    return read(connection, Delivery, statement.order_by(deliveries.c.due_at, *_AGE).limit(limit))
