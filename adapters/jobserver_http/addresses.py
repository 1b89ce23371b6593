"""Addresses of clients and of the server, its certificate, and which web pages may send requests to it."""

from __future__ import annotations

import errno
import ipaddress
import shlex
import socket
import ssl
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

import attrs

from jobserver_core.config.old_settings import PEM_COMMANDS
from jobserver_core.config.settings import HttpSettings
from jobserver_core.errors import InvalidSetting
from jobserver_core.models.arguments import check_several
from jobserver_http.errors import Rejected


def network_of(address: str) -> str:
    """Return the network that counts as one client.

    For IPv4, this is the address itself. For IPv6, it is the address's /64, because one machine can use all
    addresses in it. A string that is not an address is returned unchanged.
    """
    ip = _parsed(address.partition("%")[0])
    if ip is None:
        return address
    return str(ip if ip.version == 4 else ipaddress.ip_network((ip, 64), strict=False))


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address, that of IPv4 if it is mapped into IPv6, or None if it is something else."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def is_loopback(host: str) -> bool:
    """Whether a listening address can be reached only from this machine."""
    ip = _parsed(host)
    return host == "localhost" or (ip is not None and ip.is_loopback)


EXPOSURE_ADVICE = (
    "configure jobserver.auth, listen on 127.0.0.1, or set jobserver.http.allow-unauthenticated = true"
)


def exposure(http: HttpSettings, *, authenticated: bool) -> str | None:
    """Return why anyone on the network could run code on the server, or None if nobody can."""
    if authenticated or http.allow_unauthenticated or is_loopback(http.host):
        return None
    return f"{http.host} is reachable from other machines, and anyone who connects could run code"


def check_exposure(http: HttpSettings, *, authenticated: bool) -> None:
    """Check that not everyone on the network can run code on the server.

    Raises:
        InvalidSetting: The server would listen for other machines without authentication.
    """
    problem = exposure(http, authenticated=authenticated)
    if problem is not None:
        raise InvalidSetting(key="jobserver.http.host", message=f"{problem}: {EXPOSURE_ADVICE}")


def listening_problem(host: str, port: int, error: OSError) -> tuple[str, str, str]:
    """Return the setting that keeps the server from listening, what is wrong, and what to do about it."""
    unknown = error.errno == errno.EADDRNOTAVAIL
    reason = "no interface of this machine has this address" if unknown else error.strerror or error
    problem = f"cannot listen on {host} port {port}: {reason}"
    if unknown or isinstance(error, socket.gaierror):
        advice = (
            "choose an address of this machine with --host (jobserver.http.host), or 0.0.0.0 for all of them"
        )
        return "jobserver.http.host", problem, advice
    advice = (
        "stop the program that listens there (another job server?), or choose another port with --port "
        "(jobserver.http.port), or 0 for any free port"
    )
    return "jobserver.http.port", problem, advice


def check_certificate(http: HttpSettings) -> None:
    """Check that the server can use its certificate and key, if it has them.

    Raises:
        InvalidSetting: One cannot be read or is not in PEM, they do not match, or the key is encrypted.
    """
    certificate, key = http.tls_certificate, http.tls_key
    if certificate is None or key is None:
        return
    for name, file in (("certificate", certificate), ("key", key)):
        try:
            content = file.read_bytes()
        except OSError as error:
            message = f"cannot read {file}: {error.strerror}"
            raise InvalidSetting(key=f"jobserver.http.tls-{name}", message=message) from None
        if b"-----BEGIN " not in content:
            commands = PEM_COMMANDS.replace("KEYSTORE", shlex.quote(str(file)))
            message = f"{file} is no PEM file; if it is a keystore, make PEM files of it with: {commands}"
            raise InvalidSetting(key=f"jobserver.http.tls-{name}", message=message)

    def refuse() -> str:
        message = f"{key} is encrypted; write it without a pass phrase: openssl pkey -in {key} -out FILE"
        raise InvalidSetting(key="jobserver.http.tls-key", message=message)

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=refuse)
    except OSError as error:  # SSLError is a subclass
        content = certificate.read_bytes()
        if b"PRIVATE KEY-----" in content and b"BEGIN CERTIFICATE" not in content:
            message = f"{certificate} contains a private key; are tls-certificate and tls-key swapped?"
            raise InvalidSetting(key="jobserver.http.tls-certificate", message=message) from None
        message = f"{certificate} and {key} are not a matching certificate and key: {error.strerror or error}"
        raise InvalidSetting(key="jobserver.http.tls-certificate", message=message) from None


def within(address: str, networks: Collection[str]) -> bool:
    """Whether an address is one of these addresses, or in one of these networks."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(ip in ipaddress.ip_network(network, strict=False) for network in networks)


_SAFE = ("GET", "HEAD", "OPTIONS")
_PORTS = {"http": "80", "https": "443"}


@attrs.frozen(kw_only=True)
class BrowserGuard:
    """Refuses cross-origin requests (403).

    This protects a job server that a browser can reach from the web pages of other sites. A web page can make
    a browser send requests to ``127.0.0.1`` or to a server on the internal network, and a job server runs the
    code that it receives. Browsers send an ``Origin`` header with every request that changes something, and a
    page cannot suppress it. Other programs do not send this header.

    ``origins`` are sites that are allowed anyway (``https://console.example.org``). With ``local_only``, the
    Host header must be an address, ``localhost`` or one of ``hosts``. This prevents DNS rebinding, where an
    attacker's host name resolves to this machine.
    """

    origins: Collection[str] = ()
    local_only: bool = False
    hosts: Collection[str] = ()

    def __attrs_post_init__(self) -> None:
        check_several("origins", self.origins, str, "strings")
        check_several("hosts", self.hosts, str, "strings")

    def check(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Check the headers of a request.

        Raises:
            Rejected: The request is not trusted (403).
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self.local_only and host and not self._local(_host_name(host)):
            raise Rejected(
                403,
                f"Host {host[:128]!a} is not a name of this server: use its address or localhost, "
                "or configure authentication or jobserver.http.allow-unauthenticated",
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and method not in _SAFE and origin not in self.origins and not _same(origin, host):
            raise Rejected(403, f"cross-origin request from {origin[:128]!a} refused")

    def _local(self, name: str) -> bool:
        known = name == "localhost" or name.endswith(".localhost") or name in self.hosts
        return known or _parsed(name) is not None


def without_password_dialog(challenge: str, headers: Mapping[bytes, bytes]) -> str:
    """Return the challenge of a 401 response, such that a script can ask for the credentials.

    On a Basic challenge, the browser itself asks the user, even if a script sent the request. Scripts that
    ask send the usual header ``X-Requested-With``, and get a challenge that browsers do not know.
    """
    return challenge.replace("Basic ", "X-Basic ") if b"x-requested-with" in headers else challenge


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _same(origin: str, host: str) -> bool:
    """Whether an origin is the host and port that the request was sent to."""
    try:
        parts = urlsplit(origin.lower())
        port = str(parts.port or _PORTS.get(parts.scheme, ""))
    except ValueError:
        return False
    given = host.rpartition(":")[2]
    given = given if given.isdigit() and ":" in host else _PORTS.get(parts.scheme, "")
    return (parts.hostname or "") == _host_name(host) and port == given
