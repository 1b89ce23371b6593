"""The transport port: one attempt to deliver one callback."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import attrs

from jobserver_core.errors import InvalidCallbackUrl
from jobserver_core.models.callbacks import Answer
from jobserver_core.plugins import Backend
from jobserver_core.uris import redacted, scheme_of


@attrs.frozen(kw_only=True)
class Message:
    """A callback to send: a JSON body for a URL. ``delivery_id`` is the same in every attempt.

    ``attempt`` counts from 1. ``timestamp`` is the time of this attempt in whole seconds since 1970, which
    the signature covers. Send ``headers`` unchanged.
    """

    delivery_id: str
    job_id: str
    url: str
    attempt: int
    timestamp: int
    body: bytes
    headers: Mapping[str, str] = attrs.field(factory=dict, hash=False)


class Transport(Backend):
    """Delivers callbacks to URLs of its schemes.

    A transport makes one attempt and reports how it went. Core decides about retries.
    """

    kind = "transport"

    schemes: tuple[str, ...] = ()
    """The URL schemes that this transport serves, in lower case."""

    def check(self, url: str) -> None:
        """Refuse a URL to which no delivery can ever be allowed. The default refuses other schemes.

        Called when a job is submitted, so it must not wait for the network. The error names the
        allowed schemes, and shows neither password nor query of the URL.

        Raises:
            InvalidCallbackUrl: The URL is not one of this transport's, or its policy refuses it.
        """
        if scheme_of(url) not in self.schemes:
            allowed = ", ".join(self.schemes)
            raise InvalidCallbackUrl(url=redacted(url), reason=f"its scheme must be one of: {allowed}")

    @abstractmethod
    def send(self, message: Message, *, timeout: float) -> Answer:
        """Make one attempt, which takes ``timeout`` seconds in total at most, and return the answer.

        Never raises for what the receiver or the network does, nor after :meth:`close`. A refused
        connection, a timeout, a redirect loop and a forbidden address are answers with ``error``, which shows
        no secrets of the URL. Read no more of the response than necessary. Called from several threads at
        once, which must not wait for each other: a receiver that hangs would delay all others.
        """

    def close(self) -> None:
        """Close connections. Later attempts are answers with ``error``. Idempotent."""
        return
