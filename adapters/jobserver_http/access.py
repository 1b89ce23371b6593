"""What callers may do, by their permissions, and which contexts they see.

If the authenticated user is the Spark proxy user, each user has separate contexts. Their stored names have a
``<user>~`` prefix, which users never see.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import attrs

from jobserver_core.config.trees import check_settings_fit, flatten, nested
from jobserver_core.errors import ContextNotFound, InvalidName, JobNotFound
from jobserver_core.models.jobs import Job
from jobserver_core.models.json_values import Json, JsonMapping, JsonObject
from jobserver_core.models.validation import check_context_name

PROXY_USER = "spark.proxy.user"


@attrs.frozen
class Namespace:
    """Converts between the context names that a caller sees and the stored ones.

    Without an ``owner`` (proxy users are off), names are the same.
    """

    owner: str | None = None

    def stored(self, name: str) -> str:
        """Return the stored name of a context.

        Raises:
            ContextNotFound: The name is empty.
        """
        if self.owner is None:
            return name
        if not name:
            raise ContextNotFound(name=name)
        return f"{self.owner}~{name}"

    def new(self, name: str) -> str:
        """Return the stored name for a new context.

        Raises:
            InvalidName: The name breaks a rule, with or without the prefix.
        """
        if self.owner is None:
            return name
        check_context_name(name)
        stored = self.stored(name)
        try:
            return check_context_name(stored)
        except InvalidName as error:
            rule = f"including the user's name, {error.rule}"
            raise InvalidName(kind="context", name=name, rule=rule) from None

    def shown(self, name: str) -> str:
        """Return the name without the prefix, as its owner sees it."""
        return name.removeprefix(f"{self.owner}~") if self.owner is not None else name

    def without_prefix(self, text: str) -> str:
        """Remove the prefix from a message."""
        return text.replace(f"{self.owner}~", "") if self.owner is not None else text

    def without_prefixes(self, value: Json) -> Json:
        """Remove the prefix from all strings of a JSON-like value."""
        if isinstance(value, str):
            return self.without_prefix(value)
        if isinstance(value, list):
            return [self.without_prefixes(item) for item in value]
        if isinstance(value, dict):
            return {key: self.without_prefixes(item) for key, item in value.items()}
        return value

    def owns(self, name: str) -> bool:
        """Whether the caller may see the context with this stored name, and its jobs."""
        return self.owner is None or name.startswith(f"{self.owner}~")

    def checked(self, job: Job) -> Job:
        """Return the job if the caller may see it.

        Raises:
            JobNotFound: It belongs to another user.
        """
        if not self.owns(job.context_name):
            raise JobNotFound(job_id=job.id)
        return job

    def settings(self, settings: JsonMapping) -> JsonObject:
        """Return the context settings with the owner as proxy user, replacing any other.

        Raises:
            InvalidSetting: There are too many settings, or a name is too long.
        """
        if self.owner is None:
            return dict(settings)
        check_settings_fit(settings)
        leaves = {
            key: value
            for key, value in flatten(settings).items()
            if key != PROXY_USER and not key.startswith(f"{PROXY_USER}.")
        }
        return nested({**leaves, PROXY_USER: self.owner})


EVERYTHING = "*"

PERMISSIONS: dict[str, tuple[str, ...]] = {
    "binaries": ("read", "upload", "delete"),
    "contexts": ("read", "start", "delete", "reset"),
    "data": ("read", "upload", "delete", "reset"),
    "jobs": ("read", "start", "delete"),
    "storage": ("read", "prune"),
}
"""The actions of each group. A group's name alone grants all of its actions, and ``*`` grants everything."""


_GROUPS = ((group, *(f"{group}:{action}" for action in PERMISSIONS[group])) for group in PERMISSIONS)
_KNOWN = (EVERYTHING, *chain.from_iterable(_GROUPS))


def parse_permissions(text: str) -> frozenset[str]:
    """Parse permissions separated by commas or whitespace.

    Raises:
        ValueError: There are none, or one is unknown.
    """
    words = text.replace(",", " ").split()
    if not words:
        raise ValueError("permissions must not be empty; expected for example jobs:read, or * for all")
    if (problem := unknown_permission(words)) is not None:
        raise ValueError(problem)
    return frozenset(words)


def unknown_permission(permissions: Iterable[object]) -> str | None:
    """Return a message that names an unknown permission and all known ones, or None."""
    for permission in permissions:
        if permission not in _KNOWN:
            return f"unknown permission {permission!r}; expected one of {', '.join(_KNOWN)}"
    return None


SIGNED_IN = ""
"""The permission of a route that every caller with valid credentials may use."""


def single_permissions(held: Iterable[str]) -> list[str]:
    """Return every single permission, such as ``jobs:read``, that the permissions of a caller include."""
    held = frozenset(held)
    every = (f"{group}:{action}" for group, actions in PERMISSIONS.items() for action in actions)
    return [permission for permission in every if allows(held, permission)]


def allows(held: Iterable[str], wanted: str) -> bool:
    """Whether the permissions that a caller holds include a single one, such as ``jobs:read``."""
    return not {EVERYTHING, wanted, wanted.partition(":")[0]}.isdisjoint(held)
