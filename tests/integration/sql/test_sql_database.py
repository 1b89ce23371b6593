"""Invalid, missing, locked or remote databases: one clear error, without secrets or leftovers."""

import os
import shutil
import sqlite3
import stat
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from sqlalchemy import make_url, text

from jobserver_core.config.settings import MetadataSettings, Settings
from jobserver_core.errors import InvalidSetting, StorageError
from jobserver_core.models.jobs import JobProgress, JobQuery
from jobserver_core.models.lifecycle import JobState
from jobserver_core.testing.builders import a_binary, a_context, a_job
from jobserver_sql import SqlMetadataStore
from jobserver_sql.testing import PostgresqlServer

SECRET = "s3" + "cret"

# -- settings ----------------------------------------------------------------------------------------


def settings(**metadata: Any) -> Settings:
    return Settings(metadata=MetadataSettings(**metadata))


def test_without_a_url_the_store_is_a_file_in_the_data_directory(tmp_path: Path) -> None:
    odd = tmp_path / "a b%20?c#d"
    with closing(SqlMetadataStore.from_settings(settings(), odd)) as store:
        store.add_job(a_job(), config="{}")
    assert (odd / "metadata.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [odd.name]


def test_the_directory_of_a_sqlite_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    chosen = settings(url=f"sqlite:///{tmp_path}/parent/directory/other.db")
    umask = os.umask(0)
    try:
        SqlMetadataStore.from_settings(chosen, tmp_path).close()
    finally:
        os.umask(umask)
    found = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_dir()}
    assert found == {0o700}


def test_the_url_and_the_options_of_the_settings_are_used(tmp_path: Path) -> None:
    options = {"synchronous": "normal", "lock-timeout": "1500 ms", "pool-size": 3}
    chosen = settings(url=f"sqlite:///{tmp_path}/other.db", options=options)
    with closing(SqlMetadataStore.from_settings(chosen, tmp_path)) as store:
        store.check()
        with store._database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1
        with store._database.write() as connection:
            waits = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
            assert 1000 < waits <= 1500
    assert {path.name for path in tmp_path.iterdir()} == {"other.db"}


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"synchronus": "full"}, "synchronus", "did you mean 'synchronous'"),
        ({"nonsense": 1}, "nonsense", "expected one of synchronous, pool-size, lock-timeout"),
        ({"synchronous": "off"}, "synchronous", "must be one of"),
        ({"pool-size": 0}, "pool-size", "a number from 1"),
        ({"pool-size": True}, "pool-size", "a number from 1"),
        ({"lock-timeout": "long"}, "lock-timeout", "expected a duration such as 10 s"),
        ({"lock-timeout": 0}, "lock-timeout", "longer than 0 s"),
        ({"lock-timeout": 5}, "lock-timeout", "takes a duration with a unit, such as 5 s, got 5"),
        ({"lock-timeout": "5"}, "lock-timeout", "takes a duration with a unit, such as 5 s, got '5'"),
    ],
)
def test_a_bad_option_is_refused_by_name(
    tmp_path: Path, options: dict[str, Any], key: str, words: str
) -> None:
    with pytest.raises(InvalidSetting) as caught:
        SqlMetadataStore.from_settings(settings(options=options), tmp_path)
    assert caught.value.key == f"jobserver.metadata.options.{key}"
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://me:{SECRET}@host/x",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        f"{SECRET} nonsense",
        "",
        f"postgresql+psycopg2://me:{SECRET}@host/x",
    ],
)
def test_a_url_of_a_database_that_is_not_supported_is_an_invalid_setting(url: str) -> None:
    with pytest.raises(
        InvalidSetting, match=r"jobserver\.metadata\.url.*sqlite:///.*postgresql://"
    ) as caught:
        SqlMetadataStore(url)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


# -- SQLite ------------------------------------------------------------------------------------------


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    with closing(SqlMetadataStore(f"sqlite:///{tmp_path}/metadata.db")) as store:
        store.add_binary(a_binary())
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("metadata.db", "metadata.db-wal", "metadata.db-shm"), 0o600)


def test_a_file_that_is_not_a_database_is_a_storage_error_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(b"my holiday pictures" * 100)
    with pytest.raises(StorageError, match="not a database"):
        SqlMetadataStore(f"sqlite:///{path}")
    assert path.read_bytes() == b"my holiday pictures" * 100


def test_failing_to_create_a_directory_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "metadata.db", tmp_path):
        with pytest.raises(StorageError, match="cannot write the metadata database"):
            SqlMetadataStore(f"sqlite:///{path}")


def test_a_write_blocked_by_another_process_is_a_storage_error_without_secrets(
    sqlite_url: str,
) -> None:
    with closing(SqlMetadataStore(sqlite_url, lock_timeout=1)) as store:
        store.add_job(a_job(id="before"), config="{}")
        path = sqlite_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError, match="locked") as caught:
                store.add_job(a_job(callback_url=f"https://x/?token={SECRET}"), config=SECRET)
            assert SECRET not in "".join(traceback.format_exception(caught.value))
            assert [job.id for job in store.jobs(JobQuery()).jobs] == ["before"]
            other.execute("ROLLBACK")
        store.add_job(a_job(id="z-after"), config="{}")
        assert [job.id for job in store.jobs(JobQuery()).jobs] == ["z-after", "before"]


def test_readers_do_not_wait_for_a_writer(sqlite_url: str) -> None:
    with closing(SqlMetadataStore(sqlite_url)) as store:
        job = a_job()
        store.add_job(job, config="{}")
        with store._database.write():
            read: list[Any] = []
            reader = threading.Thread(target=lambda: read.append(store.job(job.id)))
            reader.start()
            reader.join(30)
            assert read == [job]


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.replace(path)


def remove_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    shutil.copytree(path.parent.with_name("moved"), path.parent)


def remove_log(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink()


@pytest.mark.parametrize("harm", [remove, replace, remove_directory, replace_directory])
def test_a_deleted_or_replaced_database_refuses_writes_and_says_why(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    path = tmp_path / "data" / "metadata.db"
    with closing(SqlMetadataStore(f"sqlite:///{path}")) as store:
        store.add_binary(a_binary("before"))
        store.check()
        harm(path)
        calls: list[Callable[[], Any]] = [
            store.check,
            lambda: store.add_binary(a_binary()),
            lambda: store.add_job(a_job(), config="{}"),
            store.binaries,
        ]
        for call in calls:
            with pytest.raises(StorageError, match="put the original back, or restart the server") as caught:
                call()
            assert str(path) in str(caught.value)


def test_a_commit_fails_when_its_log_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    with closing(SqlMetadataStore(f"sqlite:///{path}")) as store:
        store.add_binary(a_binary())
        remove_log(path)
        with pytest.raises(StorageError, match="lost its write-ahead log"):
            store.add_binary(a_binary())


def test_a_database_that_comes_back_is_used_again(tmp_path: Path) -> None:
    data, away = tmp_path / "data", tmp_path / "away"
    with closing(SqlMetadataStore(f"sqlite:///{data}/metadata.db")) as store:
        store.add_binary(a_binary("a"))
        data.rename(away)
        with pytest.raises(StorageError, match="is gone"):
            store.add_binary(a_binary("lost"))
        assert not data.exists()
        away.rename(data)
        store.add_binary(a_binary("b"))
        store.check()
    with closing(SqlMetadataStore(f"sqlite:///{data}/metadata.db")) as store:
        assert [binary.name for binary in store.binaries()] == ["a", "b"]


def test_a_check_writes_to_the_file(sqlite_url: str) -> None:
    with closing(SqlMetadataStore(sqlite_url)) as store:
        store.check()
        log = Path(sqlite_url.removeprefix("sqlite:///") + "-wal")
        size = log.stat().st_size
        store.check()
        assert log.stat().st_size > size


@pytest.mark.postgresql
def test_a_check_writes_to_the_database(postgresql_server: PostgresqlServer, postgresql_url: str) -> None:
    def version() -> Any:
        with postgresql_server.connect(postgresql_url) as connection:
            return connection.execute("SELECT xmin::text FROM jobserver_schema").fetchone()

    with closing(SqlMetadataStore(postgresql_url)) as store:
        before = version()
        store.check()
        assert version() != before


def test_writers_of_one_process_wait_no_longer_together_than_one_alone(sqlite_url: str) -> None:
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(SqlMetadataStore(sqlite_url, lock_timeout=2)) as store:
        store.add_binary(a_binary())
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            took: list[float] = []

            def write() -> None:
                began = time.monotonic()
                with pytest.raises(StorageError, match="locked"):
                    store.add_binary(a_binary())
                took.append(time.monotonic() - began)

            threads = [threading.Thread(target=write) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            other.execute("ROLLBACK")
        assert len(took) == 6
        assert max(took) < 2 * 3  # one after the other they would need 12 s
        store.add_binary(a_binary())


def test_progress_does_not_wait_for_a_database_that_is_locked(sqlite_url: str) -> None:
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(SqlMetadataStore(sqlite_url, lock_timeout=60)) as store:
        job = a_job()
        store.add_job(job, config="{}")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            with pytest.raises(StorageError, match="locked"):
                store.record_progress(job.id, JobProgress(tasks_done=1))
            assert time.monotonic() - began < 30
            other.execute("ROLLBACK")


def test_a_store_that_was_closed_says_so(url: str) -> None:
    store = SqlMetadataStore(url)
    store.close()
    for call in (store.check, store.binaries, lambda: store.add_binary(a_binary())):
        with pytest.raises(StorageError, match="the metadata store is closed"):
            call()


@pytest.mark.postgresql
def test_a_connection_that_was_in_use_when_the_store_closed_is_closed_afterwards(postgresql_url: str) -> None:
    store = SqlMetadataStore(postgresql_url)
    with store._database.read() as connection:
        driver = connection.connection.driver_connection
        store.close()
        assert connection.execute(text("SELECT 1")).scalar() == 1
    assert driver is not None
    assert driver.closed


def test_a_damaged_record_is_a_storage_error(url: str) -> None:
    with closing(SqlMetadataStore(url)) as store:
        for job_id, damage in (("a", "state = 'DREAMING'"), ("b", "class_path = 'not json'")):
            store.add_job(a_job(id=job_id), config="{}")
            with store._database.write() as connection:
                connection.execute(text(f"UPDATE jobs SET {damage} WHERE id = '{job_id}'"))
            with pytest.raises(StorageError, match="damaged"):
                store.job(job_id)


def test_settings_that_json_cannot_represent_are_refused_and_not_stored(url: str) -> None:
    with closing(SqlMetadataStore(url)) as store:
        with pytest.raises((TypeError, StorageError), match="cannot be represented in JSON"):
            store.add_context(a_context("c", settings={"a": object()}))
        assert store.context_named("c") is None


def test_no_file_stays_open_after_closing(tmp_path: Path) -> None:
    store = SqlMetadataStore(f"sqlite:///{tmp_path}/metadata.db")
    threads = [threading.Thread(target=store.add_binary, args=(a_binary(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    opened = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
    assert [path for path in opened if str(tmp_path) in path] == []
    assert [path.name for path in tmp_path.iterdir()] == ["metadata.db"]


# -- PostgreSQL --------------------------------------------------------------------------------------


def test_a_server_that_does_not_answer_is_a_storage_error_without_the_password() -> None:
    with pytest.raises(StorageError) as caught:
        SqlMetadataStore(f"postgresql://me:{SECRET}@127.0.0.1:1/x")
    assert "refused" in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.postgresql
def test_connections_dropped_by_the_server_are_reopened(
    postgresql_server: PostgresqlServer, postgresql_url: str
) -> None:
    with closing(SqlMetadataStore(postgresql_url)) as store:
        store.add_binary(a_binary("b"))
        with postgresql_server.connect(postgresql_url) as connection:
            connection.execute(
                b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                b" WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert len(store.binaries()) == 1


@pytest.mark.postgresql
def test_records_are_ordered_by_code_point_under_every_collation(
    postgresql_server: PostgresqlServer,
) -> None:
    with postgresql_server.connect(postgresql_server.url("postgres")) as connection:
        if not connection.execute("SELECT 1 FROM pg_collation WHERE collprovider = 'i' LIMIT 1").fetchone():
            pytest.skip("needs a PostgreSQL that was built with ICU")
        connection.execute(
            "CREATE DATABASE english TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en' LOCALE 'C'"
        )
    url = postgresql_server.url("english")
    try:
        with closing(SqlMetadataStore(url)) as store:
            names = ["b", "B", "a", "_a", "Z", "a-b", "a b"]
            for name in names:
                store.add_binary(a_binary(name))
                store.add_job(a_job(id=name), config="{}")
            assert [binary.name for binary in store.binaries()] == sorted(names)
            assert [job.id for job in store.jobs(JobQuery()).jobs] == sorted(names, reverse=True)
            page = store.jobs(JobQuery(limit=3))
            rest = store.jobs(JobQuery(after=page.next))
            assert [job.id for job in (*page.jobs, *rest.jobs)] == sorted(names, reverse=True)
    finally:
        postgresql_server.drop("english")


@pytest.mark.postgresql
def test_a_database_that_cannot_hold_every_character_is_refused(postgresql_server: PostgresqlServer) -> None:
    with postgresql_server.connect(postgresql_server.url("postgres")) as connection:
        connection.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    try:
        with pytest.raises(StorageError, match="the encoding LATIN1; create it with the encoding UTF8"):
            SqlMetadataStore(postgresql_server.url("latin"))
    finally:
        postgresql_server.drop("latin")


@pytest.mark.postgresql
def test_the_isolation_level_does_not_depend_on_the_server_default(
    postgresql_server: PostgresqlServer, postgresql_url: str
) -> None:
    name = make_url(postgresql_url).database
    with postgresql_server.connect(postgresql_url) as connection:
        connection.execute(
            f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'".encode()
        )
    with closing(SqlMetadataStore(postgresql_url)) as store:
        with store._database.write() as connection:
            assert connection.execute(text("SHOW transaction_isolation")).scalar() == "read committed"
        job = a_job()
        store.add_job(job, config="{}")
        store.advance_job(attrs.evolve(job, state=JobState.RUNNING), expected=JobState.STARTED)


@pytest.mark.postgresql
def test_both_spellings_of_the_scheme_are_understood(postgresql_url: str) -> None:
    for scheme in ("postgres:", "postgresql:", "postgresql+psycopg:"):
        with closing(SqlMetadataStore(postgresql_url.replace("postgresql:", scheme, 1))) as store:
            store.check()
