"""Requests of servers to one another."""

from alembic import op
from sqlalchemy import Column

from jobserver_sql.columns import FreeText, Instant

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "requests",
        Column("id", FreeText, primary_key=True),
        Column("recipient", FreeText, nullable=False),
        Column("created_at", Instant, nullable=False),
        Column("payload", FreeText, nullable=False),
        Column("answer", FreeText),
    )
