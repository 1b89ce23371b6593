"""The schema's revisions: one server at a time applies them at start, up to this release's revision.

A new database gets the tables of this release at once. Migrations, and with them Alembic, are only for
databases of earlier releases. Tests check that both ways lead to the same schema.

During a rolling upgrade, servers of two adjacent releases share a database. So a migration only adds: tables,
and columns that earlier releases need not write. The database records the oldest revision whose releases can
still work with it; servers of those continue, and can even be started again, until they are replaced.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, func, insert, inspect, make_url, select, update
from sqlalchemy.schema import Column, MetaData, Table
from sqlalchemy.types import String

from jobserver_core.errors import SchemaTooNew, StorageError
from jobserver_sql import tables
from jobserver_sql.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0012"
"""The revision that this release works with."""
COMPATIBLE = "0009"
"""The oldest revision whose releases can work with a database of this one."""

VERSION_TABLE = "jobserver_schema"
"""The table that records the revision. Its name is ours, as others may use Alembic in the same database."""

_VERSION = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), primary_key=True),
    Column("compatible_from", String(32)),
)
_LOCK_TIMEOUT = 60.0
"""Seconds that a server waits for another one that is migrating a SQLite file."""
_LOCK = 0x6A6F6273  # "jobs": the key of the advisory lock that migrating servers take in PostgreSQL


def found(connection: Connection) -> str | None:
    """Return the revision of a database, or None if it has no schema yet."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(select(_VERSION.c.version_num))


def touch(connection: Connection) -> None:
    """Write the current revision again, to check that the database is writable.

    Raises:
        SchemaTooNew: This release cannot work with it.
    """
    connection.execute(update(_VERSION).values(version_num=_VERSION.c.version_num))
    revision = connection.scalar(select(_VERSION.c.version_num))
    if not _works_with(connection, revision):
        raise SchemaTooNew(found=str(revision), known=HEAD)


def _works_with(connection: Connection, revision: str | None) -> bool:
    """Whether this release works with a database as it is: its own revision, or a compatible later one."""
    if revision is None or revision <= HEAD:
        return revision == HEAD
    columns = {column["name"] for column in inspect(connection).get_columns(VERSION_TABLE)}
    if "compatible_from" not in columns:
        return False
    oldest = connection.scalar(select(_VERSION.c.compatible_from))
    return oldest is not None and oldest <= HEAD


def upgrade(database: Database) -> None:
    """Migrate a database to :data:`HEAD`. One that is newer and compatible is left as it is.

    For any other newer one, this raises SchemaTooNew and changes nothing.

    This is one transaction under a lock that other servers wait for. So any number of servers may start at
    the same time, and one that is killed leaves the database as it was.
    """
    with database.read() as connection:
        if _works_with(connection, found(connection)):
            return
    with database.write(lock_timeout=_LOCK_TIMEOUT) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        revision = found(connection)
        if problem := _problem(connection, revision):
            raise StorageError(message="; ".join(problem))
        if revision is None:
            _create(connection)
        elif not _works_with(connection, revision):
            _migrate(connection, revision)


def database_problem(url: str) -> tuple[str, str] | None:
    """Return why a server could not use a database, and what to do about it, or None. Changes nothing.

    A SQLite file is not opened, because that would create it.

    Raises:
        InvalidSetting: The URL is not that of a supported database.
        SchemaTooNew: A newer release has written the database.
        StorageError: The database cannot be reached, or refuses the user.
    """
    if make_url(url).get_backend_name() == "sqlite":
        return None
    database = Database(url, synchronous="full", pool_size=1, lock_timeout=1.0)
    with closing(database), database.read() as connection:
        revision = found(connection)
        if _works_with(connection, revision):
            return None
        if revision is not None and revision > HEAD:
            raise SchemaTooNew(found=revision, known=HEAD)
        return _problem(connection, revision)


def _problem(connection: Connection, revision: str | None) -> tuple[str, str] | None:
    """Return why the tables cannot be created here, and what to do about it, or None."""
    if connection.dialect.name != "postgresql":
        return None
    names = select(
        func.current_setting("server_encoding"),
        func.current_database(),
        func.current_user(),
        func.current_schema(),
        func.has_schema_privilege(func.current_schema(), "CREATE"),
    )
    encoding, *identifiers, may_create = connection.execute(names).one()
    quote = connection.dialect.identifier_preparer.quote
    database, role, schema = (name and quote(name) for name in identifiers)
    if encoding != "UTF8":
        return (
            f"the database {database} of jobserver.metadata.url has the encoding {encoding}",
            f"create it with the encoding UTF8: CREATE DATABASE {database} OWNER {role} TEMPLATE template0 "
            "ENCODING 'UTF8'",
        )
    if revision is None and not may_create:
        where = "any schema" if schema is None else f"the schema {schema}"
        return (
            f"the role {role} of jobserver.metadata.url may not create tables in {where} of the database "
            f"{database}",
            f"as an administrator, make it the owner with ALTER DATABASE {database} OWNER TO {role}, or run "
            f"in that database: GRANT USAGE, CREATE ON SCHEMA {schema or 'public'} TO {role}",
        )
    return None


def _create(connection: Connection) -> None:
    # Somebody else's table must not be taken for ours.
    tables.metadata.create_all(connection, checkfirst=False)
    _VERSION.create(connection)
    connection.execute(insert(_VERSION).values(version_num=HEAD, compatible_from=COMPATIBLE))


def _migrate(connection: Connection, revision: str) -> None:
    from alembic import command  # noqa: PLC0415 - a third of a second that only a migration needs
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - the same

    config = _config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision not in known:
        raise SchemaTooNew(found=revision, known=HEAD)
    command.upgrade(config, HEAD)
    connection.execute(update(_VERSION).values(compatible_from=COMPATIBLE))


def _config(connection: Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config(attributes={"connection": connection})
    directory = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", directory.replace("%", "%%"))
    return config
