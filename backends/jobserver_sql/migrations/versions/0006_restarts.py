"""Restarts of supervised contexts, and jobs that may run again. Earlier jobs may not."""

from alembic import op
from sqlalchemy import Boolean, Column, Integer, false

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns."""
    for name in ("restarts", "consecutive_restarts"):
        op.add_column("contexts", Column(name, Integer, nullable=False, server_default="0"))
    op.add_column("jobs", Column("restartable", Boolean, nullable=False, server_default=false()))
    op.add_column("jobs", Column("restarts", Integer, nullable=False, server_default="0"))
