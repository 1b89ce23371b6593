"""The blob store for any URL that fsspec knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from jobserver_core.config.units import parse_size
from jobserver_core.disk_cache import DiskCache
from jobserver_core.errors import InvalidSetting, StorageError
from jobserver_core.ports.blobs import BlobStore, BlobWriter
from jobserver_core.uris import redacted
from jobserver_fsspec.folder import FolderBlobStore
from jobserver_fsspec.objects import ObjectBlobStore

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["FsspecBlobStore"]

_LOCAL = re.compile(r"(?:file|local):(?://(?:localhost(?=/))?)?(/.*)", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:")
_CACHE_SIZE = 4 * 1024**3


class FsspecBlobStore(BlobStore):
    """Blobs in a folder, or on any file system that fsspec has a driver for (``s3://bucket/prefix``).

    ``options`` go to the driver as they are. Of blobs that are elsewhere, up to ``cache_size`` bytes of
    copies that nobody uses are kept in ``cache_folder``, by default in the system's temporary folder.

    In the configuration, ``jobserver.blobs.url`` is the URL or the folder (default: ``blobs`` in the data
    folder) and ``jobserver.blobs.options`` the driver's options, and beside them ``cache-size``.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        options: Mapping[str, Any] | None = None,
        cache_folder: Path | None = None,
        cache_size: int = _CACHE_SIZE,
    ) -> None:
        folder = _local_folder(url)
        if folder is not None:
            self._store: BlobStore = FolderBlobStore(folder)
            return
        filesystem, root = _open_filesystem(str(url), dict(options or {}))
        if getattr(filesystem, "local_file", False):
            self._store = FolderBlobStore(Path(root))
            return
        self._store = ObjectBlobStore(
            filesystem,
            root,
            copies=DiskCache(cache_folder, limit=cache_size),
            name=redacted(str(url)),
            scrub=_scrubber(options or {}, str(url)),
        )

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> FsspecBlobStore:
        """Make the store that the settings describe. Raises InvalidSetting, StorageError."""
        options = dict(settings.blobs.options)
        size = options.pop("cache-size", _CACHE_SIZE)
        try:
            cache_size = parse_size(size)
        except ValueError as error:
            raise InvalidSetting(key="jobserver.blobs.options.cache-size", message=str(error)) from None
        return cls(
            settings.blobs.url or data_dir / "blobs",
            options=options,
            cache_folder=data_dir / "cache" / "blobs",
            cache_size=cache_size,
        )

    def create(self) -> BlobWriter:
        """Return a writer for a new blob. Raises StorageError."""
        return self._store.create()

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading. Raises BlobNotFound."""
        return self._store.open(digest)

    def local_path(self, digest: str) -> AbstractContextManager[Path]:
        """Give the blob's own file, or a copy of it on this machine. Raises BlobNotFound."""
        return self._store.local_path(digest)

    def size(self, digest: str) -> int | None:
        """Return the blob's size in bytes, or None."""
        return self._store.size(digest)

    def delete(self, digest: str) -> None:
        """Remove a blob, if it is here."""
        self._store.delete(digest)

    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        """Iterate over the blobs that were last committed before a time."""
        return self._store.digests(modified_before=modified_before)

    def sweep(self, *, modified_before: datetime) -> None:
        """Remove what writers that never committed have left before the time."""
        self._store.sweep(modified_before=modified_before)

    def check(self) -> None:
        """Raise StorageError when nothing can be written."""
        self._store.check()

    def close(self) -> None:
        """Remove the copies on this machine if they are in a temporary folder."""
        self._store.close()


def _local_folder(url: str | Path) -> Path | None:
    """Return the folder when a path or a ``file:`` URL is given, which needs no driver."""
    if isinstance(url, Path):
        return url
    found = _LOCAL.fullmatch(url)
    if found:
        return Path(found[1])
    return None if _SCHEME.match(url) else Path(url)


def _open_filesystem(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # noqa: PLC0415 - a folder needs none of it

    key = "jobserver.blobs.url"
    try:
        filesystem, root = url_to_fs(url, **options)
    except ImportError as error:
        raise StorageError(message=f"no driver for {redacted(url)} is installed: {error}") from None
    except ValueError as error:
        raise InvalidSetting(key=key, message=_scrubber(options, url)(str(error))) from None
    except Exception as error:  # noqa: BLE001 - drivers raise errors of their own libraries
        reason = _scrubber(options, url)(str(error) or type(error).__name__)
        raise StorageError(message=f"cannot open {redacted(url)}: {reason}") from None
    return filesystem, str(root)


def _scrubber(options: Mapping[str, Any], url: str) -> Callable[[str], str]:
    """Return a function that removes the URL's user and the options' texts from a message."""
    secrets = sorted((text for text in _texts(options) if len(text) > 3), key=len, reverse=True)

    def scrub(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return text.replace(url, redacted(url))

    return scrub


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
