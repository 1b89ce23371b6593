"""Several servers over one PostgreSQL database, each with a store of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text

from jobserver_core import JobServer
from jobserver_core.ports import MetadataStore
from jobserver_sql import SqlMetadataStore
from serving import WAIT, a_request, upload
from several_servers import Member
from several_servers_suite import SeveralServersSuite
from torture import Torture

pytestmark = [pytest.mark.real, pytest.mark.postgresql]

HOUR = 3600.0
SUBMITS = 1000
THREADS = 12


class StoreWithLongLeases(SqlMetadataStore):
    """Leases of an hour: members renew theirs when a test says so, but PostgreSQL's clock judges them."""

    def register_server(self, server_id: str, *, lease: float, **rest: Any) -> None:
        super().register_server(server_id, lease=max(lease, HOUR), **rest)

    def renew_server(self, server_id: str, *, lease: float) -> bool:
        return super().renew_server(server_id, lease=max(lease, HOUR))


class TestSeveralServersOnPostgresql(SeveralServersSuite):
    @pytest.fixture(autouse=True)
    def database(self, postgresql_url: str) -> Iterator[None]:
        self.url = postgresql_url
        self.engine = create_engine(make_url(postgresql_url).set(drivername="postgresql+psycopg"))
        yield
        self.engine.dispose()

    def open(self) -> MetadataStore:
        return StoreWithLongLeases(self.url, pool_size=3)

    def expire(self, server_id: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE servers SET lease_until = 0 WHERE id = :id"), {"id": server_id})

    def test_a_random_history_loses_nothing_and_runs_nothing_twice(self) -> None:
        Torture(1, self.open, self.expire).run(steps=60)

    def test_a_thousand_submits_with_one_key_on_three_servers_make_one_job(
        self, members: list[Member]
    ) -> None:
        servers = [self.boot().server for _ in range(3)]
        upload(servers[0])
        found: list[str] = []

        def submit(server: JobServer, times: int) -> None:
            for _ in range(times):
                found.append(server.submit(a_request("w.Any", {"a": 1}, idempotency_key="key")).id)

        threads = [
            threading.Thread(target=submit, args=(servers[number % 3], SUBMITS // THREADS))
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert len(found) == SUBMITS // THREADS * THREADS
        assert len(set(found)) == 1
        assert [job.id for job in servers[1].jobs().jobs] == found[:1]
