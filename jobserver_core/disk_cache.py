"""Reproducible files and directories on disk, kept while they are used and while there is room.

Theory
======

Fetched files, copies of blobs from object stores, and unpacked packages are all of this kind. Each is an
*entry*: made once, complete when it appears, never changed afterwards. Four rules make the cache safe for
several threads and processes, and for a process that is killed at any moment:

- **Leases are locks of the operating system** (``flock``, shared, on the entry itself). They end with the
  process, so that nothing has to be repaired after a crash. A process holds one lock for an entry, however
  many leases it gives out.
- **An entry that is being made is a part**, in the directory ``parts``, locked by its maker. It gets its name
  by a rename once it is complete and synced. A part whose lock is free is abandoned. It is removed only
  after a minute, because its maker locks it a moment after creating it.
- **Removing an entry takes its exclusive lock**, which is not available while the entry is leased. A lease
  that waited for the removal checks that the entry still exists.
- **The time of the last use is the entry's own modification time**, so that it outlives the server.

The size limit applies to entries without a lease: the least recently used are removed first. Entries unused
for ``max_age`` are removed even if there is room.

A process has three locks. ``_making`` has one for each entry that is being made, so that it is
made once; its holder takes the others briefly. ``_lock`` guards the tables of leases and sizes; under it
only shared locks of the operating system are taken, which the remover of an entry delays for a moment at
most. ``_opening`` guards the creation of the cache's directories; nothing else is taken under it.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import attrs

from jobserver_core.data_directory import create_private
from jobserver_core.forks import remove_with

_log = logging.getLogger(__name__)

_MAX_AGE = 30 * 24 * 3600.0
"""Seconds after which an unused entry is removed, even if there is room for it: 30 days."""
_PART_SECONDS = 60.0
"""Seconds for which a new part is spared, because its maker may not have locked it yet."""
_POLL_SECONDS = 0.01
"""The pause between two attempts to lock a file: the kernel cannot wait for a lock with a timeout."""
_TIDY_SECONDS = 3600.0
"""The pause between two searches for old entries, each of which reads the whole cache."""
_READ = os.O_RDONLY | os.O_CLOEXEC


class Part:
    """A file that is being written; :meth:`close` removes it unless it has been published."""

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
        """Discard the written bytes."""
        self.file.seek(0)
        self.file.truncate()
        self.size = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The SHA-256 of the written bytes, in hexadecimal."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file, and remove it if it is still a part. Idempotent."""
        self.file.close()
        self.path.unlink(missing_ok=True)


class CacheLease:
    """An entry that is not removed before :meth:`release`."""

    def __init__(self, path: Path, release: Callable[[], None]) -> None:
        self.path = path
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Let the cache remove the entry. Idempotent."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> CacheLease:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()


@attrs.define
class _Held:
    descriptor: int
    leases: int = 1


class DiskCache:
    """Entries by name. ``limit`` is in bytes, ``max_age`` in seconds.

    Without a ``directory``, the cache is in a temporary one, which :meth:`close` or the end of the process
    removes. ``removed`` is called with the name of each entry that was removed. Methods raise OSError if the
    disk refuses something; evicting entries never raises.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        limit: int,
        max_age: float = _MAX_AGE,
        removed: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self.limit = limit
        self._given = directory
        self._max_age = max_age
        self._removed = removed
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._directory: Path | None = None
        self._held: dict[str, _Held] = {}
        self._idle: dict[str, int] = {}
        self._unwanted: set[str] = set()
        self._making: dict[str, tuple[threading.Lock, list[None]]] = {}
        self._tidied_at = float("-inf")
        self._finalizer: Callable[[], object] = lambda: None

    # -- entries -----------------------------------------------------------------------------------

    def lease(self, name: str, *, size: int | None = None) -> CacheLease | None:
        """Return a lease of an entry, or None if it is missing or is a file of another size."""
        path = self.path(name)
        with self._lock:
            held = self._held.get(name)
            if held is not None:
                held.leases += 1
                return self._lease(name, path)
            descriptor = _shared(path)
            if descriptor is None:
                return None
            if size is None or os.fstat(descriptor).st_size == size:
                self._held[name] = _Held(descriptor)
                self._idle.pop(name, None)
                return self._lease(name, path)
            os.close(descriptor)
        self._drop(name)  # it is damaged
        return None

    def obtain(self, name: str, make: Callable[[Path], object], *, size: int | None = None) -> CacheLease:
        """Return a lease of an entry; if it is missing, ``make`` writes it to a path.

        It is made once, even if several threads want it at the same time. Exceptions of ``make`` propagate.
        """
        lease = self.lease(name, size=size)
        if lease is not None:
            return lease
        with self._making_alone(name):
            return self.lease(name, size=size) or self._make(name, make)

    def new_part(self) -> Part:
        """Return a new file to write to."""
        return Part(self._subdirectory("parts") / secrets.token_hex(16))

    def publish(self, name: str, part: Part) -> CacheLease:
        """Publish a part as the entry of a name, and lease it; an existing entry is kept."""
        with self._lock:
            self._unwanted.discard(name)
        os.fchmod(part.file.fileno(), 0o444)
        os.fsync(part.file.fileno())
        fcntl.flock(part.file, fcntl.LOCK_UN)
        return self._publish(name, part.path, part.size)

    def discard(self, name: str) -> None:
        """Remove an entry as soon as it is unused, even if there is room."""
        with self._lock:
            self._unwanted.add(name)
            used = name in self._held
        if not used:
            self._drop(name)

    def path(self, name: str) -> Path:
        """Return the path of the entry of a name, whether or not it exists."""
        return self._subdirectory("contents") / name

    @contextmanager
    def locked(self, name: str, expired: Callable[[], bool]) -> Iterator[bool]:
        """Hold the lock of a name inside the block, exclusively among all processes.

        Yields False, without the lock, once ``expired`` returns true.
        """
        path = self._subdirectory("locks") / name
        descriptor = _exclusive(path, expired)
        if descriptor is None:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def close(self) -> None:
        """Remove the cache if it is in a temporary directory. Idempotent."""
        if self._given is not None:
            return
        with self._opening:
            self._directory = None
            self._idle.clear()
            finalizer, self._finalizer = self._finalizer, lambda: None
        finalizer()

    # -- inside ------------------------------------------------------------------------------------

    def _subdirectory(self, name: str) -> Path:
        with self._opening:
            if self._directory is None:
                self._directory = self._open_directory()
            return self._directory / name

    def _open_directory(self) -> Path:
        directory = self._given
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="jobserver-cache-"))
            self._finalizer = remove_with(self, directory)
        for name in ("contents", "parts", "locks"):
            create_private(directory / name)
        return directory

    def _lease(self, name: str, path: Path) -> CacheLease:
        return CacheLease(path, lambda: self._release(name, path))

    def _make(self, name: str, make: Callable[[Path], object]) -> CacheLease:
        part = self._subdirectory("parts") / secrets.token_hex(16)
        part.mkdir(mode=0o700)
        descriptor = os.open(part, _READ)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            path = part / name
            make(path)
            if path.is_dir():
                return self._publish(name, path, None)
            path.chmod(0o444)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            return self._publish(name, path, path.stat().st_size)
        finally:
            os.close(descriptor)
            shutil.rmtree(part, ignore_errors=True)

    def _publish(self, name: str, made: Path, size: int | None) -> CacheLease:
        path = self.path(name)
        while (lease := self.lease(name, size=size)) is None:
            descriptor = os.open(made, _READ)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            with self._lock:
                try:
                    if name in self._held:
                        raise FileExistsError(path)
                    made.rename(path)
                except OSError:
                    os.close(descriptor)
                    if path.exists():
                        continue  # another thread or process was first
                    raise
                self._held[name] = _Held(descriptor)
                return self._lease(name, path)
        return lease

    @contextmanager
    def _making_alone(self, name: str) -> Iterator[None]:
        with self._lock:
            lock, users = self._making.setdefault(name, (threading.Lock(), []))
            users.append(None)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                users.pop()
                if not users:
                    self._making.pop(name, None)

    def _release(self, name: str, path: Path) -> None:
        with self._lock:
            held = self._held[name]
            held.leases -= 1
            if held.leases:
                return
            del self._held[name]
            now = time.time_ns()  # utime's own time has a resolution of milliseconds only
            with suppress(OSError):
                os.utime(path, ns=(now, now))
            os.close(held.descriptor)
            unwanted = name in self._unwanted
        try:
            if unwanted:
                self._drop(name)
                return
            size = _size(path)
            with self._lock:
                if name not in self._held and path.exists():
                    self._idle[name] = size
                due = time.monotonic() - self._tidied_at >= _TIDY_SECONDS
                full = sum(self._idle.values()) > self.limit
            if due or full:
                self._tidy()
        except OSError as error:
            _log.warning("cannot make room in %s: %s", path.parent, error)

    def _tidy(self) -> None:
        """Evict entries that are too old or exceed the limit, and remove abandoned parts."""
        self._drop_parts()
        now = time.time()
        found = []
        for entry in os.scandir(self._subdirectory("contents")):
            with suppress(OSError):
                found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
        idle: dict[str, int] = {}
        room = self.limit
        for used_ns, name in sorted(found, reverse=True):
            if name in self._held:
                continue
            known = self._idle.get(name)
            size = _size(self.path(name)) if known is None else known
            room -= size
            expired = now - used_ns / 1e9 > self._max_age
            if not ((room < 0 or expired) and self._drop(name)):
                idle[name] = size
        with self._lock:
            self._idle = {name: size for name, size in idle.items() if name not in self._held}
            self._tidied_at = time.monotonic()

    def _drop(self, name: str) -> bool:
        """Remove an entry unless it is leased; return whether it is gone."""
        path = self.path(name)
        try:
            descriptor = os.open(path, _READ)
        except OSError:
            return not path.exists()
        removed: Path | None = None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _still_at(path, descriptor):
                return True
            removed = self._subdirectory("parts") / secrets.token_hex(16)
            path.rename(removed)  # atomic, so that no process uses half a directory
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
            if removed is not None:
                _remove(removed)
        with self._lock:
            self._idle.pop(name, None)
            self._unwanted.discard(name)
        self._removed(name)
        return True

    def _drop_parts(self) -> None:
        """Remove unlocked parts, whose maker has ended; see the theory for new ones."""
        for entry in os.scandir(self._subdirectory("parts")):
            with suppress(OSError):
                descriptor = os.open(entry.path, _READ)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if time.time() - os.fstat(descriptor).st_mtime > _PART_SECONDS:
                        _remove(Path(entry.path))
                finally:
                    os.close(descriptor)


def _exclusive(path: Path, expired: Callable[[], bool]) -> int | None:
    """Lock the file at a path, which its previous holder may remove at the same time."""
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
    """Open an entry with a shared lock; return None if it is missing, or is being removed."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return None
    # Only the remover of the entry locks it exclusively, for a moment; then the entry is gone.
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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Return the size of a file, or of the files in a directory; files that disappear do not count."""
    try:
        found = os.lstat(path)
    except OSError:
        return 0
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size
    total = 0
    for root, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total
