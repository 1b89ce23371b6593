"""The transport port: one attempt to deliver one callback."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import attrs

from jobserver_core.errors import InvalidCallbackUrl
from jobserver_core.models.callbacks import Answer
from jobserver_core.plugins import Backend
from jobserver_core.uris import redacted, scheme_of


@attrs.frozen(kw_only=True)
class Message:
    """A callback to send: a JSON body for a URL. ``delivery_id`` is the same in every attempt.

    ``attempt`` counts from 1. ``timestamp`` is the time of this attempt in whole seconds since 1970; the
    signature covers it. Send ``headers`` unchanged.
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

    A transport makes one attempt and reports the outcome. Core decides about retries.
    """

    kind = "transport"

    schemes: tuple[str, ...] = ()
    """The URL schemes that this transport serves, in lower case."""

    options: ClassVar[tuple[str, ...] | None] = None
    """The top-level keys of ``jobserver.callbacks.options`` that this transport reads; None if not known.

    All transports share this section. A top-level key that none of them reads is refused, provided that each
    of them names its keys. A subclass does not inherit them: it names all of its keys itself.
    """

    def check(self, url: str) -> None:
        """Refuse a URL to which no delivery can ever be allowed. The default refuses unknown schemes.

        Called when a job is submitted, so it must not wait for the network. The error names the allowed
        schemes, and shows neither the password nor the query of the URL.

        Raises:
            InvalidCallbackUrl: This transport does not serve the URL, or its policy refuses it.
        """
        if scheme_of(url) not in self.schemes:
            allowed = ", ".join(self.schemes)
            raise InvalidCallbackUrl(url=redacted(url), reason=f"its scheme must be one of: {allowed}")

    @abstractmethod
    def send(self, message: Message, *, timeout: float) -> Answer:
        """Make one attempt, which takes at most ``timeout`` seconds in total, and return the answer.

        Never raises because of the receiver or the network, nor after :meth:`close`. A refused connection, a
        timeout, a redirect loop and a forbidden address are answers with ``error``, which contains no secrets
        of the URL. Read no more of the response than necessary. Called from several threads at once; these
        must not wait for each other, or a receiver that hangs would delay all others.
        """

    def close(self) -> None:
        """Close connections. Later attempts are answers with ``error``. Idempotent."""
        return
