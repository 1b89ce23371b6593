"""Turning job requests and queries into the parameters of the HTTP API."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping

import attrs

from jobserver_core.errors import InvalidRequest
from jobserver_core.models.arguments import check_idempotency_key, check_kind, config_text
from jobserver_core.models.binaries import ClassPathEntry
from jobserver_core.models.jobs import JobQuery, JobRequest
from jobserver_core.models.json_values import dumps

MAX_CONFIG_BYTES = 64 * 1024 * 1024
"""How much configuration is parsed here to add settings to it. The server has a limit of its own."""


@attrs.frozen
class SubmitCall:
    """The parts of a request that submits a job."""

    params: Mapping[str, str | int | None]
    body: bytes
    headers: Mapping[str, str]


def submit_call(request: JobRequest) -> SubmitCall:
    """Return the parts of the request. It always has an idempotency key, so that it may be repeated.

    Raises:
        InvalidRequest: A header cannot carry its idempotency key.
        InvalidRequest: It has something that only the server decides, or that the API cannot express.
    """
    check_kind("the request", request, JobRequest, "a JobRequest")
    if request.submitted_by or request.context_owner:
        raise InvalidRequest(message="submitted_by and context_owner are set by the server")
    params = {
        "cp": _joined(request.class_path),
        "mainClass": request.class_name,
        "packages": _joined(request.packages) or None,
        "context": request.context,
        "priority": request.priority or None,
        "maxQueueTime": _whole(request.max_queue_time),
        "maxRunTime": _whole(request.max_run_time),
        "restartable": "true" if request.restartable else None,
        "callbackUrl": request.callback_url,
    }
    headers = {
        "Idempotency-Key": checked_key(request.idempotency_key),
        "Content-Type": "text/plain; charset=utf-8",
    }
    return SubmitCall(params, _config(request).encode(), headers)


def checked_key(key: str | None) -> str:
    """Return the idempotency key, or a new one for None.

    Raises:
        InvalidRequest: A header cannot carry it.
    """
    if key is None:
        return os.urandom(16).hex()
    check_idempotency_key(key)
    return key


def _joined(entries: Iterable[ClassPathEntry]) -> str:
    texts = [str(entry) for entry in entries]
    if comma := next((text for text in texts if "," in text), None):
        raise InvalidRequest(message=f"{comma}: write a comma in a URI of the class path as %2C")
    return ",".join(texts)


def _whole(seconds: float | None) -> int | None:
    """Round up, because the API has whole seconds."""
    return None if seconds is None else math.ceil(seconds)


def _config(request: JobRequest) -> str:
    """Return the configuration as text. The API takes the settings of an ad-hoc context from it."""
    config = request.config
    if settings := request.context_settings:
        if isinstance(config, str) and not config.lstrip().startswith("{"):
            return f"{config}\nspark.context-settings = {dumps(settings)}"
        from jobserver_core.config.hocon import parse_untrusted  # noqa: PLC0415 - few requests need it
        from jobserver_core.config.trees import overlaid  # noqa: PLC0415

        own = parse_untrusted(config, max_bytes=MAX_CONFIG_BYTES) if isinstance(config, str) else config
        config = overlaid(own, {"spark": {"context-settings": settings}})
    return config if isinstance(config, str) else config_text(config)


def list_params(query: JobQuery) -> dict[str, str | int | None]:
    """Return the parameters of a query.

    Raises:
        InvalidRequest: The API cannot express the query.
    """
    check_kind("the query", query, JobQuery, "a JobQuery")
    if query.context_id is not None or len(query.states or ()) > 1:
        raise InvalidRequest(
            message="the HTTP API selects jobs by one state at most, and by context_name, not context_id"
        )
    return {
        "limit": query.limit,
        "status": query.states[0].value if query.states else None,
        "context": query.context_name,
        "classPath": query.class_name,
        "since": query.since.isoformat() if query.since else None,
        "until": query.until.isoformat() if query.until else None,
        "offset": query.offset or None,
        "cursor": query.after,
    }
