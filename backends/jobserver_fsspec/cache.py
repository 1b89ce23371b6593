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
    """A file of the cache that is pinned: it is not removed until :meth:`release`."""

    lease: CacheLease
    digest: str
    size: int
    stamp: Stamp

    @property
    def path(self) -> Path:
        return self.lease.path

    def release(self) -> None:
        """Allow the cache to remove the file. Idempotent."""
        self.lease.release()


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
        try:
            entry = json.loads(self._entry(key).read_bytes())
            digest, size, stamp = str(entry["digest"]), int(entry["size"]), dict(entry["stamp"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return self.pin(key, digest, size, stamp)

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
        try:
            self._discard_others(key, name)
            self._record(key, pinned, shown)
        except OSError:
            pinned.release()
            raise
        if not stamp:
            self._contents.discard(name)
        return pinned

    def close(self) -> None:
        """Remove the cache if it is in a temporary directory."""
        self._contents.close()

    def _entry(self, key: str) -> Path:
        return self._contents.path("").parent / "entries" / key

    def _discard_others(self, key: str, name: str) -> None:
        """Discard the previous content of a key."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            former = f"{key}.{json.loads(self._entry(key).read_bytes())['digest']}"
            if former != name:
                self._contents.discard(former)

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
        path = self._entry(key)
        with suppress(OSError, ValueError, TypeError, KeyError):
            if json.loads(path.read_bytes())["digest"] == digest:
                path.unlink()
