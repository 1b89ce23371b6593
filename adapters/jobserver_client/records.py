"""Turning the JSON of the HTTP API into the models of the library.

Times have milliseconds. The API does not disclose everything that a record has: URLs and receivers of
callbacks, owners and settings of contexts, and idempotency keys are empty or None.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

from jobserver_core.events import ContextChanged, DeliveryChanged, Event, JobChanged, JobProgressed
from jobserver_core.models.binaries import Binary, BinaryType, ResolvedEntry
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobProgress
from jobserver_core.models.json_values import Json, JsonMapping, loads
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.models.servers import ServerStatus
from jobserver_core.models.storage import StorageUsage


def _time(text: Json) -> datetime:
    return datetime.fromisoformat(str(text).replace("Z", "+00:00")).astimezone(timezone.utc)


def _time_or_none(text: Json) -> datetime | None:
    return None if text in (None, "Empty") else _time(text)


def _error(error: JsonMapping | None) -> ErrorInfo | None:
    if error is None:
        return None
    return ErrorInfo(message=error["message"], error_class=error["errorClass"], stack=error["stack"])


def binary_of(name: str, record: JsonMapping) -> Binary:
    """Return a version of a binary."""
    return Binary(
        id=record["id"],
        name=name,
        type=BinaryType(record["binary-type"]),
        uploaded_at=_time(record["upload-time"]),
        digest=record["digest"],
        size=record["size"],
        package=record.get("package"),
    )


def context_of(record: JsonMapping) -> Context:
    """Return the record of a context."""
    started = _time(record["startTime"])
    return Context(
        id=record["id"],
        name=record["name"],
        state=ContextState(record["state"]),
        owner="",
        owned_since=started,
        started_at=started,
        ended_at=_time_or_none(record["endTime"]),
        application_id=record.get("applicationId"),
        url=record.get("url"),
        error=_error(record.get("error")),
        end_reason=record.get("endReason", ""),
        restarts=record.get("restarts", 0),
        server=record.get("server", ""),
    )


def job_of(record: JsonMapping) -> Job:
    """Return the record of a job. Its class path is known only from ``GET /jobs/<id>``.

    A record without the time of the dispatch says whether the job still waits for it. If the job does not
    wait, the time of the submit stands in for that of the dispatch.
    """
    state = JobState(record["status"])
    submitted = _time(record["startTime"])
    begun = not state.final and not record.get("waiting")
    progress = record.get("progress")
    return Job(
        id=record["jobId"],
        class_name=record["classPath"],
        class_path=tuple(
            ResolvedEntry(
                source=code["source"],
                type=BinaryType(code["binary-type"]),
                digest=code["digest"],
                size=code["size"],
            )
            for code in record.get("cp", ())
        ),
        context_id=record["contextId"],
        context_name=record["context"],
        state=state,
        submitted_at=submitted,
        dispatched_at=_time_or_none(record.get("dispatchTime")) or (submitted if begun else None),
        ended_at=_time_or_none(record.get("endTime")),
        kill_requested=record.get("killRequested", False),
        failure=FailureKind(record["failure"]) if "failure" in record else None,
        error=_error(record.get("result")) if state in (JobState.ERROR, JobState.KILLED) else None,
        has_result=state is JobState.FINISHED,
        progress=JobProgress(
            stages_done=progress["stagesDone"],
            stages_total=progress["stagesTotal"],
            tasks_done=progress["tasksDone"],
            tasks_total=progress["tasksTotal"],
        )
        if progress
        else None,
        max_queue_time=record.get("maxQueueTime"),
        max_run_time=record.get("maxRunTime"),
        priority=record.get("priority", 0),
        restartable=record.get("restartable", False),
        restarts=record.get("restarts", 0),
    )


def deliveries_of(job_id: str, records: Iterable[JsonMapping]) -> list[Delivery]:
    """Return the deliveries of a job's callback."""
    return [
        Delivery(
            id=record["id"],
            job_id=job_id,
            url="",
            receiver="",
            state=DeliveryState(record["state"]),
            attempts=record["attempts"],
            created_at=_time(record["createdAt"]),
            due_at=_time(record["dueAt"]),
            ended_at=_time_or_none(record["endedAt"]),
            last_status=record["lastStatus"],
            last_error=record["lastError"],
        )
        for record in records
    ]


def storage_of(usage: JsonMapping) -> StorageUsage:
    """Return how much storage one kind of data uses."""
    return StorageUsage(kind=usage["kind"], count=usage["count"], size=usage["bytes"], limits=usage["limits"])


def server_of(record: JsonMapping) -> ServerStatus:
    """Return a server as the others see it."""
    return ServerStatus(
        id=record["id"],
        address=record["address"],
        version=record["version"],
        started_at=_time(record["startTime"]),
        lease_until=_time(record["leaseUntil"]),
        draining=record["state"] == "draining",
        expired=record["state"] == "expired",
        leased=record.get("leased", True),
        contexts=record["contexts"],
    )


def event_of(name: str, data: str) -> Event | None:
    """Return a server-sent event, or None for one that this release does not know."""
    record: JsonMapping = loads(data)
    at = _time(record["at"])
    if name == "job":
        return JobChanged(at=at, job=job_of(record))
    if name == "progress":
        return JobProgressed(at=at, job=job_of(record))
    if name == "context":
        return ContextChanged(at=at, context=context_of(record))
    if name == "callback":
        [delivery] = deliveries_of(record["jobId"], [record])
        return DeliveryChanged(at=at, delivery=delivery)
    return None
