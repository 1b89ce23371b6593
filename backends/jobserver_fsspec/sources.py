"""The interface of the fetcher's sources, and the source of files on this machine.

Each other family of schemes has a class in a separate module, which may import large libraries.
"""

from __future__ import annotations

import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import attrs

from jobserver_core.errors import FetchError, MalformedUrl
from jobserver_core.uris import Uri
from jobserver_net.deadlines import Deadline


def shown(error: BaseException, uri: Uri, *, empty: str) -> str:
    """Return the text of an error, with the password redacted in case the server repeats it."""
    text = str(error) or empty
    return text.replace(uri.password, "***") if uri.password else text


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


_SETTLED_NS = 2_000_000_000
"""Nanoseconds since a change after which the next one has another time, even on coarse file systems."""
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class FileSource(Source):
    """Reads regular files in allowed directories. Symbolic links are resolved before the check.

    An empty list of ``directories`` allows all directories.

    A version is identified by path, inode, size, and times in nanoseconds. A file that changed less than two
    seconds ago could change again without affecting any of these, so its version is not recorded.
    """

    def __init__(self, directories: Iterable[Path] = ()) -> None:
        self._directories = tuple(Path(os.path.abspath(directory)) for directory in directories)

    def check(self, uri: Uri) -> None:
        """Check that the path, before resolving links, is in an allowed directory.

        Raises:
            MalformedUrl: It is not.
        """
        _check_directory(uri, os.path.normpath(uri.file), self._directories)

    @contextmanager
    def open(
        self, uri: Uri, *, known: Stamp, partial: Stamp, offset: int, deadline: Deadline
    ) -> Iterator[Opened | None]:
        """Open a file. It is always read from the start."""
        try:
            descriptor, real = self._open(uri)
        except OSError as error:
            raise FetchError(url=str(uri), reason=error.strerror or "cannot open it") from None
        try:
            found = os.fstat(descriptor)
            stamp = _stamp(real, found)
            if known and known == stamp:
                yield None
            else:
                yield Opened(chunks=_chunks(descriptor, found), stamp=stamp, total=found.st_size)
        finally:
            os.close(descriptor)

    def _open(self, uri: Uri) -> tuple[int, str]:
        real = os.path.realpath(uri.file, strict=True)
        allowed = tuple(Path(os.path.realpath(directory)) for directory in self._directories)
        _check_directory(uri, real, allowed)
        if not stat.S_ISREG(os.stat(real).st_mode):  # first, because opening a device can have side effects
            raise FetchError(url=str(uri), reason="it is not a regular file")
        descriptor = os.open(real, _FLAGS)
        try:
            found = os.fstat(descriptor)
            same = os.path.realpath(real) == real and os.path.samestat(found, os.stat(real))
            if not same or not stat.S_ISREG(found.st_mode):
                raise FetchError(url=str(uri), reason="it was replaced while it was opened")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, real


def _check_directory(uri: Uri, path: str, directories: tuple[Path, ...]) -> None:
    if directories and not any(Path(path).is_relative_to(directory) for directory in directories):
        raise MalformedUrl(url=str(uri), reason="it is not in an allowed directory")


def _stamp(path: str, found: os.stat_result) -> dict[str, str]:
    changed = max(found.st_mtime_ns, found.st_ctime_ns)
    if time.time_ns() - changed < _SETTLED_NS:
        return {}
    parts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return {"path": path, "version": "-".join(str(part) for part in parts)}


def _chunks(descriptor: int, before: os.stat_result) -> Iterator[bytes]:
    try:
        while chunk := os.read(descriptor, CHUNK):
            yield chunk
    except OSError as error:
        raise Interrupted(error.strerror or "cannot read it") from None
    after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Interrupted("it was modified while it was read")
