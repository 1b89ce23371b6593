"""Servers that drain, their versions, and locks."""

from alembic import op
from sqlalchemy import Boolean, Column, false

from jobserver_sql.columns import FreeText, Instant

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("servers", Column("version", FreeText, nullable=False, server_default=""))
    op.add_column("servers", Column("draining", Boolean, nullable=False, server_default=false()))
    op.create_table(
        "locks",
        Column("name", FreeText, primary_key=True),
        Column("holder", FreeText, nullable=False),
        Column("expires_at", Instant, nullable=False),
    )
