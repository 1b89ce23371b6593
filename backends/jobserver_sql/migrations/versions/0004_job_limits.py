"""Time limits, priorities and users of jobs. Jobs of earlier releases have none."""

from alembic import op
from sqlalchemy import Column, Integer

from jobserver_sql.columns import FreeText, Seconds

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("jobs", Column("max_queue_time", Seconds))
    op.add_column("jobs", Column("max_run_time", Seconds))
    op.add_column("jobs", Column("priority", Integer, nullable=False, server_default="0"))
    op.add_column("jobs", Column("submitted_by", FreeText, nullable=False, server_default=""))
