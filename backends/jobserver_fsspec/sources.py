"""What the fetcher fetches from: one class for each family of schemes, in modules of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import attrs

from jobserver_core.uris import Uri
from jobserver_net.deadlines import Deadline

__all__ = ["CHUNK", "Interrupted", "Opened", "Source", "Stamp"]

CHUNK = 256 * 1024
"""How many bytes are read at a time."""

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
        cannot go on from there it starts at zero. Reading the chunks raises the same errors.

        Raises:
            FetchError: The source gave an answer that is final.
            MalformedUrl: An address of the host is not allowed.
            Interrupted: It may work when it is tried again.
            Expired: There is no time left.
        """
