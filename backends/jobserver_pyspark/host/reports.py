"""A host's reports about jobs to its server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from jobserver_pyspark.protocol.frames import Channel, ChannelClosed
from jobserver_pyspark.protocol.messages import HostToServer, JobEnded, LogWarning, ServerToHost

__all__ = ["JobReports"]

_LOSS_TIMEOUT = 30.0
_MAX_WARNING = 2000


class JobReports:
    """Reports events of jobs to the server. Nothing is sent once the server has ended.

    The host's main thread notices that too, and ends everything. ``context_lives`` is called before a
    failure is reported: if a job fails because the context is ending, the failure belongs to the context.
    """

    def __init__(
        self, server: Channel[HostToServer, ServerToHost], context_lives: Callable[[], bool]
    ) -> None:
        self._server = server
        self._context_lives = context_lives

    def send(self, message: HostToServer) -> None:
        """Send a message other than the end of a job."""
        with contextlib.suppress(ChannelClosed):
            self._server.send(message)

    def end(self, outcome: JobEnded) -> None:
        """Send the outcome of a job."""
        if outcome.failure is not None and not self._context_lives():
            time.sleep(_LOSS_TIMEOUT)  # the context, and with it this process, ends long before
        self.send(outcome)

    def warn(self, text: str) -> None:
        """Send a line for the server's log."""
        self.send(LogWarning(text=text[:_MAX_WARNING]))
