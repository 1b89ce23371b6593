"""File descriptors: how many connections they suffice for, and what happens when they run out.

asyncio stops accepting for a second when the process has no descriptor left, but reports it as often as it
tried: up to the length of the backlog each second. Here that becomes one line a minute.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
from collections.abc import Mapping
from typing import Any

from jobserver_core.repeats import Repeats

__all__ = ["affordable", "report_starvation"]

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

STARVED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
SHARE = 2
"""One part in this many of the descriptors is for connections; the rest is for storage and contexts."""


def affordable(connections: int) -> int:
    """Return how many of these connections the limit of descriptors allows, and log when that is fewer."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft // SHARE >= connections:
        return connections
    _log.warning(
        "only %d connections are served at once instead of %d: the limit of open files is %d (ulimit -n)",
        soft // SHARE,
        connections,
        soft,
    )
    return max(1, soft // SHARE)


def report_starvation(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Handle what an event loop reports: missing descriptors once a minute, all else as ever."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in STARVED and "socket" in context:
        _repeats.warning(
            "accept",
            "cannot accept connections: %s; raise the limit of open files (ulimit -n) "
            "or lower jobserver.http.max-connections",
            error.strerror,
        )
    else:
        loop.default_exception_handler(dict(context))
