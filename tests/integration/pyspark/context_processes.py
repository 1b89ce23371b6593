"""The processes of contexts, and a server in a process of its own, for tests that kill them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from launcher_world import Context

from conditions import wait_until
from jobserver_core.ports import JobCode
from jobserver_pyspark import processes

_SERVER = """
import json, sys
from pathlib import Path
sys.path[:] = json.loads(sys.argv[1])
from launcher_world import code_of, make_launcher, starter
directory = Path(sys.argv[2])
launcher = make_launcher(directory)
context = starter(launcher, directory, code_of(Path(sys.argv[3])))(json.loads(sys.argv[4])).wait_ready(240.0)
for name, config in json.loads(sys.argv[5]):
    context.running(name, config)
application_id = context.listener.wait_for("context_ready", timeout=1.0)[1]
print(context.spec.id, context.spec.work_dir, application_id, flush=True)
sys.stdin.read()
"""


def command(pid: int) -> bytes:
    """The command line of a process, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def processes_in(directory: Path) -> list[int]:
    """The processes that work in a directory or below it."""
    resolved = directory.resolve()  # as the kernel names the directories in which processes work
    return [pid for pid in _all() if _works_in(pid, resolved)]


def _all() -> Iterator[int]:
    return map(int, filter(str.isdigit, os.listdir("/proc")))


def end_processes_in(directory: Path) -> None:
    """Kill the processes that work in a directory or below it, and those that they start meanwhile."""

    def left() -> bool:
        found = processes_in(directory)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)

    wait_until(lambda: not left(), lambda: f"the processes in {directory} end", timeout=20)


def _works_in(pid: int, directory: Path) -> bool:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(directory)
    except OSError:
        return False


def variable(pid: int, name: str) -> str | None:
    """A variable of the environment of a process, None if it has ended or has none of this name."""
    needle = f"{name}=".encode()
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((each[len(needle) :].decode() for each in environment if each.startswith(needle)), None)


def marker(pid: int) -> str | None:
    """The marker of a process of a context, which begins with the id of the context."""
    return variable(pid, processes.MARKER)


def parent(pid: int) -> int:
    """The parent of a process, 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def carrying(context_id: str) -> list[int]:
    """The processes of a context."""
    marked = [pid for pid in _all() if (marker(pid) or "").startswith(f"{context_id}:")]
    return [pid for pid in marked if processes.start_time(pid) is not None]


def family(context: Context) -> dict[str, list[int]]:
    """The processes of a context by role."""
    found: dict[str, list[int]] = {"host": [], "jvm": [], "zygote": [], "runners": [], "workers": []}
    for pid in carrying(context.spec.id):
        line = command(pid)
        if line.partition(b"\0")[0].endswith(b"java"):
            found["jvm"].append(pid)
        elif b"runner.zygote" in line:
            forked = parent(pid) not in found["host"] and b"runner.zygote" in command(parent(pid))
            found["runners" if forked else "zygote"].append(pid)
        elif b"pyspark.daemon" in line:
            found["workers"].append(pid)
        elif b"jobserver_pyspark.host" in line:
            found["host"].append(pid)
    return found


@attrs.define
class ServerProcess:
    """Another process with a launcher, and a context with running jobs in it."""

    directory: Path
    process: subprocess.Popen[str]
    context_id: str = ""
    work_dir: Path = Path()
    application_id: str = ""

    @classmethod
    def start(
        cls, directory: Path, code: JobCode, settings: dict[str, Any], jobs: list[tuple[str, dict[str, Any]]]
    ) -> ServerProcess:
        """Start it; it is ready when ``wait`` returns."""
        arguments = [
            json.dumps(sys.path),
            str(directory),
            str(code.path),
            json.dumps(settings),
            json.dumps(jobs),
        ]
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return cls(directory, process)

    def wait(self) -> ServerProcess:
        """Wait until the jobs run."""
        assert self.process.stdout is not None
        self.context_id, work_dir, self.application_id = self.process.stdout.readline().split()
        self.work_dir = Path(work_dir)
        return self

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
