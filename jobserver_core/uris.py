"""URIs of code to fetch, and the policy that says which of them may be.

Parsing and policy are here, in one place, so that every fetcher understands the same text as the same
file and refuses the same things. Nothing in this module touches the network or a file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, unquote, unquote_to_bytes, urlsplit

import attrs

from jobserver_core.errors import InvalidSetting, MalformedUrl

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from jobserver_core.config.settings import FetcherSettings

__all__ = ["Uri", "UriPolicy", "redacted"]

FILE_SCHEMES = ("file", "local")
"""Schemes of files on this machine; ``local`` is Spark's word for a file that every machine has."""
_HOST_SCHEMES = ("http", "https", "ftp")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BAD_AUTHORITY = re.compile(r"[\\\s]")
_HOST = re.compile(r"[A-Za-z0-9._\-]*|[0-9a-fA-F:.]+(?:%[A-Za-z0-9._~\-]+)?")
_USER = re.compile(r"(:/*).*@", re.DOTALL)
_SAFE = "/%:@!$&'()*+,;=~-._"


def redacted(text: str) -> str:
    """Return a URI without what may be secret in it: user and password, query and fragment.

    Made for text that may be no URI at all: when in doubt it removes too much.
    """
    text = _USER.sub(r"\1***@", text)
    for mark in "?#":
        head, found, _ = text.partition(mark)
        text = f"{head}{mark}…" if found else head
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


@attrs.frozen(kw_only=True)
class Uri:
    """A parsed URI; ``path`` and ``query`` are percent-encoded as they were given.

    ``str()`` of it has no password and no query, and is what errors and logs show.
    """

    scheme: str
    host: str = ""
    port: int | None = None
    user: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)
    path: str = ""
    query: str = attrs.field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> Uri:
        """Read a URI. Raises MalformedUrl with what is wrong.

        A file is written ``scheme:/path``, ``scheme:///path`` or ``scheme://localhost/path`` (RFC 8089),
        with ``%3F`` and ``%23`` for ``?`` and ``#`` in names. ``http``, ``https`` and ``ftp`` need a host.
        """
        found = _SCHEME.fullmatch(text)
        if found is None or _CONTROL.search(text):
            raise _malformed(text, "a URI is written scheme:path, without control characters")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise _malformed(text, "its host or port cannot be read") from None
        if _BAD_AUTHORITY.search(parts.netloc):
            raise _malformed(text, "there is a blank or a backslash in its host")
        scheme = found[1].lower()
        if scheme in FILE_SCHEMES:
            return cls(scheme=scheme, path=_file_path(text, parts))
        host = _host(text, parts.hostname or "")
        if scheme in _HOST_SCHEMES and not host:
            raise _malformed(text, f"it needs a host, as in {scheme}://host/path")
        if _CONTROL.search(unquote(parts.path)) and scheme in _HOST_SCHEMES:
            raise _malformed(text, "its path has control characters")
        return cls(
            scheme=scheme,
            host=host,
            port=port,
            user=_decoded(parts.username),
            password=_decoded(parts.password),
            path=parts.path,
            query=parts.query,
        )

    @property
    def file(self) -> Path:
        """The path that a ``file`` or ``local`` URI names, percent-decoded."""
        return Path(os.fsdecode(unquote_to_bytes(self.path)))

    @property
    def name(self) -> str:
        """The last segment of the path, percent-decoded."""
        return unquote(self.path).rpartition("/")[2]

    @property
    def authority(self) -> str:
        """Host and port as a URI writes them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def canonical(self) -> str:
        """One text for every way to write this URI, without the password: for maps and caches."""
        if self.scheme in FILE_SCHEMES:
            return f"{self.scheme}://{quote(os.fsencode(self.file))}"
        user = f"{quote(self.user, safe='')}@" if self.user is not None else ""
        query = f"?{self.encoded_query}" if self.query else ""
        if not self.host and self.path and not self.path.startswith("/"):
            return f"{self.scheme}:{self.encoded_path}{query}"
        return f"{self.scheme}://{user}{self.authority}{self.encoded_path}{query}"

    @property
    def encoded_path(self) -> str:
        """The path with everything percent-encoded that must be; ``/`` when there is none."""
        return quote(self.path, safe=_SAFE) or "/"

    @property
    def encoded_query(self) -> str:
        """The query with everything percent-encoded that must be."""
        return quote(self.query, safe=_SAFE + "?")

    def __str__(self) -> str:
        if self.scheme in FILE_SCHEMES:
            return f"{self.scheme}://{self.path}"
        if not self.host:
            return redacted(f"{self.scheme}:{self.path}")
        user = "***@" if self.user is not None else ""
        return f"{self.scheme}://{user}{self.authority}{self.path}{'?…' if self.query else ''}"


def _malformed(text: str, reason: str) -> MalformedUrl:
    return MalformedUrl(url=redacted(text), reason=reason)


def _decoded(text: str | None) -> str | None:
    return None if text is None else unquote(text)


def _file_path(text: str, parts: SplitResult) -> str:
    if parts.netloc.lower() not in ("", "localhost"):
        reason = "a file is on this machine: write {0}:/path or {0}:///path"
        raise _malformed(text, reason.format(parts.scheme))
    if not parts.path.startswith("/"):
        raise _malformed(text, f"a file needs an absolute path, as in {parts.scheme}:/folder/file")
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise _malformed(text, "write ? and # in the name of a file as %3F and %23")
    if b"\0" in unquote_to_bytes(parts.path):
        raise _malformed(text, "its path has a NUL character")
    return "/" + parts.path.lstrip("/")


def _host(text: str, host: str) -> str:
    try:
        plain = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise _malformed(text, "its host is not a name that the domain name system has") from None
    if not _HOST.fullmatch(plain):
        raise _malformed(text, "its host has characters that no name and no address has")
    return plain.lower().rstrip(".")


def _network(text: str) -> IPv4Network | IPv6Network | None:
    import ipaddress  # noqa: PLC0415 - only when hosts or networks are restricted

    try:
        return ipaddress.ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None


def _address(text: str) -> IPv4Address | IPv6Address | None:
    import ipaddress  # noqa: PLC0415

    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # ::ffff:10.0.0.1 reaches the IPv4 host, so the rules for IPv4 hold.
    return getattr(address, "ipv4_mapped", None) or address


class _Hosts:
    """A list of host names, ``*.`` wildcards, addresses and networks."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.names: list[str] = []
        self.networks: list[Any] = []
        for pattern in patterns:
            network = _network(pattern)
            if network is not None:
                self.networks.append(network)
            else:
                self.names.append(pattern.lower().rstrip("."))

    def __bool__(self) -> bool:
        return bool(self.names or self.networks)

    def name(self, host: str) -> bool:
        return any(host == p or (p.startswith("*.") and host.endswith(p[1:])) for p in self.names)

    def address(self, address: Any) -> bool:
        return any(address in network for network in self.networks)


class UriPolicy:
    """Which URIs may be fetched: by scheme, host, network, and folder. An empty list allows any.

    Hosts are names, ``*.example.org`` (the names below it), addresses, or networks (``10.0.0.0/8``);
    ``*_networks`` are networks alone. What is denied stays denied when it is allowed too. A name
    passes :meth:`check`; when it is resolved, :meth:`check_addresses` judges where it leads.
    """

    def __init__(
        self,
        *,
        schemes: Iterable[str] = (*_HOST_SCHEMES, *FILE_SCHEMES),
        allowed_hosts: Iterable[str] = (),
        denied_hosts: Iterable[str] = (),
        allowed_networks: Iterable[str] = (),
        denied_networks: Iterable[str] = (),
        allowed_folders: Iterable[Path] = (),
    ) -> None:
        self.schemes = tuple(scheme.lower() for scheme in schemes)
        self._allowed = _Hosts(allowed_hosts)
        self._denied = _Hosts(denied_hosts)
        self._inside = _Hosts(_networks("allowed-networks", allowed_networks))
        self._outside = _Hosts(_networks("denied-networks", denied_networks))
        self._folders = tuple(Path(os.path.abspath(folder)) for folder in allowed_folders)

    @classmethod
    def from_settings(cls, settings: FetcherSettings) -> UriPolicy:
        """Return the policy that the fetcher's settings describe."""
        return cls(
            schemes=settings.allowed_schemes,
            allowed_hosts=settings.allowed_hosts,
            denied_hosts=settings.denied_hosts,
            allowed_networks=settings.allowed_networks,
            denied_networks=settings.denied_networks,
            allowed_folders=settings.allowed_folders,
        )

    def check(self, text: str) -> Uri:
        """Return the parsed URI, or raise MalformedUrl."""
        uri = Uri.parse(text)
        if uri.scheme not in self.schemes:
            allowed = ", ".join(self.schemes)
            raise _refused(uri, f"protocol {uri.scheme} is not supported; supported: {allowed}")
        if uri.scheme in FILE_SCHEMES:
            self._check_folder(uri, os.path.normpath(uri.file), self._folders)
        else:
            self._check_host(uri)
        return uri

    def check_file(self, uri: Uri, real: Path) -> None:
        """Raise MalformedUrl when a file, with every symbolic link followed, is in no allowed folder."""
        folders = tuple(Path(os.path.realpath(folder)) for folder in self._folders)
        self._check_folder(uri, os.fspath(real), folders)

    def check_addresses(self, uri: Uri, addresses: Iterable[str]) -> None:
        """Raise MalformedUrl when one of the addresses that the URI's host has is not allowed."""
        for text in addresses:
            address = _address(text)
            if self._denied.address(address) or self._outside.address(address):
                raise _refused(uri, f"host {uri.host} is not allowed: its address is denied")
            if self._inside and not self._inside.address(address):
                raise _refused(uri, f"host {uri.host} is not allowed: its address is in no allowed network")
            if self._allowed and not self._allowed.name(uri.host) and not self._allowed.address(address):
                raise _refused(uri, f"host {uri.host} is not among the allowed hosts")

    def _check_host(self, uri: Uri) -> None:
        if self._denied.name(uri.host):
            raise _refused(uri, f"host {uri.host} is denied")
        if _address(uri.host) is not None:
            self.check_addresses(uri, [uri.host])
        elif self._allowed and not self._allowed.name(uri.host) and not self._allowed.networks:
            raise _refused(uri, f"host {uri.host} is not among the allowed hosts")

    @staticmethod
    def _check_folder(uri: Uri, path: str, folders: tuple[Path, ...]) -> None:
        if folders and not any(Path(path).is_relative_to(folder) for folder in folders):
            raise _refused(uri, "it is in none of the folders that files may be fetched from")


def _refused(uri: Uri, reason: str) -> MalformedUrl:
    return MalformedUrl(url=str(uri), reason=reason)


def _networks(key: str, texts: Iterable[str]) -> list[str]:
    networks = list(texts)
    for text in networks:
        if _network(text) is None:
            message = f"expected networks such as 10.0.0.0/8 or fd00::/8, got {text!r}"
            raise InvalidSetting(key=f"jobserver.fetcher.{key}", message=message)
    return networks
