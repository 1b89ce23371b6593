"""Which blobs servers count on or remove, which servers say so, and on which server a context runs."""

from alembic import op
from sqlalchemy import Boolean, Column, Index, false

from jobserver_sql.columns import FreeText, Instant

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Create the tables, and add the columns."""
    op.create_table(
        "blob_pins",
        Column("id", FreeText, primary_key=True),
        Column("server_id", FreeText, nullable=False),
        Column("digest", FreeText, nullable=False),
        Column("expires_at", Instant),
        Index("ix_blob_pins_digest", "digest"),
    )
    op.create_table(
        "blob_removals",
        Column("digest", FreeText, primary_key=True),
        Column("server_id", FreeText, nullable=False),
        Column("until", Instant, nullable=False),
    )
    op.add_column("servers", Column("pins_blobs", Boolean, nullable=False, server_default=false()))
    op.add_column("contexts", Column("server_id", FreeText, nullable=False, server_default=""))
    op.add_column("contexts", Column("server", FreeText, nullable=False, server_default=""))
    op.add_column("contexts", Column("left_to_others", Boolean, nullable=False, server_default=false()))
