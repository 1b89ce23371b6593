"""The schema's revisions: applied at start, by one server at a time, never past what this release knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, func, inspect, select, update
from sqlalchemy.schema import Column, MetaData, Table
from sqlalchemy.types import Text

from jobserver_core.errors import SchemaTooNew, StorageError
from jobserver_sql.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["HEAD", "VERSION_TABLE", "found", "touch", "upgrade"]

HEAD = "0003"
"""The revision that this release works with."""

VERSION_TABLE = "jobserver_schema"
"""Where the revision is recorded: a name of our own, since others may use Alembic in one database."""

_VERSION = Table(VERSION_TABLE, MetaData(), Column("version_num", Text))
_PATIENCE = 60.0
"""Seconds that a server waits for another one that is bringing a SQLite file up to date."""
_LOCK = 0x6A6F6273  # "jobs": the advisory lock that migrating servers take in PostgreSQL


def found(connection: Connection) -> str | None:
    """Return the revision of a database, or None for one that has no schema yet."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(select(_VERSION.c.version_num))


def touch(connection: Connection) -> str | None:
    """Write the revision as it is, which shows that the database can be written to, and return it."""
    connection.execute(update(_VERSION).values(version_num=_VERSION.c.version_num))
    return connection.scalar(select(_VERSION.c.version_num))


def upgrade(database: Database) -> None:
    """Bring a database to :data:`HEAD`. Raises SchemaTooNew, and changes nothing, for a newer one.

    It is one transaction under a lock that other servers wait for, so that any number may
    start at once, and one that is killed meanwhile leaves the database as it was.
    """
    with database.read() as connection:
        if found(connection) == HEAD:
            return
    with database.write(patience=_PATIENCE) as connection:
        if connection.dialect.name == "postgresql":
            _refuse_other_encodings(connection)
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        revision = found(connection)
        if revision != HEAD:
            _migrate(connection, revision)


def _migrate(connection: Connection, revision: str | None) -> None:
    from alembic import command  # noqa: PLC0415 - a third of a second that only a migration needs
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - the same

    config = _config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise SchemaTooNew(found=revision, known=HEAD)
    command.upgrade(config, HEAD)


def _config(connection: Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config(attributes={"connection": connection})
    folder = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    return config


def _refuse_other_encodings(connection: Connection) -> None:
    encoding = connection.scalar(select(func.current_setting("server_encoding")))
    if encoding != "UTF8":
        raise StorageError(message=f"the database has the encoding {encoding}: make one with UTF8")
