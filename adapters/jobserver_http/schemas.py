"""JSON schemas of request and response bodies, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.failures import FailureKind
from jobserver_core.models.json_values import JsonObject
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState

Schema = JsonObject
"""A JSON schema, or another object of the OpenAPI document."""

_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_TIME: Schema = {"type": "string", "format": "date-time"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SECONDS: Schema = {"type": "number", "exclusiveMinimum": 0}
_TRUE: Schema = {"type": "boolean", "const": True}


def reference(name: str) -> Schema:
    """Return a reference to one of the schemas."""
    if name not in SCHEMAS:
        raise KeyError(name)
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _list(name: str) -> Schema:
    return {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}}


def _one_of(values: Iterable[Enum]) -> Schema:
    return {"type": "string", "enum": [value.value for value in values]}


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


_NULL = {"type": "null"}
_ERROR = {"$ref": "#/components/schemas/ErrorObject"}
_BINARY = {
    "binary-type": _one_of(BinaryType),
    "upload-time": _TIME,
    "id": _TEXT,
    "digest": _TEXT,
    "size": _COUNT,
}
_PACKAGE = {"package": _TEXT}
_CODE = {"source": _TEXT, "binary-type": _one_of(BinaryType), "digest": _TEXT, "size": _COUNT}
_JOB: Schema = {
    "jobId": _TEXT,
    "startTime": _TIME,
    "classPath": _TEXT,
    "context": _TEXT,
    "contextId": _TEXT,
    "duration": {"type": "string", "examples": ["Job not done yet", "6.341 secs"]},
    "status": _one_of(JobState),
}
_JOB_OPTIONAL: Schema = {
    "waiting": _TRUE,
    "killRequested": _TRUE,
    "endTime": _TIME,
    "failure": _one_of(FailureKind),
    "priority": {"type": "integer"},
    "maxQueueTime": _SECONDS,
    "maxRunTime": _SECONDS,
    "restartable": _TRUE,
    "restarts": _COUNT,
    "progress": {"$ref": "#/components/schemas/JobProgress"},
    "callbacks": _list("Delivery"),
}

SCHEMAS: dict[str, Schema] = {
    "ErrorObject": _object({"message": _TEXT, "errorClass": _TEXT, "stack": _TEXT}),
    "Success": _object({"status": {"const": "SUCCESS"}}, {"result": _TEXT, "warnings": _TEXTS}),
    "Failure": _object(
        {"status": _TEXT, "code": _TEXT},
        {"result": _either(_TEXT, _ERROR), "detail": _TEXT, "fields": {"type": "object"}, "jobId": _TEXT},
    ),
    "Binary": _object({"app-name": _TEXT, **_BINARY}, _PACKAGE),
    "Jars": {"type": "object", "additionalProperties": _TIME},
    "Binaries": {"type": "object", "additionalProperties": _object(_BINARY, _PACKAGE)},
    "Versions": {"type": "array", "items": _object({**_BINARY, "usedBy": _TEXTS}, _PACKAGE)},
    "Names": _TEXTS,
    "User": _object({"permissions": _TEXTS}, {"name": _TEXT}),
    "Contexts": _either(_TEXTS, _list("Context"), _list("SparePool")),
    "SparePool": _object({"pool": _TEXT, "size": _COUNT, "ready": _COUNT, "starting": _COUNT}),
    "Context": _object(
        {
            "id": _TEXT,
            "name": _TEXT,
            "startTime": _TIME,
            "endTime": _either({"const": "Empty"}, _TIME),
            "state": _one_of(ContextState),
            "load": _object(dict.fromkeys(("slots", "running", "waiting"), _COUNT)),
            "settings": {"type": "object"},
        },
        {
            "waiting": _TRUE,
            "applicationId": _TEXT,
            "url": _TEXT,
            "error": _ERROR,
            "endReason": _TEXT,
            "restarts": _COUNT,
            "lastRestart": _object({"id": _TEXT}, {"endTime": _TIME, "error": _ERROR}),
            "server": _TEXT,
            "preparing": _TEXT,
        },
    ),
    "JobProgress": _object(dict.fromkeys(("stagesDone", "stagesTotal", "tasksDone", "tasksTotal"), _COUNT)),
    "Delivery": _object(
        {
            "id": _TEXT,
            "state": _one_of(DeliveryState),
            "attempts": _COUNT,
            "createdAt": _TIME,
            "dueAt": _TIME,
            "endedAt": _either(_TIME, _NULL),
            "lastStatus": _either({"type": "integer"}, _NULL),
            "lastError": _either(_TEXT, _NULL),
        }
    ),
    "Job": _object(_JOB, {**_JOB_OPTIONAL, "result": _ERROR}),
    "Jobs": _list("Job"),
    "JobWithResult": _object(
        {**_JOB, "cp": {"type": "array", "items": _object(_CODE, {"id": _TEXT})}},
        {
            **_JOB_OPTIONAL,
            "dispatchTime": _TIME,
            "runningTime": _TIME,
            "submittedBy": _TEXT,
            "result": {"description": "The value, or the error object"},
        },
    ),
    "JobResult": _object(
        {"jobId": _TEXT, "result": {"description": "The value, or the error object if there is a status"}},
        {"status": _one_of((JobState.ERROR, JobState.KILLED))},
    ),
    "Killed": _either(
        _object({"status": {"const": "KILLED"}}), _object({"status": {"const": "ERROR"}, "ERROR": _ERROR})
    ),
    "StorageUsage": _object(
        {"kind": _TEXT, "count": _COUNT, "bytes": _either(_COUNT, _NULL), "limits": {"type": "object"}}
    ),
    "StorageUsages": _list("StorageUsage"),
    "ServerStatus": _object(
        {
            "id": _TEXT,
            "address": _TEXT,
            "version": _TEXT,
            "startTime": _TIME,
            "state": {"enum": ["alive", "draining", "expired"]},
            "leaseUntil": _TIME,
            "leased": {"type": "boolean"},
            "contexts": _COUNT,
        }
    ),
    "ServerStatuses": _list("ServerStatus"),
    "Pruned": _object({"removed": {"type": "object", "additionalProperties": _COUNT}}),
    "Stored": _object({"result": _object({"filename": _TEXT})}),
    "Configuration": {"type": "object"},
    "OpenApi": {"type": "object"},
}
"""All schemas by name. Objects have only the listed members."""
