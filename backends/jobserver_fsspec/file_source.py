"""Files of this machine."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobserver_core.errors import FetchError, MalformedUrl
from jobserver_core.uris import Uri
from jobserver_fsspec.sources import CHUNK, Interrupted, Opened, Source, Stamp
from jobserver_net.deadlines import Deadline

__all__ = ["FileSource"]

_SETTLED_NS = 2_000_000_000
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class FileSource(Source):
    """Reads regular files, and only those that are in an allowed folder once every link is followed.

    ``folders`` are the allowed ones; an empty list allows any.

    A version is told by path, inode, size and times in nanoseconds. A file that changed less than two
    seconds ago may change again without any of these, so that its version is not remembered.
    """

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self._folders = tuple(Path(os.path.abspath(folder)) for folder in folders)

    def check(self, uri: Uri) -> None:
        """Raise MalformedUrl when the path, as it is written, is in no allowed folder."""
        _check_folder(uri, os.path.normpath(uri.file), self._folders)

    @contextmanager
    def open(
        self, uri: Uri, *, known: Stamp, partial: Stamp, offset: int, deadline: Deadline
    ) -> Iterator[Opened | None]:
        """Open a file; it is always read from its beginning."""
        try:
            descriptor, real = self._open(uri)
        except OSError as error:
            raise FetchError(url=str(uri), reason=error.strerror or "it cannot be opened") from None
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
        _check_folder(uri, real, tuple(Path(os.path.realpath(folder)) for folder in self._folders))
        if not stat.S_ISREG(os.stat(real).st_mode):  # before it is opened: opening a device may do things
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


def _check_folder(uri: Uri, path: str, folders: tuple[Path, ...]) -> None:
    if folders and not any(Path(path).is_relative_to(folder) for folder in folders):
        raise MalformedUrl(url=str(uri), reason="it is in none of the folders that files may be fetched from")


def _stamp(path: str, found: os.stat_result) -> dict[str, str]:
    changed = max(found.st_mtime_ns, found.st_ctime_ns)
    if time.time_ns() - changed < _SETTLED_NS:
        return {}
    parts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return {"path": path, "version": "-".join(str(part) for part in parts)}


def _chunks(descriptor: int, before: os.stat_result) -> Iterator[bytes]:
    while chunk := _read(descriptor):
        yield chunk
    after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Interrupted("it was changed while it was read")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, CHUNK)
    except OSError as error:
        raise Interrupted(error.strerror or "it cannot be read") from None
