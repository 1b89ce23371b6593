"""Connections between the processes: frames on a stream socket, and the proofs of who is at its ends.

A frame is a JSON object (the header) and raw bytes (the payload, often empty), both preceded by their
lengths. Nothing in a frame is ever unpickled or evaluated, and a length over the limit ends the connection
before anything is allocated.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import struct
import threading
from typing import Generic, Literal, TypeVar

from jobserver_pyspark.protocol.converter import Payload, ProtocolError, ProtocolMessage, decode, encode

_LENGTHS = struct.Struct(">II")
_READ_SIZE = 64 * 1024
"""The number of bytes that are read at once, so that short frames need one system call, or less."""
_MAX_PARTS = 1024
"""The maximum number of buffers in one system call: ``IOV_MAX`` of Linux."""
CHUNK_SIZE = 256 * 1024
"""The maximum number of bytes of a result in one frame."""
MAX_HEADER = 2 * 1024 * 1024
"""The most bytes of a message without its payload: several times those of an error with its stack."""
MAX_PAYLOAD = 64 * 1024 * 1024
"""The most bytes of a payload, and so of a job's configuration."""
MAX_PACKET = 64 * 1024
"""The most bytes of a message between host and zygote. It has no frame: their socket keeps messages apart."""

_Sent = TypeVar("_Sent", bound=ProtocolMessage)
_Received = TypeVar("_Received", bound=ProtocolMessage)


class ChannelClosed(Exception):
    """The connection is closed: the peer has ended, or either side closed it."""


class Channel(Generic[_Sent, _Received]):
    """A connection that carries the messages of two directions; any thread may send, one thread receives.

    ``receives`` is the direction whose messages are accepted. ``max_header`` and ``max_payload`` limit
    accepted frames, in bytes.
    """

    def __init__(
        self,
        connection: socket.socket,
        receives: type[_Received],
        *,
        max_header: int = MAX_HEADER,
        max_payload: int = MAX_PAYLOAD,
    ) -> None:
        if connection.family in {socket.AF_INET, socket.AF_INET6}:
            # Frames follow each other without a reply between them. Nagle's algorithm would hold back the
            # second one until the receiver's delayed acknowledgement of the first: 40 ms for each job.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._receives = receives
        self._max_header = max_header
        self._max_payload = max_payload
        self._sending = threading.Lock()
        self._received = bytearray()  # that no message was made of yet

    def settimeout(self, seconds: float | None) -> None:
        """Set the timeout of a receive or send, in seconds, after which it raises TimeoutError."""
        self._socket.settimeout(seconds)

    def accept_large_frames(self) -> None:
        """Accept frames of any size that a peer which has proved itself sends."""
        self._max_header, self._max_payload = MAX_HEADER, MAX_PAYLOAD

    def send(self, *messages: _Sent) -> None:
        """Send messages, with one system call if they are short and not many.

        Raises:
            ChannelClosed: The connection is closed.
        """
        parts: list[Payload] = []
        for header, payload in map(encode, messages):
            parts += (_LENGTHS.pack(len(header), len(payload)) + header, payload)
        try:
            with self._sending:
                for start in range(0, len(parts), _MAX_PARTS):
                    self._send_all(parts[start : start + _MAX_PARTS])
        except TimeoutError:
            raise
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def _send_all(self, parts: list[Payload]) -> None:
        """Send everything in one system call where it fits, without copying payloads."""
        sent = self._socket.sendmsg(parts)
        for part in parts:
            if sent < len(part):
                self._socket.sendall(memoryview(part)[sent:])
            sent = max(0, sent - len(part))

    def receive(self) -> _Received:
        """Return the next message.

        Raises:
            ChannelClosed: The connection is closed, perhaps in the middle of a frame.
            ProtocolError: The peer did not send a message of this direction.
        """
        header_size, payload_size = _LENGTHS.unpack(self._take(_LENGTHS.size))
        if header_size > self._max_header or payload_size > self._max_payload:
            raise ProtocolError(
                f"{self._receives.sender} sent a frame of {header_size} + {payload_size} bytes; "
                f"at most {self._max_header} + {self._max_payload} are allowed"
            )
        return decode(self._receives, self._take(header_size), self._take(payload_size))

    @property
    def more(self) -> bool:
        """Whether the next :meth:`receive` need not wait for its message."""
        if len(self._received) < _LENGTHS.size:
            return False
        header_size, payload_size = _LENGTHS.unpack_from(self._received)
        return bool(len(self._received) >= _LENGTHS.size + header_size + payload_size)

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            try:
                data = self._socket.recv(max(_READ_SIZE, size - len(self._received)))
            except TimeoutError:
                raise
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not data:
                raise ChannelClosed("the peer closed the connection")
            self._received += data
        with memoryview(self._received) as received:
            taken = bytes(received[:size])
        del self._received[:size]
        return taken

    def close(self) -> None:
        """Close the connection, waking receivers on both sides."""
        with contextlib.suppress(OSError):  # the peer closed it already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


# -- proofs of both sides when a host connects to a later server; see the messages -----------------------


def new_nonce() -> str:
    """Return a random text that was never used before."""
    return secrets.token_hex(32)


def proof_of(side: Literal["host", "server"], secret: str, host_nonce: str, server_nonce: str) -> str:
    """Return the proof that a side knows the secret of a context; each side has another one."""
    text = "\0".join((side, host_nonce, server_nonce))
    return hmac.new(secret.encode(), text.encode(), "sha256").hexdigest()


def proves(proof: str, expected: str) -> bool:
    """Compare two proofs in a time that reveals nothing."""
    return hmac.compare_digest(proof.encode(errors="replace"), expected.encode())
