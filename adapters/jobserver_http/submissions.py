"""From the parameters and the body of ``POST /jobs`` to a job request."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

from jobserver_core.config.trees import merged
from jobserver_core.errors import InvalidRequest, MalformedUrl
from jobserver_core.models.binaries import ClassPathEntry, parse_class_path
from jobserver_core.models.jobs import JobRequest
from jobserver_core.running.handles import JobHandle
from jobserver_core.uris import Uri
from jobserver_http.calls import Call
from jobserver_http.contexts import context_settings_of
from jobserver_http.errors import ContextUrlMalformed

__all__ = ["job_request", "submitted"]


async def submitted(call: Call, body: str, patience: float | None) -> JobHandle:
    """Parse the body, once, fetch what it names, and submit what it asks for.

    Fetching occupies no thread that other calls need, ends as soon as the client has gone, and takes no
    longer than ``patience`` seconds. Raises as ``parse_config`` and ``submit``.
    """
    request = await call.with_config(body, partial(job_request, call))
    try:
        # A client that waits for the end is told nothing before it, and so need not wait for the disk twice.
        begin = partial(call.server.begin_submit, request, caller=call.caller, durable=patience is None)
        return await call.prepared(begin, patience)
    except MalformedUrl as error:
        if any(_shown(entry.uri) == error.url for entry in request.class_path if entry.uri):
            raise
        raise ContextUrlMalformed(**error.fields) from None


def _shown(uri: str) -> str:
    """Return a URI as errors show it: without what may be secret."""
    try:
        return str(Uri.parse(uri))
    except MalformedUrl as error:
        return error.url


def job_request(call: Call, config: Mapping[str, Any]) -> JobRequest:
    """Return what is asked for.

    Raises:
        InvalidRequest, InvalidName, MalformedUrl, InvalidSetting
    """
    params = call.params
    context = params["context"]
    settings = context_settings_of(config)
    if params["spark.proxy.user"]:
        settings = merged({"spark.proxy.user": params["spark.proxy.user"]}, settings)
    class_name, class_path = requested_code(params, config)
    return JobRequest(
        class_name=class_name,
        class_path=class_path,
        config=config,
        context=call.names.stored(context) if context else None,
        context_settings={} if context else call.names.settings(settings),
        context_owner=call.names.owner,
        callback_url=_decoded(params["callbackUrl"]),
        idempotency_key=_own_key(call),
    )


def requested_code(
    params: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[str, tuple[ClassPathEntry, ...]]:
    """Return the class to run and its class path.

    As in the old server, ``appName`` + ``classPath`` of the query go before ``cp`` + ``mainClass``, for which
    the query goes before the body. ``dependent-jar-uris`` of the body go before the ``appName``.

    Raises:
        InvalidRequest: in the old server's words, when one of a pair is missing.
    """
    if params["appName"]:
        if not params["classPath"]:
            raise InvalidRequest(message="classPath parameter is missing!")
        return params["classPath"], (*_dependencies(config), ClassPathEntry(name=params["appName"]))
    cp = params["cp"]
    class_path = parse_class_path(cp if cp else _listed(config, "cp"))
    if not class_path:
        raise InvalidRequest(message="To start the job appName or cp parameters should be configured!")
    main_class = params["mainClass"] or _text(config, "mainClass")
    if not main_class:
        raise InvalidRequest(message="mainClass parameter is missing!")
    return main_class, class_path


def _own_key(call: Call) -> str | None:
    """Return the idempotency key; where each user has jobs of its own, keys are its own as well."""
    key = call.header("idempotency-key")
    if key is None or call.names.owner is None:
        return key
    return f"{call.names.owner}~{key}"


def _dependencies(config: Mapping[str, Any]) -> tuple[ClassPathEntry, ...]:
    return parse_class_path(_listed(config, "dependent-jar-uris"))


def _listed(config: Mapping[str, Any], key: str) -> list[str]:
    """Return a key of the body that is a list of texts, or one text with commas; empty when missing."""
    value = config.get(key)
    texts = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(message=f"{key} takes a list of texts, or one text with commas")
    return texts


def _text(config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(message=f"{key} takes a text")
    return value


def _decoded(url: str | None) -> str | None:
    """Return a callback URL; clients that encoded it twice are understood, as they were before."""
    return unquote(url) if url is not None and "://" not in url else url
