"""Metadata on SQLite and PostgreSQL, through SQLAlchemy Core."""

from jobserver_sql.schema import database_problem
from jobserver_sql.store import SqlMetadataStore

__all__ = ["SqlMetadataStore", "database_problem"]
