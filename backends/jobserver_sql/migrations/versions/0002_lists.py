"""Indexes for lists, deletes and the garbage collection of blobs."""

from alembic import op

revision = "0002"
down_revision = "0001"

INDEXES = {
    "ix_binaries_name": ("binaries", ["name", "uploaded_at", "seq"]),
    "ix_binaries_digest": ("binaries", ["digest"]),
    "ix_contexts_name": ("contexts", ["name", "started_at", "seq"]),
    "ix_contexts_name_state": ("contexts", ["name", "state", "started_at", "seq"]),
    "ix_contexts_state": ("contexts", ["state", "started_at", "seq"]),
    "ix_contexts_owner": ("contexts", ["owner", "state", "started_at", "seq"]),
    "ix_jobs_state": ("jobs", ["state", "submitted_at", "id"]),
    "ix_jobs_context_id": ("jobs", ["context_id", "state", "submitted_at", "id"]),
    "ix_jobs_context_name": ("jobs", ["context_name", "state", "submitted_at", "id"]),
    "ix_jobs_class_name": ("jobs", ["class_name", "state", "submitted_at", "id"]),
    "ix_jobs_ended_at": ("jobs", ["ended_at", "submitted_at", "id"]),
    "ix_job_results_digest": ("job_results", ["digest"]),
    "ix_job_holds_binary_id": ("job_holds", ["binary_id"]),
    "ix_job_holds_digest": ("job_holds", ["digest"]),
    "ix_deliveries_job_id": ("deliveries", ["job_id", "created_at", "id"]),
    "ix_deliveries_due_at": ("deliveries", ["state", "due_at", "created_at", "id", "receiver"]),
    "ix_deliveries_state": ("deliveries", ["state", "created_at", "id"]),
}


def upgrade() -> None:
    """Create the indexes."""
    for name, (table, columns) in INDEXES.items():
        op.create_index(name, table, columns)
