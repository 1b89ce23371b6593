"""The name and version that an uploaded package carries in itself."""

from alembic import op
from sqlalchemy import Column

from jobserver_sql.columns import FreeText

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the column. It stays empty for what earlier releases stored, and for what they store meanwhile."""
    op.add_column("binaries", Column("package", FreeText))
