"""Indexes to find old contexts and old versions of binaries."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the indexes."""
    op.create_index("ix_contexts_ended_at", "contexts", ["ended_at", "seq"])
    op.create_index("ix_binaries_uploaded_at", "binaries", ["uploaded_at", "seq"])
