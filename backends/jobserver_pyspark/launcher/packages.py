"""Python packages of class paths, unpacked once per content."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from jobserver_core.binaries.archives import unpack
from jobserver_core.disk_cache import CacheLease, DiskCache
from jobserver_core.errors import StorageError
from jobserver_core.ports import JobCode
from jobserver_pyspark.protocol.messages import Package


class PackageLease:
    """The packages that one context may import from, kept until this is closed.

    Wheels and eggs are unpacked into entries of the cache, named by their digest. Those that no context has
    leased stay for the next one, up to the limit of the cache.
    """

    def __init__(self, cache: DiskCache) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._leases: dict[str, CacheLease] = {}
        self._closed = False

    def ready(self, codes: Iterable[JobCode]) -> bool:
        """Return whether all Python packages among these are unpacked already."""
        try:
            return all(self._cache.path(_name(code)).is_dir() for code in codes if code.type.python)
        except OSError:
            return False

    def prepare(self, codes: Iterable[JobCode]) -> tuple[Package, ...]:
        """Unpack the Python packages among these that are not unpacked yet, and return all of them.

        Raises:
            NotAnArchive: A package is not an archive of its type.
            TooLarge: One is too large when it is unpacked.
            StorageError: The disk is full, or fails otherwise.
        """
        return tuple(self._unpack(code) for code in codes if code.type.python)

    def close(self) -> None:
        """Release all packages; the cache removes those over its limit. Idempotent."""
        with self._lock:
            self._closed = True
            leases, self._leases = list(self._leases.values()), {}
        for lease in leases:
            lease.release()

    def _unpack(self, code: JobCode) -> Package:
        name = _name(code)
        try:
            lease = self._cache.obtain(name, lambda path: unpack(code.path, path, kind=code.type))
        except OSError as error:
            reason = error.strerror or str(error)
            raise StorageError(message=f"cannot unpack {code.source}: {reason}") from error
        package = Package(digest=code.digest, directory=str(lease.path))
        with self._lock:
            if not self._closed and name not in self._leases:
                self._leases[name] = lease
                return package
        lease.release()
        return package


def _name(code: JobCode) -> str:
    return f"{code.digest}-{code.type.value.lower()}"
