"""Jobs: what is asked for, what is recorded, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import Enum

import attrs

from jobserver_core.errors import InvalidRequest
from jobserver_core.models.binaries import ClassPathEntry, ResolvedEntry, parse_class_path
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.models.lifecycle import JobState
from jobserver_core.models.names import check_class_name
from jobserver_core.models.redaction import redacted_repr
from jobserver_core.models.validation import aware, non_negative, sha256

__all__ = [
    "ErrorInfo",
    "FailureKind",
    "Job",
    "JobPage",
    "JobProgress",
    "JobQuery",
    "JobRequest",
    "JobResult",
    "ResultKind",
]

MAX_LIMIT = 10_000
"""The most jobs that one page may hold."""


def _class_path(entries: str | Sequence[str | ClassPathEntry]) -> tuple[ClassPathEntry, ...]:
    if isinstance(entries, str):
        return parse_class_path(entries)
    return tuple(
        parsed
        for entry in entries
        for parsed in ([entry] if isinstance(entry, ClassPathEntry) else parse_class_path([entry]))
    )


@attrs.frozen(kw_only=True)
class JobRequest:
    """A job to run: a class, the class path that holds it, its configuration, and where to run.

    ``class_path`` lists names of binaries and URIs; one string with commas is accepted too.
    ``config`` is HOCON text or an already parsed mapping. Without ``context`` an ad-hoc context
    is made, with ``context_settings`` laid over the server's defaults; ``context_owner`` is put
    before its name (``<owner>~``), where each user's contexts are kept apart. ``idempotency_key`` makes
    a repeated submit return the first one's job.
    """

    class_name: str
    class_path: tuple[ClassPathEntry, ...] = attrs.field(converter=_class_path)
    config: str | JsonMapping = attrs.field(default="", hash=False, repr=False)
    context: str | None = None
    context_settings: JsonMapping = attrs.field(factory=dict, hash=False, repr=redacted_repr)
    context_owner: str | None = None
    callback_url: str | None = attrs.field(default=None, repr=redacted_repr)
    idempotency_key: str | None = None

    def __attrs_post_init__(self) -> None:
        check_class_name(self.class_name)
        if not self.class_path:
            raise InvalidRequest(message="a job needs a class path: names of binaries, or URIs")
        if self.idempotency_key is not None and not 0 < len(self.idempotency_key) <= 255:
            raise InvalidRequest(message="an idempotency key has 1 to 255 characters")


class ResultKind(str, Enum):
    """Where a job's result is."""

    INLINE = "inline"
    """JSON text beside the job's record."""
    STORED = "stored"
    """JSON text in the blob store."""
    STREAM = "stream"
    """Raw bytes in the blob store, as the job yielded them."""


@attrs.frozen(kw_only=True)
class JobResult:
    """A job's result: ``size`` bytes, inline as ``text`` or in the blob store as ``digest``."""

    kind: ResultKind
    size: int = attrs.field(validator=non_negative)
    text: str | None = None
    digest: str | None = attrs.field(default=None, validator=attrs.validators.optional(sha256))

    def __attrs_post_init__(self) -> None:
        if (self.kind is ResultKind.INLINE) != (self.text is not None):
            raise ValueError("an inline result, and no other, has its text")
        if (self.text is None) == (self.digest is None):
            raise ValueError("a result has either text or a digest")


@attrs.frozen(kw_only=True)
class JobProgress:
    """How far a running job is, in Spark's stages and tasks; totals grow as stages are planned."""

    stages_done: int = attrs.field(default=0, validator=non_negative)
    stages_total: int = attrs.field(default=0, validator=non_negative)
    tasks_done: int = attrs.field(default=0, validator=non_negative)
    tasks_total: int = attrs.field(default=0, validator=non_negative)


@attrs.frozen(kw_only=True)
class Job:
    """A job as it is recorded. Its configuration and result are kept beside it, not in it.

    ``submitted_at`` is when it was accepted, ``dispatched_at`` when the launcher was given it (None:
    it waits for a slot or for its context), ``running_at`` when its validation had passed.
    ``kill_requested`` says that somebody asked for its end, which is not yet its end.
    ``progress`` is what the launcher last told while the job ran.
    ``has_result`` tells a stored result (even JSON null) from none.
    """

    id: str
    class_name: str
    class_path: tuple[ResolvedEntry, ...]
    context_id: str
    context_name: str
    state: JobState = JobState.STARTED
    submitted_at: datetime = attrs.field(validator=aware)
    dispatched_at: datetime | None = attrs.field(default=None, validator=aware)
    running_at: datetime | None = attrs.field(default=None, validator=aware)
    ended_at: datetime | None = attrs.field(default=None, validator=aware)
    kill_requested: bool = False
    failure: FailureKind | None = None
    error: ErrorInfo | None = None
    has_result: bool = False
    progress: JobProgress | None = None
    callback_url: str | None = attrs.field(default=None, repr=redacted_repr)
    idempotency_key: str | None = None
    fingerprint: str | None = None

    @property
    def waiting(self) -> bool:
        """Whether the job has not been given to the launcher yet."""
        return not self.state.final and self.dispatched_at is None

    @property
    def seconds(self) -> float | None:
        """How long the job took from submit to end, in seconds, never negative; None while it lives."""
        if self.ended_at is None:
            return None
        return max(0.0, (self.ended_at - self.submitted_at).total_seconds())


@attrs.frozen(kw_only=True)
class JobQuery:
    """Which jobs to list, newest first; None does not filter.

    ``since`` and ``until`` bound ``submitted_at`` (inclusive, exclusive). ``after`` is the
    ``next`` cursor of the page before.
    """

    states: tuple[JobState, ...] | None = None
    context_id: str | None = None
    context_name: str | None = None
    class_name: str | None = None
    since: datetime | None = attrs.field(default=None, validator=aware)
    until: datetime | None = attrs.field(default=None, validator=aware)
    after: str | None = None
    offset: int = attrs.field(default=0)
    limit: int = attrs.field(default=50)

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.limit <= MAX_LIMIT:
            raise InvalidRequest(message=f"limit must be 0 to {MAX_LIMIT}, got {self.limit}")
        if self.offset < 0:
            raise InvalidRequest(message=f"offset must not be negative, got {self.offset}")


@attrs.frozen(kw_only=True)
class JobPage:
    """One page of jobs, and the cursor of the next one; None when this is the last."""

    jobs: tuple[Job, ...]
    next: str | None = None
