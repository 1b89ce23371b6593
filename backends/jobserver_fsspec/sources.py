"""What the fetcher fetches from: one class for each family of schemes, in modules of their own."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import attrs

from jobserver_core.errors import FetchError
from jobserver_core.uris import Uri, UriPolicy
from jobserver_fsspec.deadlines import Deadline

__all__ = ["IDLE_SECONDS", "Interrupted", "Opened", "Source", "resolve"]

CHUNK = 256 * 1024
IDLE_SECONDS = 60.0
"""How long a peer may send nothing before the connection is given up."""

Stamp = Mapping[str, str]
"""What tells one version of a source's content from another; empty when nothing does."""


class Interrupted(Exception):
    """The connection failed in a way that may not happen again; ``str()`` of it is the reason."""


@attrs.frozen(kw_only=True)
class Opened:
    """Content that is coming: its bytes from ``start`` on, and its whole size when that is known."""

    chunks: Iterator[bytes]
    stamp: Stamp
    total: int | None = None
    start: int = 0


class Source(ABC):
    """Opens URIs of some schemes."""

    @abstractmethod
    def open(
        self, uri: Uri, *, known: Stamp, partial: Stamp, offset: int, deadline: Deadline
    ) -> AbstractContextManager[Opened | None]:
        """Begin to read a URI; None when the version that the stamp ``known`` tells is still right.

        ``offset`` bytes of the version with the stamp ``partial`` have been read before; when the source
        cannot go on from there it starts at zero. Raises FetchError for what is final, Interrupted for what
        may be tried again; reading the chunks raises the same.
        """


def resolve(uri: Uri, port: int, policy: UriPolicy) -> list[str]:
    """Return the addresses of a URI's host. Raises MalformedUrl when the policy denies one of them."""
    try:
        found = socket.getaddrinfo(uri.host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise Interrupted(f"host {uri.host} cannot be resolved now") from None
        raise FetchError(url=str(uri), reason=f"host {uri.host} is not known") from None
    except (OSError, UnicodeError) as error:
        raise FetchError(url=str(uri), reason=f"host {uri.host} cannot be resolved: {error}") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    policy.check_addresses(uri, addresses)
    return addresses
