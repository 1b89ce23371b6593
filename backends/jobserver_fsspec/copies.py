"""Copies on this machine of blobs that are kept elsewhere."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

__all__ = ["LocalCopies"]

_PREFIX = "copies-"
_LOCK = ".lock"


@attrs.define
class _Copy:
    path: Path
    size: int
    users: int = 0
    used_at: float = 0.0
    ready: bool = False
    making: threading.Lock = attrs.field(factory=threading.Lock)


class LocalCopies:
    """Files of one process, made once for each key, kept up to ``limit`` bytes and then dropped.

    The ones used longest ago go first; those in use stay, whatever the limit. The folder is made at the
    first use, below ``parent`` or the system's temporary folder, and removed by :meth:`close` or at the
    end of the process. What a killed process left in ``parent`` is removed by the next one.
    """

    def __init__(self, parent: Path | None, *, limit: int) -> None:
        self._parent = parent
        self._limit = limit
        self._lock = threading.Lock()
        self._copies: dict[str, _Copy] = {}
        self._folder: Path | None = None
        self._remove: Callable[[], object] = lambda: None

    @contextmanager
    def file(self, key: str, size: int, make: Callable[[Path], None]) -> Iterator[Path]:
        """Give the file of a key; ``make`` writes it when it is not here, and what it raises comes out."""
        copy = self._claim(key, size)
        try:
            with copy.making:
                if not copy.ready:
                    _make_whole(copy.path, make)
                    copy.ready = True
            yield copy.path
        finally:
            self._release(key, copy)

    def close(self) -> None:
        """Remove the folder; a later use makes another. Repeating this is allowed."""
        with self._lock:
            self._copies.clear()
            self._folder = None
            self._remove()

    def _claim(self, key: str, size: int) -> _Copy:
        with self._lock:
            if self._folder is None:
                self._folder, lock = _own_folder(self._parent)
                self._remove = weakref.finalize(self, _drop_folder, self._folder, lock)
            copy = self._copies.setdefault(key, _Copy(path=self._folder / key, size=size))
            copy.users += 1
            return copy

    def _release(self, key: str, copy: _Copy) -> None:
        with self._lock:
            copy.users -= 1
            copy.used_at = time.monotonic()
            if self._copies.get(key) is not copy:
                return  # the folder was closed meanwhile
            if not copy.ready and not copy.users:
                del self._copies[key]
            self._evict()

    def _evict(self) -> None:
        total = sum(copy.size for copy in self._copies.values() if copy.ready)
        idle = [(copy.used_at, key) for key, copy in self._copies.items() if copy.ready and not copy.users]
        for _, key in sorted(idle):
            if total <= self._limit:
                return
            copy = self._copies.pop(key)
            total -= copy.size
            copy.path.unlink(missing_ok=True)


def _make_whole(path: Path, make: Callable[[Path], None]) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        make(temporary)
        temporary.chmod(0o444)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _own_folder(parent: Path | None) -> tuple[Path, int | None]:
    """Make a folder; one below ``parent`` is locked for as long as this process lives.

    It gets its final name when it is locked, so that no other process takes it for an abandoned one.
    """
    if parent is None:
        return Path(tempfile.mkdtemp(prefix="jobserver-blobs-")), None
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_abandoned(parent)
    made = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = parent / f"{_PREFIX}{secrets.token_hex(8)}"
    made.rename(folder)
    return folder, lock


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def _drop_folder(folder: Path, lock: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)
