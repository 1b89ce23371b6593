"""Handlers and routes of ``/jobs``."""

from __future__ import annotations

import time
from urllib.parse import urlencode

import attrs
from starlette.responses import Response

from jobserver_core.errors import (
    Conflict,
    JobAlreadyFinal,
    JobInterrupted,
    JobPostponed,
    ResultTimeout,
    ServerClosed,
)
from jobserver_core.models.jobs import MAX_PRIORITY, MAX_SECONDS, Job, JobPage, JobQuery, ResultKind
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.models.lifecycle import JobState
from jobserver_core.running.results import ResultReader
from jobserver_core.running.waiting import JobHandle
from jobserver_http.calls import Call
from jobserver_http.errors import Rejected, failed_submission, response_to
from jobserver_http.parameters import Choice, Flag, Integer, Parameter, Text, Timestamp
from jobserver_http.responses import (
    JSON,
    ClosingResponse,
    chunks_of_result,
    json_response,
    raw_json_response,
    respond,
    result_response,
)
from jobserver_http.routing import CONFIGURATION, NO_JOB, RouteResponse, Routes, failures
from jobserver_http.submissions import submit
from jobserver_http.wire import delivery_records, detailed_record, encoded, error_object, job_record

DEFAULT_LIMIT = 50
"""The number of jobs in a list without ``limit``, as in the old server."""
BYTES = "application/octet-stream"
MAX_PAGES = 200
"""The maximum number of pages that are searched for the jobs of one user, or for waiting jobs."""
WAITING = "WAITING"
"""The value of ``status`` for jobs that wait for a slot or their context, which is not a state."""
_STATES_OF_WAITING = (JobState.STARTED, JobState.RESTARTING)
KILL_MARGIN = 2.0
"""Seconds to wait beyond the configured kill timeout before responding that the job has not ended yet."""

ROUTES = Routes()

_SUBMIT_PARAMETERS = (
    Parameter("appName", "the name of a binary; takes precedence over `cp`"),
    Parameter("classPath", "the class to run, with `appName`"),
    Parameter(
        "cp",
        "names of binaries, such as `words` or, for an old version, `words@4517bab2`, and URIs, "
        "separated by commas",
    ),
    Parameter("mainClass", "the class to run, with `cp`"),
    Parameter(
        "packages",
        "further wheels, eggs or ZIP files of a Python job: names of binaries and URIs, separated by commas",
    ),
    Parameter("context", "the context to run in; by default, one is created for the job"),
    Parameter("sync", "true waits for the job and returns its result", Flag()),
    Parameter("timeout", "how many seconds a synchronous call waits", Integer()),
    Parameter(
        "maxQueueTime",
        "how many seconds the job may wait for its start; then it ends as ERROR",
        Integer(1, int(MAX_SECONDS)),
    ),
    Parameter(
        "maxRunTime",
        "how many seconds the job may take after its dispatch; then it is killed and ends as ERROR",
        Integer(1, int(MAX_SECONDS)),
    ),
    Parameter(
        "priority",
        "waiting jobs with a higher priority start first; default 0",
        Integer(-MAX_PRIORITY, MAX_PRIORITY),
    ),
    Parameter(
        "restartable",
        "true runs the job again from the beginning if its context dies and is supervised",
        Flag(),
    ),
    Parameter("callbackUrl", "the http(s) URL to which the server posts the outcome"),
    Parameter("spark.proxy.user", "the user to impersonate, in a context created for the job"),
)


@ROUTES.add(
    "GET /jobs",
    permission="jobs:read",
    summary="List jobs, newest first",
    parameters=(
        Parameter("limit", f"how many jobs; default {DEFAULT_LIMIT}", Integer(0, 10_000)),
        Parameter(
            "status",
            "only this state; WAITING selects the jobs of the states STARTED and RESTARTING that wait for a "
            "slot or their context",
            Choice((*(s.value for s in JobState), WAITING), any_case=True),
        ),
        Parameter("context", "only this context"),
        Parameter("classPath", "only this class"),
        Parameter("since", "submitted at this time or later", Timestamp()),
        Parameter("until", "submitted before this time", Timestamp()),
        Parameter("offset", "how many of the newest jobs to skip", Integer(0, 1_000_000)),
        Parameter("cursor", "the end of the previous page, from its Link header", Text(512)),
    ),
    responses=(
        RouteResponse(200, "The records, with a Link header for the next page", "Jobs"),
        *failures(s400="A parameter is invalid"),
    ),
)
async def list_jobs(call: Call) -> Response:
    limit = DEFAULT_LIMIT if call.params["limit"] is None else call.params["limit"]
    status, context = call.params["status"], call.params["context"]
    query = JobQuery(
        states=_STATES_OF_WAITING if status == WAITING else (JobState(status),) if status else None,
        context_name=call.names.stored(context) if context else None,
        class_name=call.params["classPath"],
        since=call.params["since"],
        until=call.params["until"],
        after=call.params["cursor"],
        offset=call.params["offset"] or 0,
        limit=limit,
    )
    page = await call.threads.quick.run(_page, call, query, status == WAITING)
    headers = {}
    if page.next is not None:
        next_query = {**call.query, "cursor": page.next}
        next_query.pop("offset", None)
        headers["Link"] = f'<?{urlencode(next_query)}>; rel="next"'
    return json_response([job_record(job, call.names) for job in page.jobs], headers=headers)


def _page(call: Call, query: JobQuery, waiting: bool) -> JobPage:
    """Return a page of the caller's jobs, or of those that wait.

    If each user has separate jobs, other users' jobs are skipped.
    """
    of_all = call.names.owner is None or query.context_name is not None
    if of_all and not waiting:
        return call.server.jobs(query)

    def wanted_job(job: Job) -> bool:
        return (of_all or call.names.owns(job.context_name)) and (job.waiting or not waiting)

    wanted = query.offset + query.limit
    found: list[Job] = []
    cursor = query.after
    for _ in range(MAX_PAGES):
        missing = wanted - len(found)
        page = call.server.jobs(attrs.evolve(query, offset=0, limit=max(missing, 1), after=cursor))
        found += [job for job in page.jobs if wanted_job(job)][:missing]
        cursor = page.next
        if cursor is None or len(found) >= wanted:
            break
    return JobPage(jobs=tuple(found[query.offset :]), next=cursor)


@ROUTES.add(
    "POST /jobs",
    permission="jobs:start",
    summary="Run a job",
    parameters=_SUBMIT_PARAMETERS,
    headers=(Parameter("Idempotency-Key", "a repeated call returns the first one's job", Text(255)),),
    body=CONFIGURATION,
    responses=(
        RouteResponse(200, "The job has ended (synchronous call)", "JobResult"),
        RouteResponse(
            202,
            "The job was accepted (asynchronous call). The response comes once the job runs or is queued, "
            "at the latest after `jobserver.jobs.start-timeout`",
            "Job",
        ),
        *failures(
            s400="A parameter, the configuration or the code is invalid, or the job's validation failed",
            s404="A binary, the context or the class does not exist",
            s409="The context is stopping",
            s413="The body is larger than the limit",
            s422="The idempotency key belongs to another request or user",
            s500="The synchronous call timed out, or the context failed to start",
            s503="All job slots are taken, the job waited too long, or the server is shutting down",
        ),
    ),
)
async def submit_job(call: Call) -> Response:
    """Submit a job, and wait until it runs, or with ``sync``, until it has ended.

    If a token expires or is revoked meanwhile, the caller may not wait any more. The response then names the
    job, which goes on, but not its outcome: an authenticator does not say which of the two it was.
    """
    body = await call.text("the configuration")
    started, seconds, timeout = time.monotonic(), call.params["timeout"], None
    if call.params["sync"]:
        timeout = call.server.settings.jobs.sync_timeout if seconds is None else float(seconds)
    handle = await submit(call, body, timeout)
    try:
        if timeout is None:
            return await _respond_accepted(call, handle)
        return await _respond_finished(call, handle, timeout - (time.monotonic() - started))
    except Rejected as rejected:
        rejected.job_id = handle.id
        rejected.detail = (
            f"the credentials changed or expired while the call waited; job {handle.id} continues"
        )
        raise


async def _respond_accepted(call: Call, handle: JobHandle) -> Response:
    try:
        job = await call.wait(handle.started, call.server.settings.jobs.start_timeout)
    except (ResultTimeout, ServerClosed):
        job = handle.job
    failed = failed_submission(job, call.names)
    if failed is not None:
        return respond(failed)
    # The contract wants the record of the accepted job. Only "waiting" is taken from its current state.
    record = job_record(handle.job, call.names)
    if not job.waiting:
        record.pop("waiting", None)
    return json_response(record, 202)


async def _respond_finished(call: Call, handle: JobHandle, timeout: float) -> Response:
    try:
        job = await call.wait(handle.finished, max(0.0, timeout))
    except ResultTimeout as error:
        response = response_to(error, call.operation, call.names)
        return respond(attrs.evolve(response, job_id=handle.id))
    except ServerClosed:
        job = await call.threads.quick.run(call.server.job, handle.id)
        if not job.state.final:
            kind = JobPostponed if job.waiting else JobInterrupted
            response = response_to(kind(job_id=job.id), call.operation, call.names)
            return respond(attrs.evolve(response, job_id=job.id))
    failed = failed_submission(job, call.names)
    if failed is not None:
        return respond(failed)
    if job.state is JobState.FINISHED:
        text = handle.inline_result
        if text is not None:
            return _with_text({"jobId": job.id}, text.encode())
        reader = await call.threads.quick.run(call.server.open_result, job.id)
        return _with_result(call, {"jobId": job.id}, reader)
    reason = error_object(job.error, call.names)
    return json_response({"jobId": job.id, "status": job.state.value, "result": reason})


def _with_result(call: Call, members: JsonMapping, reader: ResultReader | None) -> Response:
    """Return these members and the result, without decoding it."""
    if reader is None:
        return json_response({**members, "result": None})
    if reader.kind is ResultKind.INLINE:
        with reader:
            return _with_text(members, reader.read(reader.size))
    return result_response(members, reader, call.threads)


def _with_text(members: JsonMapping, result: bytes) -> Response:
    return raw_json_response(encoded(members)[:-1] + b',"result":' + result + b"}")


@ROUTES.add(
    "GET /jobs/{id}",
    permission="jobs:read",
    summary="Get a job, including its result if it has finished",
    parameters=(Parameter("result", "false omits the result", Flag()),),
    responses=(RouteResponse(200, "The record and the result", "JobWithResult"), *NO_JOB),
)
async def get_job(call: Call) -> Response:
    job = await call.job()
    record = detailed_record(job, call.names)
    if job.callback_url is not None:
        deliveries = await call.threads.quick.run(call.server.deliveries, job.id)
        record["callbacks"] = delivery_records(deliveries)
    if job.state is not JobState.FINISHED or call.params["result"] is False:
        return json_response(record)
    reader = await call.threads.quick.run(call.server.open_result, job.id)
    return _with_result(call, record, reader) if reader is not None else json_response(record)


@ROUTES.add(
    "GET /jobs/{id}/config",
    permission="jobs:read",
    summary="Get the configuration that the job was submitted with",
    responses=(RouteResponse(200, "The configuration", "Configuration"), *NO_JOB),
)
async def get_job_config(call: Call) -> Response:
    job = await call.job()
    return raw_json_response(await call.threads.quick.run(call.server.job_config, job.id))


@ROUTES.add(
    "DELETE /jobs/{id}",
    permission="jobs:delete",
    summary="Kill a job",
    parameters=(Parameter("force", "true kills its context if the job cannot be killed alone", Flag()),),
    responses=(
        RouteResponse(200, "The job was killed, or had already failed", "Killed"),
        RouteResponse(202, "The job has not ended yet", "Job"),
        *NO_JOB,
        *failures(
            s503="The server of the job's context does not respond, or is gone and not taken over yet; "
            "try again"
        ),
    ),
)
async def kill_job(call: Call) -> Response:
    job = await call.job()
    force = bool(call.params["force"])
    try:
        waiter = await call.threads.ending.run(call.server.kill_job, job.id, force=force, user=call.user)
    except JobAlreadyFinal:
        return _too_late(call, await call.job())
    timeout = call.server.settings.jobs.kill_timeout + KILL_MARGIN
    try:
        job = await call.wait(waiter, 2 * timeout if force else timeout)
    except (ResultTimeout, ServerClosed):
        return json_response(job_record(await call.job(), call.names), 202)
    if job.state is JobState.KILLED:
        return json_response({"status": "KILLED"})
    return _too_late(call, job)


def _too_late(call: Call, job: Job) -> Response:
    """Return the response for killing a job that had already ended, or that ended differently."""
    if job.state is JobState.ERROR:
        return json_response({"status": "ERROR", "ERROR": error_object(job.error, call.names)})
    return respond(response_to(JobAlreadyFinal(job_id=job.id, state=job.state)))


@ROUTES.add_extension(
    "GET /jobs/{id}/result",
    permission="jobs:read",
    summary="Get only the result of a job",
    responses=(
        RouteResponse(200, "The result as JSON, or the bytes of a streamed result"),
        RouteResponse(200, "The result as JSON, or the bytes of a streamed result", media_type=BYTES),
        *NO_JOB,
        *failures(s409="The job has not finished"),
    ),
)
async def get_job_result(call: Call) -> Response:
    """Return the result of a finished job: JSON, or the bytes of a streamed result.

    It always has a Content-Length, so that clients notice a truncated response.
    """
    job = await call.job()
    if job.state is not JobState.FINISHED:
        raise Conflict(message=f"job {job.id} has no result, because its state is {job.state.value}")
    reader = await call.threads.quick.run(call.server.open_result, job.id)
    if reader is None:
        return json_response(None)
    return ClosingResponse(
        chunks_of_result(reader, call.threads),
        media_type=BYTES if reader.kind is ResultKind.STREAM else JSON,
        headers={"content-length": str(reader.size)},
        opened=reader,
    )
