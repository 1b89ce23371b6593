"""Connections that end at a moment that is fixed, and lead to addresses that were checked."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from typing import Any

import httpcore

__all__ = ["CheckedBackend", "Deadline", "Resolver", "resolve"]

Resolver = Callable[[str, int], list[str]]
"""Finds the addresses of a host name, as texts; raises OSError when it has none."""

AddressCheck = Callable[[str, list[str]], None]
"""Given a host and its addresses; raises when a callback may not go there."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def resolve(host: str, port: int) -> list[str]:
    """Ask the operating system for the addresses of a host, in its order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def reached_by(address: str) -> list[str]:
    """Return the address, and the IPv4 address that an IPv6 one of a transition technique leads to."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return [address]
    inner: list[Any] = [parsed.sixtofour, *(parsed.teredo or ())[1:]]
    if parsed in _NAT64:
        inner.append(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF))
    return [address, *(str(one) for one in inner if one is not None)]


class Deadline:
    """A moment after which nothing more may be waited for."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left. Raises TimeoutError when there are none."""
        seconds = self._at - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the time is up")
        return seconds


@contextmanager
def _translated(
    timeout: type[httpcore.TimeoutException], error: type[httpcore.NetworkError]
) -> Iterator[None]:
    try:
        yield
    except TimeoutError as exc:
        raise timeout(str(exc)) from exc
    except ssl.SSLCertVerificationError as exc:
        raise error(f"the certificate is not trusted: {exc.verify_message}") from exc
    except ssl.SSLError as exc:
        raise error(f"TLS failed: {exc.reason or exc}") from exc
    except OSError as exc:
        raise error(exc.strerror or str(exc) or type(exc).__name__) from exc


class CheckedBackend(httpcore.NetworkBackend):
    """Resolves a host, has its addresses checked, and connects to one of these and no other.

    So what a name means cannot change between the check and the connection. Everything, the
    resolver included, has to be done by the deadline.
    """

    def __init__(self, *, deadline: Deadline, check: AddressCheck, resolver: Resolver) -> None:
        self._deadline = deadline
        self._check = check
        self._resolver = resolver

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first of the host's addresses that answers."""
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError):
            addresses = self._resolved(host, port)
            self._check(host, [reached for address in addresses for reached in reached_by(address)])
            return _TimedStream(self._connected(addresses, port), self._deadline)

    def _resolved(self, host: str, port: int) -> list[str]:
        """Resolve on a thread of its own, since the resolver takes its time and cannot be interrupted."""
        future: Future[list[str]] = Future()

        def run() -> None:
            try:
                future.set_result(self._resolver(host, port))
            except Exception as error:  # noqa: BLE001 - told to the thread that waits
                known = isinstance(error, OSError)
                future.set_exception(error if known else OSError("the host name cannot be resolved"))

        threading.Thread(target=run, name="jobserver-resolver", daemon=True).start()
        try:
            return future.result(self._deadline.left())
        except FutureTimeout:
            raise TimeoutError("the resolver took too long") from None

    def _connected(self, addresses: list[str], port: int) -> socket.socket:
        failure = OSError("the host name has no address")
        for number, address in enumerate(addresses):
            share = self._deadline.left() / (len(addresses) - number)
            try:
                connected = socket.create_connection((address, port), share)
            except OSError as error:
                failure = error
                continue
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
        raise failure


class _TimedStream(httpcore.NetworkStream):
    """A socket whose every operation ends by the deadline, however little arrives at a time."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._socket = sock
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _translated(httpcore.ReadTimeout, httpcore.ReadError):
            self._socket.settimeout(self._deadline.left())
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _translated(httpcore.WriteTimeout, httpcore.WriteError):
            rest = memoryview(buffer)
            while rest:
                self._socket.settimeout(self._deadline.left())
                rest = rest[self._socket.send(rest) :]

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            with _translated(httpcore.ConnectTimeout, httpcore.ConnectError):
                self._socket.settimeout(self._deadline.left())
                secured = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except BaseException:
            self.close()
            raise
        return _TimedStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._socket if info == "socket" else None
