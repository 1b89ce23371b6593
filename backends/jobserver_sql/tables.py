"""The tables. A column has the name of its field, so that records and rows need no translation.

Data that a page of jobs does not show (configurations, results) has separate tables. ``job_holds``
has a row for each class-path entry of each job that is *not final*: these must not be deleted or
collected yet. So the cost of such checks depends on the living jobs, not on all past ones. The table
is so small that it needs no indexes, which every job would have to update twice.

Every index that a job is added to costs it a page in SQLite's log, so columns that most jobs leave
empty have partial indexes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar, get_args

import attrs
from sqlalchemy import BigInteger, Boolean, Column, Connection, Index, Integer, MetaData, Select, Table, false
from sqlalchemy.sql.elements import ColumnElement

from jobserver_core.models.binaries import Binary, BinaryType, ResolvedEntry
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobProgress, JobResult, ResultKind
from jobserver_core.models.lifecycle import CONTEXTS, ContextState, DeliveryState, JobState
from jobserver_core.models.servers import Server, ServerRequest
from jobserver_sql.columns import EnumMember, FreeText, Instant, Json, Seconds

metadata = MetaData()


def _index_where_present(name: str, column: Column[Any], *more: Column[Any], unique: bool = False) -> None:
    present = column.is_not(None)
    Index(name, column, *more, unique=unique, sqlite_where=present, postgresql_where=present)


_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")


def _id() -> Column[str]:
    return Column("id", FreeText, primary_key=True)


def _required(name: str, kind: Any) -> Column[Any]:
    return Column(name, kind, nullable=False)


def _epoch() -> Column[int]:
    return Column("epoch", BigInteger, nullable=False, server_default="0")


servers = Table(
    "servers",
    metadata,
    _id(),
    _required("started_at", Instant),
    _required("address", FreeText),
    _required("lease_until", Instant),
    Column("version", FreeText, nullable=False, server_default=""),
    Column("draining", Boolean, nullable=False, server_default=false()),
    Column("pins_blobs", Boolean, nullable=False, server_default=false()),
)

requests = Table(
    "requests",
    metadata,
    _id(),
    _required("recipient", FreeText),
    _required("created_at", Instant),
    _required("payload", FreeText),
    Column("answer", FreeText),
)

binaries = Table(
    "binaries",
    metadata,
    Column("seq", _SEQUENCE, primary_key=True),
    _required("id", FreeText),
    _required("name", FreeText),
    _required("type", EnumMember(BinaryType)),
    _required("uploaded_at", Instant),
    _required("digest", FreeText),
    _required("size", BigInteger),
    Column("package", FreeText),
    Index("ux_binaries_id", "id", unique=True),
    Index("ix_binaries_name", "name", "uploaded_at", "seq"),
    Index("ix_binaries_digest", "digest"),
    Index("ix_binaries_uploaded_at", "uploaded_at", "seq"),
)

contexts = Table(
    "contexts",
    metadata,
    Column("seq", _SEQUENCE, primary_key=True),
    _required("id", FreeText),
    _required("name", FreeText),
    _required("state", EnumMember(ContextState)),
    _required("settings", Json(Mapping[str, Any])),
    _required("ad_hoc", Boolean),
    _required("owner", FreeText),
    _required("owned_since", Instant),
    _epoch(),
    _required("started_at", Instant),
    Column("ended_at", Instant),
    _required("stop_requested", Boolean),
    Column("application_id", FreeText),
    Column("url", FreeText),
    Column("error", Json(ErrorInfo)),
    Column("restarts", Integer, nullable=False, server_default="0"),
    Column("consecutive_restarts", Integer, nullable=False, server_default="0"),
    Column("server_id", FreeText, nullable=False, server_default=""),
    Column("server", FreeText, nullable=False, server_default=""),
    Column("left_to_others", Boolean, nullable=False, server_default=false()),
    Column("end_reason", FreeText, nullable=False, server_default=""),
    Index("ux_contexts_id", "id", unique=True),
    Index("ix_contexts_name", "name", "started_at", "seq"),
    Index("ix_contexts_name_state", "name", "state", "started_at", "seq"),
    Index("ix_contexts_state", "state", "started_at", "seq"),
    Index("ix_contexts_owner", "owner", "state", "started_at", "seq"),
    Index("ix_contexts_ended_at", "ended_at", "seq"),
)
_live: ColumnElement[bool] = contexts.c.state.in_(CONTEXTS.live_states)
Index("ux_contexts_live_name", contexts.c.name, unique=True, sqlite_where=_live, postgresql_where=_live)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    _required("class_name", FreeText),
    _required("class_path", Json(tuple[ResolvedEntry, ...], shared=True)),
    _required("context_id", FreeText),
    _required("context_name", FreeText),
    _required("state", EnumMember(JobState)),
    _required("submitted_at", Instant),
    Column("dispatched_at", Instant),
    Column("running_at", Instant),
    Column("ended_at", Instant),
    _required("kill_requested", Boolean),
    Column("failure", EnumMember(FailureKind)),
    Column("error", Json(ErrorInfo)),
    _required("has_result", Boolean),
    Column("progress", Json(JobProgress)),
    Column("callback_url", FreeText),
    Column("idempotency_key", FreeText),
    Column("fingerprint", FreeText),
    Column("max_queue_time", Seconds),
    Column("max_run_time", Seconds),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("submitted_by", FreeText, nullable=False, server_default=""),
    _epoch(),
    Column("restartable", Boolean, nullable=False, server_default=false()),
    Column("restarts", Integer, nullable=False, server_default="0"),
    Index("ix_jobs_state", "state", "submitted_at", "id"),
    Index("ix_jobs_context_id", "context_id", "state", "submitted_at", "id"),
    Index("ix_jobs_context_name", "context_name", "state", "submitted_at", "id"),
    Index("ix_jobs_class_name", "class_name", "state", "submitted_at", "id"),
)

_index_where_present("ux_jobs_idempotency_key", jobs.c.idempotency_key, unique=True)
_index_where_present("ix_jobs_ended_at", jobs.c.ended_at, jobs.c.submitted_at, jobs.c.id)

job_configs = Table(
    "job_configs",
    metadata,
    Column("job_id", FreeText, primary_key=True),
    _required("config", FreeText),
)

job_results = Table(
    "job_results",
    metadata,
    Column("job_id", FreeText, primary_key=True),
    _required("kind", EnumMember(ResultKind)),
    _required("size", BigInteger),
    Column("text", FreeText),
    Column("digest", FreeText),
)

_index_where_present("ix_job_results_digest", job_results.c.digest)

job_holds = Table(
    "job_holds",
    metadata,
    Column("job_id", FreeText, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("binary_id", FreeText),
    _required("digest", FreeText),
)

blob_pins = Table(
    "blob_pins",
    metadata,
    _id(),
    _required("server_id", FreeText),
    _required("digest", FreeText),
    Column("expires_at", Instant),
    Index("ix_blob_pins_digest", "digest"),
)

blob_removals = Table(
    "blob_removals",
    metadata,
    Column("digest", FreeText, primary_key=True),
    _required("server_id", FreeText),
    _required("until", Instant),
)

deliveries = Table(
    "deliveries",
    metadata,
    _id(),
    _required("job_id", FreeText),
    _required("url", FreeText),
    _required("receiver", FreeText),
    _required("state", EnumMember(DeliveryState)),
    _required("attempts", BigInteger),
    _required("created_at", Instant),
    _required("due_at", Instant),
    Column("ended_at", Instant),
    Column("last_status", BigInteger),
    Column("last_error", FreeText),
    Column("owner", FreeText),
    _epoch(),
    Index("ix_deliveries_job_id", "job_id", "created_at", "id"),
    Index("ix_deliveries_due_at", "state", "due_at", "created_at", "id", "receiver"),
    Index("ix_deliveries_state", "state", "created_at", "id"),
)

Record: TypeAlias = Binary | Context | Job | JobResult | Delivery | Server | ServerRequest
R = TypeVar("R", Binary, Context, Job, Delivery, Server, ServerRequest)

_FIELDS = {model: tuple(field.name for field in attrs.fields(model)) for model in get_args(Record)}
_GETTERS: dict[type, Callable[[object], tuple[object, ...]]] = {
    model: operator.attrgetter(*names) for model, names in _FIELDS.items()
}


def columns_of(model: type[Record], table: Table) -> list[Column[Any]]:
    """Return the columns of a model's fields, without the table's internal ones."""
    return [table.c[name] for name in _FIELDS[model]]


def row_of(record: Record) -> dict[str, object]:
    """Return a record's fields as the row to write."""
    return dict(zip(_FIELDS[type(record)], values_of(record), strict=True))


def values_of(record: Record) -> tuple[object, ...]:
    """Return a record's fields in the order of :func:`columns_of`."""
    return _GETTERS[type(record)](record)


def read(
    connection: Connection, model: type[R], query: Select[Any], values: Mapping[str, object] | None = None
) -> list[R]:
    """Return the records of a query for the columns of a model."""
    return [model(**row._mapping) for row in connection.execute(query, values)]
