"""Records for tests. Fields have sensible defaults, so that a test names only those that matter to it."""

from __future__ import annotations

import hashlib
import itertools
from datetime import datetime, timedelta, timezone
from typing import Any

from jobserver_core.models.binaries import Binary, BinaryType, ResolvedEntry
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job, JobResult, ResultKind

EPOCH = datetime(2016, 6, 19, 10, 57, 12, 196_000, tzinfo=timezone.utc)
"""The default of all times in the builders' records."""

_numbers = itertools.count(1)


def at(seconds: float = 0, *, microseconds: int = 0) -> datetime:
    """Return a time after :data:`EPOCH`."""
    return EPOCH + timedelta(seconds=seconds, microseconds=microseconds)


def digest_of(text: str) -> str:
    """Return the sha256 of a string, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def _fresh(kind: str) -> str:
    return f"{kind}-{next(_numbers):08d}"


def a_binary(name: str = "word-count", **fields: Any) -> Binary:
    """Return a version of a binary, by default an egg with unique content."""
    number = _fresh("binary")
    defaults: dict[str, object] = {
        "id": number,
        "type": BinaryType.EGG,
        "uploaded_at": EPOCH,
        "digest": digest_of(number),
        "size": 1024,
    }
    return Binary(name=name, **{**defaults, **fields})


def an_entry(binary: Binary | None = None, **fields: Any) -> ResolvedEntry:
    """Return a class-path entry of a binary, or of a URI if ``binary`` is None."""
    defaults: dict[str, object] = {
        "source": "https://example.org/job.egg",
        "type": BinaryType.EGG,
        "digest": digest_of("https://example.org/job.egg"),
        "size": 2048,
    }
    if binary is not None:
        defaults = {
            "source": binary.name,
            "type": binary.type,
            "digest": binary.digest,
            "size": binary.size,
            "binary_id": binary.id,
        }
    return ResolvedEntry(**{**defaults, **fields})


def a_context(name: str = "shared", **fields: Any) -> Context:
    """Return a context that has just been STARTED."""
    defaults: dict[str, object] = {
        "id": _fresh("context"),
        "owner": "server-1",
        "owned_since": EPOCH,
        "started_at": EPOCH,
    }
    return Context(name=name, **{**defaults, **fields})


def a_job(*binaries: Binary, **fields: Any) -> Job:
    """Return a job that has just been STARTED, with these binaries, or one URI, as its class path."""
    entries = tuple(an_entry(binary) for binary in binaries) or (an_entry(),)
    defaults: dict[str, object] = {
        "id": _fresh("job"),
        "class_name": "jobs.WordCount",
        "class_path": entries,
        "context_id": "context-1",
        "context_name": "shared",
        "submitted_at": EPOCH,
    }
    return Job(**{**defaults, **fields})


def a_result(text: str = '{"a":1}') -> JobResult:
    """Return an inline result with this JSON."""
    return JobResult(kind=ResultKind.INLINE, size=len(text.encode()), text=text)


def a_delivery(job: Job | None = None, **fields: Any) -> Delivery:
    """Return a PENDING delivery that is due now."""
    defaults: dict[str, object] = {
        "id": _fresh("delivery"),
        "job_id": job.id if job is not None else "job-0",
        "url": "https://example.org/done?x=1",
        "receiver": "https://example.org:443",
        "created_at": EPOCH,
        "due_at": EPOCH,
    }
    return Delivery(**{**defaults, **fields})
