"""Torture servers that share one store with random histories, and check every job.

Each history has a seed, which is printed, so that one that fails can be run again. With ``--postgresql`` each
server has a store of its own on a temporary PostgreSQL server, otherwise all share one in memory.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from sqlalchemy import create_engine, make_url, text

from jobserver_core.ports import MetadataStore
from jobserver_sql import SqlMetadataStore
from jobserver_sql.testing import PostgresqlServer
from torture import Torture, shared_memory

Stores = tuple[Callable[[], MetadataStore], Callable[[str], None]]


@contextmanager
def postgresql_stores(server: PostgresqlServer, number: int) -> Iterator[Stores]:
    """Yield what opens stores on a new database, and what lets a lease in it expire."""
    url = server.url(server.database(f"torture{number}"))
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))

    def expire(server_id: str) -> None:
        with engine.begin() as connection:
            connection.execute(text("UPDATE servers SET lease_until = 0 WHERE id = :id"), {"id": server_id})

    yield lambda: SqlMetadataStore(url, pool_size=1), expire
    engine.dispose()


def main() -> None:
    """Run histories until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long to run")
    parser.add_argument("--steps", type=int, default=400, help="random steps in each history")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the first history")
    parser.add_argument("--postgresql", action="store_true", help="use PostgreSQL")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    totals: Counter[str] = Counter()
    deadline = time.monotonic() + options.minutes * 60
    seed = options.seed
    with ExitStack() as until:
        server = until.enter_context(PostgresqlServer()) if options.postgresql else None
        while time.monotonic() < deadline:
            print(f"seed {seed}", flush=True)
            with ExitStack() as history:
                stores = shared_memory()
                if server is not None:
                    stores = history.enter_context(postgresql_stores(server, seed))
                totals += Torture(seed, *stores).run(options.steps)
            seed += 1
    print(f"{seed - options.seed} histories without a fault: {dict(totals)}")


if __name__ == "__main__":
    main()
