"""Mapping errors to HTTP responses: the only place for their status, label and body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from jobserver_core import errors as core
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job
from jobserver_core.models.json_values import Json, JsonMapping, JsonObject
from jobserver_core.models.serialization import unstructure
from jobserver_core.ports.faults import for_remote_callers
from jobserver_http.access import Namespace
from jobserver_http.wire import error_object, exception_object


@attrs.frozen(kw_only=True)
class StatusResponse:
    """A response whose body has a ``status`` in one of the contract's formats, with its headers.

    ``result`` is a string, an error object, or None. The rest are extensions. Failures have a ``code`` for
    machines, a ``detail`` if the contract prescribes the message, and the error's ``fields``, from which a
    client creates an equal one. ``job_id`` is the job of an accepted submit that failed before its code ran,
    or whose outcome the caller may not see any more. ``warnings`` are about what is wrong despite a success.
    """

    status: int
    label: str = "ERROR"
    result: Json = None
    detail: str | None = None
    code: str | None = None
    fields: JsonMapping = attrs.field(factory=dict)
    job_id: str | None = None
    warnings: tuple[str, ...] = ()
    headers: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def body(self) -> JsonObject:
        """The JSON body."""
        members = {
            "result": self.result,
            "code": self.code,
            "detail": None if self.detail == self.result else self.detail,
            "fields": self.fields or None,
            "jobId": self.job_id,
            "warnings": list(self.warnings) or None,
        }
        return {"status": self.label, **{name: value for name, value in members.items() if value is not None}}


REFUSALS = {
    400: "invalid_request",
    401: "unauthenticated",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    415: "unsupported_media_type",
    429: "too_many_failed_logins",
}
"""The error codes of requests that the HTTP layer rejects, by status."""
INTERNAL = "internal_error"
"""The error code of unexpected errors."""


class Rejected(Exception):
    """The HTTP layer rejects a request. The status must be one of ``REFUSALS``.

    ``job_id`` is the job that the request has submitted before it was rejected.
    """

    job_id: str | None = None

    def __init__(
        self,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        *,
        code: str | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        self.code = code or REFUSALS[status]
        self.detail = detail


class BodyTooLarge(core.TooLarge):
    """The request body is larger than its limit."""

    code = core.TooLarge.code


class ContextUrlMalformed(core.MalformedUrl):
    """A malformed URL in the settings of a job's ad-hoc context, not in the job's own class path."""

    code = core.MalformedUrl.code


class BinaryInUseByOthers(core.BinaryInUse):
    """Jobs that the caller may not see use the binary, too. ``job_ids`` has only the caller's."""

    code = core.BinaryInUse.code


Rule = Callable[[Any, Namespace], StatusResponse]

RETRY = {"Retry-After": "5"}


def _message(status: int, prefix: str = "", headers: Mapping[str, str] | None = None) -> Rule:
    """Return ``ERROR`` with the error's message."""
    return lambda error, names: StatusResponse(
        status=status, result=prefix + names.without_prefix(str(error)), headers=headers or {}
    )


def _fixed_text(status: int, text: str, detail: str | None = None) -> Rule:
    """Return ``ERROR`` with a message of the contract, formatted with the error's fields."""

    def rule(error: Any, names: Namespace) -> StatusResponse:
        result = names.without_prefix(error.formatted(text))
        more = getattr(error, detail) if detail else None
        return StatusResponse(status=status, result=result, detail=more and names.without_prefix(more))

    return rule


def _object(status: int, label: str) -> Rule:
    """Return a label with the error object of the exception. Its message does not repeat the label."""
    repeated = label.rpartition(": ")[2] + ": "

    def rule(error: Any, names: Namespace) -> StatusResponse:
        result = exception_object(error, names)
        return StatusResponse(
            status=status, label=label, result={**result, "message": result["message"].removeprefix(repeated)}
        )

    return rule


def _job_error(status: int, label: str) -> Rule:
    """Return a label with the error object of a failed job or context."""
    return lambda error, names: StatusResponse(
        status=status, label=label, result=error_object(error.error, names)
    )


def _used_by_others(error: BinaryInUseByOthers, _names: Namespace) -> StatusResponse:
    own = error.formatted(": {job_ids}, and by jobs") if error.job_ids else ""
    return StatusResponse(status=403, result=f"Binary is in use by job(s){own} of other users")


_NO_SLOTS = "Too many running jobs ({running}) for job context '{context}'"

_RESPONSES: dict[type[Exception], Rule] = {
    core.JobServerError: _object(500, "ERROR"),
    core.InvalidInput: _message(400),
    core.InvalidName: _message(400),
    core.InvalidFirstLetter: _fixed_text(400, "context name must start with letters"),
    core.InvalidRequest: _message(400),
    core.InvalidConfig: _message(400, "Cannot parse config: "),
    core.InvalidSetting: _message(400),
    core.UnknownContextFactory: _message(400),
    core.UnsupportedMediaType: _message(415),
    core.NotAnArchive: _fixed_text(400, "Binary is not of the right format", "reason"),
    core.MalformedUrl: _object(400, "ERROR"),
    core.InvalidCallbackUrl: _fixed_text(400, "callbackUrl {url!r} is not allowed: {reason}"),
    core.TooLarge: _message(413),
    BodyTooLarge: _message(413),
    core.ContextTooLarge: _message(400),
    core.IdempotencyMismatch: _message(422),
    core.NotFound: _message(404),
    core.BinaryNotFound: _fixed_text(404, "Can't find binary with name {name}"),
    core.ContextNotFound: _fixed_text(404, "can't find context with name {name}", "reason"),
    core.JobNotFound: _fixed_text(404, "No such job ID {job_id}"),
    core.DataFileNotFound: _fixed_text(400, "Unable to delete data file '{name}'."),
    core.BlobNotFound: _object(500, "Storage Failure"),
    core.LogNotFound: _message(404),
    core.LogServerGone: _message(404),
    core.Conflict: _message(409),
    core.ContextExists: _message(400),
    core.ContextStopping: _fixed_text(409, "Context stop in progress"),
    core.BinaryInUse: _fixed_text(403, "Binary is in use by job(s): {job_ids}"),
    BinaryInUseByOthers: _used_by_others,
    core.JobAlreadyFinal: _fixed_text(404, "No running job with ID {job_id}"),
    core.IllegalTransition: _message(409),
    core.StaleState: _message(409),
    core.OnAnotherServer: _message(409),
    core.StaleOwner: _message(409),
    core.DuplicateId: _message(409),
    core.Unavailable: _message(503, headers=RETRY),
    core.NoSlots: lambda error, names: StatusResponse(
        status=503,
        label="NO SLOTS AVAILABLE",
        result=names.without_prefix(error.formatted(_NO_SLOTS)),
        detail=error.reason,
        headers=RETRY,
    ),
    core.CapacityReached: _message(503, headers=RETRY),
    core.ServerClosed: _message(503, headers=RETRY),
    core.JobPostponed: _message(503, headers=RETRY),
    core.JobInterrupted: _message(503, headers=RETRY),
    core.JobUnsuccessful: _job_error(200, "ERROR"),
    core.JobFailed: _job_error(200, "ERROR"),
    core.JobKilled: _job_error(200, "KILLED"),
    core.ContextFailed: _job_error(500, "CONTEXT INIT ERROR"),
    core.ResultTimeout: lambda _error, _names: StatusResponse(
        status=500,
        result="Request timed out. Try using the /jobs/<jobID>, /jobs APIs to get status/results",
    ),
    core.BackendError: _object(500, "ERROR"),
    core.StorageError: _object(500, "Storage Failure"),
    core.FetchError: _object(400, "JOB LOADING FAILED"),
    core.LaunchError: _object(500, "ERROR"),
    core.TransportError: _object(500, "ERROR"),
    core.SchemaTooNew: _object(500, "ERROR"),
    core.DataDirLocked: _object(500, "ERROR"),
    core.PluginNotFound: _object(500, "ERROR"),
    core.PluginFailed: _object(500, "ERROR"),
}

_CANNOT_PARSE = _message(400, "Cannot parse config: ")
_NOTHING_TO_DELETE: dict[type[Exception], Rule] = {
    core.BinaryNotFound: _fixed_text(404, "can't find binary with name {name}")
}

_BY_OPERATION: dict[str, dict[type[Exception], Rule]] = {
    "delete_binary": _NOTHING_TO_DELETE,
    "delete_jar": _NOTHING_TO_DELETE,
    "upload_jar": {core.NotAnArchive: _fixed_text(400, "Jar is not of the right format", "reason")},
    "create_context": {
        core.UnknownContextFactory: _object(500, "CONTEXT INIT ERROR"),
        core.BinaryNotFound: _fixed_text(404, "appName {name} not found"),
        core.MalformedUrl: _object(400, "CONTEXT INIT ERROR: Malformed URL"),
        core.NotAnArchive: _object(500, "CONTEXT INIT ERROR"),
        core.TooLarge: _object(500, "CONTEXT INIT ERROR"),
        core.BackendError: _object(500, "CONTEXT INIT ERROR"),
        core.FetchError: _object(500, "CONTEXT INIT ERROR"),
        core.LaunchError: _object(500, "CONTEXT INIT ERROR"),
    },
    "delete_context": {
        core.ContextNotFound: _fixed_text(404, "context {name} not found", "reason"),
        core.ContextFailed: _job_error(500, "CONTEXT DELETE ERROR"),
        core.BackendError: _object(500, "CONTEXT DELETE ERROR"),
        core.StorageError: _object(500, "CONTEXT DELETE ERROR"),
        core.LaunchError: _object(500, "CONTEXT DELETE ERROR"),
    },
    "submit_job": {
        core.UnknownContextFactory: _object(500, "CONTEXT INIT FAILED"),
        core.InvalidRequest: _CANNOT_PARSE,
        core.BinaryNotFound: _fixed_text(404, "appName {name} not found"),
        core.ContextNotFound: _fixed_text(404, "context {name} not found", "reason"),
        core.MalformedUrl: _object(400, "JOB LOADING FAILED: Malformed URL"),
        ContextUrlMalformed: _object(400, "CONTEXT INIT ERROR: Malformed URL"),
        core.NotAnArchive: _object(400, "JOB LOADING FAILED"),
        core.TooLarge: _object(400, "JOB LOADING FAILED"),
        core.FetchError: _object(400, "JOB LOADING FAILED"),
        core.LaunchError: _object(500, "CONTEXT INIT FAILED"),
    },
}


def response_to(
    error: Exception, operation: str | None = None, names: Namespace | None = None
) -> StatusResponse:
    """Return the response to an error of an operation (the name of its route).

    For each class of the error's MRO, rules of the operation take precedence over general rules. What a
    plug-in has raised unexpectedly is only named: the log has its words.

    Raises:
        TypeError: It is not an error of the library.
    """
    error = for_remote_callers(error)
    if isinstance(error, Rejected):
        return StatusResponse(
            status=error.status,
            result=error.message,
            code=error.code,
            detail=error.detail,
            job_id=error.job_id,
            headers=error.headers,
        )
    special = _BY_OPERATION.get(operation or "", {})
    for kind in type(error).__mro__:
        rule = special.get(kind) or _RESPONSES.get(kind)
        if rule is not None:
            names = names or Namespace()
            code = getattr(error, "code", INTERNAL)
            return attrs.evolve(rule(error, names), code=code, fields=_fields(error, names))
    raise TypeError(f"{type(error).__name__} is not an error of the job server")


def _fields(error: Exception, names: Namespace) -> JsonObject:
    """Return the fields of an error as JSON, with context names as the caller sees them."""
    if not isinstance(error, core.JobServerError):
        return {}
    fields: JsonObject = names.without_prefixes(unstructure(error)["fields"])
    return fields


FAILURES = {
    FailureKind.VALIDATION: "validation_failed",
    FailureKind.CLASS_NOT_FOUND: "class_not_found",
    FailureKind.WRONG_TYPE: "wrong_job_type",
    FailureKind.LOADING: "job_loading_failed",
    FailureKind.CONTEXT_INIT: "context_init_failed",
    FailureKind.QUEUE_TIME: "queue_time_exceeded",
}
"""The error codes of submits whose job failed before its code ran."""


def failed_submission(job: Job, names: Namespace) -> StatusResponse | None:
    """Return the response to a submit whose job failed before its code ran, or None if the code ran."""
    if job.failure not in FAILURES:
        return None
    response = _refused(job.failure, job, names)
    return attrs.evolve(response, code=FAILURES[job.failure], job_id=job.id)


def _refused(failure: FailureKind, job: Job, names: Namespace) -> StatusResponse:
    error = job.error or ErrorInfo(message="unknown reason")
    if failure is FailureKind.CLASS_NOT_FOUND:
        reason = next(iter(error.stack.splitlines()), None)
        text = f"classPath {job.class_name} not found"
        return StatusResponse(status=404, result=text, detail=reason and names.without_prefix(reason))
    if failure is FailureKind.WRONG_TYPE:
        text = "Invalid job type for this context"
        detail = names.without_prefix(error.message) if "\n" not in error.message else None
        return StatusResponse(status=400, result=text, detail=detail)
    if failure is FailureKind.QUEUE_TIME:
        text = names.without_prefix(error.message)
        return StatusResponse(status=503, label="NO SLOTS AVAILABLE", result=text, headers=RETRY)
    status, label = {
        FailureKind.VALIDATION: (400, "VALIDATION FAILED"),
        FailureKind.LOADING: (400, "JOB LOADING FAILED"),
        FailureKind.CONTEXT_INIT: (500, "CONTEXT INIT FAILED"),
    }[failure]
    return StatusResponse(status=status, label=label, result=error_object(error, names))
