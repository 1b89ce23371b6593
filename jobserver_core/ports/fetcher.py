"""The fetcher port: a URI becomes a file on this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from jobserver_core.models.validation import non_negative, sha256

__all__ = ["Fetched", "Fetcher", "ProgressCallback"]

ProgressCallback = Callable[[int, "int | None"], None]
"""Called with the bytes so far and the total, None while that is unknown."""


@attrs.frozen(kw_only=True)
class Fetched:
    """A fetched file: where it is, the sha256 of its content, and its size in bytes."""

    path: Path
    digest: str = attrs.field(validator=sha256)
    size: int = attrs.field(validator=non_negative)


class Fetcher(ABC):
    """Fetches URIs within limits of size and time, and only what its policy allows.

    ``scheme:/path`` and ``scheme:///path`` mean the same file. What was fetched before is used
    again when the source says that it did not change (ETag, Last-Modified, or size and time).
    """

    @abstractmethod
    def check(self, uri: str) -> None:
        """Raise MalformedUrl when this URI is not one, or its scheme, host or folder is not allowed.

        Touches neither network nor files.
        """

    @abstractmethod
    def fetch(self, uri: str, *, progress: ProgressCallback | None = None) -> AbstractContextManager[Fetched]:
        """Fetch a URI; the file is valid, and is not changed, inside the ``with`` block.

        Raises what :meth:`check` does, TooLarge over the limit of size, and FetchError with the
        reason for everything else. A failed fetch leaves nothing behind. Credentials in the URI
        are used, and never appear in an error.
        """

    def close(self) -> None:
        """Let go of connections; repeating this is allowed."""
        return
