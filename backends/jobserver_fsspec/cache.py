"""Fetched files on this machine, for as long as they are used and while there is room."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import attrs

from jobserver_fsspec.sources import Stamp

__all__ = ["FetchCache", "Part", "Pinned"]

_POLL_SECONDS = 0.01
_PART_SECONDS = 60.0
_READ = os.O_RDONLY | os.O_CLOEXEC


@attrs.define(kw_only=True)
class Pinned:
    """A file of the cache that is not removed until :meth:`release`; its users share a lock on it.

    ``added`` tells that it was not here before.
    """

    path: Path
    digest: str
    size: int
    stamp: Stamp
    descriptor: int
    added: bool = False

    def release(self) -> None:
        """Let the cache remove the file; repeating this is allowed."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Part:
    """A file that is being written; :meth:`close` removes it unless the cache took it over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: BinaryIO = path.open("xb", buffering=0)
        fcntl.flock(self.file, fcntl.LOCK_EX)
        self.size = 0
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append bytes."""
        rest = memoryview(data)
        while rest:
            rest = rest[self.file.write(rest) :]
        self._hash.update(data)
        self.size += len(data)

    def restart(self) -> None:
        """Drop what was written."""
        self.file.seek(0)
        self.file.truncate()
        self.size = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The sha256 of what was written, in hex."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file, and remove it where it is still a part."""
        self.file.close()
        self.path.unlink(missing_ok=True)


class FetchCache:
    """Files by key, each with what tells its version; the ones used longest ago go when there are too many.

    It is safe for several threads and processes, and for one that is killed at any moment: locks are
    the system's (``flock``) and go with their holder, files appear by a rename when they are whole and
    synced. ``limit`` is in bytes; files in use stay whatever it is, so that 0 keeps none but those.
    """

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder = folder
        self._limit = limit
        self._untidy = False
        self._parts, self._entries, self._contents, self._locks = (
            folder / name for name in ("parts", "entries", "contents", "locks")
        )
        for path in (self._parts, self._entries, self._contents, self._locks):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._drop_parts()

    @contextmanager
    def locked(self, key: str, expired: Callable[[], bool]) -> Iterator[bool]:
        """Hold the lock of a key inside the block; False, without it, when the time for that is over."""
        path = self._locks / key
        descriptor = self._lock(path, expired)
        if descriptor is None:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def new_part(self) -> Part:
        """Return a new file to write to."""
        return Part(self._parts / secrets.token_hex(16))

    def find(self, key: str) -> Pinned | None:
        """Return the kept file of a key, pinned, or None. The key's lock must be held."""
        try:
            entry = json.loads((self._entries / key).read_bytes())
            digest, size, stamp = str(entry["digest"]), int(entry["size"]), dict(entry["stamp"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return self.pin(key, digest, size, stamp)

    def pin(self, key: str, digest: str, size: int, stamp: Stamp) -> Pinned | None:
        """Return a file that may still be here, pinned, or None."""
        path = self._contents / f"{key}.{digest}"
        descriptor = _shared(path)
        if descriptor is None:
            return None
        if os.fstat(descriptor).st_size != size:  # damaged
            path.unlink(missing_ok=True)
            os.close(descriptor)
            return None
        return Pinned(path=path, digest=digest, size=size, stamp=stamp, descriptor=descriptor)

    def add(self, key: str, part: Part, stamp: Stamp, shown: str) -> Pinned:
        """Take a part over as the file of a key, pinned. The key's lock must be held.

        It can be found again when there is a stamp to tell its version by. ``shown`` goes into
        the entry for people who look at the folder.
        """
        same = self.pin(key, part.digest, part.size, stamp)
        if same is None:
            os.fchmod(part.file.fileno(), 0o444)
            os.fsync(part.file.fileno())
            path = self._contents / f"{key}.{part.digest}"
            descriptor = os.open(part.path, _READ)
            fcntl.flock(part.file, fcntl.LOCK_UN)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            part.path.replace(path)
            same = Pinned(path=path, digest=part.digest, size=part.size, stamp=stamp, descriptor=descriptor)
        same.added = True
        try:
            self._record(key, same, shown)
        except OSError:
            same.release()
            raise
        return same

    def renew(self, pinned: Pinned) -> None:
        """Note that a file was used."""
        with suppress(OSError):
            os.utime(pinned.path)

    def release(self, pinned: Pinned) -> None:
        """Release a file, and make room when it was added or what was to go before was in use."""
        pinned.release()
        if pinned.added or self._untidy:
            with suppress(OSError):
                self._tidy()

    def _tidy(self) -> None:
        """Remove what no entry names and what is over the limit, but nothing that is in use."""
        self._untidy = False
        self._drop_parts()
        found = []
        for entry in os.scandir(self._contents):
            with suppress(OSError):
                found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.name))
        named = {name for _, _, name in found if self._names(name)}
        total = sum(size for _, size, name in found if name in named)
        for _, size, name in sorted(found):
            if name in named and total <= self._limit:
                continue
            if not self._drop(name):
                self._untidy = True
            elif name in named:
                total -= size

    def _names(self, name: str) -> bool:
        key, _, digest = name.partition(".")
        try:
            return bool(json.loads((self._entries / key).read_bytes())["digest"] == digest)
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def _record(self, key: str, pinned: Pinned, shown: str) -> None:
        path = self._entries / key
        if not pinned.stamp:
            path.unlink(missing_ok=True)
            return
        entry = {"uri": shown, "digest": pinned.digest, "size": pinned.size, "stamp": dict(pinned.stamp)}
        part = self.new_part()
        try:
            part.write(json.dumps(entry).encode())
            os.fsync(part.file.fileno())
            part.path.replace(path)
        finally:
            part.close()

    def _drop(self, name: str) -> bool:
        """Remove a file that nobody uses, and its entry; tell whether it is gone."""
        path = self._contents / name
        try:
            descriptor = os.open(path, _READ)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _still_at(path, descriptor):
                if self._names(name):
                    (self._entries / name.partition(".")[0]).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)

    def _drop_parts(self) -> None:
        """Remove parts whose writer is gone: it held a lock on them, but for the moment after it made one."""
        for entry in os.scandir(self._parts):
            with suppress(OSError):
                descriptor = os.open(entry.path, _READ)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if time.time() - os.fstat(descriptor).st_mtime > _PART_SECONDS:
                        os.unlink(entry.path)
                finally:
                    os.close(descriptor)

    def _lock(self, path: Path, expired: Callable[[], bool]) -> int | None:
        """Lock the file at a path, which its last holder may remove meanwhile."""
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _still_at(path, descriptor):
                    return descriptor
            except BlockingIOError:
                if expired():
                    os.close(descriptor)
                    return None
                time.sleep(_POLL_SECONDS)
            os.close(descriptor)


def _shared(path: Path) -> int | None:
    """Open a file with a shared lock; None when it is not there, or goes just now."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return None
    # Only who removes the file has it for himself, for a moment; when he is done it is not there any more.
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if _still_at(path, descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _still_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
