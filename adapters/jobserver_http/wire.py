"""Converting the library's models to the JSON of the HTTP contract."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable
from datetime import datetime, timezone

from jobserver_core.config.old_settings import IGNORED_IN_CONTEXTS
from jobserver_core.config.trees import flatten
from jobserver_core.models.binaries import Binary, ResolvedEntry
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context, ContextLoad, SparePool
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import Job, JobProgress
from jobserver_core.models.json_values import JsonObject
from jobserver_core.models.lifecycle import JobState
from jobserver_core.models.redaction import redacted, redacted_url
from jobserver_core.models.servers import ServerStatus
from jobserver_core.models.storage import StorageUsage
from jobserver_http.access import Namespace

NO_NAMESPACE = Namespace()


def encoded(value: object) -> bytes:
    """Encode a value as JSON, in ASCII so that lone surrogates in a job's message can be sent."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def timestamp(moment: datetime) -> str:
    """Format a time in ISO 8601 with milliseconds, in UTC: ``2016-06-19T10:57:12.196Z``."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def duration(seconds: float | None) -> str:
    """Format a duration with up to three decimals, as ``6.341 secs``; None means that the job is not done."""
    return "Job not done yet" if seconds is None else f"{round(max(seconds, 0.0), 3)} secs"


def error_object(error: ErrorInfo | None, names: Namespace = NO_NAMESPACE) -> JsonObject:
    """Return the contract's error object."""
    error = error or ErrorInfo(message="unknown reason")
    return {
        "message": names.without_prefix(error.message),
        "errorClass": error.error_class,
        "stack": names.without_prefix(error.stack),
    }


def exception_object(error: BaseException, names: Namespace = NO_NAMESPACE) -> JsonObject:
    """Return the error object of an exception in the server, without its frames, which only the log has."""
    kind = type(error)
    text = "".join(traceback.format_exception_only(kind, error)).strip()
    return {
        "message": names.without_prefix(str(error)),
        "errorClass": f"{kind.__module__}.{kind.__qualname__}",
        "stack": names.without_prefix(text),
    }


def binary_record(binary: Binary) -> JsonObject:
    """Return a binary as ``GET /binaries`` shows it.

    ID, digest and size are extensions, and the name and version of its package, if it has any.
    """
    record: JsonObject = {
        "binary-type": binary.type.value,
        "upload-time": timestamp(binary.uploaded_at),
        "id": binary.id,
        "digest": binary.digest,
        "size": binary.size,
    }
    return record if binary.package is None else {**record, "package": binary.package}


def named_binary_record(binary: Binary) -> JsonObject:
    """Return a binary as ``GET /binaries/<name>`` shows it."""
    return {"app-name": binary.name, **binary_record(binary)}


def pool_object(pool: SparePool) -> JsonObject:
    """Return a pool of spare contexts as ``GET /contexts?spares=true`` shows it."""
    return {"pool": pool.name, "size": pool.size, "ready": pool.ready, "starting": pool.starting}


def context_record(context: Context, names: Namespace = NO_NAMESPACE, *, waiting: bool = False) -> JsonObject:
    """Return a context as ``GET /contexts/<name>`` shows it.

    As extensions, it has ``waiting`` if the context waits until fewer others start, ``endReason`` if a user
    or a limit has ended it, ``restarts`` if it was started again, and the address of its ``server`` if
    several servers may share their database.
    """
    record: JsonObject = {
        "id": context.id,
        "name": names.shown(context.name),
        "startTime": timestamp(context.started_at),
        "endTime": timestamp(context.ended_at) if context.ended_at else "Empty",
        "state": context.state.value,
    }
    if waiting:
        record["waiting"] = True
    if context.application_id is not None:
        record["applicationId"] = context.application_id
    if context.url is not None:
        record["url"] = context.url
    if context.error is not None:
        record["error"] = error_object(context.error, names)
    if context.end_reason:
        record["endReason"] = context.end_reason
    if context.restarts:
        record["restarts"] = context.restarts
    if context.server:
        record["server"] = context.server
    return record


def restart_object(before: Context, names: Namespace) -> JsonObject:
    """Return why a context was started again: its ID, end and error are those of the one before it."""
    restart: JsonObject = {"id": before.id}
    if before.ended_at is not None:
        restart["endTime"] = timestamp(before.ended_at)
    if before.error is not None:
        restart["error"] = error_object(before.error, names)
    return restart


def context_details(
    context: Context, names: Namespace, *, waiting: bool, load: ContextLoad | None, slots: int
) -> JsonObject:
    """Return a context's record with its effective settings, without secrets and those without effect.

    It also has the load, and what is still done before it can start, if the context lives in this server.
    """
    record = context_record(context, names, waiting=waiting)
    if load is not None:
        if load.preparing:
            record["preparing"] = load.preparing
        record["load"] = {"slots": slots, "running": load.running, "waiting": load.waiting}
    effective = {
        key: value for key, value in flatten(context.settings).items() if key not in IGNORED_IN_CONTEXTS
    }
    record["settings"] = redacted(effective)
    return record


def job_record(job: Job, names: Namespace = NO_NAMESPACE) -> JsonObject:
    """Return the record of a job that the contract defines.

    As extensions, it has ``waiting`` and ``killRequested`` if they are true, the time of its end and the kind
    of its failure if there are any, its priority if it is not 0, its time limits if it has any,
    ``restartable`` if it is true, ``restarts`` if it has run again, and ``progress`` if it is known and the
    job has not finished. The last progress of a finished job would be outdated.
    """
    record: JsonObject = {
        "jobId": job.id,
        "startTime": timestamp(job.submitted_at),
        "classPath": job.class_name,
        "context": names.shown(job.context_name),
        "contextId": job.context_id,
        "duration": duration(job.seconds),
        "status": job.state.value,
    }
    if job.state in (JobState.ERROR, JobState.KILLED):
        record["result"] = error_object(job.error, names)
    if job.waiting:
        record["waiting"] = True
    if job.kill_requested and not job.state.final:
        record["killRequested"] = True
    if job.ended_at is not None:
        record["endTime"] = timestamp(job.ended_at)
    if job.failure is not None:
        record["failure"] = job.failure.value
    if job.priority:
        record["priority"] = job.priority
    if job.max_queue_time is not None:
        record["maxQueueTime"] = job.max_queue_time
    if job.max_run_time is not None:
        record["maxRunTime"] = job.max_run_time
    if job.restartable:
        record["restartable"] = True
    if job.restarts:
        record["restarts"] = job.restarts
    if job.progress is not None and job.state is not JobState.FINISHED:
        record["progress"] = progress_object(job.progress)
    return record


def detailed_record(job: Job, names: Namespace = NO_NAMESPACE) -> JsonObject:
    """Return a job as ``GET /jobs/<id>`` shows it: also with its code, submitter and times."""
    record = {**job_record(job, names), "cp": [_code_object(entry) for entry in job.class_path]}
    if job.dispatched_at is not None:
        record["dispatchTime"] = timestamp(job.dispatched_at)
    if job.running_at is not None:
        record["runningTime"] = timestamp(job.running_at)
    if job.submitted_by:
        record["submittedBy"] = job.submitted_by
    return record


def _code_object(entry: ResolvedEntry) -> JsonObject:
    """Return what was asked for, with passwords redacted, and the bytes that this meant."""
    code: JsonObject = {
        "source": redacted_url(entry.source),
        "binary-type": entry.type.value,
        "digest": entry.digest,
        "size": entry.size,
    }
    return code if entry.binary_id is None else {**code, "id": entry.binary_id}


def progress_object(progress: JobProgress) -> dict[str, int]:
    """Return a job's progress."""
    return {
        "stagesDone": progress.stages_done,
        "stagesTotal": progress.stages_total,
        "tasksDone": progress.tasks_done,
        "tasksTotal": progress.tasks_total,
    }


def storage_object(usage: StorageUsage) -> JsonObject:
    """Return how much storage one kind of data uses."""
    return {"kind": usage.kind, "count": usage.count, "bytes": usage.size, "limits": dict(usage.limits)}


def server_record(server: ServerStatus) -> JsonObject:
    """Return a server as the others see it."""
    return {
        "id": server.id,
        "address": server.address,
        "version": server.version,
        "startTime": timestamp(server.started_at),
        "state": server.state,
        "leaseUntil": timestamp(server.lease_until),
        "leased": server.leased,
        "contexts": server.contexts,
    }


def delivery_records(deliveries: Iterable[Delivery]) -> list[JsonObject]:
    """Return the deliveries of a job's callback, without the URL, which may contain secrets."""
    return [
        {
            "id": delivery.id,
            "state": delivery.state.value,
            "attempts": delivery.attempts,
            "createdAt": timestamp(delivery.created_at),
            "dueAt": timestamp(delivery.due_at),
            "endedAt": timestamp(delivery.ended_at) if delivery.ended_at else None,
            "lastStatus": delivery.last_status,
            "lastError": delivery.last_error,
        }
        for delivery in deliveries
    ]
