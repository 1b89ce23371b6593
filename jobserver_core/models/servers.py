"""Servers: the running job servers that share one metadata store."""

from __future__ import annotations

from datetime import datetime

import attrs

from jobserver_core.models.validation import aware

__all__ = ["Server"]


@attrs.frozen(kw_only=True)
class Server:
    """The record of a running server.

    ``id`` belongs to the data directory, so it stays the same after a restart. ``address`` tells people where
    the server runs. The server counts as alive until ``lease_until``, a time on the metadata store's clock,
    and renews that lease while it runs.
    """

    id: str
    started_at: datetime = attrs.field(validator=aware)
    address: str = ""
    lease_until: datetime = attrs.field(validator=aware)
