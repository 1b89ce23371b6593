"""Servers with their leases, and the epochs of what they own. Records of earlier releases have epoch 0."""

from alembic import op
from sqlalchemy import BigInteger, Column

from jobserver_sql.columns import FreeText, Instant

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the table, and add the columns."""
    op.create_table(
        "servers",
        Column("id", FreeText, primary_key=True),
        Column("started_at", Instant, nullable=False),
        Column("address", FreeText, nullable=False),
        Column("lease_until", Instant, nullable=False),
    )
    for table in ("contexts", "jobs", "deliveries"):
        op.add_column(table, Column("epoch", BigInteger, nullable=False, server_default="0"))
    op.add_column("deliveries", Column("owner", FreeText))
