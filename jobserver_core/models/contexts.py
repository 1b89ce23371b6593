"""Contexts: live Spark applications that jobs run in."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import attrs

from jobserver_core.errors import Resource
from jobserver_core.models.arguments import check_kind, check_limit, members
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.models.lifecycle import ContextState
from jobserver_core.models.redaction import redacted_repr
from jobserver_core.models.validation import aware, non_negative

__all__ = [
    "Context",
    "ContextLoad",
    "ContextQuery",
    "LoadStatus",
    "ResourceUsage",
    "Resources",
    "SparePool",
    "StartQueueStatus",
]


@attrs.frozen(kw_only=True)
class Context:
    """The record of a context.

    ``settings`` is the merged tree of ``spark.context-settings`` (JSON-like values). ``owner`` is the ID of
    the server that runs it, since ``owned_since``. ``epoch`` grows whenever another server takes it over.
    ``server_id`` and ``server`` are the ID and the address of the server on whose machine it runs or ran, and
    its logs are; they stay if another one takes over what a dead server left. Servers that share no store
    have no address here. ``left_to_others`` says that this server was stopped in an orderly way, and left the
    context to another one. An ad-hoc context was created for one job, and ends with it. ``stop_requested``
    distinguishes a requested end from an unexpected one. ``error`` is the reason for the state ERROR; of a
    context that is RESTARTING, it is the reason why the one before it died. ``end_reason`` says in words
    which user or limit ended a context that did not fail; it is empty if neither did, or it is not known.
    ``restarts`` is how often supervision has started a context of this name again, and
    ``consecutive_restarts`` how often since one of them last lived long enough.
    """

    id: str
    name: str
    state: ContextState = ContextState.STARTED
    settings: JsonMapping = attrs.field(factory=dict, hash=False, repr=redacted_repr)
    ad_hoc: bool = False
    owner: str
    owned_since: datetime = attrs.field(validator=aware)
    epoch: int = 0
    started_at: datetime = attrs.field(validator=aware)
    ended_at: datetime | None = attrs.field(default=None, validator=aware)
    stop_requested: bool = False
    application_id: str | None = None
    url: str | None = None
    error: ErrorInfo | None = None
    end_reason: str = ""
    restarts: int = attrs.field(default=0, validator=non_negative)
    consecutive_restarts: int = attrs.field(default=0, validator=non_negative)
    server_id: str = ""
    server: str = ""
    left_to_others: bool = False

    @property
    def failure(self) -> str | None:
        """When and why it failed, in words; None if it did not fail."""
        if self.error is None or self.ended_at is None:
            return None
        return f"it failed at {self.ended_at.isoformat(' ', 'seconds')}: {self.error.message}"

    @property
    def home(self) -> str:
        """The ID of the server that has its logs; a record of an earlier release does not have it."""
        return self.server_id or self.owner


def _states(values: Iterable[ContextState | str] | str | None) -> tuple[ContextState, ...] | None:
    return members(ContextState, values, "context state")


@attrs.frozen(kw_only=True)
class ContextQuery:
    """Selects contexts to list, newest first, at most ``limit`` (0 to 10,000). None does not filter.

    ``states`` are members of :class:`ContextState` or their names, one or several.
    """

    states: tuple[ContextState, ...] | None = attrs.field(default=None, converter=_states)
    name: str | None = None
    owner: str | None = None
    limit: int | None = None

    def __attrs_post_init__(self) -> None:
        for name in ("name", "owner"):
            check_kind(name, getattr(self, name), (str, type(None)), "a string or None")
        if self.limit is not None:
            check_limit(self.limit)


@attrs.frozen(kw_only=True)
class StartQueueStatus:
    """How many contexts are ``starting``, at most ``limit``, and the names of those ``waiting``."""

    limit: int
    starting: int = 0
    waiting: frozenset[str] = frozenset()

    @property
    def queued(self) -> int:
        """How many contexts wait."""
        return len(self.waiting)


@attrs.frozen(kw_only=True)
class ContextLoad:
    """How many jobs of one context have begun, and how many wait.

    ``preparing`` says what its launcher still does before it can start, such as unpacking an environment.
    """

    running: int = 0
    waiting: int = 0
    preparing: str = ""


@attrs.frozen(kw_only=True)
class Resources:
    """The most that a context asks for: cores, and bytes of memory. None has no upper bound."""

    cores: int | None = 0
    memory: int | None = 0


@attrs.frozen(kw_only=True)
class ResourceUsage:
    """How much of a resource all contexts together may use; memory is in bytes.

    ``used`` includes the spares of pools. It is None if a context has no upper bound, and ``limit`` is None
    if there is none.
    """

    resource: Resource
    used: int | None
    limit: int | None


@attrs.frozen(kw_only=True)
class SparePool:
    """A pool of started contexts: ``ready`` of them wait to be taken, ``starting`` are being started.

    ``size`` is how many are kept, and ``resources`` what each of them asks for.
    """

    name: str
    size: int
    ready: int = 0
    starting: int = 0
    resources: Resources = Resources()


@attrs.frozen(kw_only=True)
class LoadStatus:
    """How many jobs have begun and how many wait, and how many submits were refused for lack of room.

    ``refused`` counts since the start of the server. ``shedding`` is true if one was refused within the last
    minute.
    """

    running: int = 0
    waiting: int = 0
    refused: int = 0
    shedding: bool = False
