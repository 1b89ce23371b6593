"""Connections to checked addresses only, with a deadline.

Checking an address protects only if the connection is made to exactly this address: a moment later, the name
may resolve to another one. So a host is resolved once, all its addresses are checked, and the connection is
made to one of them by its IP address. The name is used only where the protocol needs it: in HTTP's Host
header, and in TLS for the server name and its certificate.
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

CONNECT_SECONDS = 10.0
"""The timeout for resolving a name, and for connecting to one address."""
IDLE_SECONDS = 60.0
"""The timeout for a peer that sends nothing."""

Resolver = Callable[[str, int], list[str]]
"""Returns the addresses of a host name, or raises OSError if there are none."""

_RESOLVERS = 64
"""How many names a connector resolves at once, including those that nobody waits for any longer."""


def resolve(host: str, port: int) -> list[str]:
    """Resolve a host with the operating system. Addresses are in its order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Connector:
    """Opens TCP connections to the addresses that a policy allows."""

    def __init__(self, policy: AddressPolicy, resolver: Resolver = resolve) -> None:
        self.policy = policy
        self._resolver = resolver
        # Each connector has its own, so that slow names of one do not delay the other.
        self._resolving = threading.BoundedSemaphore(_RESOLVERS)

    def connect(self, uri: Uri, port: int, deadline: Deadline) -> socket.socket:
        """Connect to the first address of the URI's host that accepts a connection.

        Raises:
            MalformedUrl: The policy does not allow one of the addresses.
            Expired: The deadline has passed.
            OSError: The host cannot be resolved, or no address accepts a connection.
        """
        addresses = self._resolve(uri.host, port, deadline)
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

    def _resolve(self, host: str, port: int, deadline: Deadline) -> list[str]:
        """Resolve on a separate thread, because the system's resolver cannot be interrupted.

        The thread continues after its caller has given up, until the resolver does; their number is limited.
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
    """A host that has no address; ``temporary`` if the resolver failed to find out."""

    def __init__(self, host: str, reason: str, *, temporary: bool) -> None:
        super().__init__(f"host {host} cannot be resolved: {reason}")
        self.temporary = temporary


def is_unknown_host(error: BaseException | None) -> bool:
    """Whether an error says that a host has no address, so that trying again is pointless."""
    return isinstance(error, _Unresolved) and not error.temporary


class TimedSocket(socket.socket):
    """A socket whose operations all end by a deadline, for libraries that only support timeouts."""

    _deadline: Deadline

    @classmethod
    def over(cls, connection: socket.socket, deadline: Deadline) -> TimedSocket:
        """Return a socket that replaces another one, which must not be used any longer."""
        family, kind, protocol = connection.family, connection.type, connection.proto
        timed = cls(family, kind, protocol, fileno=connection.detach())
        timed._deadline = deadline
        return timed

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        self.settimeout(self._deadline.left(IDLE_SECONDS))
        return super().recv(bufsize, flags)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        self.settimeout(self._deadline.left(IDLE_SECONDS))
        return super().recv_into(buffer, nbytes, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        rest = memoryview(data)
        while rest:
            self.settimeout(self._deadline.left(IDLE_SECONDS))
            rest = rest[self.send(rest, flags) :]

    def close(self) -> None:
        """Close it. Errors of the peer are ignored."""
        with suppress(OSError):
            super().close()
