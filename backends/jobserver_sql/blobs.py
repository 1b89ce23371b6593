"""Find the blobs that the records refer to."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select, union

from jobserver_sql.tables import binaries, job_holds, job_results

__all__ = ["unreferenced"]

_CHUNK = 1000


def unreferenced(connection: Connection, digests: Iterable[str]) -> list[str]:
    """Return those of the digests that no binary, no live job and no result refers to."""
    asked = list(dict.fromkeys(digests))
    used: set[str] = set()
    for start in range(0, len(asked), _CHUNK):
        part = asked[start : start + _CHUNK]
        owners = (binaries.c.digest, job_holds.c.digest, job_results.c.digest)
        used.update(connection.scalars(union(*(select(c).where(c.in_(part)) for c in owners))))
    return [digest for digest in asked if digest not in used]
