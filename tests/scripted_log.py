"""A server with the log of one job, which ends or breaks off its responses as a test wants."""

from __future__ import annotations

import json
from collections.abc import Callable

import attrs

from loopback import Handler

JSON = "application/json"


def a_record(status: str) -> bytes:
    """Return the record of the job ``j1``."""
    record = {
        "jobId": "j1",
        "startTime": "2024-01-01T00:00:00.000Z",
        "classPath": "w.Echo",
        "context": "warm",
        "contextId": "c1",
        "status": status,
        "at": "2024-01-01T00:00:01.000Z",
    }
    return json.dumps(record).encode()


@attrs.define(eq=False)
class ScriptedLog:
    """The behaviour of a server with the log of the job ``j1``.

    The responses with the followed log end, or with ``cut`` break off, after as many bytes as ``ends`` says,
    and then ``after`` is called with their number. One more ends with the log, and the job has ended then.
    """

    log: bytes
    ends: list[int]
    cut: bool = True
    after: Callable[[ScriptedLog, int], None] = lambda _self, _number: None
    followed: int = 0
    away: bool = False

    def __call__(self, handler: Handler) -> None:
        path, _, query = handler.path.partition("?")
        if self.away:
            handler.reset()
        elif not path.endswith("/logs"):
            status = "FINISHED" if self.followed > len(self.ends) else "RUNNING"
            handler.say(200, a_record(status), content_type=JSON)
        elif "follow" not in query:
            handler.say(200, self.log, content_type="text/plain")
        else:
            self._follow(handler)

    def _follow(self, handler: Handler) -> None:
        end = self.ends[self.followed] if self.followed < len(self.ends) else None
        shown = self.log[:end]
        self.followed += 1
        handler.send_response(200)
        handler.send_header("content-type", "text/plain; charset=utf-8")
        handler.send_header("content-length", str(len(shown) + (1 if self.cut and end is not None else 0)))
        handler.send_header("connection", "close")
        handler.end_headers()
        handler.wfile.write(shown)
        self.after(self, self.followed)
