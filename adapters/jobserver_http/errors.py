"""Every error's answer: status, label and body, in this one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from jobserver_core import errors as core
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job
from jobserver_http.namespaces import Namespace
from jobserver_http.wire import error_object, exception_object

__all__ = [
    "FAILURES",
    "INTERNAL",
    "REFUSALS",
    "Answer",
    "BodyTooLarge",
    "ContextUrlMalformed",
    "Rejected",
    "answer_to",
    "failed_submission",
]


@attrs.frozen(kw_only=True)
class Answer:
    """An answer in one of the contract's shapes.

    ``result`` is a string, an error object, or None for a body with the label only. Beyond the contract,
    a failure has a ``code`` for programs, and ``detail`` is what the contract's fixed words leave out.
    """

    status: int
    label: str = "ERROR"
    result: Any = None
    detail: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        body: dict[str, Any] = {"status": self.label}
        if self.result is not None:
            body["result"] = self.result
        if self.code is not None:
            body["code"] = self.code
        if self.detail is not None and self.detail != self.result:
            body["detail"] = self.detail
        return body


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
"""The code of a request that is refused before the job server sees it, by its status."""
INTERNAL = "internal_error"
"""The code of an answer to a defect of the server."""


class Rejected(Exception):
    """A request that is refused before the job server sees it; its status must be one of ``REFUSALS``."""

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
    """The body of the request itself is over its limit."""

    code = core.TooLarge.code


class ContextUrlMalformed(core.MalformedUrl):
    """A malformed URL in the settings of a job's ad-hoc context, not in the job's own class path."""

    code = core.MalformedUrl.code


Rule = Callable[[Any, Namespace], Answer]

RETRY = {"Retry-After": "5"}


def _said(status: int, prefix: str = "", headers: Mapping[str, str] | None = None) -> Rule:
    """Answer ``ERROR`` with the error's own message."""
    return lambda error, names: Answer(
        status=status, result=prefix + names.hidden(str(error)), headers=headers or {}
    )


def _words(status: int, text: str, detail: str | None = None) -> Rule:
    """Answer ``ERROR`` with the contract's words, in which the error's fields stand for themselves."""

    def rule(error: Any, names: Namespace) -> Answer:
        more = getattr(error, detail) if detail else None
        return Answer(status=status, result=names.hidden(text.format(**error.fields)), detail=more)

    return rule


def _object(status: int, label: str) -> Rule:
    """Answer with a label and the error object of the exception, whose message does not repeat the label."""
    said = label.rpartition(": ")[2] + ": "

    def rule(error: Any, names: Namespace) -> Answer:
        result = exception_object(error, names)
        return Answer(
            status=status, label=label, result={**result, "message": result["message"].removeprefix(said)}
        )

    return rule


def _told(status: int, label: str) -> Rule:
    """Answer with a label and the error object of what a job or a context said."""
    return lambda error, names: Answer(status=status, label=label, result=error_object(error.error, names))


_ANSWERS: dict[type[Exception], Rule] = {
    core.JobServerError: _object(500, "ERROR"),
    core.InvalidInput: _said(400),
    core.InvalidName: _said(400),
    core.InvalidFirstLetter: _words(400, "context name must start with letters"),
    core.InvalidRequest: _said(400),
    core.InvalidConfig: _said(400, "Cannot parse config: "),
    core.InvalidSetting: _said(400),
    core.UnknownContextFactory: _said(400),
    core.UnsupportedMediaType: _said(415),
    core.NotAnArchive: _words(400, "Binary is not of the right format", "reason"),
    core.MalformedUrl: _object(400, "ERROR"),
    core.InvalidCallbackUrl: _said(400),
    core.TooLarge: _said(413),
    BodyTooLarge: _said(413),
    core.IdempotencyMismatch: _said(422),
    core.NotFound: _said(404),
    core.BinaryNotFound: _words(404, "Can't find binary with name {name}"),
    core.ContextNotFound: _words(404, "can't find context with name {name}"),
    core.JobNotFound: _said(404),
    core.DataFileNotFound: _said(400),
    core.BlobNotFound: _object(500, "Storage Failure"),
    core.LogNotFound: _said(404),
    core.Conflict: _said(409),
    core.ContextExists: _said(400),
    core.ContextStopping: _said(409),
    core.BinaryInUse: _said(403),
    core.JobAlreadyFinal: _said(404),
    core.IllegalTransition: _said(409),
    core.StaleState: _said(409),
    core.DuplicateId: _said(409),
    core.Unavailable: _said(503, headers=RETRY),
    core.NoSlots: lambda error, names: Answer(
        status=503, label="NO SLOTS AVAILABLE", result=names.hidden(str(error)), headers=RETRY
    ),
    core.ServerClosed: _said(503, headers=RETRY),
    core.JobPostponed: _said(503, headers=RETRY),
    core.JobInterrupted: _said(503, headers=RETRY),
    core.JobUnsuccessful: _told(200, "ERROR"),
    core.JobFailed: _told(200, "ERROR"),
    core.JobKilled: _told(200, "KILLED"),
    core.ContextFailed: _told(500, "CONTEXT INIT ERROR"),
    core.ResultTimeout: lambda _error, _names: Answer(
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
}

_CANNOT_PARSE = _said(400, "Cannot parse config: ")
_NOTHING_TO_DELETE: dict[type[Exception], Rule] = {
    core.BinaryNotFound: _words(404, "can't find binary with name {name}")
}

_BY_OPERATION: dict[str, dict[type[Exception], Rule]] = {
    "delete_binary": _NOTHING_TO_DELETE,
    "delete_jar": _NOTHING_TO_DELETE,
    "upload_jar": {core.NotAnArchive: _words(400, "Jar is not of the right format", "reason")},
    "create_context": {
        core.UnknownContextFactory: _object(500, "CONTEXT INIT ERROR"),
        core.BinaryNotFound: _words(404, "appName {name} not found"),
        core.MalformedUrl: _object(400, "CONTEXT INIT ERROR: Malformed URL"),
        core.NotAnArchive: _object(500, "CONTEXT INIT ERROR"),
        core.TooLarge: _object(500, "CONTEXT INIT ERROR"),
        core.BackendError: _object(500, "CONTEXT INIT ERROR"),
        core.FetchError: _object(500, "CONTEXT INIT ERROR"),
        core.LaunchError: _object(500, "CONTEXT INIT ERROR"),
    },
    "delete_context": {
        core.ContextNotFound: _words(404, "context {name} not found"),
        core.ContextFailed: _told(500, "CONTEXT DELETE ERROR"),
        core.BackendError: _object(500, "CONTEXT DELETE ERROR"),
        core.StorageError: _object(500, "CONTEXT DELETE ERROR"),
        core.LaunchError: _object(500, "CONTEXT DELETE ERROR"),
    },
    "submit_job": {
        core.UnknownContextFactory: _object(500, "CONTEXT INIT FAILED"),
        core.InvalidRequest: _CANNOT_PARSE,
        core.BinaryNotFound: _words(404, "appName {name} not found"),
        core.ContextNotFound: _words(404, "context {name} not found"),
        core.MalformedUrl: _object(400, "JOB LOADING FAILED: Malformed URL"),
        ContextUrlMalformed: _object(400, "CONTEXT INIT ERROR: Malformed URL"),
        core.NotAnArchive: _object(400, "JOB LOADING FAILED"),
        core.TooLarge: _object(400, "JOB LOADING FAILED"),
        core.FetchError: _object(400, "JOB LOADING FAILED"),
        core.LaunchError: _object(500, "CONTEXT INIT FAILED"),
    },
}


def answer_to(error: Exception, operation: str | None = None, names: Namespace | None = None) -> Answer:
    """Return the answer to an error of an operation (the name of its route).

    What the operation says of the error's class goes before what holds everywhere, and a class
    before its parents. Errors that are none of the library's have no answer: TypeError.
    """
    if isinstance(error, Rejected):
        return Answer(
            status=error.status,
            result=error.message,
            code=error.code,
            detail=error.detail,
            headers=error.headers,
        )
    special = _BY_OPERATION.get(operation or "", {})
    for kind in type(error).__mro__:
        rule = special.get(kind) or _ANSWERS.get(kind)
        if rule is not None:
            return attrs.evolve(rule(error, names or Namespace()), code=getattr(error, "code", INTERNAL))
    raise TypeError(f"{type(error).__name__} is not an error of the job server")


FAILURES = {
    FailureKind.VALIDATION: "validation_failed",
    FailureKind.CLASS_NOT_FOUND: "class_not_found",
    FailureKind.WRONG_TYPE: "wrong_job_type",
    FailureKind.LOADING: "job_loading_failed",
    FailureKind.CONTEXT_INIT: "context_init_failed",
}
"""The code of a submit whose job failed before its code ran."""


def failed_submission(job: Job, names: Namespace) -> Answer | None:
    """Return the answer to a submit whose job failed before its code ran; None when it did run."""
    if job.failure not in FAILURES:
        return None
    answer = _refused(job.failure, job, names)
    return attrs.evolve(answer, code=FAILURES[job.failure])


def _refused(failure: FailureKind, job: Job, names: Namespace) -> Answer:
    error = job.error or ErrorInfo(message="no reason is known")
    if failure is FailureKind.CLASS_NOT_FOUND:
        reason = next(iter(error.stack.splitlines()), None)
        text = f"classPath {job.class_name} not found"
        return Answer(status=404, result=text, detail=reason and names.hidden(reason))
    if failure is FailureKind.WRONG_TYPE:
        text = "Invalid job type for this context"
        reason = error.message if error.message != text else error.stack.strip()
        detail = names.hidden(reason) if reason and "\n" not in reason else None
        return Answer(status=400, result=text, detail=detail)
    status, label = {
        FailureKind.VALIDATION: (400, "VALIDATION FAILED"),
        FailureKind.LOADING: (400, "JOB LOADING FAILED"),
        FailureKind.CONTEXT_INIT: (500, "CONTEXT INIT FAILED"),
    }[failure]
    return Answer(status=status, label=label, result=error_object(error, names))
