"""The records: binaries, contexts, jobs and deliveries, with their unique keys."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")
LIVE = sa.text("state IN ('STARTED', 'RUNNING', 'STOPPING', 'RESTARTING')")


def required(name: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    """Return a column that is never NULL."""
    return sa.Column(name, kind, nullable=False)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "binaries",
        sa.Column("seq", SEQUENCE, primary_key=True),
        required("id", TEXT),
        required("name", TEXT),
        required("type", sa.Text()),
        required("uploaded_at", sa.BigInteger()),
        required("digest", TEXT),
        required("size", sa.BigInteger()),
    )
    op.create_index("ux_binaries_id", "binaries", ["id"], unique=True)
    op.create_table(
        "contexts",
        sa.Column("seq", SEQUENCE, primary_key=True),
        required("id", TEXT),
        required("name", TEXT),
        required("state", sa.Text()),
        required("settings", sa.Text()),
        required("ad_hoc", sa.Boolean()),
        required("owner", TEXT),
        required("owned_since", sa.BigInteger()),
        required("started_at", sa.BigInteger()),
        sa.Column("ended_at", sa.BigInteger()),
        required("stop_requested", sa.Boolean()),
        sa.Column("application_id", TEXT),
        sa.Column("url", TEXT),
        sa.Column("error", sa.Text()),
    )
    op.create_index("ux_contexts_id", "contexts", ["id"], unique=True)
    op.create_index(
        "ux_contexts_live_name",
        "contexts",
        ["name"],
        unique=True,
        sqlite_where=LIVE,
        postgresql_where=LIVE,
    )
    _create_job_tables()
    _create_deliveries()


def _create_job_tables() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", TEXT, primary_key=True),
        required("class_name", TEXT),
        required("class_path", sa.Text()),
        required("context_id", TEXT),
        required("context_name", TEXT),
        required("state", sa.Text()),
        required("submitted_at", sa.BigInteger()),
        sa.Column("dispatched_at", sa.BigInteger()),
        sa.Column("running_at", sa.BigInteger()),
        sa.Column("ended_at", sa.BigInteger()),
        required("kill_requested", sa.Boolean()),
        sa.Column("failure", sa.Text()),
        sa.Column("error", sa.Text()),
        required("has_result", sa.Boolean()),
        sa.Column("progress", sa.Text()),
        sa.Column("callback_url", TEXT),
        sa.Column("idempotency_key", TEXT),
        sa.Column("fingerprint", TEXT),
    )
    op.create_index("ux_jobs_idempotency_key", "jobs", ["idempotency_key"], unique=True)
    op.create_table("job_configs", sa.Column("job_id", TEXT, primary_key=True), required("config", TEXT))
    op.create_table(
        "job_results",
        sa.Column("job_id", TEXT, primary_key=True),
        required("kind", sa.Text()),
        required("size", sa.BigInteger()),
        sa.Column("text", TEXT),
        sa.Column("digest", TEXT),
    )
    op.create_table(
        "job_holds",
        sa.Column("job_id", TEXT, primary_key=True),
        sa.Column("position", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("binary_id", TEXT),
        required("digest", TEXT),
    )


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", TEXT, primary_key=True),
        required("job_id", TEXT),
        required("url", TEXT),
        required("receiver", TEXT),
        required("state", sa.Text()),
        required("attempts", sa.BigInteger()),
        required("created_at", sa.BigInteger()),
        required("due_at", sa.BigInteger()),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("last_status", sa.BigInteger()),
        sa.Column("last_error", TEXT),
    )
