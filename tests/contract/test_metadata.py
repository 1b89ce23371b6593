"""Every built-in metadata store passes the same contract."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobserver_core.memory import MemoryMetadataStore
from jobserver_core.ports import MetadataStore
from jobserver_core.testing.metadata import MetadataStoreContract, PersistentMetadataStoreContract, renamed
from jobserver_core.testing.options import BackendOptions

if TYPE_CHECKING:  # the in-memory suite needs no database, and importing SQLAlchemy takes long
    from jobserver_sql.testing import PostgresqlServer

TABLES = {
    "binaries": "binaries",
    "contexts": "contexts",
    "jobs": "jobs",
    "configs": "job_configs",
    "results": "job_results",
    "deliveries": "deliveries",
}
OTHER_TABLES = ("job_holds", "servers", "requests", "blob_pins", "blob_removals")


class TestMemoryMetadataStore(MetadataStoreContract):
    @pytest.fixture
    def store(self) -> MetadataStore:
        return MemoryMetadataStore()

    def backend_options(self, directory: Path) -> BackendOptions:
        return BackendOptions(backend=MemoryMetadataStore, accepted=[{}], refused=[])

    def raw_counts(self, store: MetadataStore) -> dict[str, int]:
        return {kind: len(getattr(store, f"_{kind}")) for kind in TABLES}

    def raw_job_state(self, store: MetadataStore, job_id: str) -> str | None:
        assert isinstance(store, MemoryMetadataStore)
        stored = store._jobs.get(job_id)
        return stored.state.value if stored else None


def sql_store(url: str) -> MetadataStore:
    from jobserver_sql import SqlMetadataStore

    return SqlMetadataStore(url)


def all_tables() -> tuple[str, ...]:
    from jobserver_sql.schema import VERSION_TABLE

    return (*TABLES.values(), *OTHER_TABLES, VERSION_TABLE)


@pytest.mark.real
class TestSqlMetadataStoreOnSqlite(PersistentMetadataStoreContract):
    """The embedded default: one file."""

    @pytest.fixture(scope="class")
    @classmethod
    def template(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Return an empty database, made once: applying the migrations is most of a short test."""
        path = tmp_path_factory.mktemp("template") / "metadata.db"
        sql_store(f"sqlite:///{path}").close()
        return path

    @pytest.fixture
    def store(self, tmp_path: Path, template: Path) -> Iterator[MetadataStore]:
        self.path = tmp_path / "metadata.db"
        shutil.copy(template, self.path)
        with closing(sql_store(f"sqlite:///{self.path}")) as store:
            yield store

    def backend_options(self, directory: Path) -> BackendOptions:
        from jobserver_sql import SqlMetadataStore

        options = "jobserver.metadata.options"
        url = f"sqlite:///{directory}/other.db"
        return BackendOptions(
            backend=SqlMetadataStore,
            accepted=[{}, {"jobserver.metadata.url": url, f"{options}.synchronous": "normal"}],
            refused=[
                ({f"{options}.synchronus": "normal"}, f"{options}.synchronus"),
                ({f"{options}.synchronous": "never"}, f"{options}.synchronous"),
            ],
        )

    def open_again(self, store: MetadataStore) -> MetadataStore:
        return sql_store(f"sqlite:///{self.path}")

    def broken(self, store: MetadataStore) -> AbstractContextManager[None]:
        return renamed(all_tables(), self._raw)

    def raw_counts(self, store: MetadataStore) -> dict[str, int]:
        return {kind: self._raw(f"SELECT count(*) FROM {table}") for kind, table in TABLES.items()}

    def raw_job_state(self, store: MetadataStore, job_id: str) -> str | None:
        state: str | None = self._raw("SELECT state FROM jobs WHERE id = ?", job_id)
        return state

    def _raw(self, statement: str, *values: Any) -> Any:
        with closing(sqlite3.connect(self.path)) as connection:
            row = connection.execute(statement, values).fetchone()
        return row[0] if row else None


@pytest.mark.postgresql
@pytest.mark.real
class TestSqlMetadataStoreOnPostgresql(PersistentMetadataStoreContract):
    """The same code by another URL."""

    @pytest.fixture
    def store(self, postgresql_server: PostgresqlServer) -> Iterator[MetadataStore]:
        self.server = postgresql_server
        self.url = self.server.url(self.server.database("contract"))
        with closing(sql_store(self.url)) as store:
            self._raw(f"TRUNCATE {', '.join((*TABLES.values(), *OTHER_TABLES))}")
            yield store

    def open_again(self, store: MetadataStore) -> MetadataStore:
        return sql_store(self.url)

    def broken(self, store: MetadataStore) -> AbstractContextManager[None]:
        return renamed(all_tables(), self._raw)

    def raw_counts(self, store: MetadataStore) -> dict[str, int]:
        return {kind: self._raw(f"SELECT count(*) FROM {table}") for kind, table in TABLES.items()}

    def raw_job_state(self, store: MetadataStore, job_id: str) -> str | None:
        state: str | None = self._raw("SELECT state FROM jobs WHERE id = %s", job_id)
        return state

    def _raw(self, statement: str, *values: Any) -> Any:
        with self.server.connect(self.url) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def test_every_registered_metadata_store_is_held_to_the_contract() -> None:
    points = distribution("jobserver-core").entry_points.select(group="jobserver.metadata")
    held = {cls.__name__ for cls in _subclasses(MetadataStoreContract)}
    for point in points:
        store = point.load().__name__
        assert any(name.startswith(f"Test{store}") for name in held), f"no contract test of {store}"
    assert {point.name for point in points} >= {"memory", "sql"}


def _subclasses(cls: type) -> set[type]:
    deeper: list[type] = cls.__subclasses__()
    return {cls}.union(*(_subclasses(below) for below in deeper))
