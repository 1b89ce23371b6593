"""Servers that drain, their versions, locks, and which releases can work with the database."""

from alembic import op
from sqlalchemy import Boolean, Column, String, false

from jobserver_sql.columns import FreeText, Instant
from jobserver_sql.schema import VERSION_TABLE

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("servers", Column("version", FreeText, nullable=False, server_default=""))
    op.add_column("servers", Column("draining", Boolean, nullable=False, server_default=false()))
    op.add_column(VERSION_TABLE, Column("compatible_from", String(32)))
    op.create_table(
        "locks",
        Column("name", FreeText, primary_key=True),
        Column("holder", FreeText, nullable=False),
        Column("expires_at", Instant, nullable=False),
    )
