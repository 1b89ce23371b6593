"""Keeping web pages of strangers away from a job server that a browser can reach.

A page of any site can have a browser send requests to ``127.0.0.1``, or to a server of the internal
network, and running code is what a job server is for. Programs do not send an ``Origin`` header; browsers do
so with every request that changes something, and a page cannot leave it out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

import attrs

from jobserver_http.errors import Rejected

__all__ = ["BrowserGuard"]

_SAFE = ("GET", "HEAD", "OPTIONS")
_PORTS = {"http": "80", "https": "443"}


@attrs.frozen(kw_only=True)
class BrowserGuard:
    """Refuses requests (403) that a page of another site had a browser send.

    ``origins`` are other sites (``https://console.example.org``) whose pages may. With ``local_only`` the
    Host header must be an address, ``localhost``, or one of ``hosts``: a name that a stranger controls may
    lead to this machine (DNS rebinding), an address cannot.
    """

    origins: Collection[str] = ()
    local_only: bool = False
    hosts: Collection[str] = ()

    def check(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Raise Rejected (403) for a request that is not to be trusted."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self.local_only and host and not self._local(_host_name(host)):
            raise Rejected(
                403,
                f"Host {host[:128]!a} is not this server's: call it by its address or as localhost, "
                "or configure jobserver.http.allow-unauthenticated or authentication",
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and method not in _SAFE and origin not in self.origins and not _same(origin, host):
            raise Rejected(403, f"pages of {origin[:128]!a} may not change anything here")

    def _local(self, name: str) -> bool:
        if name == "localhost" or name.endswith(".localhost") or name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _same(origin: str, host: str) -> bool:
    """Whether an origin is the very host and port that the request was sent to."""
    try:
        parts = urlsplit(origin.lower())
        port = str(parts.port or _PORTS.get(parts.scheme, ""))
    except ValueError:
        return False
    given = host.rpartition(":")[2]
    given = given if given.isdigit() and ":" in host else _PORTS.get(parts.scheme, "")
    return (parts.hostname or "") == _host_name(host) and port == given
