"""The cores and the memory that this process may use: those of the machine, limited by its container.

A container with a limit of two cores on a machine with 64 still sees all 64. The limit is a quota of CPU
time, which Linux shows in the control group file system (version 2: ``cpu.max``, version 1:
``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``). So is that of memory (``memory.max``,
``memory.limit_in_bytes``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(*, groups: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")) -> int:
    """Return the number of usable cores, rounded up."""
    quotas = list(_quotas(groups, process))
    return max(1, min([_scheduled(), *(math.ceil(quota) for quota in quotas)]))


def usable_memory(*, groups: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")) -> int:
    """Return the usable memory in bytes, without swap space."""
    limits = list(_memory_limits(groups, process))
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def _memory_limits(groups: Path, process: Path) -> Iterator[int]:
    for group in _groups_of(groups, process, "memory"):
        value = (_read(group / "memory.max") or _read(group / "memory.limit_in_bytes")).strip()
        if value.isdigit() and value != "0":
            yield int(value)


def _scheduled() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(groups: Path, process: Path) -> Iterator[float]:
    """Yield the quotas of this process's control group and its parents, in cores."""
    for group in _groups_of(groups, process, "cpu"):
        values = _read(group / "cpu.max").split()
        if not values:
            values = [_read(group / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        if len(values) == 2 and all(value.isdigit() and value != "0" for value in values):
            yield int(values[0]) / int(values[1])


def _groups_of(root: Path, process: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of the control groups. Inside a container, its own group is the root."""
    yield root
    yield root / controller
    for line in _read(process / "cgroup").splitlines():
        _, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        if controllers == "" or controller in controllers.split(","):
            mount = root / controller if controllers else root
            parts = [part for part in path.split("/") if part not in ("", "..")]
            yield from (mount.joinpath(*parts[: depth + 1]) for depth in range(len(parts)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
