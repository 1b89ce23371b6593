"""Python packages of class paths, unpacked once for each content, and kept within a limit."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

from jobserver_core.binaries.archives import unpack
from jobserver_core.ports import JobCode

__all__ = ["PackageLease", "Packages"]

_log = logging.getLogger(__name__)

_REMOVED = ".removed"
_STALE_SECONDS = 24 * 3600
"""The age, in seconds, from which half an unpacked package is what a killed server has left."""


class Packages:
    """Unpacks wheels and eggs into folders named by their digest; they are never changed afterwards.

    Those that no context has leased stay for the next one, up to ``limit`` bytes: then those go whose last
    use is longest ago. The time of that use is the folder's own, so that it outlives a server.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._leases: Counter[str] = Counter()
        self._sizes: dict[str, int] = {}

    def lease(self) -> PackageLease:
        """Return what a context gets its packages by; until it is closed they are all kept."""
        return PackageLease(self)

    def _take(self, code: JobCode) -> None:
        name = self._path(code).name
        with self._lock:
            self._leases[name] += 1
            self._sizes.pop(name, None)  # byte code comes to it in use

    def _unpacked(self, code: JobCode) -> Path:
        return unpack(code.path, self._path(code), kind=code.type)

    def _release(self, names: Iterable[str]) -> None:
        with self._lock:
            for name in names:
                self._leases[name] -= 1
                with contextlib.suppress(OSError):  # it could not be unpacked
                    os.utime(self._folder / name)
            self._leases = +self._leases
        try:
            self._evict()
        except OSError as error:
            _log.warning("unpacked packages cannot be removed: %s", error)

    def _path(self, code: JobCode) -> Path:
        return self._folder / f"{code.digest}-{code.type.value.lower()}"

    def _evict(self) -> None:
        """Remove what is over the limit, and what a killed server removed or unpacked by half."""
        self._remove_remains()
        for folder in self._idle():  # measured outside of the lock, once for each use
            self._sizes.setdefault(folder.name, _size(folder))
        with self._lock:
            room = self._limit
            for folder in self._idle():
                room -= self._sizes.get(folder.name, 0)
                if room < 0:
                    # A rename is all or nothing: nobody ever imports from half a package.
                    with contextlib.suppress(OSError):
                        folder.rename(self._folder / f".{uuid4().hex}{_REMOVED}")
                    self._sizes.pop(folder.name, None)
        self._remove_remains()

    def _idle(self) -> list[Path]:
        """The packages that nobody has leased, the last used one first."""
        found = [(_used_at(path), path) for path in self._listed() if not path.name.startswith(".")]
        return [path for _, path in sorted(found, reverse=True) if self._leases[path.name] == 0]

    def _remove_remains(self) -> None:
        for path in self._listed():
            stale = path.name.endswith(".part") and time.time() - _used_at(path) > _STALE_SECONDS
            if path.name.startswith(".") and (stale or path.name.endswith(_REMOVED)):
                shutil.rmtree(path, ignore_errors=True)

    def _listed(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []


class PackageLease:
    """The packages that one context may import from, for as long as it lives."""

    def __init__(self, packages: Packages) -> None:
        self._packages = packages
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._closed = False

    def ready(self, codes: Iterable[JobCode]) -> bool:
        """Whether all Python packages among these are unpacked already."""
        return all(self._packages._path(code).is_dir() for code in codes if code.type.python)

    def prepare(self, codes: Iterable[JobCode]) -> list[dict[str, str]]:
        """Unpack what is not yet; return each package's digest and folder.

        Raises NotAnArchive, TooLarge or StorageError.
        """
        return [self._prepared(code) for code in codes if code.type.python]

    def _prepared(self, code: JobCode) -> dict[str, str]:
        name = self._packages._path(code).name
        with self._lock:
            if name not in self._names and not self._closed:
                self._packages._take(code)
                self._names.add(name)
        return {"digest": code.digest, "folder": str(self._packages._unpacked(code))}

    def close(self) -> None:
        """Let go of all of them; those that are too many are removed. Repeating is allowed."""
        with self._lock:
            self._closed = True
            names, self._names = self._names, set()
        self._packages._release(names)


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # it is going


def _size(folder: Path) -> int:
    """Return the bytes of the files in a folder; what goes meanwhile does not count."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total
