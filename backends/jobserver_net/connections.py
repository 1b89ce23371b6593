"""Connections that lead to addresses which were checked, and end by a deadline.

The check of an address is worth something only if the connection goes to that very address: a name may
resolve to something else a moment later. So a host is resolved once, all its addresses are checked, and
the connection is made to one of them by its number. The name is used only where the protocol needs it: in
HTTP's Host header, and in TLS for the server's name and its certificate.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from jobserver_core.uris import Uri
from jobserver_net.deadlines import Deadline, Expired
from jobserver_net.policy import AddressPolicy

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = [
    "CONNECT_SECONDS",
    "IDLE_SECONDS",
    "Connector",
    "Resolver",
    "TimedSocket",
    "is_unknown_host",
    "resolve",
]

CONNECT_SECONDS = 10.0
"""How long resolving a name may take, and connecting to one address."""
IDLE_SECONDS = 60.0
"""How long a peer may send nothing before the connection is given up."""

Resolver = Callable[[str, int], list[str]]
"""Finds the addresses of a host name; raises OSError when it has none."""

_RESOLVERS = 64
"""How many names a connector resolves at once; those that it has given up waiting for count too."""


def resolve(host: str, port: int) -> list[str]:
    """Ask the operating system for the addresses of a host, in its order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Connector:
    """Opens TCP connections to where a policy allows."""

    def __init__(self, policy: AddressPolicy, resolver: Resolver = resolve) -> None:
        self.policy = policy
        self._resolver = resolver
        # Each user of the network has its own, so that slow names of one do not hold up the other.
        self._resolving = threading.BoundedSemaphore(_RESOLVERS)

    def connect(self, uri: Uri, port: int, deadline: Deadline) -> socket.socket:
        """Return a connection to one of the addresses of the URI's host, the first that answers.

        Raises:
            MalformedUrl: The policy does not allow one of the addresses.
            Expired: There is no time left.
            OSError: The host cannot be resolved, or no address can be connected to.
        """
        addresses = self._resolved(uri.host, port, deadline)
        self.policy.check_addresses(uri, addresses)
        failure: OSError = OSError(f"host {uri.host} has no address")
        for number, address in enumerate(addresses):
            share = deadline.left() / (len(addresses) - number)
            try:
                connection = socket.create_connection((address, port), min(CONNECT_SECONDS, share))
            except TimeoutError:
                deadline.left()
                failure = OSError(f"{address} did not accept a connection in time")
            except OSError as error:
                failure = error
            else:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                deadline.watch(connection)
                return connection
        deadline.left()
        raise failure

    def _resolved(self, host: str, port: int, deadline: Deadline) -> list[str]:
        """Resolve on a separate thread, since the system's resolver cannot be interrupted.

        A thread whose caller has left goes on until the resolver gives up; their number is bounded.
        """
        if not self._resolving.acquire(timeout=deadline.left(CONNECT_SECONDS)):
            deadline.left()
            raise OSError("too many host names are being resolved")
        future: Future[list[str]] = Future()

        def run() -> None:
            try:
                future.set_result(self._resolver(host, port))
            except Exception as error:  # noqa: BLE001 - raised in the thread that waits
                future.set_exception(error)
            finally:
                self._resolving.release()

        threading.Thread(target=run, name="jobserver-resolver", daemon=True).start()
        try:
            return deadline.result(future, CONNECT_SECONDS)
        except Expired:
            raise
        except TimeoutError:
            raise OSError(f"host {host} could not be resolved within {CONNECT_SECONDS:g} s") from None
        except socket.gaierror as error:
            temporary = error.errno == socket.EAI_AGAIN
            raise _Unresolved(host, error.strerror or str(error), temporary=temporary) from None
        except (OSError, UnicodeError) as error:
            raise _Unresolved(host, str(getattr(error, "strerror", None) or error), temporary=False) from None


class _Unresolved(OSError):
    """A host that has no address; ``temporary`` when the resolver could not find out."""

    def __init__(self, host: str, reason: str, *, temporary: bool) -> None:
        super().__init__(f"host {host} cannot be resolved: {reason}")
        self.temporary = temporary


def is_unknown_host(error: BaseException) -> bool:
    """Whether an error says that a host has no address, which trying again does not change."""
    return isinstance(error, _Unresolved) and not error.temporary


class TimedSocket(socket.socket):
    """A socket whose every operation ends by a deadline, for libraries that know time-outs only."""

    _deadline: Deadline

    @classmethod
    def over(cls, connection: socket.socket, deadline: Deadline) -> TimedSocket:
        """Return a socket in place of another one, which must not be used any more."""
        family, kind, protocol = connection.family, connection.type, connection.proto
        made = cls(family, kind, protocol, fileno=connection.detach())
        made._deadline = deadline
        return made

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Receive, at the latest by the deadline."""
        self.settimeout(self._deadline.left(IDLE_SECONDS))
        return super().recv(bufsize, flags)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive, at the latest by the deadline."""
        self.settimeout(self._deadline.left(IDLE_SECONDS))
        return super().recv_into(buffer, nbytes, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        """Send all of it by the deadline."""
        rest = memoryview(data)
        while rest:
            self.settimeout(self._deadline.left(IDLE_SECONDS))
            rest = rest[self.send(rest, flags) :]

    def close(self) -> None:
        """Close it; what the peer thinks of that does not matter."""
        with suppress(OSError):
            super().close()
