"""Whose contexts a caller sees, where the authenticated user is the Spark proxy user.

The contract keeps users' contexts apart by a ``<user>~`` prefix that users never see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from jobserver_core.config.trees import flatten, nested
from jobserver_core.errors import ContextNotFound, InvalidName, JobNotFound
from jobserver_core.models.jobs import Job
from jobserver_core.models.names import check_context_name

__all__ = ["Namespace"]

PROXY_USER = "spark.proxy.user"


@attrs.frozen
class Namespace:
    """Turns the names that a caller writes into those that are stored, and back.

    Without an ``owner`` (proxy users are off) names are what they are.
    """

    owner: str | None = None

    def stored(self, name: str) -> str:
        """Return the name to look a context up by. Raises ContextNotFound for what cannot be one."""
        if self.owner is None:
            return name
        if not name:
            raise ContextNotFound(name=name)
        return f"{self.owner}~{name}"

    def new(self, name: str) -> str:
        """Return the name to make a context with. Raises InvalidName, by the rules for the visible name."""
        if self.owner is None:
            return name
        check_context_name(name)
        stored = self.stored(name)
        try:
            return check_context_name(stored)
        except InvalidName as error:
            raise InvalidName(kind="context", name=name, rule=f"with its user's name: {error.rule}") from None

    def shown(self, name: str) -> str:
        """Return the name as its owner sees it."""
        return name.removeprefix(f"{self.owner}~") if self.owner is not None else name

    def hidden(self, text: str) -> str:
        """Return a message without the prefix."""
        return text.replace(f"{self.owner}~", "") if self.owner is not None else text

    def owns(self, name: str) -> bool:
        """Whether the caller may see a context of this stored name, and the jobs in it."""
        return self.owner is None or name.startswith(f"{self.owner}~")

    def checked(self, job: Job) -> Job:
        """Return the job, or raise JobNotFound when it is another user's."""
        if not self.owns(job.context_name):
            raise JobNotFound(job_id=job.id)
        return job

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return context settings with the owner as proxy user, whatever they said."""
        if self.owner is None:
            return dict(settings)
        leaves = {
            key: value
            for key, value in flatten(settings).items()
            if key != PROXY_USER and not key.startswith(f"{PROXY_USER}.")
        }
        return nested({**leaves, PROXY_USER: self.owner})
