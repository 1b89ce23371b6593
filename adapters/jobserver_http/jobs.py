"""The calls on ``/jobs``."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlencode

import attrs
from starlette.responses import Response

from jobserver_core.errors import (
    JobAlreadyFinal,
    JobInterrupted,
    JobPostponed,
    ResultTimeout,
    ServerClosed,
)
from jobserver_core.models.jobs import Job, JobPage, JobQuery, ResultKind
from jobserver_core.models.lifecycle import JobState
from jobserver_core.running.handles import JobHandle
from jobserver_core.running.results import ResultReader
from jobserver_http.answers import ResultResponse, json_response, raw_json_response, respond
from jobserver_http.calls import Call
from jobserver_http.errors import answer_to, failed_submission
from jobserver_http.parameters import Choice, Flag, Moment, Parameter, Text, Whole
from jobserver_http.routing import CONFIGURATION, NO_JOB, Reply, Route, failures
from jobserver_http.submissions import submitted
from jobserver_http.wire import delivery_report, encoded, error_object, job_report

__all__ = ["ROUTES", "get_job", "get_job_config", "kill_job", "list_jobs", "submit_job"]

DEFAULT_LIMIT = 50
PAGES = 200
"""How many pages are looked through for the jobs of one user, at most."""
KILL_MARGIN = 2.0
"""Seconds beyond the configured kill time-out until the answer is that the job has not ended yet."""


async def submit_job(call: Call) -> Response:
    """Submit a job; wait for its validation, or with ``sync`` for its end."""
    body = await call.text("the configuration")
    if not call.params["sync"]:
        return await _accepted(call, await submitted(call, body, None))
    begun = time.monotonic()
    seconds = call.params["timeout"]
    patience = call.server.settings.jobs.sync_timeout if seconds is None else float(seconds)
    handle = await submitted(call, body, patience)
    return await _finished(call, handle, patience - (time.monotonic() - begun))


async def _accepted(call: Call, handle: JobHandle) -> Response:
    try:
        job = await call.wait(handle.started, call.server.settings.jobs.start_timeout)
    except (ResultTimeout, ServerClosed):
        job = handle.job
    failed = failed_submission(job, call.names)
    if failed is not None:
        return respond(failed)
    # The contract's answer is the job as it was accepted; whether it has to wait is what came out since.
    report = job_report(handle.job, call.names)
    if not job.waiting:
        report.pop("waiting", None)
    return json_response(report, 202)


async def _finished(call: Call, handle: JobHandle, patience: float) -> Response:
    try:
        job = await call.wait(handle.finished, max(0.0, patience))
    except ResultTimeout as error:
        return respond(answer_to(error, call.route.name, call.names))
    except ServerClosed:
        job = await call.pools.quick.run(call.server.job, handle.id)
        if not job.state.final:
            return _closing(call, job)
    failed = failed_submission(job, call.names)
    if failed is not None:
        return respond(failed)
    if job.state is JobState.FINISHED:
        reader = await call.pools.quick.run(call.server.open_result, job.id)
        return _with_result(call, {"jobId": job.id}, reader)
    return json_response(
        {"jobId": job.id, "status": job.state.value, "result": error_object(job.error, call.names)}
    )


def _closing(call: Call, job: Job) -> Response:
    """The server shuts down while a synchronous caller waits; the answer says what becomes of the job."""
    kind = JobPostponed if job.waiting else JobInterrupted
    answer = answer_to(kind(job_id=job.id), call.route.name, call.names)
    return json_response({**answer.body, "jobId": job.id}, answer.status, headers=answer.headers)


def _with_result(call: Call, members: dict[str, Any], reader: ResultReader | None) -> Response:
    """Answer with these members and the result, which is never decoded here."""
    if reader is None:
        return json_response({**members, "result": None})
    if reader.kind is ResultKind.INLINE:
        with reader:
            text = reader.read(reader.size)
        return raw_json_response(encoded(members)[:-1] + b',"result":' + text + b"}")
    return ResultResponse(members, reader, call.pools)


async def get_job(call: Call) -> Response:
    """Answer with a job's report, and its result when it is finished."""
    job = await _job(call)
    report = job_report(job, call.names)
    if job.callback_url is not None:
        deliveries = await call.pools.quick.run(call.server.deliveries, job.id)
        report["callbacks"] = delivery_report(deliveries)
    if job.state is not JobState.FINISHED or call.params["result"] is False:
        return json_response(report)
    reader = await call.pools.quick.run(call.server.open_result, job.id)
    return _with_result(call, report, reader) if reader is not None else json_response(report)


async def get_job_config(call: Call) -> Response:
    """Answer with the posted configuration."""
    job = await _job(call)
    return raw_json_response(await call.pools.quick.run(call.server.job_config, job.id))


async def _job(call: Call) -> Job:
    return call.names.checked(await call.pools.quick.run(call.server.job, call.path["id"]))


async def kill_job(call: Call) -> Response:
    """End a job, and answer when it has ended."""
    job = await _job(call)
    force = bool(call.params["force"])
    try:
        waiter = await call.pools.quick.run(call.server.kill_job, job.id, force=force)
    except JobAlreadyFinal:
        return _too_late(call, await _job(call))
    patience = call.server.settings.jobs.kill_timeout + KILL_MARGIN
    try:
        job = await call.wait(waiter, 2 * patience if force else patience)
    except (ResultTimeout, ServerClosed):
        return json_response(job_report(await _job(call), call.names), 202)
    if job.state is JobState.KILLED:
        return json_response({"status": "KILLED"})
    return _too_late(call, job)


def _too_late(call: Call, job: Job) -> Response:
    """Answer to the kill of a job that had ended, or that ended in another way."""
    if job.state is JobState.ERROR:
        return json_response({"status": "ERROR", "ERROR": error_object(job.error, call.names)})
    return respond(answer_to(JobAlreadyFinal(job_id=job.id, state=job.state.value)))


async def list_jobs(call: Call) -> Response:
    """Answer with a page of job reports, newest first, and a link to the next one."""
    limit = DEFAULT_LIMIT if call.params["limit"] is None else call.params["limit"]
    page = await call.pools.quick.run(_page, call, _query(call, limit))
    headers = {}
    if page.next is not None:
        following = {**call.query, "cursor": page.next}
        following.pop("offset", None)
        headers["Link"] = f'<{call.url("jobs")}?{urlencode(following)}>; rel="next"'
    return json_response([job_report(job, call.names) for job in page.jobs], headers=headers)


def _query(call: Call, limit: int) -> JobQuery:
    status, context = call.params["status"], call.params["context"]
    return JobQuery(
        states=(JobState(status),) if status else None,
        context_name=call.names.stored(context) if context else None,
        class_name=call.params["classPath"],
        since=call.params["since"],
        until=call.params["until"],
        after=call.params["cursor"],
        offset=call.params["offset"] or 0,
        limit=limit,
    )


def _page(call: Call, query: JobQuery) -> JobPage:
    """Return a page of the caller's jobs. Where each user has jobs of its own, others' are passed over."""
    if call.names.owner is None or query.context_name is not None:
        return call.server.jobs(query)
    wanted = query.offset + query.limit
    found: list[Job] = []
    cursor = query.after
    for _ in range(PAGES):
        rest = wanted - len(found)
        page = call.server.jobs(attrs.evolve(query, offset=0, limit=max(rest, 1), after=cursor))
        found += [job for job in page.jobs if call.names.owns(job.context_name)][:rest]
        cursor = page.next
        if cursor is None or len(found) >= wanted:
            break
    return JobPage(jobs=tuple(found[query.offset :]), next=cursor)


_SUBMIT_PARAMETERS = (
    Parameter(name="appName", doc="the name of an uploaded binary; goes before cp"),
    Parameter(name="classPath", doc="the class to run, beside appName"),
    Parameter(name="cp", doc="names of binaries and URIs, separated by commas"),
    Parameter(name="mainClass", doc="the class to run, beside cp"),
    Parameter(name="context", doc="the context to run in; without it one is made for the job"),
    Parameter(name="sync", kind=Flag(), doc="true waits, and answers with the result"),
    Parameter(name="timeout", kind=Whole(), doc="seconds that a synchronous call waits"),
    Parameter(name="callbackUrl", doc="an http(s) URL that is told of the result"),
    Parameter(name="spark.proxy.user", doc="the user to impersonate, in a context made for the job"),
)

ROUTES = (
    Route(
        name="list_jobs",
        method="GET",
        path="/jobs",
        handler=list_jobs,
        group="jobs",
        permission="jobs:read",
        summary="The jobs, newest first",
        parameters=(
            Parameter(name="limit", kind=Whole(0, 10_000), doc=f"how many; {DEFAULT_LIMIT} by default"),
            Parameter(
                name="status", kind=Choice(tuple(s.value for s in JobState), any_case=True), doc="their state"
            ),
            Parameter(name="context", doc="the name of their context"),
            Parameter(name="classPath", doc="their class"),
            Parameter(name="since", kind=Moment(), doc="submitted then or later"),
            Parameter(name="until", kind=Moment(), doc="submitted before then"),
            Parameter(name="offset", kind=Whole(0, 1_000_000), doc="how many of the newest to pass over"),
            Parameter(name="cursor", kind=Text(512), doc="where the page before ended, from its Link header"),
        ),
        replies=(
            Reply(200, "The reports; a Link header leads to the next page", "JobReports"),
            *failures(s400="A parameter is wrong"),
        ),
    ),
    Route(
        name="submit_job",
        method="POST",
        path="/jobs",
        handler=submit_job,
        group="jobs",
        permission="jobs:start",
        summary="Run a job",
        parameters=_SUBMIT_PARAMETERS,
        headers=(
            Parameter(name="Idempotency-Key", kind=Text(255), doc="a repeated call gets the first one's job"),
        ),
        body=CONFIGURATION,
        replies=(
            Reply(200, "Synchronous: the job has ended", "JobResult"),
            Reply(202, "Asynchronous: the job was accepted", "JobReport"),
            *failures(
                s400="A parameter, the configuration, the code or the job's own validation",
                s404="A binary, the context or the class is not known",
                s409="The context is stopping",
                s413="The body is larger than the limit",
                s422="The idempotency key belongs to another request",
                s500="The synchronous wait ran out, or the context failed to start",
                s503="All job slots are taken, or the server is shutting down",
            ),
        ),
    ),
    Route(
        name="get_job",
        method="GET",
        path="/jobs/{id}",
        handler=get_job,
        group="jobs",
        permission="jobs:read",
        summary="A job, with its result when it has finished",
        parameters=(Parameter(name="result", kind=Flag(), doc="false leaves the result out"),),
        replies=(Reply(200, "The report and the result", "Job"), *NO_JOB),
    ),
    Route(
        name="get_job_config",
        method="GET",
        path="/jobs/{id}/config",
        handler=get_job_config,
        group="jobs",
        permission="jobs:read",
        summary="The configuration that the job was given",
        replies=(Reply(200, "The configuration", "Configuration"), *NO_JOB),
    ),
    Route(
        name="kill_job",
        method="DELETE",
        path="/jobs/{id}",
        handler=kill_job,
        group="jobs",
        permission="jobs:delete",
        summary="Kill a job",
        parameters=(
            Parameter(name="force", kind=Flag(), doc="true ends its context when the job does not end"),
        ),
        replies=(
            Reply(200, "It was killed, or had failed", "Killed"),
            Reply(202, "It has not ended yet", "JobReport"),
            *NO_JOB,
        ),
    ),
)
