"""A fetcher of URIs that are in memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jobserver_core.errors import FetchError, MalformedUrl, TooLarge
from jobserver_core.models.arguments import check_kind, check_several
from jobserver_core.ports.fetcher import Cancellation, Fetched, Fetcher, ProgressCallback
from jobserver_core.uris import FILE_SCHEMES, HOST_SCHEMES, Uri

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings


class MemoryFetcher(Fetcher):
    """Serves URIs from a mapping to their content.

    :meth:`publish` and :meth:`withdraw` change the content. ``max_size`` is in bytes. A fetch takes no time,
    so there is no timeout. Nothing leaves this process, so hosts are refused by name only, not by address.
    """

    def __init__(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        schemes: Collection[str] = (*HOST_SCHEMES, *FILE_SCHEMES),
        denied_hosts: Collection[str] = (),
        max_size: int = 2 * 1024**3,
    ) -> None:
        check_kind("files", files, (Mapping, type(None)), "a mapping of URIs to bytes")
        check_several("schemes", schemes, str, "strings")
        check_several("denied_hosts", denied_hosts, str, "strings")
        self._schemes = tuple(schemes)
        self._denied_hosts = frozenset(denied_hosts)
        self._max_size = max_size
        self._files: dict[str, bytes] = {}
        for uri, content in (files or {}).items():
            self.publish(uri, content)

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> MemoryFetcher:
        """Create an empty fetcher with the schemes, hosts and size limit of the settings."""
        fetcher = settings.fetcher
        return cls(
            schemes=fetcher.allowed_schemes,
            denied_hosts=fetcher.denied_hosts,
            max_size=fetcher.max_size,
        )

    def publish(self, uri: str, content: bytes) -> None:
        """Publish content under a URI, replacing earlier content.

        Raises:
            InvalidRequest: The content is not bytes.
            MalformedUrl: The URI cannot be parsed.
        """
        check_kind(f"the content of {uri}", content, (bytes, bytearray, memoryview), "bytes")
        self._files[Uri.parse(uri).canonical] = bytes(content)

    def withdraw(self, uri: str) -> None:
        """Remove a URI. Does nothing if it is unknown."""
        self._files.pop(Uri.parse(uri).canonical, None)

    def check(self, uri: str) -> None:
        self._checked(uri)

    @contextmanager
    def fetch(
        self,
        uri: str,
        *,
        progress: ProgressCallback | None = None,
        cancellation: Cancellation | None = None,
    ) -> Iterator[Fetched]:
        parsed = self._checked(uri)
        content = self._files.get(parsed.canonical)
        if content is None:
            raise FetchError(url=str(parsed), reason="not found")
        if len(content) > self._max_size:
            raise TooLarge(what=str(parsed), limit=self._max_size)
        if progress is not None:
            progress(len(content), len(content))
        if cancellation is not None and cancellation.reason is not None:
            raise FetchError(url=str(parsed), reason=cancellation.reason)
        digest = hashlib.sha256(content).hexdigest()
        with tempfile.TemporaryDirectory(prefix="jobserver-fetch-") as directory:
            path = Path(directory, digest)
            path.write_bytes(content)
            yield Fetched(path=path, digest=digest, size=len(content))

    def _checked(self, text: str) -> Uri:
        uri = Uri.parse(text)
        if uri.scheme not in self._schemes:
            allowed = ", ".join(self._schemes)
            reason = f"protocol {uri.scheme} is not supported; supported: {allowed}"
            raise MalformedUrl(url=str(uri), reason=reason)
        if uri.host in self._denied_hosts:
            raise MalformedUrl(url=str(uri), reason=f"host {uri.host} is denied")
        return uri
