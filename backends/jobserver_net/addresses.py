"""Parsing IP addresses in all notations, and finding the addresses that they lead to.

A list of denied addresses is useless if another notation of the same address bypasses it. There are three
kinds of other notations:

- **Legacy forms of IPv4**: the system's resolver accepts ``2852039166``, ``0xa9.254.0251.254`` and
  ``169.254.43518`` for 169.254.169.254.
- **IPv4 inside IPv6**: transition mechanisms embed an IPv4 address in an IPv6 address, and a gateway delivers
  the packets to it (NAT64, 6to4, Teredo, ISATAP, and the mapped, compatible and translated forms).
- **Names**: a name can resolve to any address, so the addresses from the resolver are checked.

:func:`parse_address` handles the first kind, and :func:`reached` the second. Not handled: a network's own
NAT64 prefix (RFC 6052, section 2.2), which cannot be recognized from outside. If there is one, add it to
``denied-networks``.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

METADATA_NETWORKS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "169.254.0.0/16",  # link-local; 169.254.169.254 gives out a cloud machine's credentials
        "fe80::/10",  # link-local
        "fd00:ec2::254/128",  # AWS, over IPv6
        "fd20:ce::254/128",  # Google Cloud, over IPv6
        "100.100.100.200/32",  # Alibaba Cloud
        "192.0.0.192/32",  # Oracle Cloud
        "168.63.129.16/32",  # Azure's host agent
    )
)
"""Link-local networks and the metadata services of clouds, which are denied unless explicitly allowed."""

_THIS_NETWORK = IPv4Network("0.0.0.0/8")
_BROADCAST = IPv4Address("255.255.255.255")

# In all of these, the last 32 bits are the IPv4 address.
_ENDS_WITH_IPV4 = tuple(
    IPv6Network(text)
    for text in (
        "::/96",  # IPv4-compatible (RFC 4291, section 2.5.5.1)
        "::ffff:0:0:0/96",  # IPv4-translated (RFC 2765)
        "64:ff9b::/96",  # NAT64's well-known prefix (RFC 6052)
    )
)
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
_ISATAP = (0x00005EFE, 0x02005EFE)
_LOOPBACK = IPv6Address("::1")


def parse_address(host: str) -> Address | None:
    """Parse an address in any notation that resolvers accept. Return None for a name.

    A zone ID (``fe80::1%eth0``) is ignored. An IPv4-mapped IPv6 address is returned as an IPv4 address.
    """
    plain = host.partition("%")[0] if ":" in host else host
    try:
        address = ip_address(plain)
    except ValueError:
        return _old_ipv4(plain)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def reached(address: Address) -> tuple[Address, ...]:
    """Return the address, and all IPv4 addresses to which its traffic may be delivered."""
    embedded = [] if isinstance(address, IPv4Address) else _embedded(address)
    return (address, *dict.fromkeys(embedded))


def is_no_server(address: Address) -> bool:
    """Whether this cannot be the address of a server: unspecified, multicast or broadcast.

    On Linux, the unspecified address reaches this machine itself, so without this rule, it would bypass a
    denied loopback network.
    """
    if isinstance(address, IPv4Address) and (address in _THIS_NETWORK or address == _BROADCAST):
        return True
    return address.is_unspecified or address.is_multicast


def _old_ipv4(text: str) -> IPv4Address | None:
    """Parse the decimal, octal, hexadecimal and short forms of inet_aton(3)."""
    try:
        return IPv4Address(socket.inet_aton(text)) if text and ":" not in text else None
    except (OSError, UnicodeError, ValueError):
        return None


def _embedded(address: IPv6Address) -> list[IPv4Address]:
    number = int(address)
    if address.is_unspecified or address == _LOOPBACK:
        return []
    isatap = (number >> 32) & 0xFFFFFFFF in _ISATAP
    if isatap or any(address in network for network in _ENDS_WITH_IPV4):
        return [_bits(number, 96)]
    if address in _LOCAL_NAT64:
        return _local_nat64(number)
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return list(address.teredo)
    return []


def _local_nat64(number: int) -> list[IPv4Address]:
    """Return the addresses that may be embedded in an address with the local-use NAT64 prefix (RFC 8215).

    Operators choose the length of the prefix, and the position of the IPv4 address depends on it
    (RFC 6052, section 2.2): after 48, 56, 64 or 96 bits, skipping bits 64 to 71.
    """
    without_u = (number >> 64 << 56) | (number & ((1 << 56) - 1))
    shorter = [IPv4Address((without_u >> (120 - start - 32)) & 0xFFFFFFFF) for start in (48, 56, 64)]
    # With the wrong length, padding looks like an address of "this network", which is not a valid address.
    return [_bits(number, 96), *(one for one in shorter if one not in _THIS_NETWORK)]


def _bits(number: int, start: int) -> IPv4Address:
    """Return the 32 bits of an IPv6 address from a position, as an IPv4 address."""
    return IPv4Address((number >> (128 - start - 32)) & 0xFFFFFFFF)
