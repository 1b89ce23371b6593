"""Client addresses, and the networks that count as one client."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

__all__ = ["is_loopback", "network_of", "within"]


def network_of(address: str) -> str:
    """Return the network that counts as one client.

    For IPv4, this is the address itself. For IPv6, it is the address's /64, because one machine can use all
    addresses in it. A string that is not an address is returned unchanged.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, 64), strict=False))


def is_loopback(host: str) -> bool:
    """Whether a listening address can be reached only from this machine."""
    if host == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def within(address: str, networks: Collection[str]) -> bool:
    """Whether an address is one of these addresses, or in one of these networks."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(ip in ipaddress.ip_network(network, strict=False) for network in networks)
