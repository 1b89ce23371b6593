"""The state of a runner's process, restored between the jobs that it serves.

A process per Python job costs some 60 ms of CPU, most of it for a connection to the JVM. So the process that
finished a job takes the next one of the same class path and context type. Job code must not notice: it
starts as in a new process, independent of the previous job. Two rules ensure that.

1. State that a job can change and Python can read is captured before the first job and restored after each
   one: imported modules, environment, paths, hooks, signal handlers, logging, and so on. Modules from the
   class path are dropped, and the next job imports them again; libraries stay, except that those which the
   class path has as well make way for them during a job.
2. Changes that cannot be undone make the process unfit, with a reason, and it ends: remaining threads, child
   processes and listening sockets, compiled extensions of the class path, memory that is not freed.

Deliberately not handled: values that a job replaces inside a library, and caches that a library fills. A job
that needs a process of its own because of them sets ``fresh_process = True``.
"""

from __future__ import annotations

import importlib.machinery
import logging
import os
import resource
import socket
import stat
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType

from jobserver_pyspark import processes
from jobserver_pyspark.runner.exit_handlers import ExitHandlers
from jobserver_pyspark.runner.interpreter_state import CAPTURES

MAX_JOBS = 1000
"""The maximum number of jobs of one process."""
MAX_GROWTH = 512 * 1024 * 1024
"""The most bytes of resident memory that a process may have gained since its first job."""
MAX_DESCRIPTORS = 64
"""Descriptors that may be open beyond those of the start: files that garbage still holds."""
_PAGE = resource.getpagesize()
_EXTENSIONS = tuple(importlib.machinery.EXTENSION_SUFFIXES)
_FIXED = sys.stdlib_module_names | {"__main__", "jobserver_pyspark", "py4j", "pyspark"}
"""Top-level modules that a class path does not replace."""


class ProcessState:
    """Captured once, before the first job; :meth:`restore` is called after each one, on the main thread."""

    def __init__(self) -> None:
        self._exit_handlers = ExitHandlers()
        self._modules = _Modules()
        self._restores = [capture() for capture in CAPTURES]
        self._threads = frozenset(threading.enumerate())
        self._descriptors = frozenset(_descriptors())
        self._memory = _resident_memory()
        self._identity = _identity()
        self._standard_files = _standard_files()
        self._jobs = 0

    def give_way(self, directories: Sequence[str]) -> str | None:
        """Before a job, drop the libraries that its class path has as well, so that it imports its own.

        Returns None, or the name of one with compiled extensions, of which a process can load only one
        version; then nothing is dropped.
        """
        return self._modules.give_way(directories)

    def end_job(self, directories: Sequence[str], *, last: bool) -> None:
        """Run the exit handlers of the job's own code; with ``last`` those of libraries as well."""
        self._exit_handlers.run(lambda name: self._modules.is_of_job(name, directories), everything=last)
        logging.shutdown()

    def nothing_left(self) -> bool:
        """Whether neither a thread nor a child process of the job still runs."""
        return self._threads.issuperset(threading.enumerate()) and not processes.children(os.getpid())

    def restore(self, directories: Sequence[str]) -> str | None:
        """Restore everything after a job whose class path is ``directories``.

        Returns None when the process is fit for another job, else the reason why it is not.
        """
        self._jobs += 1
        try:
            for restore in self._restores:
                restore()
            extension = self._modules.extension(directories)
            self._modules.restore(directories)
        except Exception as error:  # noqa: BLE001 - the process ends if its state cannot be restored
            return f"its state could not be restored: {type(error).__name__}: {error}"
        if extension is not None:
            return f"the class path has a compiled extension: {extension}"
        return self._unfit()

    def _unfit(self) -> str | None:
        threads = [thread.name for thread in threading.enumerate() if thread not in self._threads]
        opened = [fd for fd in _descriptors() if fd not in self._descriptors]
        reasons = {
            f"it has served {MAX_JOBS} jobs": self._jobs >= MAX_JOBS,
            f"the job left threads: {', '.join(threads[:3])}": threads,
            "the job closed or replaced its standard streams": _standard_files() != self._standard_files,
            "the job left child processes": processes.children(os.getpid()),
            "the job left a listening socket": any(_listens(fd) for fd in opened),
            f"the job left {len(opened)} open descriptors": len(opened) > MAX_DESCRIPTORS,
            "a library registered an exit handler during the job": self._exit_handlers.unclear,
            "the job changed the user, priority or root of its process": _identity() != self._identity,
            "its memory has grown too much": _resident_memory() - self._memory > MAX_GROWTH,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)


# -- modules -----------------------------------------------------------------------------------------


class _Modules:
    """Separates modules of libraries, which stay, from those of jobs, which are dropped."""

    def __init__(self) -> None:
        self._kept = dict(sys.modules)
        roots = {os.path.realpath(entry) for entry in sys.path if entry and os.path.isdir(entry)}
        roots |= {os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
        self._library_roots = tuple(root.rstrip(os.sep) + os.sep for root in roots)
        self._shadowed: list[str] | None = None  # unknown before the first job: all have the same class path

    def give_way(self, directories: Sequence[str]) -> str | None:
        """Drop the libraries that the class path has as well; return the name of one that has to stay."""
        if self._shadowed is None:
            packages = tuple(f"{name}." for name in _shadowed_by(directories))
            self._shadowed = [name for name in sys.modules if f"{name}.".startswith(packages)]
        for name in self._shadowed:
            if name in sys.modules and (_origin(sys.modules[name]) or "").endswith(_EXTENSIONS):
                return name.partition(".")[0]
        for name in self._shadowed:
            sys.modules.pop(name, None)
        return None

    def restore(self, directories: Sequence[str]) -> None:
        """Drop the modules of a job, and restore those that it replaced or removed."""
        for name, module in list(sys.modules.items()):
            if name in self._kept:
                continue
            if self._is_library(module, directories):
                self._kept[name] = module
                continue
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            package = sys.modules.get(parent)
            if package is not None and child in vars(package) and vars(package)[child] is module:
                delattr(package, child)
        for name, module in self._kept.items():
            if (other := sys.modules.get(name)) is not module:
                sys.modules[name] = module
                parent, _, child = name.rpartition(".")
                package = self._kept.get(parent)
                if other is not None and package is not None and vars(package).get(child) is other:
                    setattr(package, child, module)

    def is_of_job(self, name: str | None, directories: Sequence[str]) -> bool:
        """Return whether the module of this name came with a job."""
        module = sys.modules.get(name or "")
        return module is None or not (
            self._kept.get(name or "") is module or self._is_library(module, directories)
        )

    def extension(self, directories: Sequence[str]) -> str | None:
        """Return the name of an imported extension module of the class path."""
        for name, module in list(sys.modules.items()):
            origin = None if self._kept.get(name) is module else _origin(module)
            if origin is not None and origin.endswith(_EXTENSIONS) and _below(origin, directories):
                return name
        return None

    def _is_library(self, module: ModuleType, directories: Sequence[str]) -> bool:
        origin = _origin(module)
        if origin is None:
            return _is_namespace_of(module, self._library_roots)
        if origin in ("built-in", "frozen"):
            return True
        real = os.path.realpath(origin)
        return real.startswith(self._library_roots) and not _below(real, directories)


def _shadowed_by(directories: Sequence[str], package: str = "") -> Iterator[str]:
    """Yield the imported packages and modules that the directories have, too.

    A namespace package can be in several directories at once, so only its parts are compared. PySpark stays,
    since this process is connected with it, and the standard library, as in most Python programs.
    """
    for entry in {name.partition(".")[0] for directory in directories for name in os.listdir(directory)}:
        name = package + entry
        module = sys.modules.get(name)
        if module is None or name in _FIXED:
            continue
        found = importlib.machinery.PathFinder.find_spec(name, directories)
        if found is not None and found.origin is not None:
            yield name
        elif found is not None and _origin(module) is None:
            yield from _shadowed_by(found.submodule_search_locations or (), f"{name}.")


def _origin(module: ModuleType) -> str | None:
    spec = getattr(module, "__spec__", None)
    found = getattr(spec, "origin", None) or getattr(module, "__file__", None)
    return found if isinstance(found, str) else None


def _is_namespace_of(module: ModuleType, roots: tuple[str, ...]) -> bool:
    """Whether a module without a file is a namespace package with a part among the libraries."""
    try:
        return any(os.path.realpath(part).startswith(roots) for part in module.__path__)
    except (AttributeError, TypeError):
        return False


def _below(path: str, directories: Iterable[str]) -> bool:
    real = os.path.realpath(path)
    return any(real.startswith(os.path.realpath(directory) + os.sep) for directory in directories)


# -- what cannot be undone ----------------------------------------------------------------------------


def _descriptors() -> list[int]:
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return []
    # The descriptor that read the list is closed already.
    return [int(name) for name in names if _stat(int(name)) is not None]


def _listens(fd: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        with socket.socket(fileno=os.dup(fd)) as connection:
            return bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False  # it was closed, or is not a socket that can listen


def _standard_files() -> list[tuple[int, int] | None]:
    """Return the identities of the files of descriptors 0 to 2; None for a closed one."""
    return [(found.st_dev, found.st_ino) if (found := _stat(fd)) else None for fd in range(3)]


def _stat(fd: int) -> os.stat_result | None:
    try:
        return os.fstat(fd)
    except OSError:
        return None


def _resident_memory() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0


def _identity() -> tuple[object, ...]:
    root = os.stat("/")
    return os.getresuid(), os.getresgid(), os.getpriority(os.PRIO_PROCESS, 0), root.st_dev, root.st_ino
