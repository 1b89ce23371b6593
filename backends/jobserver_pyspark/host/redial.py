"""How a host finds the next server after its own has ended."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from jobserver_pyspark.host.reports import ServerChannel
from jobserver_pyspark.protocol.converter import ProtocolError
from jobserver_pyspark.protocol.frames import MAX_PAYLOAD, ChannelClosed, new_nonce, proof_of, proves
from jobserver_pyspark.protocol.messages import (
    PROTOCOL_VERSION,
    Reattach,
    ReattachChallenge,
    Reattachment,
    ReattachProof,
    ServerToHost,
)

_CONNECT_TIMEOUT = 5.0
"""Seconds to open a connection: the address may be that of a machine that is gone."""
_REPLY_TIMEOUT = 10.0
"""Seconds for each reply of the next server, which is busy with its own start."""
_PAUSE = 0.1
"""Seconds between two checks of the file with the address of the next server."""


def open_channel(address: tuple[str, int], timeout: float) -> ServerChannel:
    """Connect to a server.

    Raises:
        OSError: The server cannot be reached.
    """
    connection = socket.create_connection(address, timeout=timeout)
    # The settings of a context may be large, and the server checked their size.
    channel = ServerChannel(connection, ServerToHost, max_header=MAX_PAYLOAD)
    channel.settimeout(None)
    return channel


def redial(reattachment: Reattachment, marker: str, secret: str) -> ServerChannel | None:
    """Return the connection to the next server, or None if none has accepted this context in time."""
    deadline = time.monotonic() + reattachment.timeout_ms / 1000
    while time.monotonic() < deadline:
        address = _read_address(reattachment.server_file)
        channel = _attempt(address, marker, secret) if address is not None else None
        if channel is not None:
            return channel
        time.sleep(_PAUSE)
    return None


def _read_address(path: Path) -> tuple[str, int] | None:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return str(fields["host"]), int(fields["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no server has started yet, or the directory is gone


def _attempt(address: tuple[str, int], marker: str, secret: str) -> ServerChannel | None:
    """Connect, and let both sides prove themselves; None if that fails."""
    try:
        channel = open_channel(address, _CONNECT_TIMEOUT)
    except OSError:
        return None
    channel.settimeout(_REPLY_TIMEOUT)
    try:
        nonce = new_nonce()
        channel.send(Reattach(protocol=PROTOCOL_VERSION, marker=marker, nonce=nonce))
        challenge = channel.receive()
        if isinstance(challenge, ReattachChallenge) and proves(
            challenge.proof, proof_of("server", secret, nonce, challenge.nonce)
        ):
            channel.send(ReattachProof(proof=proof_of("host", secret, nonce, challenge.nonce)))
            channel.settimeout(None)
            return channel
    except (ChannelClosed, ProtocolError, TimeoutError):
        pass
    channel.close()
    return None
