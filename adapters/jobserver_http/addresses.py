"""Client addresses, and who is taken to be behind one."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

__all__ = ["is_loopback", "network_of", "within"]


def network_of(address: str) -> str:
    """Return the network that is counted as one client.

    This is an IPv4 address itself, but the /64 of an IPv6 address, since one machine can use all addresses
    of its /64. What is not an address is returned as it is.
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
    """Whether an address to listen on can be reached from this machine alone."""
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
