"""A transport that delivers callbacks to a program on this machine, over a Unix socket.

A callback URL names the socket: ``unix:///run/billing.sock``. For each attempt the transport connects, sends
one line of JSON and the body, and reads one line of JSON: ``{"status": 200}``, optionally with
``retry_after`` in seconds. The statuses mean what they mean in HTTP.

Attempts share no state, so a receiver that hangs does not delay others. All steps of an attempt
share one deadline: with a timeout for each step, a receiver that sends single bytes could hold it forever.
"""

from __future__ import annotations

import json
import socket
import time
from urllib.parse import urlsplit

from jobserver_core import Answer, InvalidCallbackUrl, InvalidRequest
from jobserver_core.ports import Message, Transport
from jobserver_core.ports.formats import redacted

_LONGEST_REPLY = 4096


class UnixSocketTransport(Transport):
    """Delivers callbacks to ``unix:`` URLs."""

    schemes = ("unix",)
    options = ()

    def __init__(self) -> None:
        self._closed = False

    def check(self, url: str) -> None:
        """Refuse other schemes, and URLs without a path."""
        parts = urlsplit(url)
        if parts.scheme != "unix" or not parts.path.startswith("/"):
            raise InvalidCallbackUrl(url=redacted(url), reason="expected unix:///path/of/the.sock")

    def send(self, message: Message, *, timeout: float) -> Answer:
        """Make one attempt. Report every failure as an answer that does not show the URL."""
        if self._closed:
            return Answer(error="the transport is closed")
        try:
            return _exchange(message, time.monotonic() + timeout)
        except TimeoutError:
            return Answer(error=f"no response within {timeout:g} s")
        except OSError as error:
            return Answer(error=error.strerror or type(error).__name__)
        except (ValueError, KeyError, TypeError, InvalidRequest):
            return Answer(error="the receiver's answer is not JSON with a status")

    def close(self) -> None:
        """Make no more attempts."""
        self._closed = True


def _exchange(message: Message, deadline: float) -> Answer:
    head = {
        "delivery_id": message.delivery_id,
        "job_id": message.job_id,
        "attempt": message.attempt,
        "timestamp": message.timestamp,
        "headers": dict(message.headers),
        "length": len(message.body),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_remaining(deadline))
        connection.connect(urlsplit(message.url).path)
        connection.settimeout(_remaining(deadline))
        connection.sendall(json.dumps(head).encode() + b"\n" + message.body)
        reply = b""
        while not reply.endswith(b"\n") and len(reply) < _LONGEST_REPLY:
            connection.settimeout(_remaining(deadline))
            if not (data := connection.recv(_LONGEST_REPLY)):
                raise ConnectionResetError(None, "the receiver closed the connection without an answer")
            reply += data
    answer = json.loads(reply)
    return Answer(status=int(answer["status"]), retry_after=answer.get("retry_after"))


def _remaining(deadline: float) -> float:
    """Return the seconds until the deadline.

    Raises:
        TimeoutError: It has passed.
    """
    if (seconds := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return seconds
