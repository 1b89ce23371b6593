"""Servers: the running job servers that share one metadata store, and their requests to one another."""

from __future__ import annotations

from datetime import datetime

import attrs

from jobserver_core.models.validation import aware

__all__ = ["Server", "ServerRequest", "ServerStatus", "Takeovers"]


@attrs.frozen(kw_only=True)
class Server:
    """The record of a running server.

    ``id`` belongs to the data directory, so it stays the same after a restart. ``address`` shows people where
    the server runs. The server counts as alive until ``lease_until``, a time on the metadata store's clock,
    and renews that lease while it runs. ``version`` is that of the package that it runs, empty if it is
    unknown. A ``draining`` server is about to end, and accepts no new work.
    """

    id: str
    started_at: datetime = attrs.field(validator=aware)
    address: str = ""
    lease_until: datetime = attrs.field(validator=aware)
    version: str = ""
    draining: bool = False


@attrs.frozen(kw_only=True)
class ServerStatus(Server):
    """A server as the others see it, with the number of ``contexts`` that it runs.

    An ``expired`` server has not renewed its lease in time. The others are about to take over what it had.
    One whose store is not shared is not ``leased``: it lives whatever its ``lease_until`` says.
    """

    expired: bool = False
    leased: bool = True
    contexts: int = 0

    @property
    def state(self) -> str:
        """``"expired"``, ``"draining"`` or ``"alive"``."""
        if self.expired:
            return "expired"
        return "draining" if self.draining else "alive"


@attrs.frozen(kw_only=True)
class Takeovers:
    """What a server has taken over and lost since its start.

    ``contexts_reattached`` outlived an earlier server on the same data directory. ``leases_taken_over`` are
    those of other servers that this one declared dead, and ``leases_lost`` its own ones, after which it lost
    its contexts.
    """

    contexts_reattached: int = 0
    leases_taken_over: int = 0
    leases_lost: int = 0


@attrs.frozen(kw_only=True)
class ServerRequest:
    """A request of one server to another one, the ``recipient``, and its answer once there is one.

    ``payload`` and ``answer`` are JSON of the servers; a store does not read them.
    """

    id: str
    recipient: str
    created_at: datetime = attrs.field(validator=aware)
    payload: str = attrs.field(repr=False)
    answer: str | None = attrs.field(default=None, repr=False)
