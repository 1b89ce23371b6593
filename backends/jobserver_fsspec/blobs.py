"""The blob store for directories and all URLs that fsspec supports."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO

from jobserver_core.config.units import parse_size
from jobserver_core.disk_cache import DiskCache
from jobserver_core.errors import InvalidSetting, StorageError
from jobserver_core.models.arguments import check_kind
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports.blobs import BlobStore, BlobWriter
from jobserver_core.uris import redacted
from jobserver_fsspec.directory import DirectoryBlobStore
from jobserver_fsspec.objects import ObjectBlobStore

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from jobserver_core.config.settings import Settings

_LOCAL = re.compile(r"(?:file|local):(?://(?:localhost(?=/))?)?(/.*)", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:")
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+/?")
_S3 = re.compile(r"s3a?:")
_CACHE_SIZE_OPTION = "cache-size"
_CACHE_SIZE = 4 * 1024**3
"""Bytes of local copies by default: a few large class paths and results."""


class FsspecBlobStore(BlobStore):
    """Blobs in a directory, or on any file system that fsspec has a driver for (``s3://bucket/prefix``).

    ``options`` are passed to the driver. For blobs on other file systems, up to ``cache_size`` bytes of
    unused local copies are kept in ``cache_directory``, by default in the system's temporary directory.

    In the configuration, ``jobserver.blobs.url`` is the URL or the directory (default: ``blobs`` in the data
    directory). ``jobserver.blobs.options`` has the driver's options, and ``cache-size``.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        options: JsonMapping | None = None,
        cache_directory: Path | None = None,
        cache_size: int = _CACHE_SIZE,
    ) -> None:
        check_kind("url", url, (str, PurePath), "the URL or the path of a directory")
        check_kind("options", options, (Mapping, type(None)), "a mapping")
        check_kind("cache_directory", cache_directory, (PurePath, type(None)), "a pathlib.Path")
        directory = _local_directory(url)
        if directory is not None:
            self._store: BlobStore = DirectoryBlobStore(directory)
            return
        filesystem, root = _open_filesystem(str(url), dict(options or {}))
        if getattr(filesystem, "local_file", False):
            self._store = DirectoryBlobStore(Path(root))
            return
        self._store = ObjectBlobStore(
            filesystem,
            root,
            copies=DiskCache(cache_directory, limit=cache_size),
            name=redacted(str(url)),
            redact=_redactor(options or {}, str(url)),
            **({"block_size": None} if "default_block_size" in (options or {}) else {}),
        )

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        # The driver's options are checked by the driver, which opens the file system.
        _cache_size_of(settings)
        url, options = settings.blobs.url, settings.blobs.options
        if url and _local_directory(url) is None:
            with _driver_errors(str(url), options):
                _driver_of(str(url))
        elif unknown := next((name for name in options if name != _CACHE_SIZE_OPTION), None):
            near = difflib.get_close_matches(unknown, [_CACHE_SIZE_OPTION])
            message = "a directory has no such option"
            nearest = near[0] if near else None
            raise InvalidSetting(key=f"jobserver.blobs.options.{unknown}", message=message, nearest=nearest)

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> FsspecBlobStore:
        return cls(
            settings.blobs.url or data_dir / "blobs",
            options={
                name: value for name, value in settings.blobs.options.items() if name != _CACHE_SIZE_OPTION
            },
            cache_directory=data_dir / "cache" / "blobs",
            cache_size=_cache_size_of(settings),
        )

    def create(self) -> BlobWriter:
        return self._store.create()

    def open(self, digest: str) -> BinaryIO:
        return self._store.open(digest)

    def local_path(self, digest: str) -> AbstractContextManager[Path]:
        return self._store.local_path(digest)

    def size(self, digest: str) -> int | None:
        return self._store.size(digest)

    def delete(self, digest: str) -> None:
        self._store.delete(digest)

    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        return self._store.digests(modified_before=modified_before)

    def usage(self) -> tuple[int, int]:
        return self._store.usage()

    def sweep(self, *, modified_before: datetime) -> None:
        self._store.sweep(modified_before=modified_before)

    def check(self) -> None:
        self._store.check()

    def close(self) -> None:
        """Remove the local copies if they are in a temporary directory."""
        self._store.close()


def _local_directory(url: str | Path) -> Path | None:
    """Return the directory of a path or a ``file:`` URL, which needs no driver, or None."""
    if isinstance(url, Path):
        return url
    found = _LOCAL.fullmatch(url)
    if found:
        return Path(found[1])
    return None if _SCHEME.match(url) else Path(url)


def _cache_size_of(settings: Settings) -> int:
    try:
        return parse_size(settings.blobs.options.get(_CACHE_SIZE_OPTION, _CACHE_SIZE))
    except ValueError as error:
        raise InvalidSetting(key="jobserver.blobs.options.cache-size", message=str(error)) from None


def _driver_of(url: str) -> type[AbstractFileSystem]:
    from fsspec.core import get_filesystem_class, split_protocol  # noqa: PLC0415 - not needed for a directory

    driver: type[AbstractFileSystem] = get_filesystem_class(split_protocol(url.partition("::")[0])[0])
    return driver


def _open_filesystem(url: str, options: JsonMapping) -> tuple[AbstractFileSystem, str]:
    from fsspec.core import url_to_fs  # noqa: PLC0415 - not needed for a directory

    with _driver_errors(url, options):
        filesystem, root = url_to_fs(url, **options)
    return filesystem, str(root)


@contextmanager
def _driver_errors(url: str, options: JsonMapping) -> Iterator[None]:
    """Translate what fsspec or a driver raises when it is loaded or opens a file system.

    Raises:
        InvalidSetting: The URL or an option is wrong.
        StorageError: The driver is not installed, or cannot open the file system.
    """
    try:
        yield
    except ImportError as error:
        install = "pip install 'jobserver-core[s3]'" if _S3.match(url) else error
        raise StorageError(message=f"the driver for {redacted(url)} is not installed: {install}") from None
    except ValueError as error:
        raise InvalidSetting(key="jobserver.blobs.url", message=_redactor(options, url)(str(error))) from None
    except Exception as error:  # noqa: BLE001 - drivers raise errors of their own libraries
        reason = _redactor(options, url)(str(error) or type(error).__name__)
        raise StorageError(message=f"cannot open {redacted(url)}: {reason}") from None


def _redactor(options: JsonMapping, url: str) -> Callable[[str], str]:
    """Return a function that redacts the URL and the values of the options in a message.

    The URL of an endpoint stays, without credentials, path or query: it says what could not be reached.
    """
    texts = (text for text in _texts(options) if len(text) > 3)
    secrets = sorted((text for text in texts if not _ENDPOINT.fullmatch(text)), key=len, reverse=True)

    def redact(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return text.replace(url, redacted(url))

    return redact


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
