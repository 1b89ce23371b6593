"""Turning the parameters and the body of ``POST /jobs`` into a job request."""

from __future__ import annotations

from urllib.parse import unquote

from jobserver_core.binaries.class_paths import uris_of
from jobserver_core.config.trees import merged
from jobserver_core.errors import InvalidRequest, MalformedUrl
from jobserver_core.models.binaries import ClassPathEntry, parse_class_path
from jobserver_core.models.jobs import JobRequest
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.running.fetching import Preparation
from jobserver_core.running.waiting import JobHandle
from jobserver_core.uris import Uri
from jobserver_http.calls import Call
from jobserver_http.contexts import context_settings_of
from jobserver_http.errors import ContextUrlMalformed


async def submit(call: Call, body: str, timeout: float | None) -> JobHandle:
    """Parse the body, fetch the URIs of the class path, and submit the job.

    Fetching does not occupy a thread of a thread pool. It ends when the client disconnects, or after
    ``timeout`` seconds.

    Raises:
        JobServerError: Any error of ``JobServer.parse_config`` and ``JobServer.submit``.
    """

    def begin(config: JsonMapping) -> Preparation[JobHandle]:
        request = job_request(call, config)
        try:
            # A synchronous client gets its response only at the end, so the submit itself need not wait for
            # the disk.
            return call.server.begin_submit(request, caller=call.caller, durable=timeout is None)
        except MalformedUrl as error:
            if any(_shown(uri) == error.url for uri in uris_of((*request.class_path, *request.packages))):
                raise
            raise ContextUrlMalformed(**error.fields) from None

    return await call.run_prepared(body, begin, timeout)


def _shown(uri: str) -> str:
    """Return a URI as errors show it, with secrets redacted."""
    try:
        return str(Uri.parse(uri))
    except MalformedUrl as error:
        return error.url


def job_request(call: Call, config: JsonMapping) -> JobRequest:
    """Build the job request.

    Raises:
        InvalidRequest: A parameter or a key of the body is missing or has the wrong type.
        InvalidName: A name of the class path or of the packages is invalid.
        MalformedUrl: A URI of them is malformed.
        InvalidSetting: A context setting is invalid.
    """
    params, context = call.params, call.params["context"]
    settings = context_settings_of(config)
    if params["spark.proxy.user"]:
        settings = merged({"spark.proxy.user": params["spark.proxy.user"]}, settings)
    class_name, class_path = requested_code(params, config)
    return JobRequest(
        class_name=class_name,
        class_path=class_path,
        packages=params["packages"] or (),
        config=config,
        context=call.names.stored(context) if context else None,
        context_settings={} if context else call.names.settings(settings),
        context_owner=call.names.owner,
        callback_url=_decoded(params["callbackUrl"]),
        idempotency_key=_own_key(call),
        max_queue_time=params["maxQueueTime"],
        max_run_time=params["maxRunTime"],
        priority=params["priority"] or 0,
        submitted_by=call.user,
        restartable=params["restartable"] or False,
    )


def requested_code(params: JsonMapping, config: JsonMapping) -> tuple[str, tuple[ClassPathEntry, ...]]:
    """Return the class to run and its class path.

    As in the old server, ``appName`` with ``classPath`` takes precedence over ``cp`` with ``mainClass``.
    These are read from the query, then from the body. ``dependent-jar-uris`` of the body precede the
    ``appName``.

    Raises:
        InvalidRequest: One of a pair is missing. The message is the old server's.
    """
    if params["appName"]:
        if not params["classPath"]:
            raise InvalidRequest(message="classPath parameter is missing!")
        dependencies = parse_class_path(_listed(config, "dependent-jar-uris"))
        return params["classPath"], (*dependencies, ClassPathEntry(name=params["appName"]))
    cp = params["cp"]
    class_path = parse_class_path(cp if cp else _listed(config, "cp"))
    if not class_path:
        raise InvalidRequest(message="To start the job appName or cp parameters should be configured!")
    main_class = params["mainClass"] or _text(config, "mainClass")
    if not main_class:
        raise InvalidRequest(message="mainClass parameter is missing!")
    return main_class, class_path


def _own_key(call: Call) -> str | None:
    """Return the idempotency key. If each user has separate jobs, keys are separate as well."""
    key = call.header("idempotency-key")
    if key is None or call.names.owner is None:
        return key
    return f"{call.names.owner}~{key}"


def _listed(config: JsonMapping, key: str) -> list[str]:
    """Return a key of the body that is a list of strings or a comma-separated string; empty if missing."""
    value = config.get(key)
    items = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise InvalidRequest(message=f"{key} must be a list of strings or a comma-separated string")
    return items


def _text(config: JsonMapping, key: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(message=f"{key} must be a string")
    return value


def _decoded(url: str | None) -> str | None:
    """Return a callback URL, decoded once more if the client encoded it twice; the old server did so too."""
    return unquote(url) if url is not None and "://" not in url else url
