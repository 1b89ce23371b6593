"""URIs of code to fetch, and of callbacks.

There is one parser of URIs to fetch, so that every fetcher reads the same text as the same file.

Nothing in this module touches the network or a file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, unquote_to_bytes, urlsplit

import attrs

from jobserver_core.errors import MalformedUrl

FILE_SCHEMES = ("file", "local")
"""Schemes of files on this machine; ``local`` is Spark's word for a file that every machine has."""
HOST_SCHEMES = ("http", "https", "ftp")
"""Schemes whose URIs need a host."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BAD_AUTHORITY = re.compile(r"[\\\s]")
_HOST = re.compile(r"[A-Za-z0-9._\-]*|[0-9a-fA-F.]*:[0-9a-fA-F:.]*(?:%[A-Za-z0-9._~\-]+)?")
# Two standards for names outside ASCII disagree about these: they would be two different hosts.
_AMBIGUOUS = re.compile("[\u00df\u03c2\u200c\u200d]")
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
        """Read a URI.

        A file is written ``scheme:/path``, ``scheme:///path`` or ``scheme://localhost/path`` (RFC 8089),
        with ``%3F`` and ``%23`` for ``?`` and ``#`` in names. ``http``, ``https`` and ``ftp`` need a host.

        Raises:
            MalformedUrl: The text is not a URI to fetch; the error says why.
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
        if scheme in HOST_SCHEMES and not host:
            raise _malformed(text, f"it needs a host, as in {scheme}://host/path")
        if _CONTROL.search(unquote(parts.path)) and scheme in HOST_SCHEMES:
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
        raise _malformed(text, f"a file needs an absolute path, as in {parts.scheme}:/directory/file")
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise _malformed(text, "write ? and # in the name of a file as %3F and %23")
    if b"\0" in unquote_to_bytes(parts.path):
        raise _malformed(text, "its path has a NUL character")
    return "/" + parts.path.lstrip("/")


def _host(text: str, host: str) -> str:
    if _AMBIGUOUS.search(host):
        raise _malformed(text, "its host can be read in more than one way: write it in its xn-- form")
    try:
        plain = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise _malformed(text, "its host is not a name that the domain name system has") from None
    if not _HOST.fullmatch(plain):
        raise _malformed(text, "its host has characters that no name and no address has")
    return plain.lower().rstrip(".")


# -- URLs of callbacks, which a transport defines and may not be URIs at all ----------------------------

MAX_URL = 8192
"""The longest callback URL that is accepted, in characters."""

_MAX_RECEIVER = 255
"""The most characters of a receiver without a host, which indexes and logs repeat."""
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def scheme_of(url: str) -> str:
    """Return the scheme in lower case, or an empty string if there is none (RFC 3986, section 3.1)."""
    match = _SCHEME.match(url)
    return match.group(1).lower() if match else ""


def receiver_of(url: str) -> str:
    """Return the receiver of a URL, for fairness: scheme, host, and port unless it is the default.

    Without a host (``call:billing``), the path takes its place, and for a URL that cannot be parsed, the
    receiver is the scheme alone. Never raises.
    """
    parts = _split(url)
    scheme = scheme_of(url)
    if parts is None or not scheme:
        return scheme
    if not parts.hostname:
        return redacted(f"{scheme}:{parts.path}")[:_MAX_RECEIVER]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname.rstrip(".")
    if parts.port is None or parts.port == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{parts.port}"


def without_secrets(text: str, url: str) -> str:
    """Return a text in which this URL, its password and its query are redacted."""
    text = text.replace(url, redacted(url))
    parts = _split(url)
    secrets = (parts.password, parts.query) if parts is not None else ()
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is not a number
    except ValueError:
        return None
    return parts
