"""Which blobs are in use: records, pins and removals, inside a transaction of the caller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy import Connection, bindparam, delete, func, select, text, union, update

from jobserver_core.ports.metadata import PIN_EXPIRY
from jobserver_sql.servers import after, passed
from jobserver_sql.tables import binaries, blob_pins, blob_removals, job_holds, job_results, servers

_CHUNK = 1000
"""The most values in one statement: SQLite and PostgreSQL allow more than 30,000 parameters."""
_LOCK = 0x6A6F6262  # "jobb": the key of the advisory lock
_PIN = text(
    "INSERT INTO blob_pins (id, server_id, digest) VALUES (:id, :server_id, :digest) "
    "ON CONFLICT (id) DO NOTHING"
).bindparams(*(bindparam(name, type_=blob_pins.c[name].type) for name in ("id", "server_id", "digest")))


def unreferenced(connection: Connection, digests: Iterable[str]) -> list[str]:
    """Return those of the digests that no binary, no live job and no result refers to."""
    asked = list(dict.fromkeys(digests))
    used: set[str] = set()
    for part in _chunks(asked):
        owners = (binaries.c.digest, job_holds.c.digest, job_results.c.digest)
        used.update(connection.scalars(union(*(select(c).where(c.in_(part)) for c in owners))))
    return [digest for digest in asked if digest not in used]


def pin(connection: Connection, pin_id: str, server_id: str, digest: str) -> None:
    """Write a pin, unless it is there."""
    connection.execute(_PIN, {"id": pin_id, "server_id": server_id, "digest": digest})


def unpin(connection: Connection, pin_ids: Iterable[str]) -> None:
    """Delete pins."""
    for part in _chunks(list(pin_ids)):
        connection.execute(delete(blob_pins).where(blob_pins.c.id.in_(part)))


def limit_pins(connection: Connection, server_id: str) -> None:
    """Let the pins of a server expire; it has stored them in an earlier run."""
    chosen = update(blob_pins).where(blob_pins.c.server_id == server_id, blob_pins.c.expires_at.is_(None))
    connection.execute(chosen.values(expires_at=after(connection, PIN_EXPIRY)))


def is_removed(connection: Connection, digest: str) -> bool:
    """Whether a server removes a blob."""
    chosen = select(blob_removals.c.digest).where(blob_removals.c.digest == digest)
    return connection.scalar(chosen.where(~passed(connection, blob_removals.c.until))) is not None


def mark(connection: Connection, digests: Iterable[str], server_id: str, lease: float) -> list[str]:
    """Write which blobs a server removes, and return those that no other removal has marked.

    Blobs that are in use already are left out, so that nobody has to wait because of their marks. A
    removal also cleans up here: pins of servers that have ended expire. One server at a time, so that
    two that change the same rows cannot deadlock.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    ended = blob_pins.c.server_id.not_in(select(servers.c.id))
    limited = update(blob_pins).where(blob_pins.c.expires_at.is_(None), ended)
    connection.execute(limited.values(expires_at=after(connection, PIN_EXPIRY)))
    connection.execute(delete(blob_pins).where(passed(connection, blob_pins.c.expires_at)))
    connection.execute(delete(blob_removals).where(passed(connection, blob_removals.c.until)))
    names = ("digest", "server_id", "until")
    insert = text(
        f"INSERT INTO blob_removals ({', '.join(names)}) "  # noqa: S608 - names of our columns
        f"VALUES (:digest, :server_id, {after(connection, lease)}) ON CONFLICT (digest) DO NOTHING"
    ).bindparams(*(bindparam(name, type_=blob_removals.c[name].type) for name in names[:2]))
    asked = list(dict.fromkeys(digests))
    used = _used(connection, asked)
    rows = ({"digest": digest, "server_id": server_id} for digest in asked if digest not in used)
    return [row["digest"] for row in rows if connection.execute(insert, row).rowcount == 1]


def spare_used(connection: Connection, digests: list[str], server_id: str) -> list[str]:
    """Delete the marks of blobs that are in use, and return the other ones.

    Call it in a later transaction than :func:`mark`.
    """
    used = _used(connection, digests)
    unmark(connection, used, server_id)
    return [digest for digest in digests if digest not in used]


def _used(connection: Connection, digests: list[str]) -> set[str]:
    """Return those of the blobs that are pinned, or that a record refers to.

    It looks for pins before it looks for records, as a record is stored before its pin is removed. Servers of
    earlier releases do not pin what they use: while one is registered, every blob counts as used.
    """
    if connection.scalar(select(servers.c.id).where(~servers.c.pins_blobs).limit(1)) is not None:
        return set(digests)
    used: set[str] = set()
    for part in _chunks(digests):
        used.update(connection.scalars(select(blob_pins.c.digest).where(blob_pins.c.digest.in_(part))))
    return used.union(set(digests).difference(unreferenced(connection, digests)))


def unmark(connection: Connection, digests: Iterable[str], server_id: str) -> None:
    """Delete the marks that a server has set on these digests."""
    own = delete(blob_removals).where(blob_removals.c.server_id == server_id)
    for part in _chunks(list(digests)):
        connection.execute(own.where(blob_removals.c.digest.in_(part)))


def _chunks(items: list[str]) -> Iterator[list[str]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
