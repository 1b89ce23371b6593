"""Reads and writes of servers, their leases and their requests, inside a transaction of the caller."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Connection, cast, delete, insert, literal_column, select, update
from sqlalchemy.sql.elements import ColumnElement

from jobserver_core.errors import DuplicateId
from jobserver_core.models.servers import Server, ServerRequest
from jobserver_sql.tables import columns_of, read, requests, row_of, servers

_REQUESTS = select(*columns_of(ServerRequest, requests))
_NOW = {
    "postgresql": "floor(extract(epoch from clock_timestamp()) * 1000000)",
    "sqlite": "(julianday('now') - 2440587.5) * 86400000000",
}
"""The time of the database's clock, in microseconds since 1970."""


def register(connection: Connection, server_id: str, lease: float, **values: datetime | str) -> None:
    """Write a server, in place of an earlier one with its id."""
    connection.execute(delete(servers).where(servers.c.id == server_id))
    until = after(connection, lease)
    connection.execute(insert(servers).values(id=server_id, lease_until=until, pins_blobs=True, **values))


def renew(connection: Connection, server_id: str, lease: float) -> bool:
    renewed = update(servers).where(servers.c.id == server_id)
    return connection.execute(renewed.values(lease_until=after(connection, lease))).rowcount == 1


def drain(connection: Connection, server_id: str) -> bool:
    chosen = update(servers).where(servers.c.id == server_id)
    return connection.execute(chosen.values(draining=True)).rowcount == 1


def registered(connection: Connection, expired: bool | None) -> list[Server]:
    chosen = select(*columns_of(Server, servers)).order_by(servers.c.started_at, servers.c.id)
    if expired is not None:
        has_expired = passed(connection, servers.c.lease_until)
        chosen = chosen.where(has_expired if expired else ~has_expired)
    return read(connection, Server, chosen)


def remove(connection: Connection, server_id: str, only_expired: bool) -> bool:
    chosen = delete(servers).where(servers.c.id == server_id)
    if only_expired:
        chosen = chosen.where(passed(connection, servers.c.lease_until))
    return connection.execute(chosen).rowcount == 1


def add_request(connection: Connection, new: ServerRequest) -> None:
    if request(connection, new.id) is not None:
        raise DuplicateId(kind="request", id=new.id, holder=new.id)
    connection.execute(insert(requests).values(**row_of(new)))


def request(connection: Connection, request_id: str) -> ServerRequest | None:
    return next(iter(read(connection, ServerRequest, _REQUESTS.where(requests.c.id == request_id))), None)


def requests_to(connection: Connection, server_id: str) -> list[ServerRequest]:
    chosen = _REQUESTS.where(requests.c.recipient == server_id, requests.c.answer.is_(None))
    return read(connection, ServerRequest, chosen.order_by(requests.c.created_at, requests.c.id))


def answer_request(connection: Connection, request_id: str, answer: str) -> bool:
    chosen = update(requests).where(requests.c.id == request_id, requests.c.answer.is_(None))
    return connection.execute(chosen.values(answer=answer)).rowcount == 1


def remove_request(connection: Connection, request_id: str) -> ServerRequest | None:
    """Delete a request, locked against an answer in between, and return it."""
    found = read(connection, ServerRequest, _REQUESTS.where(requests.c.id == request_id).with_for_update())
    connection.execute(delete(requests).where(requests.c.id == request_id))
    return next(iter(found), None)


def delete_requests(connection: Connection, created_before: datetime) -> int:
    return connection.execute(delete(requests).where(requests.c.created_at < created_before)).rowcount


def _now(connection: Connection) -> ColumnElement[int]:
    return cast(literal_column(_NOW[connection.dialect.name]), BigInteger)


def after(connection: Connection, seconds: float) -> ColumnElement[int]:
    """Return the time that is so many seconds after now, on the database's clock."""
    return _now(connection) + literal_column(str(int(seconds * 1_000_000)))


def passed(connection: Connection, time: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Return the condition that a time has come."""
    return cast(time, BigInteger) <= _now(connection)
