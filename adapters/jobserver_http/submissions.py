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
    request = await call.pools.slow.run(lambda: job_request(call, call.server.parse_config(body)))
    try:
        return await call.prepared(partial(call.server.begin_submit, request, caller=call.caller), patience)
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
    """Return what is asked for. Raises InvalidRequest, InvalidName, MalformedUrl, InvalidSetting.

    As in the old server, ``appName`` + ``classPath`` go before ``cp`` + ``mainClass``, and the query
    before the body.
    """
    params = call.params
    context = params["context"]
    settings = context_settings_of(config)
    if params["spark.proxy.user"]:
        settings = merged({"spark.proxy.user": params["spark.proxy.user"]}, settings)
    app_name = params["appName"]
    return JobRequest.from_parameters(
        app_name=app_name,
        class_path=params["classPath"],
        cp=None if app_name else params["cp"] or _listed(config, "cp"),
        main_class=None if app_name else params["mainClass"] or _text(config, "mainClass"),
        dependencies=_dependencies(config) if app_name else (),
        config=config,
        context=call.names.stored(context) if context else None,
        context_settings={} if context else call.names.settings(settings),
        context_owner=call.names.owner,
        callback_url=_decoded(params["callbackUrl"]),
        idempotency_key=_own_key(call),
    )


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
