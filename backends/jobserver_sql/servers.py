"""Reads and writes of servers, their leases and their requests, inside a transaction of the caller."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Select,
    cast,
    delete,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from jobserver_core.errors import DuplicateId
from jobserver_core.models.servers import Server, ServerRequest
from jobserver_sql.tables import columns_of, requests, row_of, servers

__all__ = [
    "add_request",
    "answer_request",
    "delete_requests",
    "drain",
    "register",
    "registered",
    "remove",
    "remove_request",
    "renew",
    "request",
    "requests_to",
]

_COLUMNS = columns_of(Server, servers)
_REQUEST_COLUMNS = columns_of(ServerRequest, requests)
_NOW = {
    "postgresql": "floor(extract(epoch from clock_timestamp()) * 1000000)",
    "sqlite": "(julianday('now') - 2440587.5) * 86400000000",
}
"""The time of the database's clock, in microseconds since 1970."""


def register(connection: Connection, server_id: str, lease: float, **values: Any) -> None:
    """Write a server, in place of an earlier one with its id."""
    connection.execute(delete(servers).where(servers.c.id == server_id))
    until = _end_of(connection, lease)
    connection.execute(insert(servers).values(id=server_id, lease_until=until, **values))


def renew(connection: Connection, server_id: str, lease: float) -> bool:
    """Extend the lease of a server; return whether there is such a server."""
    renewed = update(servers).where(servers.c.id == server_id)
    return connection.execute(renewed.values(lease_until=_end_of(connection, lease))).rowcount == 1


def drain(connection: Connection, server_id: str) -> bool:
    """Write that a server is draining; return whether there is such a server."""
    chosen = update(servers).where(servers.c.id == server_id)
    return connection.execute(chosen.values(draining=True)).rowcount == 1


def registered(connection: Connection, expired: bool | None) -> list[Server]:
    """Return servers, oldest first."""
    chosen = select(*_COLUMNS).order_by(servers.c.started_at, servers.c.id)
    if expired is not None:
        has_expired = _has_expired(connection)
        chosen = chosen.where(has_expired if expired else ~has_expired)
    return [Server(**row._mapping) for row in connection.execute(chosen)]


def remove(connection: Connection, server_id: str, only_expired: bool) -> bool:
    """Delete a server; return whether there was one."""
    chosen = delete(servers).where(servers.c.id == server_id)
    if only_expired:
        chosen = chosen.where(_has_expired(connection))
    return connection.execute(chosen).rowcount == 1


def add_request(connection: Connection, new: ServerRequest) -> None:
    """Write a new request. Raises DuplicateId."""
    if request(connection, new.id) is not None:
        raise DuplicateId(kind="request", id=new.id, holder=new.id)
    connection.execute(insert(requests).values(**row_of(new)))


def request(connection: Connection, request_id: str) -> ServerRequest | None:
    """Return a request."""
    return next(_requests(connection, select(*_REQUEST_COLUMNS).where(requests.c.id == request_id)), None)


def requests_to(connection: Connection, server_id: str) -> list[ServerRequest]:
    """Return the requests to a server that have no answer, oldest first."""
    chosen = select(*_REQUEST_COLUMNS).where(requests.c.recipient == server_id, requests.c.answer.is_(None))
    return list(_requests(connection, chosen.order_by(requests.c.created_at, requests.c.id)))


def answer_request(connection: Connection, request_id: str, answer: str) -> bool:
    """Write the answer to a request that has none."""
    chosen = update(requests).where(requests.c.id == request_id, requests.c.answer.is_(None))
    return connection.execute(chosen.values(answer=answer)).rowcount == 1


def remove_request(connection: Connection, request_id: str) -> ServerRequest | None:
    """Delete a request, locked against an answer in between, and return it."""
    chosen = select(*_REQUEST_COLUMNS).where(requests.c.id == request_id).with_for_update()
    found = next(_requests(connection, chosen), None)
    connection.execute(delete(requests).where(requests.c.id == request_id))
    return found


def delete_requests(connection: Connection, created_before: datetime) -> int:
    """Delete old requests."""
    return connection.execute(delete(requests).where(requests.c.created_at < created_before)).rowcount


def _requests(connection: Connection, chosen: Select[Any]) -> Iterator[ServerRequest]:
    return (ServerRequest(**row._mapping) for row in connection.execute(chosen))


def _now(connection: Connection) -> ColumnElement[int]:
    return cast(literal_column(_NOW[connection.dialect.name]), BigInteger)


def _end_of(connection: Connection, lease: float) -> ColumnElement[int]:
    return _now(connection) + literal_column(str(int(lease * 1_000_000)))


def _has_expired(connection: Connection) -> ColumnElement[bool]:
    return cast(servers.c.lease_until, BigInteger) <= _now(connection)
