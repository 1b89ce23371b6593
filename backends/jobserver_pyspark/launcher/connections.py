"""The listener on loopback for context hosts, which it recognizes by their secrets."""

from __future__ import annotations

import contextlib
import hmac
import logging
import queue
import secrets
import socket
import threading

from jobserver_core.repeats import Repeats
from jobserver_pyspark.protocol.converter import ProtocolError
from jobserver_pyspark.protocol.frames import Channel, ChannelClosed, new_nonce, proof_of, proves
from jobserver_pyspark.protocol.messages import (
    PROTOCOL_VERSION,
    Hello,
    HostToServer,
    Reattach,
    ReattachChallenge,
    ReattachProof,
    ServerToHost,
)

_HELLO_TIMEOUT = 10.0
"""Seconds until a new connection must have said which host it is."""
_CLOSE_TIMEOUT = 5.0
"""Seconds for which a close waits for the thread that accepts connections. Usually it ends at once."""
_PAUSE = 0.2
"""Seconds until the listener tries again to accept, after an error."""
_POLL = 0.1
"""Seconds of :func:`arrived`."""
_MAX_HELLO = 4096
"""The most bytes of a message from a host that has not proved who it is."""
_OUTDATED_SERVER = "the package was replaced while the server was running, so restart the server"
_OUTDATED_HOST = "the package was upgraded, so this server cannot take the context over"
HostChannel = Channel[ServerToHost, HostToServer]
Arrivals = queue.Queue[HostChannel | ProtocolError]
"""The connection of a host, or why it cannot be used."""
_repeats = Repeats(logging.getLogger(__name__))


def arrived(arrivals: Arrivals) -> HostChannel | None:
    """Wait a moment for the connection of a host; return None if it has not arrived.

    Raises:
        ProtocolError: It cannot be used.
    """
    try:
        found = arrivals.get(timeout=_POLL)
    except queue.Empty:
        return None
    if isinstance(found, ProtocolError):
        raise found
    return found


class HostConnections:
    """Accepts hosts, and passes each connection to the context whose secret it sent.

    A connection that sends no secret, or a wrong or used one, is closed after a few seconds. If a host uses
    another version of the protocol, its connection is closed and its context gets a ProtocolError.
    The host of an earlier server sends its marker instead of the secret, and both sides prove that they know
    the secret.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._returning: dict[str, tuple[str, Arrivals]] = {}
        self._expected: dict[str, Arrivals] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._thread = threading.Thread(target=self._accept, name="host connections", daemon=True)
        self._thread.start()

    def expect(self) -> tuple[str, Arrivals]:
        """Return a new secret, and the queue in which its host's connection arrives."""
        secret = secrets.token_hex(32)
        arrivals: Arrivals = queue.Queue(1)
        with self._lock:
            self._expected[secret] = arrivals
        return secret, arrivals

    def forget(self, secret: str) -> None:
        """Revoke a secret."""
        with self._lock:
            self._expected.pop(secret, None)

    def expect_returning(self, marker: str, secret: str) -> Arrivals:
        """Return the queue in which the connection of a host that outlived its server arrives."""
        arrivals: Arrivals = queue.Queue()
        with self._lock:
            self._returning[marker] = (secret, arrivals)
        return arrivals

    def forget_returning(self, marker: str) -> None:
        """Expect a host no more, and close its connection if it arrived."""
        with self._lock:
            _, arrivals = self._returning.pop(marker, ("", None))
        while arrivals is not None and not arrivals.empty():
            found = arrivals.get_nowait()
            if not isinstance(found, ProtocolError):
                found.close()

    def _accept(self) -> None:
        """Accept until closed. Running out of descriptors or threads must not end this thread."""
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
                with contextlib.ExitStack() as refused:
                    refused.callback(connection.close)
                    threading.Thread(
                        target=self._greet, args=(connection,), name="host greeting", daemon=True
                    ).start()
                    refused.pop_all()
            except (OSError, RuntimeError) as error:
                if not self._closed.is_set():
                    _repeats.warning("accept", "a context cannot connect, trying again: %s", error)
                self._closed.wait(_PAUSE)

    def _greet(self, connection: socket.socket) -> None:
        """Pass the connection of a host on; close any other one."""
        with contextlib.ExitStack() as refused:
            greeting = HostChannel(connection, HostToServer, max_header=_MAX_HELLO, max_payload=0)
            refused.callback(greeting.close)
            greeting.settimeout(_HELLO_TIMEOUT)
            try:
                arrivals = self._admit(greeting)
            except (ChannelClosed, ProtocolError, TimeoutError):
                return
            if arrivals is not None:
                greeting.settimeout(None)
                greeting.accept_large_frames()
                refused.pop_all()
                arrivals.put(greeting)

    def _admit(self, greeting: HostChannel) -> Arrivals | None:
        """Return the queue of the context to which a connection belongs, None for that of a stranger."""
        hello = greeting.receive()
        if isinstance(hello, Hello):
            arrivals, reason = self._claim(hello.token), _OUTDATED_SERVER
        elif isinstance(hello, Reattach):
            with self._lock:
                secret, arrivals = self._returning.get(hello.marker, ("", None))
            reason = _OUTDATED_HOST
        else:
            return None
        if arrivals is not None and hello.protocol != PROTOCOL_VERSION:
            greeting.close()
            message = (
                f"the context's host speaks version {hello.protocol} of the launcher's protocol, and this "
                f"server version {PROTOCOL_VERSION}: {reason}"
            )
            arrivals.put(ProtocolError(message))
            return None
        proven = arrivals is None or isinstance(hello, Hello) or _is_proven(hello, greeting, secret)
        return arrivals if proven else None

    def _claim(self, candidate: str) -> Arrivals | None:
        with self._lock:
            for secret in self._expected:
                if hmac.compare_digest(secret.encode(), candidate.encode(errors="replace")):
                    return self._expected.pop(secret)
        return None

    def close(self) -> None:
        """Stop accepting connections, and wait for the thread that accepts them."""
        self._closed.set()
        with contextlib.suppress(OSError):  # it was never accepting
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_CLOSE_TIMEOUT)


def _is_proven(hello: Reattach, greeting: HostChannel, secret: str) -> bool:
    """Let both sides prove that they know the secret."""
    nonce = new_nonce()
    own = proof_of("server", secret, hello.nonce, nonce)
    greeting.send(ReattachChallenge(nonce=nonce, proof=own))
    reply = greeting.receive()
    expected = proof_of("host", secret, hello.nonce, nonce)
    return isinstance(reply, ReattachProof) and proves(reply.proof, expected)
