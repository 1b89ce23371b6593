"""The transport port: one attempt to deliver one callback."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import attrs

from jobserver_core.models.callbacks import Answer
from jobserver_core.ports.backend import Backend

__all__ = ["Message", "Transport"]


@attrs.frozen(kw_only=True)
class Message:
    """What is sent: a JSON body for a URL. ``delivery_id`` is the same in every attempt.

    ``attempt`` counts from 1; ``timestamp`` is when this attempt is made, in whole seconds
    since 1970 (part of what a signature covers). ``headers`` are to be sent as they are.
    """

    delivery_id: str
    job_id: str
    url: str
    attempt: int
    timestamp: int
    body: bytes
    headers: Mapping[str, str] = attrs.field(factory=dict, hash=False)


class Transport(Backend):
    """Delivers callbacks to URLs of the schemes that it is registered for.

    The policy of retries is core's; a transport makes one attempt and says how it went.
    """

    kind = "transport"

    schemes: tuple[str, ...] = ()
    """The URL schemes that this transport serves, in lower case."""

    @abstractmethod
    def check(self, url: str) -> None:
        """Raise InvalidCallbackUrl when no delivery to this URL can ever be allowed.

        Called when a job is submitted. Must not wait for the network.
        """

    @abstractmethod
    def send(self, message: Message, *, timeout: float) -> Answer:
        """Make one attempt within ``timeout`` seconds, all of it, and return the answer.

        Never raises for what the receiver or the network does: a refused connection, a time-out, a
        loop of redirects, a forbidden address are answers with ``error``. Reads no more of the
        response than it needs. Called from several threads at once.
        """

    def close(self) -> None:
        """Let go of connections; repeating this is allowed."""
        return
