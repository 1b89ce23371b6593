"""Metadata on SQLite and PostgreSQL, through SQLAlchemy Core."""

from jobserver_sql.database import check_database
from jobserver_sql.store import SqlMetadataStore

__all__ = ["SqlMetadataStore", "check_database"]
