"""The schema: created at start, upgraded by one server at a time, unchanged if it is newer."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Dialect, Engine, create_engine, insert, inspect, text
from sqlalchemy.types import TypeEngine

from jobserver_core.errors import SchemaTooNew, StorageError
from jobserver_core.models.contexts import ContextQuery
from jobserver_core.models.jobs import JobQuery
from jobserver_core.testing.builders import a_binary, a_context, a_job, at
from jobserver_sql import SqlMetadataStore, schema, tables


@contextmanager
def raw(url: str) -> Iterator[Connection]:
    """A connection that does not go through the store."""
    engine: Engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def revision_of(url: str) -> str | None:
    with raw(url) as connection:
        return schema.found(connection)


def become(connection: Connection, revision: str, *, compatible_from: str) -> None:
    """Record that a database is of another release."""
    values = f"version_num = '{revision}', compatible_from = '{compatible_from}'"
    connection.execute(text(f"UPDATE {schema.VERSION_TABLE} SET {values}"))


def test_a_new_database_gets_the_newest_schema(url: str) -> None:
    with closing(SqlMetadataStore(url)) as store:
        store.check()
    assert revision_of(url) == schema.HEAD


def test_the_revision_in_the_code_is_the_head_of_one_line_of_migrations(url: str) -> None:
    with raw(url) as connection:
        scripts = ScriptDirectory.from_config(schema._config(connection))
    assert scripts.get_heads() == [schema.HEAD]
    assert [script.revision for script in scripts.walk_revisions()][-1] == "0001"


def _name_of(kind: TypeEngine[Any], dialect: Dialect | None = None) -> str:
    """The type's name in SQL; PostgreSQL's VARCHAR without a length and its TEXT are the same."""
    return kind.compile(dialect).replace("VARCHAR", "TEXT")


def _differ(dialect: Dialect, found: TypeEngine[Any], wanted: TypeEngine[Any]) -> bool:
    return _name_of(found, dialect) != _name_of(wanted, dialect)


def _migrate_from_the_first_revision(url: str) -> None:
    with raw(url) as connection:
        command.upgrade(schema._config(connection), schema.HEAD)


def _described(index: Mapping[str, Any]) -> tuple[object, ...]:
    condition = " ".join(str(each) for each in index.get("dialect_options", {}).values())
    return (
        index["name"],
        index["column_names"],
        bool(index["unique"]),
        sorted(re.findall(r"\w+", condition)),
    )


def _reflected(url: str) -> dict[str, object]:
    """The columns, keys and indexes of every table, as the database describes them."""
    with raw(url) as connection:
        found = inspect(connection)
        return {
            table: (
                sorted(
                    (str(each["name"]), _name_of(each["type"]), each["nullable"])
                    for each in found.get_columns(table)
                ),
                found.get_pk_constraint(table)["constrained_columns"],
                sorted(_described(index) for index in found.get_indexes(table)),
            )
            for table in found.get_table_names()
        }


def test_a_new_database_has_the_same_schema_as_a_migrated_one(url: str) -> None:
    SqlMetadataStore(url).close()
    created = _reflected(url)
    with raw(url) as connection:
        for table in inspect(connection).get_table_names():
            connection.execute(text(f'DROP TABLE "{table}"'))
    _migrate_from_the_first_revision(url)
    assert _reflected(url) == created


def test_the_migrations_make_the_tables_that_the_code_describes(url: str) -> None:
    _migrate_from_the_first_revision(url)
    with raw(url) as connection:
        options = {
            "include_name": lambda name, *_: name != schema.VERSION_TABLE,
            "compare_type": lambda context, _i, _m, *types: _differ(context.dialect, *types),
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables.metadata) == []


def test_the_index_of_live_names_covers_the_live_states_only(url: str) -> None:
    SqlMetadataStore(url).close()
    with raw(url) as connection:
        source = "sqlite_master" if url.startswith("sqlite") else "pg_indexes"
        columns = ("sql", "name") if url.startswith("sqlite") else ("indexdef", "indexname")
        found = connection.scalar(
            text(f"SELECT {columns[0]} FROM {source} WHERE {columns[1]} = 'ux_contexts_live_name'")
        )
    assert found is not None
    states = {word for word in ("STARTED", "RUNNING", "STOPPING", "RESTARTING", "FINISHED") if word in found}
    assert states == {"STARTED", "RUNNING", "STOPPING", "RESTARTING"}


def test_a_database_of_the_first_revision_is_upgraded_with_its_records(url: str) -> None:
    binary, context, job = a_binary("b"), a_context("c", settings={"a": [1]}), a_job(idempotency_key="key")
    with raw(url) as connection:
        command.upgrade(schema._config(connection), "0001")
        records = {tables.binaries: binary, tables.contexts: context, tables.jobs: job}
        for table, record in records.items():
            known = {column["name"] for column in inspect(connection).get_columns(table.name)}
            row = {name: value for name, value in tables.row_of(record).items() if name in known}
            connection.execute(table.insert(), row)
    assert revision_of(url) == "0001"
    with raw(url) as connection:
        assert "ix_jobs_state" not in {index["name"] for index in inspect(connection).get_indexes("jobs")}
    with closing(SqlMetadataStore(url)) as store:
        assert (store.binaries(), store.contexts(ContextQuery())) == ([binary], [context])
        assert store.jobs(JobQuery()).jobs == (job,)
    assert revision_of(url) == schema.HEAD
    with raw(url) as connection:
        assert "ix_jobs_state" in {index["name"] for index in inspect(connection).get_indexes("jobs")}


def test_a_database_of_a_newer_release_is_refused_and_left_alone(url: str) -> None:
    SqlMetadataStore(url).close()
    with raw(url) as connection:
        become(connection, "9999", compatible_from="9998")
        connection.execute(text("ALTER TABLE jobs ADD COLUMN novelty TEXT"))
    with pytest.raises(SchemaTooNew) as caught:
        SqlMetadataStore(url)
    assert caught.value == SchemaTooNew(found="9999", known=schema.HEAD)
    assert revision_of(url) == "9999"
    with raw(url) as connection:
        assert "novelty" in {column["name"] for column in inspect(connection).get_columns("jobs")}


def test_a_store_whose_database_was_upgraded_under_it_fails_its_check(url: str) -> None:
    with closing(SqlMetadataStore(url)) as store:
        with raw(url) as connection:
            become(connection, "9999", compatible_from="9998")
        with pytest.raises(SchemaTooNew):
            store.check()


def test_a_store_works_on_with_a_newer_database_that_is_compatible(url: str) -> None:
    with closing(SqlMetadataStore(url)) as store:
        with raw(url) as connection:
            become(connection, "9999", compatible_from=schema.HEAD)
            connection.execute(text("ALTER TABLE jobs ADD COLUMN novelty TEXT"))
            connection.execute(text("ALTER TABLE servers ADD COLUMN novelty INTEGER NOT NULL DEFAULT 3"))
        store.check()
        store.add_job(a_job(), config="{}")
        store.register_server("old", started_at=at(), address="", lease=9)
        assert [server.id for server in store.servers()] == ["old"]
    with closing(SqlMetadataStore(url)) as again:
        again.check()
        assert len(again.jobs(JobQuery()).jobs) == 1
    assert revision_of(url) == "9999"


def _columns(connection: Connection) -> dict[str, dict[str, bool]]:
    """Return the columns of each table, and whether a row can be written without them."""
    found = inspect(connection)
    return {
        table: {
            column["name"]: column["nullable"] or column["default"] is not None or column["name"] == "seq"
            for column in found.get_columns(table)
        }
        for table in found.get_table_names()
    }


def test_the_newest_migration_leaves_the_releases_before_it_working(url: str) -> None:
    """A server of the earlier release goes on writing its columns while a new one has migrated."""
    with raw(url) as connection:
        scripts = ScriptDirectory.from_config(schema._config(connection))
        newest = scripts.get_revision(schema.HEAD)
        before = newest.down_revision
        assert isinstance(before, str)
        command.upgrade(schema._config(connection), before)
        old = _columns(connection)
    binary, context, job = a_binary("b"), a_context("c"), a_job(context_id="c")
    records = {tables.binaries: binary, tables.contexts: context, tables.jobs: job}
    rows = {table: tables.row_of(record) for table, record in records.items()}
    stores: list[SqlMetadataStore] = []
    threads = [threading.Thread(target=lambda: stores.append(SqlMetadataStore(url))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert revision_of(url) == schema.HEAD
        assert len(stores) == len(threads)
        with raw(url) as connection:
            new = _columns(connection)
            for table, columns in old.items():
                assert columns.keys() <= new[table].keys(), f"the migration removes columns of {table}"
                needed = {name for name in new[table].keys() - columns.keys() if not new[table][name]}
                assert not needed, f"an earlier release does not write {needed} of {table}"
            for written, row in rows.items():  # as the earlier release does
                known = {name: value for name, value in row.items() if name in old[written.name]}
                connection.execute(insert(written).values(known))
            started = {"id": "old", "started_at": at(), "address": "", "lease_until": at()}
            connection.execute(insert(tables.servers).values(started))
        for store in stores:
            assert store.binaries() == [binary]
            assert store.contexts(ContextQuery()) == [context]
            assert store.job(job.id) == job
            assert [server.id for server in store.servers(expired=True)] == ["old"]
            store.check()
    finally:
        for store in stores:
            store.close()


def test_a_failed_migration_leaves_the_database_unchanged(url: str) -> None:
    with raw(url) as connection:
        connection.execute(text("CREATE TABLE deliveries (somebody TEXT)"))
    with pytest.raises(StorageError, match="deliveries"):
        SqlMetadataStore(url)
    with raw(url) as connection:
        assert inspect(connection).get_table_names() == ["deliveries"]


def test_another_applications_revision_in_the_same_database_is_not_ours(url: str) -> None:
    with raw(url) as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num TEXT)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))
    SqlMetadataStore(url).close()
    with raw(url) as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "theirs"


SERVER = """
import sys
from jobserver_sql import SqlMetadataStore
from jobserver_core.testing.builders import a_binary
print("ready", flush=True)
sys.stdin.readline()
store = SqlMetadataStore(sys.argv[1])
store.add_binary(a_binary(sys.argv[2], id=sys.argv[2]))
store.close()
"""


def test_servers_that_start_at_once_on_a_new_database_all_work(url: str) -> None:
    names = [f"server-{number}" for number in range(3)]
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", SERVER, url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    try:
        for server in servers:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
        failures = []
        for server in servers:
            assert server.stdin is not None
            server.stdin.write("go\n")
            server.stdin.flush()
        for server in servers:
            _, problem = server.communicate(timeout=60)
            failures += [problem] if server.returncode else []
        assert failures == []
    finally:
        for server in servers:
            server.kill()
            server.communicate()
    with closing(SqlMetadataStore(url)) as store:
        assert [binary.name for binary in store.binaries()] == names
