"""Processes on Linux: control their lifetimes, find those of a context, and interpret their exit status."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterable

MARKER = "JOBSERVER_CONTEXT"
"""The environment variable that every process of a context inherits; its value is the context's own."""

WORKER_POOL_VARIABLE = "JOBSERVER_CLASS_PATH"
"""The environment variable with the name of a worker pool: the Python workers of one class path."""
MAX_DESCRIPTORS = 65536
"""The soft limit of file descriptors of a context's Python processes, unless the hard limit is lower."""

_PR_SET_PDEATHSIG = 1
"""The option of ``prctl`` for the signal that a process gets when its parent ends."""
_PR_SET_CHILD_SUBREAPER = 36
"""The option of ``prctl`` that makes a process the parent of its orphaned descendants."""
_LINUX = sys.platform == "linux"
_LIBC = ctypes.CDLL(None, use_errno=True) if _LINUX else None


def limit_descriptors(most: int = MAX_DESCRIPTORS) -> None:
    """Set this process' soft limit of file descriptors to the hard one, but not above ``most``.

    The server's own limit is as high as possible. Programs that a job starts may close every number below
    their soft limit, which takes minutes if that is a billion.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft != wanted:
        with contextlib.suppress(OSError, ValueError):  # the process then keeps the inherited limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the thread that started it ends, or now if it has ended."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that they can be found."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(pid: int) -> list[int]:
    """Return the ids of a process's children; empty if they cannot be read."""
    return [child for found in _children_of_threads(pid).values() for child in found]


def forkers(pid: int) -> dict[int, str]:
    """Return a process's children, each with the thread that forked it: its name, which Linux cuts."""
    found = {}
    for thread, forked in _children_of_threads(pid).items():
        with contextlib.suppress(OSError), open(f"{thread}/comm", encoding="utf-8", errors="replace") as file:
            found.update(dict.fromkeys(forked, file.read().rstrip("\n")))
    return found


def _children_of_threads(pid: int) -> dict[str, list[int]]:
    """Return the children of those threads that have any, by the directories of the threads."""
    found: dict[str, list[int]] = {}
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                if words := file.read().split():
                    found[os.path.dirname(file.name)] = [int(child) for child in words]
    except (OSError, ValueError):
        return found
    return found


def start_time(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot, unique with its id; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else int(fields[19])


def kill(pid: int) -> None:
    """Send SIGKILL to a process, unless it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or never ours
        os.kill(pid, signal.SIGKILL)


def kill_tree(pid: int) -> None:
    """Send SIGKILL to a process and to its descendants."""
    below = children(pid)
    kill(pid)
    for child in below:
        kill_tree(child)


def kill_group(pid: int) -> None:
    """Send SIGKILL to a process group, and to its leader."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        kill(pid)


def marked(marker: str) -> list[int]:
    """Return the ids of the other processes whose environment has the marker."""
    others = [int(name) for name in os.listdir("/proc") if name.isdigit()] if _LINUX else []
    return [pid for pid in others if pid != os.getpid() and f"{MARKER}={marker}" in environment(pid)]


def environment(pid: int) -> set[str]:
    """Return the variables (``NAME=value``) that a process was started with.

    The set is empty if the process has ended, is one of the kernel, or belongs to another user.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return set(os.fsdecode(file.read()).split("\0"))
    except OSError:
        return set()


def boot_ticks() -> int:
    """Return the time since boot in clock ticks, as :func:`start_time` counts."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def adopted(variable: str) -> dict[int, set[str]]:
    """Return the children of this process that have an environment variable, or lost their environment.

    Each comes with the names of all its variables. If only one child was started with the variable, these are
    that child, and its descendants whose parent has ended. Those that were started with an environment of
    their own lack even :data:`MARKER`, which every child that this process starts itself has.
    """
    found = {}
    for child in children(os.getpid()):
        entries = _environment_of_child(child)
        names = {entry.partition("=")[0] for entry in entries}
        if variable in names or (entries and MARKER not in names):
            found[child] = names
    return found


def _environment_of_child(pid: int) -> set[str]:
    """Return what :func:`environment` does for a process that may have just begun to run another program.

    For a moment, such a process has neither an environment nor a command line. Without this, it would look
    like one that lost its environment. The set is empty only if it cannot be read.
    """
    deadline = time.monotonic() + 1.0
    while (found := environment(pid)) == {""} and not _command_line(pid) and time.monotonic() < deadline:
        if start_time(pid) is None:
            return set()
        time.sleep(0.0005)
    return environment(pid) if found == {""} else found


def is_python_worker(pid: int) -> bool:
    """Return whether a process is one of Spark's own Python processes, not one that a task started."""
    return b"pyspark." in _command_line(pid)


def _command_line(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def kill_all(pids: Iterable[int]) -> None:
    """Kill and reap children of this process."""
    for pid in pids:
        kill(pid)
        with contextlib.suppress(ChildProcessError):  # reaped elsewhere
            os.waitpid(pid, 0)


def kill_leaderless() -> None:
    """Kill and reap children of this process whose group leader has ended; reap those that have ended.

    Such children are adopted: a process that this one starts itself is in its group, or leads a group.
    """
    for child in children(os.getpid()):
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it ended, or was reaped elsewhere
            group = os.getpgid(child)
            if group != os.getpgrp() and (start_time(group) is None or start_time(child) is None):
                kill(child)
                os.waitpid(child, 0)


def kill_unmarked() -> None:
    """Kill descendants that lost their environment, and so cannot be found by :func:`kill_marked`."""
    deadline = time.monotonic() + 5.0
    while (found := _unmarked(os.getpid())) and time.monotonic() < deadline:
        for pid in found:
            kill(pid)
        with contextlib.suppress(ChildProcessError):  # their own children become children of this process
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.002)


def _unmarked(pid: int) -> list[int]:
    found = []
    for child in children(pid):
        entries = _environment_of_child(child)
        if entries and not any(entry.startswith(f"{MARKER}=") for entry in entries):
            found.append(child)
        found += _unmarked(child)
    return found


def reap_children() -> None:
    """Wait at most a second for children that are ending, before this process ends itself.

    Otherwise they would become zombies of process 1, which in a container may not reap any.
    """
    deadline = time.monotonic() + 1.0
    with contextlib.suppress(ChildProcessError):  # none is left
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.002)


def kill_marked(marker: str) -> bool:
    """Kill every process that has the marker; return whether none is left after five seconds.

    This is repeated, because a process may fork after it is found and before it is killed. A process that
    ends loses its environment, and so the marker, before it releases its files and locks: so this waits for
    each process that it killed, too.
    """
    deadline = time.monotonic() + 5.0
    pause = 0.002
    killed: dict[int, int] = {}
    while True:
        found = {pid: began for pid in marked(marker) if (began := start_time(pid)) is not None}
        for pid in found:
            kill(pid)
        killed |= found
        if not any(start_time(pid) == began for pid, began in killed.items()):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def available_memory() -> int | None:
    """Return how many bytes processes can use without swapping, or None if the system does not say."""
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def can_restore_priority() -> bool:
    """Return whether this process may undo a lower priority, for which a system may need privileges."""
    allowed = []

    def attempt() -> None:
        thread = threading.get_native_id()  # the priority of this thread alone changes
        with contextlib.suppress(OSError):
            normal = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, normal + 1)
            os.setpriority(os.PRIO_PROCESS, thread, normal)
            allowed.append(True)

    thread = threading.Thread(target=attempt, name="priority")
    thread.start()
    thread.join()
    return bool(allowed) and _LINUX


def set_priority(marker: str, priority: int) -> None:
    """Set the nice value of all threads of all processes with a marker."""
    for _ in range(2):  # a thread that was being created had the value of its creator
        for pid in marked(marker):
            with contextlib.suppress(OSError):  # it has ended
                os.setpriority(os.PRIO_PGRP, os.getpgid(pid), priority)


_SENT_BY_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_CAUGHT = 128
"""A JVM catches signals; its exit status is then this plus the number of the signal."""


def killed_from_outside(status: int | None) -> bool:
    """Return whether a signal of a user or of the kernel (out of memory) ended a process.

    ``status`` is as in ``subprocess``, or None if it is unknown.
    """
    return status is not None and _signal_of(status) in _SENT_BY_OTHERS


def describe_exit(status: int | None) -> str:
    """Return how a process ended, as the end of a sentence."""
    if not killed_from_outside(status):
        how = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        return f"ended by itself ({how})"
    if status == -signal.SIGKILL:
        return "was killed from outside (signal 9): by a user, or by the system because memory ran out"
    return f"was killed from outside (signal {_signal_of(status or 0)})"


def _signal_of(status: int) -> int:
    return -status if status < 0 else status - _CAUGHT
