"""What a host tells its server of jobs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from jobserver_pyspark.protocol.frames import Channel, ChannelClosed

__all__ = ["Telling"]

_LOSS_TIMEOUT = 30.0


class Telling:
    """Sends the server what happens to jobs; once the server is gone there is nobody to tell.

    The host's main thread notices that too, and ends everything. ``context_lives`` is asked before a failure
    is told: what broke since the context is ending is the context's failure, which its end tells, and no
    job's own.
    """

    def __init__(self, server: Channel, context_lives: Callable[[], bool]) -> None:
        self._server = server
        self._context_lives = context_lives

    def running(self, job_id: str) -> None:
        """Tell that a job's validation has passed."""
        self._send("running", job_id=job_id)

    def progress(self, job_id: str, progress: dict[str, int]) -> None:
        """Tell how far a job is."""
        self._send("progress", job_id=job_id, progress=progress)

    def result(self, job_id: str, data: bytes, *, stream: bool) -> None:
        """Send a piece of a job's result."""
        self._send("result", data, job_id=job_id, stream=stream)

    def ended(self, job_id: str, outcome: dict[str, Any]) -> None:
        """Tell how a job ended: ``{}``, ``{"killed": True}``, or its ``failure`` and ``error``."""
        if "failure" in outcome and not self._context_lives():
            time.sleep(_LOSS_TIMEOUT)  # the context, and with it this process, ends long before
        self._send("ended", job_id=job_id, **outcome)

    def note(self, text: str) -> None:
        """Tell something that belongs into the server's log."""
        self._send("note", text=text[:2000])

    def _send(self, kind: str, payload: bytes = b"", /, **fields: Any) -> None:
        with contextlib.suppress(ChannelClosed):
            self._server.send(kind, payload, **fields)
