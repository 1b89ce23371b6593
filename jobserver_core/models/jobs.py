"""Jobs: requests, records, results, and pages of them with their cursors."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from enum import Enum

import attrs

from jobserver_core.errors import InvalidRequest, NoSlots
from jobserver_core.models.arguments import (
    check_config,
    check_idempotency_key,
    check_kind,
    check_limit,
    check_query_time,
    check_seconds,
    check_settings,
    members,
)
from jobserver_core.models.binaries import ClassPathEntry, ResolvedEntry, parse_class_path
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.models.lifecycle import JobState
from jobserver_core.models.redaction import redacted_repr
from jobserver_core.models.validation import aware, check_class_name, non_negative, positive_seconds, sha256

__all__ = [
    "ErrorInfo",
    "FailureKind",
    "Job",
    "JobPage",
    "JobProgress",
    "JobQuery",
    "JobRequest",
    "JobResult",
    "QueueLimits",
    "ResultKind",
    "decode_cursor",
    "encode_cursor",
]

MAX_PRIORITY = 100
"""The highest priority of a job; the lowest is its negative."""
MAX_SECONDS = 10 * 365 * 86400.0
"""The maximum time limit of a job, as of every setting that is a duration."""


def _class_path(entries: str | Sequence[str | ClassPathEntry]) -> tuple[ClassPathEntry, ...]:
    if isinstance(entries, str):
        return parse_class_path(entries)
    expected = "a list of names of binaries and URIs, or one comma-separated string"
    check_kind("a class path", entries, (list, tuple), expected)
    return tuple(
        parsed
        for entry in entries
        for parsed in ([entry] if isinstance(entry, ClassPathEntry) else parse_class_path([entry]))
    )


def _user(name: str | None) -> str:
    """Return the name of a user, or of None the empty one that records have without a user."""
    return "" if name is None else name


@attrs.frozen(kw_only=True)
class JobRequest:
    """A request to run a job: the class, its class path, the configuration, and the context.

    ``class_path`` is a list of names of binaries and URIs, or one comma-separated string. ``packages`` is the
    same for a Python job: further wheels, eggs or ZIP files that it imports from, after its own. ``config``
    is HOCON text, or a mapping that is already parsed. Without ``context``, an ad-hoc context is created with
    the server's default settings, overridden by ``context_settings``, which only such a request may have. If
    users have separate contexts, its name starts with ``<context_owner>~``. With an ``idempotency_key``, a
    repeated submit returns the first one's job. A key has 1 to 255 characters of printable ASCII, perhaps
    after ``<context_owner>~``. Keys are unique over all users: a repeat with another ``submitted_by`` or
    ``context_owner`` is refused, like one with any other difference.

    ``max_queue_time`` and ``max_run_time`` are in seconds. A job that waits longer for its start, or runs
    longer, ends as ERROR. Without them, the settings of the context apply. Of the jobs that wait, those with
    the highest ``priority`` start first; ``submitted_by`` is the authenticated user, or None, and users take
    turns.

    A ``restartable`` job may run again from the beginning if its context dies and is supervised. Set it only
    for jobs that may run twice.
    """

    class_name: str
    class_path: tuple[ClassPathEntry, ...] = attrs.field(converter=_class_path)
    packages: tuple[ClassPathEntry, ...] = attrs.field(default=(), converter=_class_path)
    config: str | JsonMapping = attrs.field(default="", hash=False, repr=False)
    context: str | None = None
    context_settings: JsonMapping = attrs.field(factory=dict, hash=False, repr=redacted_repr)
    context_owner: str | None = None
    callback_url: str | None = attrs.field(default=None, repr=redacted_repr)
    idempotency_key: str | None = None
    max_queue_time: float | None = None
    max_run_time: float | None = None
    priority: int = 0
    submitted_by: str = attrs.field(default="", converter=_user)
    restartable: bool = False

    def __attrs_post_init__(self) -> None:
        check_class_name(self.class_name)
        check_config(self.config)
        check_settings(self.context_settings, "context_settings")
        if self.context is not None and self.context_settings:
            message = (
                "context_settings are for a job without context, which gets a context of its own; pass those "
                f"of context {self.context} when it is created"
            )
            raise InvalidRequest(message=message)
        for name in ("context", "context_owner", "callback_url", "idempotency_key"):
            check_kind(name, getattr(self, name), (str, type(None)), "a string or None")
        if self.context == "":
            raise InvalidRequest(message="context must not be empty; use None for a context of the job's own")
        check_kind("submitted_by", self.submitted_by, str, "a string, or None without a user")
        check_kind("restartable", self.restartable, bool, "True or False")
        check_kind("priority", self.priority, int, "an integer")
        if not self.class_path:
            raise InvalidRequest(
                message="the class path must not be empty; expected names of binaries or URIs"
            )
        if self.idempotency_key is not None:
            owner = f"{self.context_owner}~" if self.context_owner else ""
            check_idempotency_key(self.idempotency_key.removeprefix(owner))
        if isinstance(self.priority, bool) or not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise InvalidRequest(
                message=f"priority must be -{MAX_PRIORITY} to {MAX_PRIORITY}, got {self.priority}"
            )
        for name in ("max_queue_time", "max_run_time"):
            seconds = getattr(self, name)
            check_seconds(name, seconds)
            if seconds is not None and not 0 < seconds <= MAX_SECONDS:
                raise InvalidRequest(
                    message=f"{name} must be more than 0 and at most {MAX_SECONDS:.0f} seconds, got {seconds}"
                )


class ResultKind(str, Enum):
    """How a job's result is stored."""

    INLINE = "inline"
    """JSON in the metadata store."""
    STORED = "stored"
    """JSON in the blob store."""
    STREAM = "stream"
    """The bytes that the job yielded, in the blob store."""


@attrs.frozen(kw_only=True)
class JobResult:
    """A job's result: ``size`` bytes, inline as ``text`` or in the blob store as ``digest``."""

    kind: ResultKind
    size: int = attrs.field(validator=non_negative)
    text: str | None = None
    digest: str | None = attrs.field(default=None, validator=attrs.validators.optional(sha256))

    def __attrs_post_init__(self) -> None:
        if (self.kind is ResultKind.INLINE) != (self.text is not None):
            raise ValueError("an inline result must have text, and other results must not")
        if (self.text is None) == (self.digest is None):
            raise ValueError("a result must have either text or a digest")


@attrs.frozen(kw_only=True)
class JobProgress:
    """The progress of a running job in Spark's stages and tasks. Totals grow while stages are planned."""

    stages_done: int = attrs.field(default=0, validator=non_negative)
    stages_total: int = attrs.field(default=0, validator=non_negative)
    tasks_done: int = attrs.field(default=0, validator=non_negative)
    tasks_total: int = attrs.field(default=0, validator=non_negative)


@attrs.frozen(kw_only=True)
class Job:
    """The record of a job. Its configuration and result are stored separately.

    ``class_path`` of a Python job has its own package first, then the further ones that the request names.
    ``submitted_at`` is the time at which it was accepted, ``dispatched_at`` the time at which the launcher
    got it (None while it waits for a slot or its context), and ``running_at`` the time at which its
    validation passed. ``kill_requested`` means that a kill was requested, but the job may not have ended yet.
    ``progress`` is the last progress that the launcher reported. ``has_result`` is true if a result is
    stored, even if it is null. ``max_queue_time`` limits the seconds from ``submitted_at`` to
    ``dispatched_at``, and ``max_run_time`` those from there to the end. Jobs of a
    higher ``priority`` are dispatched first. ``submitted_by`` is the authenticated user, or empty. ``epoch``
    grows whenever another server takes the job over. A ``restartable`` job may run again if its supervised
    context dies; ``restarts`` is how often it has begun and was put back into the queue. ``error`` is the
    error of a job that failed or was killed, or of the kill that was requested.
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
    max_queue_time: float | None = attrs.field(default=None, validator=positive_seconds)
    max_run_time: float | None = attrs.field(default=None, validator=positive_seconds)
    priority: int = 0
    submitted_by: str = ""
    epoch: int = 0
    restartable: bool = False
    restarts: int = attrs.field(default=0, validator=non_negative)

    @property
    def waiting(self) -> bool:
        """Whether the job waits for a slot or its context."""
        return not self.state.final and self.dispatched_at is None

    @property
    def seconds(self) -> float | None:
        """The seconds from the submit to the end of the job, never negative; None before its end."""
        if self.ended_at is None:
            return None
        return max(0.0, (self.ended_at - self.submitted_at).total_seconds())


@attrs.frozen(kw_only=True)
class QueueLimits:
    """How many jobs of one context may run (``slots``), and how many more may wait (``places``)."""

    slots: int
    places: int

    def check(self, context: str, user: str, *, running: int, waiting: int, waiting_of_user: int) -> None:
        """Check that there is room for one more job of a user, with whom others share the queue.

        A user may occupy as many places as remain free for others. Jobs for which there is a free slot do
        not count as waiting. Without authentication, ``user`` is empty, and only the length is limited.

        Raises:
            NoSlots: There is no room, or none for this user.
        """
        slots = self.slots - running
        free = slots + self.places - waiting
        if free > (max(0, waiting_of_user - max(0, slots)) if user else 0):
            return
        limit = f"jobserver.jobs.max-queued-jobs = {self.places}"
        reason = (
            f"the queue is full ({waiting} waiting, {limit}), and so are the slots "
            f"(jobserver.jobs.max-jobs-per-context = {self.slots}); try again when a job has ended"
        )
        if free <= 0 and not self.places:
            reason = (
                f"all slots are taken (jobserver.jobs.max-jobs-per-context = {self.slots}), and no job may "
                f"wait ({limit}); try again when a job has ended"
            )
        elif free > 0:
            reason = (
                f"user {user} already has one user's share of the queue ({waiting_of_user} waiting, "
                f"{limit}), and the rest is reserved for others; try again when one of these jobs has started"
            )
        raise NoSlots(context=context, running=running, reason=reason)


def _states(values: Iterable[JobState | str] | str | None) -> tuple[JobState, ...] | None:
    return members(JobState, values, "job state")


@attrs.frozen(kw_only=True)
class JobQuery:
    """Selects jobs to list, newest first. None does not filter.

    ``states`` are members of :class:`JobState` or their names, one or several. ``since`` (inclusive) and
    ``until`` (exclusive) limit ``submitted_at``. ``after`` is the cursor ``next`` of the previous page.
    """

    states: tuple[JobState, ...] | None = attrs.field(default=None, converter=_states)
    context_id: str | None = None
    context_name: str | None = None
    class_name: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    after: str | None = None
    offset: int = attrs.field(default=0)
    limit: int = attrs.field(default=50)

    def __attrs_post_init__(self) -> None:
        for name in ("context_id", "context_name", "class_name", "after"):
            check_kind(name, getattr(self, name), (str, type(None)), "a string or None")
        for name in ("since", "until"):
            check_query_time(name, getattr(self, name))
        check_limit(self.limit)
        check_kind("offset", self.offset, int, "an integer")
        if self.offset < 0:
            raise InvalidRequest(message=f"offset must not be negative, got {self.offset}")


@attrs.frozen(kw_only=True)
class JobPage:
    """A page of jobs, and the cursor of the next page, or None if this is the last one.

    Iterating over it yields its jobs, and ``len`` counts them; those of other pages are not included.
    """

    jobs: tuple[Job, ...]
    next: str | None = None

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)

    @classmethod
    def of(cls, found: Sequence[Job], limit: int) -> JobPage:
        """Return the page of up to ``limit`` jobs; one more shows that it is not the last page."""
        shown = tuple(found[:limit])
        return cls(jobs=shown, next=encode_cursor(shown[-1]) if shown and len(found) > limit else None)


_MAX_CURSOR = 4096
"""The most characters of a cursor that is decoded, many times as many as this server writes."""


def encode_cursor(last: Job) -> str:
    """Return the cursor of the page after the one that ends with this job."""
    submitted = last.submitted_at.astimezone(timezone.utc).isoformat(timespec="microseconds")
    body = json.dumps([submitted, last.id], separators=(",", ":")).encode("ascii")
    return _text(_checksum(body) + body)


def decode_cursor(cursor: str) -> tuple[datetime, str]:
    """Return ``submitted_at`` and ``id`` of the last job of the previous page.

    A checksum detects truncated and modified cursors. It is not a security feature: a forged cursor only
    selects another position in the list.

    Raises:
        InvalidRequest: The cursor was not created by :func:`encode_cursor`.
    """
    try:
        return _decode(cursor)
    except (ValueError, TypeError) as error:
        message = "invalid cursor; expected the unmodified 'next' of the previous page"
        raise InvalidRequest(message=message) from error


def _decode(cursor: str) -> tuple[datetime, str]:
    if len(cursor) > _MAX_CURSOR:
        raise ValueError("too long")
    raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    checksum, body = raw[:4], raw[4:]
    if checksum != _checksum(body) or cursor != _text(raw):
        raise ValueError("wrong checksum")
    submitted, job_id = json.loads(body)
    position = datetime.fromisoformat(submitted), job_id
    if not isinstance(job_id, str) or position[0].tzinfo is None:
        raise ValueError("not a position")
    return position


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def _checksum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "big")
