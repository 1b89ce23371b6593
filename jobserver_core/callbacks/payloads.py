"""The body of a callback, as the HTTP contract defines it, and its link to the result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import quote

import attrs

from jobserver_core.errors import BlobNotFound
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import Job, JobResult, ResultKind
from jobserver_core.models.lifecycle import JobState
from jobserver_core.ports.blobs import BlobStore

STREAM_RESULT = "<Stream result>"
"""The placeholder of a result that is not in the callback, as in the old server."""

_MIN_ERROR_SIZE = 16 * 1024
"""Bytes that the body of a failed job may always have: without the message, it would be useless."""
_WORST_ESCAPE = 12
"""A character outside the basic plane is twelve bytes of JSON text."""


@attrs.frozen(kw_only=True)
class Payload:
    """A callback's JSON body, and headers that go with it."""

    body: bytes
    headers: dict[str, str] = attrs.field(factory=dict, hash=False)


def make_payload(
    job: Job, result: JobResult | None, blobs: BlobStore, *, max_size: int, public_url: str | None
) -> Payload:
    """Return the payload for a job that ended.

    A streamed result, and one over ``max_size`` bytes, is replaced by ``<Stream result>``, with a link to the
    job in a ``Link`` header if ``public_url`` has the address of this server; the body for a large one also
    has the link as ``resultUrl``.

    Raises:
        BlobNotFound: The result no longer exists.
        StorageError: It could not be read.
    """
    if job.state is not JobState.FINISHED:
        return Payload(body=_error_body(job, max(max_size, _MIN_ERROR_SIZE)))
    if result is None and job.has_result:
        raise BlobNotFound(digest=f"for the result of job {job.id}")
    if result is None:
        return Payload(body=_json({"jobId": job.id, "result": None}))
    if result.kind is ResultKind.STREAM or result.size > max_size:
        return _substitute(job, result, public_url)
    head = _json({"jobId": job.id})[:-1]
    return Payload(body=head + b', "result": ' + _content(result, blobs) + b"}")


def _content(result: JobResult, blobs: BlobStore) -> bytes:
    if result.digest is None:
        return (result.text or "").encode()
    with blobs.open(result.digest) as file:
        return file.read()


def _substitute(job: Job, result: JobResult, public_url: str | None) -> Payload:
    body = {"jobId": job.id, "result": STREAM_RESULT}
    if public_url is None:
        return Payload(body=_json(body))
    link = f"{public_url.rstrip('/')}/jobs/{quote(job.id, safe='')}"
    if result.kind is not ResultKind.STREAM:
        body["resultUrl"] = link
    return Payload(body=_json(body), headers={"link": f'<{link}>; rel="related"'})


def _error_body(job: Job, max_size: int) -> bytes:
    error = job.error or ErrorInfo(message=f"Job {job.id} ended {job.state.value}")
    body = _failure(job.id, error)
    if len(body) <= max_size:
        return body
    room = (max_size - 1024) // _WORST_ESCAPE // 2
    message, stack = _shortened(error.message, room), _shortened(error.stack, room)
    return _failure(job.id, ErrorInfo(message=message, error_class=error.error_class[:64], stack=stack))


def _failure(job_id: str, error: ErrorInfo) -> bytes:
    fields = {"message": error.message, "errorClass": error.error_class, "stack": error.stack}
    return _json({"jobId": job_id, "status": "ERROR", "result": fields})


def _shortened(text: str, room: int) -> str:
    """Keep the beginning and the end, since Java puts the cause first and Python last."""
    if len(text) <= room:
        return text
    half = (room - 64) // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value).encode()
