"""The context settings that the core itself reads; the launcher reads the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from jobserver_core.config.trees import flatten, merged
from jobserver_core.config.units import lacks_unit, parse_duration
from jobserver_core.errors import InvalidName, InvalidSetting, MalformedUrl
from jobserver_core.models.binaries import ClassPathEntry, parse_class_path
from jobserver_core.models.jobs import MAX_SECONDS
from jobserver_core.models.json_values import Json, JsonMapping, JsonObject, dumps
from jobserver_core.models.validation import check_context_name
from jobserver_core.ports import Launcher

if TYPE_CHECKING:
    from jobserver_core.config.settings import SparkSettings

_CLASS_PATH_KEYS = ("dependent-jar-uris", "cp")
_MASTER = "spark.master"
"""The server has a value for it outside ``spark.context-settings``."""
_STOP_ON_ERROR = "stop-context-on-job-error"


def effective_settings(server: SparkSettings, settings: JsonMapping) -> JsonObject:
    """Return the settings of one context, merged over the server's settings for every context."""
    return merged({"spark": {"master": server.master}}, server.context_settings, settings)


def check_settings(settings: JsonMapping, launcher: Launcher) -> None:
    """Check the effective settings of a context.

    Raises:
        InvalidSetting: No context can start with these settings.
    """
    settings_class_path(settings)
    stops_on_job_error(settings)
    time_limits(settings)
    restart_limits(settings)
    launcher.validate(settings)


def check_common_settings(server: SparkSettings, launcher: Launcher) -> None:
    """Check the settings for every context. Missing settings are allowed: a context may add them.

    Raises:
        InvalidSetting: One of them is unknown, or has a value that no context can start with.
    """
    try:
        check_settings(effective_settings(server, {}), launcher)
    except InvalidSetting as error:
        given = flatten(server.context_settings)
        if any(key == error.key or key.startswith(f"{error.key}.") for key in given):
            key = f"spark.context-settings.{error.key}"
        elif error.key == _MASTER:
            key = _MASTER
        else:
            return
        raise InvalidSetting(key=key, message=error.message, nearest=error.nearest) from error


def configuration_problems(server: SparkSettings, launcher: Launcher) -> Iterator[str]:
    """Yield the reasons why no context at all, or a configured context, can start."""
    try:
        check_settings(effective_settings(server, {}), launcher)
    except InvalidSetting as error:
        yield f"no context can start: {error}"
    else:
        yield from configured_context_problems(server, launcher)


def configured_context_problems(server: SparkSettings, launcher: Launcher) -> Iterator[str]:
    """Yield the reasons why configured contexts can certainly not start."""
    for name, settings in server.contexts.items():
        try:
            check_context_name(name)
            check_settings(effective_settings(server, settings), launcher)
        except (InvalidName, InvalidSetting) as error:
            yield f"the configured context {name} cannot start: {error}"


def settings_class_path(settings: JsonMapping) -> tuple[ClassPathEntry, ...]:
    """Return the entries of ``dependent-jar-uris``, then of ``cp``: lists or comma-separated strings."""
    entries: list[ClassPathEntry] = []
    for key in _CLASS_PATH_KEYS:
        value = "" if settings.get(key) is None else settings[key]
        items = value if isinstance(value, list) else [value] if isinstance(value, str) else [None]
        if any(isinstance(item, bool) or not isinstance(item, (str, int, float)) for item in items):
            message = (
                f"takes a list of strings, or one string with commas, got {dumps(value, allow_nan=True)}"
            )
            raise InvalidSetting(key=key, message=message)
        try:
            entries += parse_class_path(value if isinstance(value, str) else list(map(str, items)))
        except (InvalidName, MalformedUrl) as error:
            raise InvalidSetting(key=key, message=str(error)) from error
    return tuple(entries)


def stops_on_job_error(settings: JsonMapping) -> bool:
    """Return whether the first job that fails stops the context."""
    return _flag(settings, _STOP_ON_ERROR)


def _flag(settings: JsonMapping, key: str) -> bool:
    value = settings.get(key)
    wanted = {"true": True, "false": False}.get("false" if value is None else str(value).lower())
    if wanted is None:
        raise InvalidSetting(key=key, message=f"takes true or false, got {value!r}")
    return wanted


@attrs.frozen(kw_only=True)
class RestartLimits:
    """How a supervised context is restarted after it dies. Times are in seconds.

    It is restarted after up to ``max_restarts`` consecutive deaths (possibly infinite). The first restart
    follows after ``backoff``; each further delay is twice as long as the one before, up to ``max_backoff``. A
    context that has lived for ``reset`` resets the count.
    """

    max_restarts: float = 5
    backoff: float = 1.0
    max_backoff: float = 60.0
    reset: float = 600.0


def restart_limits(settings: JsonMapping) -> RestartLimits | None:
    """Return how a context is restarted after it dies; None if it is not supervised.

    Raises:
        InvalidSetting: A value is invalid.
    """
    supervised, default = _flag(settings, "supervise"), RestartLimits()
    limits = RestartLimits(
        max_restarts=_restarts(settings, "max-restarts", default.max_restarts),
        backoff=_positive(settings, "restart-backoff", default.backoff),
        max_backoff=_positive(settings, "max-restart-backoff", default.max_backoff),
        reset=_positive(settings, "restart-reset", default.reset),
    )
    return limits if supervised else None


def _positive(settings: JsonMapping, key: str, default: float) -> float:
    seconds = default if settings.get(key) is None else _duration(settings, key)
    if seconds is None:
        raise InvalidSetting(key=key, message="takes a duration with a unit, and cannot be turned off")
    return seconds


def _restarts(settings: JsonMapping, key: str, default: float) -> float:
    value = settings.get(key)
    if value is None:
        return default
    if value is False or str(value).lower() == "off":
        return math.inf
    try:
        count = int(str(value))
    except ValueError:
        count = 0
    if count < 1:
        raise InvalidSetting(key=key, message=f"takes a number from 1, or off for no limit, got {value!r}")
    return count


@attrs.frozen(kw_only=True)
class TimeLimits:
    """The time limits of a context and its jobs, in seconds; None means no limit.

    ``lifetime_grace`` is how long accepted jobs may continue after ``max_lifetime``; infinite means until
    they have ended. ``job_max_queue_time`` and ``job_max_run_time`` apply to jobs that do not set their own.
    """

    idle_timeout: float | None = None
    max_lifetime: float | None = None
    lifetime_grace: float = 3600.0
    job_max_queue_time: float | None = None
    job_max_run_time: float | None = None


def time_limits(settings: JsonMapping) -> TimeLimits:
    """Return the time limits of a context.

    Raises:
        InvalidSetting: A limit is neither a positive duration with a unit nor ``off``.
    """
    grace_key, grace = "max-lifetime-grace", TimeLimits().lifetime_grace
    if settings.get(grace_key) is not None:
        limit = _duration(settings, grace_key)
        grace = math.inf if limit is None else limit
    return TimeLimits(
        idle_timeout=_duration(settings, "idle-timeout"),
        max_lifetime=_duration(settings, "max-lifetime"),
        lifetime_grace=grace,
        job_max_queue_time=_duration(settings, "job-max-queue-time"),
        job_max_run_time=_duration(settings, "job-max-run-time"),
    )


def _duration(settings: JsonMapping, key: str) -> float | None:
    """Return a duration in seconds, or None if it is missing, null or ``off``.

    A bare number is refused: it would be milliseconds in HOCON, and most people mean seconds.
    """
    value: Json = settings.get(key)
    if value is None or value is False or str(value).lower() == "off":
        return None
    try:
        if lacks_unit(value):
            raise ValueError(f"needs a unit, as in 30 s or 2 h, got {value}")
        seconds = parse_duration(value)
    except ValueError as error:
        raise InvalidSetting(key=key, message=str(error)) from None
    if not 0 < seconds <= MAX_SECONDS:
        raise InvalidSetting(key=key, message=f"takes more than 0 s and up to 3650 days, or off, got {value}")
    return seconds
