"""What a host reports to its server about jobs."""

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
    """Sends the server what happens to jobs. Nothing is sent once the server is gone.

    The host's main thread notices that too, and ends everything. ``context_lives`` is called before a
    failure is reported: what breaks because the context is ending is the context's failure, and no job's
    own.
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
        """Send how a job ended."""
        if outcome.failure is not None and not self._context_lives():
            time.sleep(_LOSS_TIMEOUT)  # the context, and with it this process, ends long before
        self.send(outcome)

    def warn(self, text: str) -> None:
        """Send a line for the server's log."""
        self.send(LogWarning(text=text[:_MAX_WARNING]))
