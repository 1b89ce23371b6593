"""A fetcher of ``file:`` URIs below one directory.

A fetched file must not change while it is used, and the owner of the original may change it at any time.
So each fetch makes a copy, which lives as long as the ``with`` block.

The path is checked twice. `check` looks at the text only, because it must not touch files. `fetch` checks
again after it resolved links, since a link below the directory may lead out of it.

Left out, for brevity: copies are not kept for the next fetch of an unchanged file.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from jobserver_core import FetchError, InvalidSetting, MalformedUrl, Settings, TooLarge
from jobserver_core.ports import Cancellation, Fetched, Fetcher, ProgressCallback
from jobserver_core.ports.formats import Uri

_CHUNK = 64 * 1024


class FileFetcher(Fetcher):
    """Fetches files below ``directory``, which the option of that name sets, up to ``max_size`` bytes."""

    def __init__(self, directory: Path, copies: Path, *, max_size: int) -> None:
        self._directory = Path(os.path.abspath(directory))
        self._copies = copies
        self._max_size = max_size

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        """Refuse options that do not exist, and a missing one."""
        if settings.fetcher.options.keys() != {"directory"}:
            message = "the file fetcher needs the option directory, and has no other"
            raise InvalidSetting(key="jobserver.fetcher.options", message=message)

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> FileFetcher:
        """Create the fetcher that the settings describe."""
        directory = settings.option_path("jobserver.fetcher.options.directory", data_dir)
        return cls(directory, data_dir / "fetched", max_size=settings.fetcher.max_size)

    def check(self, uri: str) -> None:
        """Check scheme and path, as they are written."""
        self._parsed(uri)

    @contextmanager
    def fetch(
        self,
        uri: str,
        *,
        progress: ProgressCallback | None = None,
        cancellation: Cancellation | None = None,
    ) -> Iterator[Fetched]:
        """Copy the file; the copy is removed when the block ends."""
        parsed = self._parsed(uri)
        self._copies.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._copies) as copy:
            with self._translated(parsed), self._opened(parsed) as source:
                digest = hashlib.sha256()
                for data in self._chunks(parsed, source, cancellation):
                    digest.update(data)
                    copy.write(data)
                    if progress is not None:
                        progress(copy.tell(), None)
                copy.flush()
            _raise_if_cancelled(parsed, cancellation)
            yield Fetched(path=Path(copy.name), digest=digest.hexdigest(), size=copy.tell())

    def _parsed(self, text: str) -> Uri:
        uri = Uri.parse(text)
        if uri.scheme != "file":
            raise MalformedUrl(url=str(uri), reason="only file: URIs can be fetched")
        self._check_directory(uri, Path(os.path.normpath(uri.file)), self._directory)
        return uri

    @staticmethod
    def _check_directory(uri: Uri, path: Path, directory: Path) -> None:
        if not path.is_relative_to(directory):
            raise MalformedUrl(url=str(uri), reason="the file is outside of the directory that may be read")

    def _opened(self, uri: Uri) -> BinaryIO:
        """Open the file behind all links. Only regular files: opening a pipe, for instance, can block."""
        real = Path(os.path.realpath(uri.file, strict=True))
        self._check_directory(uri, real, Path(os.path.realpath(self._directory)))
        if not stat.S_ISREG(real.stat().st_mode):
            raise FetchError(url=str(uri), reason="it is not a regular file")
        return os.fdopen(os.open(real, os.O_RDONLY | os.O_NOFOLLOW), "rb")

    def _chunks(self, uri: Uri, source: BinaryIO, cancellation: Cancellation | None) -> Iterator[bytes]:
        """Read the file up to the limit of size, unless the fetch is cancelled."""
        size = 0
        while data := source.read(_CHUNK):
            _raise_if_cancelled(uri, cancellation)
            size += len(data)
            if size > self._max_size:
                raise TooLarge(what=str(uri), limit=self._max_size)
            yield data

    @staticmethod
    @contextmanager
    def _translated(uri: Uri) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FetchError(url=str(uri), reason=error.strerror or "it cannot be read") from error


def _raise_if_cancelled(uri: Uri, cancellation: Cancellation | None) -> None:
    if cancellation is not None and cancellation.reason is not None:
        raise FetchError(url=str(uri), reason=cancellation.reason)
