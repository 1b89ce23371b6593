"""Which user or limit ended a context that did not fail."""

from alembic import op
from sqlalchemy import Column

from jobserver_sql.columns import FreeText

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the column. It stays empty for what earlier releases stored, and for what they store meanwhile."""
    op.add_column("contexts", Column("end_reason", FreeText, nullable=False, server_default=""))
