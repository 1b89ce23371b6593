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

__all__ = ["binary_of", "context_of", "deliveries_of", "event_of", "job_of", "server_of", "storage_of"]


def _time(text: Json) -> datetime:
    return datetime.fromisoformat(str(text).replace("Z", "+00:00")).astimezone(timezone.utc)


def _time_or_none(text: Json) -> datetime | None:
    return None if text in (None, "Empty") else _time(text)


def _error(report: JsonMapping | None) -> ErrorInfo | None:
    if report is None:
        return None
    return ErrorInfo(message=report["message"], error_class=report["errorClass"], stack=report["stack"])


def binary_of(name: str, report: JsonMapping) -> Binary:
    """Return a version of a binary."""
    return Binary(
        id=report["id"],
        name=name,
        type=BinaryType(report["binary-type"]),
        uploaded_at=_time(report["upload-time"]),
        digest=report["digest"],
        size=report["size"],
    )


def context_of(report: JsonMapping) -> Context:
    """Return the record of a context."""
    started = _time(report["startTime"])
    return Context(
        id=report["id"],
        name=report["name"],
        state=ContextState(report["state"]),
        owner="",
        owned_since=started,
        started_at=started,
        ended_at=_time_or_none(report["endTime"]),
        application_id=report.get("applicationId"),
        url=report.get("url"),
        error=_error(report.get("error")),
        restarts=report.get("restarts", 0),
    )


def job_of(report: JsonMapping) -> Job:
    """Return the record of a job. Its class path is known only from ``GET /jobs/<id>``.

    Reports without the time of the dispatch say whether the job still waits for it. The time of the submit
    stands in for it then.
    """
    state = JobState(report["status"])
    submitted = _time(report["startTime"])
    begun = not state.final and not report.get("waiting")
    progress = report.get("progress")
    return Job(
        id=report["jobId"],
        class_name=report["classPath"],
        class_path=tuple(_entry(code) for code in report.get("cp", ())),
        context_id=report["contextId"],
        context_name=report["context"],
        state=state,
        submitted_at=submitted,
        dispatched_at=_time_or_none(report.get("dispatchTime")) or (submitted if begun else None),
        ended_at=_time_or_none(report.get("endTime")),
        kill_requested=report.get("killRequested", False),
        failure=FailureKind(report["failure"]) if "failure" in report else None,
        error=_error(report.get("result")) if state in (JobState.ERROR, JobState.KILLED) else None,
        has_result=state is JobState.FINISHED,
        progress=_progress(progress) if progress else None,
        max_queue_time=report.get("maxQueueTime"),
        max_run_time=report.get("maxRunTime"),
        priority=report.get("priority", 0),
        restartable=report.get("restartable", False),
        restarts=report.get("restarts", 0),
    )


def _entry(code: JsonMapping) -> ResolvedEntry:
    return ResolvedEntry(
        source=code["source"],
        type=BinaryType(code["binary-type"]),
        digest=code["digest"],
        size=code["size"],
    )


def _progress(report: JsonMapping) -> JobProgress:
    return JobProgress(
        stages_done=report["stagesDone"],
        stages_total=report["stagesTotal"],
        tasks_done=report["tasksDone"],
        tasks_total=report["tasksTotal"],
    )


def deliveries_of(job_id: str, reports: Iterable[JsonMapping]) -> list[Delivery]:
    """Return the deliveries of a job's callback."""
    return [
        Delivery(
            id=report["id"],
            job_id=job_id,
            url="",
            receiver="",
            state=DeliveryState(report["state"]),
            attempts=report["attempts"],
            created_at=_time(report["createdAt"]),
            due_at=_time(report["dueAt"]),
            ended_at=_time_or_none(report["endedAt"]),
            last_status=report["lastStatus"],
            last_error=report["lastError"],
        )
        for report in reports
    ]


def storage_of(report: JsonMapping) -> StorageUsage:
    """Return how much storage one kind of data uses."""
    return StorageUsage(
        kind=report["kind"], count=report["count"], size=report["bytes"], limits=report["limits"]
    )


def server_of(report: JsonMapping) -> ServerStatus:
    """Return a server as the others see it."""
    return ServerStatus(
        id=report["id"],
        address=report["address"],
        version=report["version"],
        started_at=_time(report["startTime"]),
        lease_until=_time(report["leaseUntil"]),
        draining=report["state"] == "draining",
        expired=report["state"] == "expired",
        contexts=report["contexts"],
    )


def event_of(name: str, data: str) -> Event | None:
    """Return a server-sent event, or None for one that this release does not know."""
    report: JsonMapping = loads(data)
    if name == "job":
        return JobChanged(at=_time(report["at"]), job=job_of(report))
    if name == "progress":
        return JobProgressed(at=_time(report["at"]), job=job_of(report))
    if name == "context":
        return ContextChanged(at=_time(report["at"]), context=context_of(report))
    if name == "callback":
        [delivery] = deliveries_of(report["jobId"], [report])
        return DeliveryChanged(at=_time(report["at"]), delivery=delivery)
    return None
