"""The interface of the fetcher's sources. Each family of schemes has a class in a separate module."""

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
"""Identifies the version of a source's content. Empty if the version cannot be identified."""


class Interrupted(Exception):
    """The connection failed, but a retry may succeed. ``str()`` returns the reason."""


@attrs.frozen(kw_only=True)
class Opened:
    """The content of a source: its bytes from ``start``, and its total size if it is known."""

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
        """Start reading a URI. Give None if the version with the stamp ``known`` is still current.

        ``offset`` bytes of the version with the stamp ``partial`` have been read before. If the source cannot
        resume there, it starts at zero. Reading the chunks raises the same errors.

        Raises:
            FetchError: The failure is final.
            MalformedUrl: An address of the host is not allowed.
            Interrupted: A retry may succeed.
            Expired: The deadline has passed.
        """
