"""The cache of fetched files, with the version of each file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import attrs

from jobserver_core.disk_cache import CacheLease, DiskCache, Part
from jobserver_fsspec.sources import Stamp


@attrs.frozen(kw_only=True)
class Pinned:
    """A file of the cache that is not removed until its lease is released."""

    lease: CacheLease
    digest: str
    size: int
    stamp: Stamp


class FetchCache:
    """Files by key, with the version of each file.

    The content of a key is an entry ``<key>.<sha256>`` of a :class:`DiskCache`. A small file in ``entries``
    records the newest content and its version. It is removed together with the content.
    """

    def __init__(self, directory: Path | None, *, limit: int) -> None:
        self._contents = DiskCache(directory, limit=limit, removed=self._forget)

    def locked(self, key: str, expired: Callable[[], bool]) -> AbstractContextManager[bool]:
        """Hold the lock of a key inside the block. The block gets False if ``expired`` came true first."""
        return self._contents.locked(key, expired)

    def new_part(self) -> Part:
        """Create a file to write to."""
        return self._contents.new_part()

    def find(self, key: str) -> Pinned | None:
        """Pin and return the cached file of a key, or return None. The key's lock must be held."""
        found = self._recorded(key)
        return None if found is None else self.pin(key, *found)

    def pin(self, key: str, digest: str, size: int, stamp: Stamp) -> Pinned | None:
        """Pin and return a file if it is still cached, otherwise return None."""
        lease = self._contents.lease(f"{key}.{digest}", size=size)
        return None if lease is None else Pinned(lease=lease, digest=digest, size=size, stamp=stamp)

    def add(self, key: str, part: Part, stamp: Stamp, shown: str) -> Pinned:
        """Add a complete part as the file of a key, and pin it. The key's lock must be held.

        It can be found again only if it has a stamp. ``shown`` is a label in the entry, for people who
        inspect the directory.
        """
        name = f"{key}.{part.digest}"
        lease = self._contents.publish(name, part)
        pinned = Pinned(lease=lease, digest=part.digest, size=part.size, stamp=stamp)
        former = self._recorded(key)
        try:
            if former is not None and former[0] != part.digest:
                self._contents.discard(f"{key}.{former[0]}")
            self._record(key, pinned, shown)
        except OSError:
            lease.release()
            raise
        if not stamp:
            self._contents.discard(name)
        return pinned

    def close(self) -> None:
        """Remove the cache if it is in a temporary directory."""
        self._contents.close()

    def _entry(self, key: str) -> Path:
        return self._contents.path("").parent / "entries" / key

    def _recorded(self, key: str) -> tuple[str, int, Stamp] | None:
        """Return the digest, size and stamp of the newest content of a key."""
        try:
            entry = json.loads(self._entry(key).read_bytes())
            return str(entry["digest"]), int(entry["size"]), dict(entry["stamp"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _record(self, key: str, pinned: Pinned, shown: str) -> None:
        path = self._entry(key)
        if not pinned.stamp:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(mode=0o700, exist_ok=True)
        entry = {"uri": shown, "digest": pinned.digest, "size": pinned.size, "stamp": dict(pinned.stamp)}
        part = self.new_part()
        try:
            part.write(json.dumps(entry).encode())
            os.fsync(part.file.fileno())
            part.path.replace(path)
        finally:
            part.close()

    def _forget(self, name: str) -> None:
        """Remove the entry of a content that was removed."""
        key, _, digest = name.partition(".")
        found = self._recorded(key)
        if found is not None and found[0] == digest:
            with suppress(OSError):
                self._entry(key).unlink()
