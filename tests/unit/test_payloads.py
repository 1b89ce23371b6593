"""The payload of a callback, exactly as in the contract."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.callbacks.payloads import Payload, make_payload
from jobserver_core.errors import BlobNotFound
from jobserver_core.memory import MemoryBlobStore
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobResult, ResultKind
from jobserver_core.models.lifecycle import JobState

NOW = datetime(2024, 1, 1, tzinfo=timezone.utc)
FINISHED = JobState.FINISHED


def a_job(state: JobState = FINISHED, error: ErrorInfo | None = None, **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "id": "job-1",
        "class_name": "a.Job",
        "class_path": (),
        "context_id": "c",
        "context_name": "c",
        "submitted_at": NOW,
        "ended_at": NOW,
        "state": state,
        "error": error,
        "failure": FailureKind.RAISED if error else None,
        "has_result": state is FINISHED,
    }
    return Job(**{**fields, **changes})


def inline(text: str) -> JobResult:
    return JobResult(kind=ResultKind.INLINE, size=len(text.encode()), text=text)


def made(
    job: Job,
    result: JobResult | None,
    blobs: MemoryBlobStore | None = None,
    *,
    max_size: int = 1 << 20,
    public_url: str | None = None,
) -> Payload:
    return make_payload(job, result, blobs or MemoryBlobStore(), max_size=max_size, public_url=public_url)


def test_a_result_is_in_the_callback_as_it_is() -> None:
    payload = made(a_job(), inline('{"a": 2, "b": [1.5, null, "ü"]}'))
    assert json.loads(payload.body) == {"jobId": "job-1", "result": {"a": 2, "b": [1.5, None, "ü"]}}
    assert payload.headers == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(json_values, st.booleans())
def test_any_json_value_comes_through(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        result = inline(text)
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8, so it can only be stored escaped
        result = inline(json.dumps(value))
    assert json.loads(made(a_job(), result).body) == {"jobId": "job-1", "result": value}


def test_a_result_in_the_blob_store_is_in_the_callback() -> None:
    blobs = MemoryBlobStore()
    blob = blobs.put([b'["large', b' enough"]'])
    result = JobResult(kind=ResultKind.STORED, size=blob.size, digest=blob.digest)
    payload = made(a_job(), result, blobs)
    assert json.loads(payload.body) == {"jobId": "job-1", "result": ["large enough"]}


def test_null_is_a_result() -> None:
    assert json.loads(made(a_job(), inline("null")).body) == {"jobId": "job-1", "result": None}


def test_a_job_that_finished_without_a_result_says_null() -> None:
    assert json.loads(made(a_job(has_result=False), None).body) == {"jobId": "job-1", "result": None}


def test_a_deleted_result_is_an_error() -> None:
    with pytest.raises(BlobNotFound):
        made(a_job(), None)
    with pytest.raises(BlobNotFound):
        made(a_job(), JobResult(kind=ResultKind.STORED, size=1, digest="a" * 64))


def test_a_failure_has_the_error_object() -> None:
    error = ErrorInfo(message="boom", error_class="ValueError", stack="Traceback\n  …")
    payload = made(a_job(JobState.ERROR, error), None)
    assert json.loads(payload.body) == {
        "jobId": "job-1",
        "status": "ERROR",
        "result": {"message": "boom", "errorClass": "ValueError", "stack": "Traceback\n  …"},
    }


def test_a_killed_job_that_is_reported_has_the_shape_of_a_failure() -> None:
    told = json.loads(made(a_job(JobState.KILLED), None).body)
    assert told["status"] == "ERROR"
    assert told["result"]["message"] == "Job job-1 ended KILLED"


STREAM = JobResult(kind=ResultKind.STREAM, size=5, digest="a" * 64)


def test_a_stream_is_replaced_by_the_placeholder_of_the_contract() -> None:
    payload = made(a_job(), STREAM)
    assert json.loads(payload.body) == {"jobId": "job-1", "result": "<Stream result>"}
    assert payload.headers == {}


def test_a_stream_has_its_link_in_a_header_only() -> None:
    payload = made(a_job(), STREAM, public_url="https://jobs.example/api/")
    assert json.loads(payload.body) == {"jobId": "job-1", "result": "<Stream result>"}
    assert payload.headers == {"link": '<https://jobs.example/api/jobs/job-1>; rel="related"'}


def test_a_large_result_is_replaced_with_a_link_to_it() -> None:
    payload = made(a_job(), inline('"' + "x" * 100 + '"'), max_size=100, public_url="https://jobs.example")
    assert json.loads(payload.body) == {
        "jobId": "job-1",
        "result": "<Stream result>",
        "resultUrl": "https://jobs.example/jobs/job-1",
    }
    assert payload.headers == {"link": '<https://jobs.example/jobs/job-1>; rel="related"'}


def test_without_a_public_url_there_is_no_link() -> None:
    payload = made(a_job(), inline('"' + "x" * 100 + '"'), max_size=100)
    assert json.loads(payload.body) == {"jobId": "job-1", "result": "<Stream result>"}
    assert payload.headers == {}


@pytest.mark.parametrize(("size", "whole"), [(99, True), (100, True), (101, False)])
def test_the_limit_is_the_size_of_the_result(size: int, whole: bool) -> None:
    text = '"' + "x" * (size - 2) + '"'
    told = json.loads(made(a_job(), inline(text), max_size=100).body)["result"]
    assert told == (json.loads(text) if whole else "<Stream result>")


@given(st.text(max_size=50), st.integers(0, 200_000), st.integers(0, 100_000))
def test_a_huge_error_is_shortened_to_the_limit(letters: str, repeats: int, limit: int) -> None:
    text = (letters or "x") * (repeats // max(1, len(letters)))
    error = ErrorInfo(message=text, error_class=letters * 100, stack=text)
    payload = made(a_job(JobState.ERROR, error), None, max_size=limit)
    assert len(payload.body) <= max(limit, 16 * 1024)
    told = json.loads(payload.body)
    assert told["result"]["stack"][:20] == text[:20]
    assert told["result"]["stack"][-20:] == text[-20:]
