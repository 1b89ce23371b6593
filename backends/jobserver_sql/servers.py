"""Reads and writes of servers and their leases, inside a transaction of the caller."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Connection, cast, delete, insert, literal_column, select, update
from sqlalchemy.sql.elements import ColumnElement

from jobserver_core.models.servers import Server
from jobserver_sql.tables import columns_of, servers

__all__ = ["register", "registered", "remove", "renew"]

_COLUMNS = columns_of(Server, servers)
_NOW = {
    "postgresql": "floor(extract(epoch from clock_timestamp()) * 1000000)",
    "sqlite": "(julianday('now') - 2440587.5) * 86400000000",
}
"""The time of the database's clock, in microseconds since 1970."""


def register(
    connection: Connection, server_id: str, started_at: datetime, address: str, lease: float
) -> None:
    """Write a server, in place of an earlier one with its id."""
    connection.execute(delete(servers).where(servers.c.id == server_id))
    values = {"id": server_id, "started_at": started_at, "address": address}
    connection.execute(insert(servers).values(**values, lease_until=_end_of(connection, lease)))


def renew(connection: Connection, server_id: str, lease: float) -> bool:
    """Extend the lease of a server; return whether there is such a server."""
    renewed = update(servers).where(servers.c.id == server_id)
    return connection.execute(renewed.values(lease_until=_end_of(connection, lease))).rowcount == 1


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


def _now(connection: Connection) -> ColumnElement[int]:
    return cast(literal_column(_NOW[connection.dialect.name]), BigInteger)


def _end_of(connection: Connection, lease: float) -> ColumnElement[int]:
    return _now(connection) + literal_column(str(int(lease * 1_000_000)))


def _has_expired(connection: Connection) -> ColumnElement[bool]:
    return cast(servers.c.lease_until, BigInteger) <= _now(connection)
