"""The processes of a server: their CPU, memory, threads and wake-ups, from ``/proc``."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def processes_of(root: int) -> dict[int, str]:
    """Return the processes of a tree, each with its role."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    tree, found = {root: "server"}, [root]
    while found:
        parent = found.pop()
        for child in (pid for pid, its in parents.items() if its == parent and pid not in tree):
            tree[child] = kind_of(child, tree[parent])
            found.append(child)
    return tree


def kind_of(pid: int, parent: str) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "gone"
    if b"java" in command.split(b"\0")[0]:
        return "JVM"
    if b"pyspark" in command and b"daemon" in command:
        return "Python workers"
    if b"jobserver_pyspark.host" in command:
        return "host"
    return "runners" if parent in ("host", "runners") else parent


def cpu_of(root: int) -> dict[str, float]:
    """Return the seconds of CPU that each kind of process has used."""
    used: dict[str, float] = defaultdict(float)
    for pid, kind in processes_of(root).items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        used[kind] += (int(fields[11]) + int(fields[12])) / TICK
    return used


def switches(pid: int) -> int:
    """Return the number of voluntary context switches of a process: one for each wake-up."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def peak(pid: int) -> int:
    """Return the peak resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    return 0


def reset_peak(pid: int) -> int:
    """Reset the peak memory of a process to its present size, and return that in MB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 2**20
