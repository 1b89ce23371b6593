"""Frames: what server, host and runners say to each other over a stream socket.

A frame is a JSON object (the header) and raw bytes (the payload, often empty), both preceded
by their lengths. Nothing in a frame is ever unpickled or evaluated, and a length over
the limit ends the connection before anything is allocated.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from typing import Any

__all__ = ["CHUNK_SIZE", "Channel", "ChannelClosed", "FrameError"]

_LENGTHS = struct.Struct(">II")
CHUNK_SIZE = 256 * 1024
"""The most bytes of a result that one frame carries."""
MAX_HEADER = 2 * 1024 * 1024
MAX_PAYLOAD = 64 * 1024 * 1024


class ChannelClosed(Exception):
    """The other side is gone, or closed the connection."""


class FrameError(Exception):
    """What came over the connection is not a frame."""


class Channel:
    """A connection that carries frames; any thread may send, one thread receives.

    ``max_payload`` bounds in bytes what is accepted; whoever sends more is cut off.
    """

    def __init__(self, connection: socket.socket, *, max_payload: int = MAX_PAYLOAD) -> None:
        if connection.family in {socket.AF_INET, socket.AF_INET6}:
            # Frames follow each other without an answer between them. Nagle's algorithm would hold back the
            # second one until the receiver's delayed acknowledgement of the first: 40 ms for each job.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._max_payload = max_payload
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """Return the file descriptor of the connection."""
        return self._socket.fileno()

    def settimeout(self, seconds: float | None) -> None:
        """Bound how long one receive or send waits, in seconds; a TimeoutError follows."""
        self._socket.settimeout(seconds)

    def send(self, kind: str, payload: bytes | memoryview = b"", /, **fields: Any) -> None:
        """Send one frame whose header is the fields and ``kind``; raises ChannelClosed."""
        header = json.dumps({"kind": kind, **fields}, separators=(",", ":")).encode()
        if len(header) > MAX_HEADER:
            raise FrameError(f"a header of {len(header)} bytes is over the limit of {MAX_HEADER}")
        try:
            with self._sending:
                self._send_all(_LENGTHS.pack(len(header), len(payload)) + header, payload)
        except TimeoutError:
            raise
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def _send_all(self, head: bytes, payload: bytes | memoryview) -> None:
        """Send both in one system call where they fit, without copying the payload."""
        sent = self._socket.sendmsg([head, payload])
        if sent < len(head):
            self._socket.sendall(head[sent:])
        if (rest := memoryview(payload)[max(0, sent - len(head)) :]).nbytes:
            self._socket.sendall(rest)

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Return the next frame's header and payload; raises ChannelClosed or FrameError."""
        header_size, payload_size = _LENGTHS.unpack(self._exactly(_LENGTHS.size))
        if header_size > MAX_HEADER or payload_size > self._max_payload:
            raise FrameError(f"a frame of {header_size} + {payload_size} bytes is over the limits")
        try:
            header = json.loads(self._exactly(header_size))
        except ValueError as error:
            raise FrameError(f"a frame's header is not JSON: {error}") from error
        if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
            raise FrameError("a frame's header is not an object with a kind")
        return header, self._exactly(payload_size)

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                count = self._socket.recv_into(view)
            except TimeoutError:
                raise
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not count:
                raise ChannelClosed("the other side closed the connection")
            view = view[count:]
        return bytes(data)

    def close(self) -> None:
        """Close the connection, waking whoever receives on either side."""
        with contextlib.suppress(OSError):  # closed by the other side already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
