"""Python environments that are packed in one of a context's archives, as venv-pack and conda-pack make them.

Executors unpack the archives of ``spark.archives`` themselves, each into a directory of its name. The driver
needs the same interpreter before Spark runs, so the launcher unpacks the archive as well: once per content,
into the cache that also has the packages of jobs. In local mode, tasks run in that one, too, and Spark does
not get the archive: it would unpack a copy for each context that nothing uses.

A context keeps importing from its environment for as long as it lives, even while no server runs. So the lock
that keeps the cache from removing the environment belongs to the context's host: the server opens it, and the
host inherits it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import attrs

from jobserver_core.disk_cache import CacheLease, DiskCache
from jobserver_core.errors import InvalidSetting, LaunchError, StorageError, TooLarge

ENDINGS = (".tar.gz", ".tgz", ".tar")
"""The ends of the names of archives that both Spark and the launcher unpack."""
MAX_MEMBERS = 1_000_000
"""How many files an environment may have; large ones have a few hundred thousand."""
MAX_SIZE = 64 * 1024**3
"""How many bytes an environment may have when it is unpacked."""
LEAST_FREE = 2**30
"""How many bytes of its disk stay free for contexts and their logs."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")


@attrs.frozen(kw_only=True)
class PackedPython:
    """An interpreter in an archive: ``program`` is its path there, ``name`` the directory on executors."""

    archive: Path
    name: str
    program: str

    @property
    def on_executors(self) -> str:
        """The path of the interpreter in the working directory of an executor."""
        return f"./{self.name}/{self.program}"


def is_packed(python: str) -> bool:
    """Whether a program is a path in an archive: neither absolute nor a plain name."""
    path = PurePosixPath(python)
    return not path.is_absolute() and len(path.parts) > 1


def packed_python(key: str, python: str, conf: Mapping[str, str]) -> PackedPython | None:
    """Return the interpreter that a relative path means, or None for any other program.

    ``key`` is the setting with the path, ``conf`` has the archives in ``spark.archives``.

    Raises:
        InvalidSetting: No archive has this name, or the archive cannot be unpacked here.
    """
    if not is_packed(python):
        return None
    path = PurePosixPath(python)
    archives = dict(_archives(conf.get("spark.archives", "")))
    name, program = path.parts[0], PurePosixPath(*path.parts[1:])
    if name not in archives or ".." in path.parts:
        names = ", ".join(archives) or "none"
        raise InvalidSetting(
            key=key,
            message=f"expected an absolute path, the name of a program, or NAME/bin/python with an archive "
            f"file.tar.gz#NAME of spark.archives (there: {names}), got {python!r}",
        )
    return PackedPython(archive=_local(key, archives[name]), name=name, program=str(program))


def _archives(value: str) -> list[tuple[str, str]]:
    """Return the names and addresses of archives; Spark names those without a fragment after their file."""
    texts = [text.strip() for text in value.split(",") if text.strip()]
    return [(text.partition("#")[2] or PurePosixPath(text).name, text.partition("#")[0]) for text in texts]


def _local(key: str, address: str) -> Path:
    scheme = _SCHEME.match(address)
    if scheme is not None and scheme[1].lower() not in ("file", "local"):
        raise InvalidSetting(
            key=key,
            message=f"{address} is not on the server's machine, where the driver needs it as well; give "
            f"spark.archives a local file, or set {key} to an interpreter of this machine and "
            "spark.pyspark.python to the one in the archive",
        )
    path = Path(unquote(re.sub("^//", "", address[scheme.end() :])) if scheme is not None else address)
    if not path.name.endswith(ENDINGS):
        problem = f"{path} has a Python environment; expected {', '.join(ENDINGS)}"
    elif not path.is_absolute():
        problem = f"expected the absolute path of a file on the server's machine, got {path}"
    elif not path.is_file():
        problem = f"file {path} does not exist on the server's machine"
    else:
        return path
    raise InvalidSetting(key="spark.archives", message=problem)


def without_environments(python: str | None, conf: Mapping[str, str]) -> dict[str, str]:
    """Return the SparkConf of a local application without the archives that its interpreters are in."""
    programs = [program for program in (python, conf.get("spark.pyspark.python")) if program is not None]
    names = {PurePosixPath(program).parts[0] for program in programs if is_packed(program)}
    texts = [text.strip() for text in conf.get("spark.archives", "").split(",")]
    kept = [text for text in texts if text and not names.intersection(dict(_archives(text)))]
    rest = {key: value for key, value in conf.items() if key != "spark.archives"}
    return {**rest, "spark.archives": ",".join(kept)} if kept else rest


class EnvironmentLock:
    """A shared lock on an unpacked environment, open as ``descriptor`` until the object is collected."""

    def __init__(self, directory: Path) -> None:
        self.descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    def __del__(self) -> None:
        os.close(self.descriptor)


@attrs.frozen(kw_only=True)
class Pythons:
    """The interpreters of a context: of the driver's processes on this machine, and of executors.

    ``locks`` are those of the environments that were unpacked for them.
    """

    driver: str
    executors: str
    locks: tuple[EnvironmentLock, ...] = ()


Unpacking = Callable[[Path], AbstractContextManager[object]]
"""Called with an archive that is not in the cache, and entered while it is unpacked."""


class Environments:
    """Unpacks environments into a cache."""

    def __init__(self, cache: DiskCache, unpacking: Unpacking = nullcontext) -> None:
        self._cache = cache
        self._unpacking = unpacking

    def pythons(self, python: str | None, conf: Mapping[str, str], *, local: bool) -> Pythons:
        """Return the interpreters for ``python.executable``, after unpacking what they are in.

        ``spark.pyspark.python`` of ``conf`` is the interpreter of executors, by default the same as that of
        the driver. In ``local`` mode, executors find it on this machine as well.

        Raises:
            JobServerError: Any error of :meth:`unpack` and :func:`packed_python`.
        """
        driver, executors = python or sys.executable, conf.get("spark.pyspark.python")
        locks = []
        if (packed := packed_python("python.executable", driver, conf)) is not None:
            driver, lock = self.unpack(packed)
            locks.append(lock)
            executors = executors or (None if local else packed.on_executors)
        if local and executors and (packed := packed_python("spark.pyspark.python", executors, conf)):
            executors, lock = self.unpack(packed)
            locks.append(lock)
        return Pythons(driver=driver, executors=executors or driver, locks=tuple(locks))

    def unpack(self, packed: PackedPython) -> tuple[str, EnvironmentLock]:
        """Return the path of an interpreter on this machine, and the lock of its environment.

        Raises:
            LaunchError: The archive does not have this interpreter, or it cannot run on this machine.
            NotAnArchive: The file is not a tar archive.
            TooLarge: The environment is too large.
            StorageError: The archive cannot be read, or the disk has no room for the environment.
        """
        try:
            status = packed.archive.stat()
            identity = f"{packed.archive.resolve()} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
            name = f"environment-{hashlib.sha256(identity.encode()).hexdigest()}"
            with self._obtain(name, packed.archive) as lease:
                lock = EnvironmentLock(lease.path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise StorageError(message=f"cannot unpack {packed.archive}: {reason}") from error
        program = lease.path / packed.program
        if not program.exists():
            raise LaunchError(message=_missing(packed, program))
        return str(program), lock

    def _obtain(self, name: str, archive: Path) -> CacheLease:
        """Return a lease of an unpacked archive. Also waits while another context unpacks it."""
        if (lease := self._cache.lease(name)) is not None:
            return lease
        with self._unpacking(archive):
            return self._cache.obtain(name, lambda path: _extract(archive, path))


def _missing(packed: PackedPython, program: Path) -> str:
    if not program.is_symlink():
        return f"{packed.archive} has no {packed.program}: is it packed with venv-pack or conda-pack?"
    return (
        f"{packed.program} in {packed.archive} is a link to {os.path.realpath(program)}, which does not "
        "exist on this machine: install that Python here and on every node, or use conda-pack, whose "
        "archives have a Python of their own"
    )


def _extract(archive: Path, directory: Path) -> None:
    """Unpack an archive. Links may lead out of it, as to the base interpreter; no file is written there."""
    if not hasattr(tarfile, "tar_filter"):
        version = ".".join(map(str, sys.version_info[:3]))
        raise LaunchError(
            message=f"the server's Python is {version}: unpacking environments needs 3.10.12, 3.11.4 or newer"
        )
    directory.mkdir(mode=0o700)
    room = shutil.disk_usage(directory).free - LEAST_FREE
    members = size = 0

    def admitted(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal members, size
        members, size = members + 1, size + member.size
        if members > MAX_MEMBERS or size > MAX_SIZE:
            raise TooLarge(what=str(archive), limit=MAX_SIZE)
        if size > room:
            raise StorageError(
                message=f"{archive} needs more than {max(0, room)} bytes when unpacked, and the disk has "
                f"no more to spare: {LEAST_FREE} bytes stay free for contexts and their logs"
            )
        if member.isdev():
            return None
        safe = (tarfile.data_filter if member.islnk() else tarfile.tar_filter)(member, path)
        # All files belong to the server, which can also remove what is in a read-only directory.
        mode = safe.mode | 0o700 if safe.isdir() else safe.mode
        return safe.replace(mode=mode, uid=os.getuid(), gid=os.getgid(), uname="", gname="", deep=False)

    try:
        with tarfile.open(archive) as tar:
            tar.extractall(directory, filter=admitted)  # noqa: S202 - the filter refuses what leads out of it
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise LaunchError(message=f"{archive} is not a tar archive: {error}") from error
    directory.chmod(0o700)  # the archive may have given it another mode
