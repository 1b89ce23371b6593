"""Servers that drain, their versions, and which releases can work with the database."""

from alembic import op
from sqlalchemy import Boolean, Column, String, false

from jobserver_sql.columns import FreeText
from jobserver_sql.schema import VERSION_TABLE

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("servers", Column("version", FreeText, nullable=False, server_default=""))
    op.add_column("servers", Column("draining", Boolean, nullable=False, server_default=false()))
    op.add_column(VERSION_TABLE, Column("compatible_from", String(32)))
