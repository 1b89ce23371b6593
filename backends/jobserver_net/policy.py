"""The policy that decides which URIs and addresses are allowed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import ip_network
from typing import TYPE_CHECKING

from jobserver_core.errors import InvalidSetting, MalformedUrl
from jobserver_core.models.arguments import check_several
from jobserver_core.uris import FILE_SCHEMES, HOST_SCHEMES, Uri
from jobserver_net.addresses import METADATA_NETWORKS, Address, Network, is_no_server, parse_address, reached

if TYPE_CHECKING:
    from jobserver_core.config.settings import CallbackSettings, FetcherSettings


class _Hosts:
    """A list of host names, ``*.`` wildcards, addresses and networks."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.names: list[str] = []
        self.networks: list[Network] = []
        for pattern in patterns:
            if (network := _network(pattern)) is not None:
                self.networks.append(network)
            else:
                self.names.append(pattern.lower().rstrip("."))

    def __bool__(self) -> bool:
        return bool(self.names or self.networks)

    def has_name(self, host: str) -> bool:
        return any(host == p or (p.startswith("*.") and host.endswith(p[1:])) for p in self.names)

    def has_address(self, address: Address) -> bool:
        return _is_in(address, self.networks)


class AddressPolicy:
    """Allows or denies URIs by scheme, host and network. An empty list of allowed values allows all.

    Hosts are names, ``*.example.org`` (all names below it), addresses, or networks (``10.0.0.0/8``).
    ``*_networks`` are only networks. Denied values take precedence over allowed ones.

    Link-local addresses and the metadata services of clouds (``METADATA_NETWORKS``) are denied, unless
    ``allowed_hosts`` or ``allowed_networks`` contains a network inside one of them. Unspecified, multicast
    and broadcast addresses are always denied. An IPv6 address with an embedded IPv4 address must be allowed
    as both.

    :meth:`check` checks the URI itself. When its host is resolved, :meth:`check_addresses` checks the
    addresses.
    """

    def __init__(
        self,
        *,
        schemes: Collection[str] = ("http", "https"),
        allowed_hosts: Collection[str] = (),
        denied_hosts: Collection[str] = (),
        allowed_networks: Collection[str] = (),
        denied_networks: Collection[str] = (),
        section: str = "jobserver.fetcher",
    ) -> None:
        names = {
            "schemes": schemes,
            "allowed_hosts": allowed_hosts,
            "denied_hosts": denied_hosts,
            "allowed_networks": allowed_networks,
            "denied_networks": denied_networks,
        }
        for what, values in names.items():
            check_several(what, values, str, "strings")
        self._section = section
        self.schemes = tuple(scheme.lower() for scheme in schemes)
        self._allowed = _Hosts(allowed_hosts)
        self._denied = _Hosts(denied_hosts)
        self._inside = _Hosts(_networks(f"{section}.allowed-networks", allowed_networks))
        self._outside = _Hosts(_networks(f"{section}.denied-networks", denied_networks))
        self._excepted = [
            network
            for network in (*self._allowed.networks, *self._inside.networks)
            if any(_is_inside(network, metadata) for metadata in METADATA_NETWORKS)
        ]

    @classmethod
    def from_settings(
        cls, settings: FetcherSettings | CallbackSettings, *, schemes: Collection[str]
    ) -> AddressPolicy:
        """Create the policy that a section of the configuration describes.

        Raises:
            InvalidSetting: A value is invalid.
        """
        return cls(
            schemes=schemes,
            allowed_hosts=settings.allowed_hosts,
            denied_hosts=settings.denied_hosts,
            allowed_networks=settings.allowed_networks,
            denied_networks=settings.denied_networks,
            section=settings.prefix,
        )

    def check(self, text: str) -> Uri:
        """Parse a URI, and check its scheme and host without resolving it.

        Raises:
            MalformedUrl: It is not a URI, or not allowed.
        """
        uri = Uri.parse(text)
        if uri.scheme not in self.schemes:
            allowed = ", ".join(self.schemes)
            raise _refused(uri, f"protocol {uri.scheme} is not supported; supported: {allowed}")
        if uri.scheme not in FILE_SCHEMES:
            self._check_host(uri)
        return uri

    def check_addresses(self, uri: Uri, addresses: Iterable[str]) -> None:
        """Check the addresses to which the host of a URI resolved. All of them must be allowed.

        Raises:
            MalformedUrl: At least one address is not allowed.
        """
        for text in addresses:
            address = parse_address(text)
            if address is None:
                raise _refused(uri, f"host {uri.host} is not allowed: it resolved to no address")
            for one in reached(address):
                self._check_address(uri, one)

    def _check_host(self, uri: Uri) -> None:
        if uri.port == 0:
            raise _refused(uri, "port 0 cannot be connected to")
        if self._denied.has_name(uri.host):
            raise _refused(uri, f"host {uri.host} is denied")
        if parse_address(uri.host) is not None:
            self.check_addresses(uri, [uri.host])
        elif self._allowed and not self._allowed.has_name(uri.host) and not self._allowed.networks:
            raise _refused(uri, f"host {uri.host} is not among the allowed hosts")

    def _check_address(self, uri: Uri, address: Address) -> None:
        # In other schemes, the host can be the name of a bucket, such as 12345.
        if is_no_server(address) and uri.scheme in HOST_SCHEMES:
            reason = "no server has its address"
        elif self._denied.has_address(address):
            reason = f"its address is denied by {self._section}.denied-hosts"
        elif self._outside.has_address(address):
            reason = f"its address is denied by {self._section}.denied-networks"
        elif _is_in(address, METADATA_NETWORKS) and not _is_in(address, self._excepted):
            reason = "its address is link-local or that of a metadata service"
        elif self._inside and not self._inside.has_address(address):
            reason = f"its address is in no network of {self._section}.allowed-networks"
        elif self._allowed and not (self._allowed.has_name(uri.host) or self._allowed.has_address(address)):
            raise _refused(uri, f"host {uri.host} is not among the allowed hosts")
        else:
            return
        raise _refused(uri, f"host {uri.host} is not allowed: {reason}")


def _refused(uri: Uri, reason: str) -> MalformedUrl:
    return MalformedUrl(url=str(uri), reason=reason)


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _network(text: str) -> Network | None:
    try:
        return ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None


def _is_inside(network: Network, other: Network) -> bool:
    return network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]


def _networks(key: str, texts: Iterable[str]) -> list[str]:
    networks = list(texts)
    for text in networks:
        if _network(text) is None:
            message = f"expected a network such as 10.0.0.0/8 or fd00::/8, got {text!r}"
            raise InvalidSetting(key=key, message=message)
    return networks
