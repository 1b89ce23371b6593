"""What is read and written about callback deliveries, each inside a transaction of the caller's."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select, update

from jobserver_core.errors import StaleState
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.lifecycle import DELIVERIES, DeliveryState
from jobserver_sql.tables import columns_of, deliveries, row_of

__all__ = ["advance", "by_id", "due", "in_state", "of_job"]

_ALL = select(*columns_of(Delivery, deliveries))
_AGE = (deliveries.c.created_at, deliveries.c.id)
_PENDING = deliveries.c.state == DeliveryState.PENDING
_ADVANCE = update(deliveries).where(
    deliveries.c.id == bindparam("key"),
    deliveries.c.state == bindparam("expected", type_=deliveries.c.state.type),
)


def _read(connection: Connection, statement: Select[Any]) -> list[Delivery]:
    return [Delivery(**row._mapping) for row in connection.execute(statement)]


def by_id(connection: Connection, delivery_id: str) -> Delivery | None:
    """Return a delivery by its id."""
    return next(iter(_read(connection, _ALL.where(deliveries.c.id == delivery_id))), None)


def of_job(connection: Connection, job_id: str) -> list[Delivery]:
    """Return the deliveries of a job, oldest first."""
    return _read(connection, _ALL.where(deliveries.c.job_id == job_id).order_by(*_AGE))


def in_state(connection: Connection, state: DeliveryState, limit: int) -> list[Delivery]:
    """Return deliveries in a state, oldest first."""
    return _read(connection, _ALL.where(deliveries.c.state == state).order_by(*_AGE).limit(limit))


def due(connection: Connection, now: datetime, limit: int, excluding: Iterable[str]) -> list[Delivery]:
    """Return PENDING deliveries that are due, but those to some receivers."""
    statement = _ALL.where(_PENDING, deliveries.c.due_at <= now)
    if left_out := list(excluding):
        statement = statement.where(deliveries.c.receiver.not_in(left_out))
    return _read(connection, statement.order_by(deliveries.c.due_at, *_AGE).limit(limit))


def advance(connection: Connection, delivery: Delivery, expected: DeliveryState) -> None:
    """Write a delivery if its stored state is the expected one. Raises StaleState."""
    values = {**row_of(delivery), "key": delivery.id, "expected": expected}
    if connection.execute(_ADVANCE, values).rowcount != 1:
        found = connection.scalar(select(deliveries.c.state).where(deliveries.c.id == delivery.id))
        raise StaleState(
            kind=DELIVERIES.kind,
            id=delivery.id,
            expected=expected.value,
            found=None if found is None else found.value,
        )
