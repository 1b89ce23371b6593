"""Python packages of class paths, unpacked once for each content, and kept within a limit."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from jobserver_core.binaries.archives import unpack
from jobserver_core.disk_cache import CacheLease, DiskCache
from jobserver_core.errors import StorageError
from jobserver_core.ports import JobCode

__all__ = ["PackageLease", "Packages"]


class Packages:
    """Unpacks wheels and eggs into folders named by their digest.

    They are entries of a :class:`DiskCache`: those that no context has leased stay for the next one, up to
    ``limit`` bytes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._cache = DiskCache(folder, limit=limit)

    def lease(self) -> PackageLease:
        """Return what a context gets its packages by; until it is closed they are all kept."""
        return PackageLease(self._cache)


class PackageLease:
    """The packages that one context may import from, for as long as it lives."""

    def __init__(self, cache: DiskCache) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._leases: dict[str, CacheLease] = {}
        self._closed = False

    def ready(self, codes: Iterable[JobCode]) -> bool:
        """Whether all Python packages among these are unpacked already."""
        try:
            return all(self._cache.path(_name(code)).is_dir() for code in codes if code.type.python)
        except OSError:
            return False

    def prepare(self, codes: Iterable[JobCode]) -> list[dict[str, str]]:
        """Unpack what is not yet; return each package's digest and folder.

        Raises NotAnArchive, TooLarge or StorageError.
        """
        return [self._prepared(code) for code in codes if code.type.python]

    def close(self) -> None:
        """Let go of all of them; those that are too many are removed. Idempotent."""
        with self._lock:
            self._closed = True
            leases, self._leases = list(self._leases.values()), {}
        for lease in leases:
            lease.release()

    def _prepared(self, code: JobCode) -> dict[str, str]:
        name = _name(code)
        try:
            lease = self._cache.obtain(name, lambda path: unpack(code.path, path, kind=code.type))
        except OSError as error:
            reason = error.strerror or str(error)
            raise StorageError(message=f"cannot unpack {code.source}: {reason}") from error
        folder = str(lease.path)
        with self._lock:
            if not self._closed and name not in self._leases:
                self._leases[name] = lease
                return {"digest": code.digest, "folder": folder}
        lease.release()
        return {"digest": code.digest, "folder": folder}


def _name(code: JobCode) -> str:
    return f"{code.digest}-{code.type.value.lower()}"
