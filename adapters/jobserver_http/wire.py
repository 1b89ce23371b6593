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
from jobserver_core.models.json_values import Json, JsonObject
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


def _present(**members: Json) -> JsonObject:
    """Return the members whose value is neither None, false, 0 nor empty."""
    return {name: value for name, value in members.items() if value}


def binary_record(binary: Binary) -> JsonObject:
    """Return a binary as ``GET /binaries`` shows it.

    ID, digest and size are extensions, and the name and version of its package, if it has any.
    """
    return {
        "binary-type": binary.type.value,
        "upload-time": timestamp(binary.uploaded_at),
        "id": binary.id,
        "digest": binary.digest,
        "size": binary.size,
        **_present(package=binary.package),
    }


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
    return {
        "id": context.id,
        "name": names.shown(context.name),
        "startTime": timestamp(context.started_at),
        "endTime": timestamp(context.ended_at) if context.ended_at else "Empty",
        "state": context.state.value,
        **_present(
            waiting=waiting,
            applicationId=context.application_id,
            url=context.url,
            error=context.error and error_object(context.error, names),
            endReason=context.end_reason,
            restarts=context.restarts,
            server=context.server,
        ),
    }


def restart_object(before: Context, names: Namespace) -> JsonObject:
    """Return why a context was started again: its ID, end and error are those of the one before it."""
    ended, error = before.ended_at, before.error
    more = _present(endTime=ended and timestamp(ended), error=error and error_object(error, names))
    return {"id": before.id, **more}


def context_details(
    context: Context, names: Namespace, *, waiting: bool, load: ContextLoad | None, slots: int
) -> JsonObject:
    """Return a context's record with its effective settings, without secrets and those without effect.

    It also has the load, and what is still done before it can start, if the context lives in this server.
    """
    record = context_record(context, names, waiting=waiting)
    if load is not None:
        record |= _present(preparing=load.preparing)
        record["load"] = {"slots": slots, "running": load.running, "waiting": load.waiting}
    settings = flatten(context.settings).items()
    record["settings"] = redacted({key: value for key, value in settings if key not in IGNORED_IN_CONTEXTS})
    return record


def job_record(job: Job, names: Namespace = NO_NAMESPACE) -> JsonObject:
    """Return the record of a job that the contract defines.

    As extensions, it has ``waiting``, ``killRequested`` and ``restartable`` if they are true, the time of its
    end, the kind of its failure and its time limits if there are any, its priority and ``restarts`` if they
    are not 0, and ``progress``, unless the job has finished: the last one would be outdated.
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
    return {
        **job_record(job, names),
        "cp": [_code_object(entry) for entry in job.class_path],
        **_present(
            dispatchTime=job.dispatched_at and timestamp(job.dispatched_at),
            runningTime=job.running_at and timestamp(job.running_at),
            submittedBy=job.submitted_by,
        ),
    }


def _code_object(entry: ResolvedEntry) -> JsonObject:
    """Return what was asked for, with passwords redacted, and the bytes that this meant."""
    return {
        "source": redacted_url(entry.source),
        "binary-type": entry.type.value,
        "digest": entry.digest,
        "size": entry.size,
        **_present(id=entry.binary_id),
    }


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
