from __future__ import annotations

import inspect
import json
import re
from datetime import datetime, timezone
from typing import Any

import pytest

from jobserver_core import errors as core
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job
from jobserver_core.models.lifecycle import JobState
from jobserver_core.models.serialization import structure
from jobserver_http import errors
from jobserver_http.access import Namespace
from jobserver_http.errors import (
    BinaryInUseByOthers,
    BodyTooLarge,
    ContextUrlMalformed,
    Rejected,
    failed_submission,
    response_to,
)

INFO = ErrorInfo(message="no memory", error_class="java.lang.OutOfMemoryError", stack="at x")
FIELDS: dict[str, Any] = {
    "message": "it broke",
    "kind": "context",
    "name": "words",
    "rule": "letters only",
    "line": 1,
    "column": 2,
    "key": "spark.master",
    "nearest": None,
    "media_type": None,
    "supported": ("a",),
    "reason": "refused",
    "url": "gopher://x",
    "what": "binary words",
    "limit": 10,
    "resource": "cores",
    "setting": "jobserver.contexts.max-cores",
    "requested": 4,
    "used": 7,
    "reserved": 2,
    "job_id": "j1",
    "digest": "0" * 64,
    "id": "j1",
    "job_ids": ("j1", "j2"),
    "state": JobState.FINISHED,
    "event": "run",
    "allowed": (),
    "expected": "STARTED",
    "found": "RUNNING",
    "holder": "j2",
    "context": "etl",
    "running": 8,
    "error": INFO,
    "failure": FailureKind.RAISED,
    "seconds": 10.0,
    "server": "host-1",
    "known": "1",
    "path": "/data",
    "available": (),
    "extra": None,
    "package": "more-backends 1.0",
    "plugin": "more_backends:Store",
}
PUBLIC = [getattr(core, name) for name in core.__all__]


def made(kind: type[core.JobServerError]) -> core.JobServerError:
    return kind(**{name: FIELDS[name] for name in kind.field_names})


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_every_public_error_has_a_response_of_its_own(kind: type[core.JobServerError]) -> None:
    assert kind in errors._RESPONSES, f"say in jobserver_http.errors the response to {kind.__name__}"
    error = made(kind)
    response = response_to(error)
    assert 200 <= response.status < 600
    assert set(response.body) <= {"status", "result", "code", "detail", "fields"}
    assert response.body["code"] == kind.code
    fields = json.loads(json.dumps(response.body.get("fields", {})))
    assert structure({"type": kind.__name__, "fields": fields}, core.JobServerError) == error
    assert response.result is not None


def test_no_response_is_for_an_error_that_does_not_exist() -> None:
    known = {kind for _, kind in inspect.getmembers(core, inspect.isclass)} | {
        BinaryInUseByOthers,
        BodyTooLarge,
        ContextUrlMalformed,
    }
    assert set(errors._RESPONSES) <= known
    for special in errors._BY_OPERATION.values():
        assert set(special) <= known


def test_every_operation_with_responses_of_its_own_is_a_route() -> None:
    from jobserver_http.routes import ROUTES

    assert set(errors._BY_OPERATION) <= {route.name for route in ROUTES}


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_only_server_faults_and_contract_cases_are_5xx(
    kind: type[core.JobServerError],
) -> None:
    theirs = (core.InvalidInput, core.NotFound, core.Conflict)
    if issubclass(kind, theirs) and kind is not core.BlobNotFound:
        assert 400 <= response_to(made(kind)).status < 500


@pytest.mark.parametrize(
    ("error", "operation", "status", "label", "result"),
    [
        (core.BinaryNotFound(name="w"), "get_binary", 404, "ERROR", "Can't find binary with name w"),
        (core.BinaryNotFound(name="w"), "delete_binary", 404, "ERROR", "can't find binary with name w"),
        (core.BinaryNotFound(name="w"), "submit_job", 404, "ERROR", "appName w not found"),
        (core.ContextNotFound(name="c"), "get_context", 404, "ERROR", "can't find context with name c"),
        (core.ContextNotFound(name="c"), "delete_context", 404, "ERROR", "context c not found"),
        (core.ContextNotFound(name="c"), "submit_job", 404, "ERROR", "context c not found"),
        (core.ContextExists(name="c"), "create_context", 400, "ERROR", "context c exists"),
        (core.ContextStopping(name="c"), "submit_job", 409, "ERROR", "Context stop in progress"),
        (core.JobNotFound(job_id="x"), "get_job", 404, "ERROR", "No such job ID x"),
        (
            core.JobAlreadyFinal(job_id="x", state=JobState.FINISHED),
            "kill_job",
            404,
            "ERROR",
            "No running job with ID x",
        ),
        (
            core.BinaryInUse(name="w", job_ids=("a", "b")),
            "delete_binary",
            403,
            "ERROR",
            "Binary is in use by job(s): a, b",
        ),
        (
            core.NoSlots(context="c", running=8),
            "submit_job",
            503,
            "NO SLOTS AVAILABLE",
            "Too many running jobs (8) for job context 'c'",
        ),
        (
            core.InvalidRequest(message="mainClass parameter is missing!"),
            "submit_job",
            400,
            "ERROR",
            "Cannot parse config: mainClass parameter is missing!",
        ),
        (
            core.DataFileNotFound(name="/x"),
            "delete_data_file",
            400,
            "ERROR",
            "Unable to delete data file '/x'.",
        ),
        (
            core.InvalidFirstLetter(kind="context", name="1", rule="it must start with a letter"),
            "create_context",
            400,
            "ERROR",
            "context name must start with letters",
        ),
        (
            core.ResultTimeout(what="job", seconds=1),
            "submit_job",
            500,
            "ERROR",
            "Request timed out. Try using the /jobs/<jobID>, /jobs APIs to get status/results",
        ),
    ],
)
def test_texts_are_the_contracts(
    error: core.JobServerError, operation: str, status: int, label: str, result: str
) -> None:
    response = response_to(error, operation)
    assert (response.status, response.label, response.result) == (status, label, result)


@pytest.mark.parametrize(
    ("error", "operation", "status", "label"),
    [
        (core.StorageError(message="disk"), "upload_binary", 500, "Storage Failure"),
        (core.ContextFailed(name="c", error=INFO), "create_context", 500, "CONTEXT INIT ERROR"),
        (core.ContextFailed(name="c", error=INFO), "delete_context", 500, "CONTEXT DELETE ERROR"),
        (core.MalformedUrl(url="x:", reason="r"), "create_context", 400, "CONTEXT INIT ERROR: Malformed URL"),
        (core.MalformedUrl(url="x:", reason="r"), "submit_job", 400, "JOB LOADING FAILED: Malformed URL"),
        (core.FetchError(url="http://x", reason="r"), "submit_job", 400, "JOB LOADING FAILED"),
        (core.NotAnArchive(reason="r"), "submit_job", 400, "JOB LOADING FAILED"),
    ],
)
def test_labels_with_an_error_object_are_the_contracts(
    error: core.JobServerError, operation: str, status: int, label: str
) -> None:
    response = response_to(error, operation)
    assert (response.status, response.label) == (status, label)
    assert set(response.result) == {"message", "errorClass", "stack"}


def test_an_upload_that_is_not_an_archive_gets_the_contract_error_with_a_reason() -> None:
    response = response_to(core.NotAnArchive(reason="it is cut off"), "upload_binary")
    assert response.body == {
        "status": "ERROR",
        "result": "Binary is not of the right format",
        "code": "not_an_archive",
        "detail": "it is cut off",
        "fields": {"reason": "it is cut off"},
    }


def test_a_submit_to_a_context_that_has_failed_gets_the_contract_error_with_the_failure() -> None:
    reason = "it failed at 2026-11-30 16:09:00+00:00: context ann~warm was not ready"
    response = response_to(
        core.ContextNotFound(name="ann~warm", reason=reason), "submit_job", Namespace(owner="ann")
    )
    shown = "it failed at 2026-11-30 16:09:00+00:00: context warm was not ready"
    assert response.body == {
        "status": "ERROR",
        "result": "context warm not found",
        "code": "context_not_found",
        "detail": shown,
        "fields": {"name": "warm", "reason": shown},
    }


def test_the_reason_why_a_class_is_no_job_is_the_detail() -> None:
    error = ErrorInfo(message="w.Count does not define run_job")
    refused = failed_submission(a_job(FailureKind.WRONG_TYPE, error), Namespace())
    assert refused is not None
    assert refused.body == {
        "status": "ERROR",
        "result": "Invalid job type for this context",
        "code": "wrong_job_type",
        "detail": "w.Count does not define run_job",
        "jobId": "j",
    }
    several_lines = ErrorInfo(message="w.Count\nis not a job")
    bare = failed_submission(a_job(FailureKind.WRONG_TYPE, several_lines), Namespace())
    assert bare is not None
    assert "detail" not in bare.body


@pytest.mark.parametrize("operation", ["submit_job", "create_context"])
def test_an_error_object_does_not_repeat_its_label(operation: str) -> None:
    response = response_to(core.MalformedUrl(url="gopher://x", reason="no such protocol"), operation)
    assert response.label.endswith(": Malformed URL")
    assert response.result["message"] == "gopher://x: no such protocol"


def test_every_code_that_a_response_can_have_is_in_the_reference() -> None:
    from jobserver_http.reference import error_codes

    core_codes = {kind.code for kind in PUBLIC}
    assert len(core_codes) == len(PUBLIC)
    assert {*core_codes, *errors.REFUSALS.values(), *errors.FAILURES.values()} <= set(error_codes())
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in error_codes())


def test_a_body_over_the_limit_is_413_also_where_code_over_the_limit_is_not() -> None:
    assert response_to(BodyTooLarge(what="body", limit=1), "submit_job").status == 413
    assert response_to(core.TooLarge(what="code", limit=1), "submit_job").status == 400


def test_a_rejected_request_gets_the_response_that_it_names() -> None:
    response = response_to(Rejected(401, "who?", {"WWW-Authenticate": "Basic"}))
    assert (response.status, response.result, response.headers) == (
        401,
        "who?",
        {"WWW-Authenticate": "Basic"},
    )
    assert response.code == "unauthenticated"
    assert response_to(Rejected(400, "no", code="unknown_charset")).code == "unknown_charset"


def test_an_error_that_is_not_the_librarys_has_no_response() -> None:
    with pytest.raises(TypeError, match="ZeroDivisionError"):
        response_to(ZeroDivisionError())


def test_users_never_see_the_prefix_of_their_contexts() -> None:
    names = Namespace("alice")
    response = response_to(core.ContextExists(name="alice~etl"), "create_context", names)
    assert response.result == "context etl exists"
    lost = core.ContextFailed(name="alice~etl", error=ErrorInfo(message="context alice~etl died"))
    assert response_to(lost, "create_context", names).result["message"] == "context etl died"


def a_job(failure: FailureKind, error: ErrorInfo = INFO) -> Job:
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return Job(
        id="j",
        class_name="w.Count",
        class_path=(),
        context_id="c",
        context_name="etl",
        state=JobState.ERROR,
        submitted_at=now,
        ended_at=now,
        failure=failure,
        error=error,
    )


@pytest.mark.parametrize(
    ("failure", "status", "label", "result"),
    [
        (FailureKind.VALIDATION, 400, "VALIDATION FAILED", dict),
        (FailureKind.CLASS_NOT_FOUND, 404, "ERROR", "classPath w.Count not found"),
        (FailureKind.WRONG_TYPE, 400, "ERROR", "Invalid job type for this context"),
        (FailureKind.LOADING, 400, "JOB LOADING FAILED", dict),
        (FailureKind.CONTEXT_INIT, 500, "CONTEXT INIT FAILED", dict),
        (FailureKind.QUEUE_TIME, 503, "NO SLOTS AVAILABLE", "no memory"),
    ],
)
def test_a_job_that_never_ran_is_refused(failure: FailureKind, status: int, label: str, result: Any) -> None:
    response = failed_submission(a_job(failure), Namespace())
    assert response is not None
    assert (response.status, response.label) == (status, label)
    assert response.code == errors.FAILURES[failure]
    if result is dict:
        assert response.result == {
            "message": "no memory",
            "errorClass": "java.lang.OutOfMemoryError",
            "stack": "at x",
        }
    else:
        assert response.result == result


def test_each_kind_of_failure_is_either_a_refusal_or_the_outcome_of_a_job_that_ran() -> None:
    ran = {
        FailureKind.RAISED,
        FailureKind.CRASHED,
        FailureKind.RESULT,
        FailureKind.CONTEXT_LOST,
        FailureKind.RUN_TIME,
    }
    assert {kind for kind in FailureKind if failed_submission(a_job(kind), Namespace()) is None} == ran
