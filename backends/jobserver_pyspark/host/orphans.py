"""Processes that a job started inside the JVM or a Python worker.

The host adopts every orphan of its context: a process whose parent has ended. It does not show which job it
belongs to, so it is assigned to a job if no other running job ran when it was started. A killed job waits
until then, if code in the JVM started it.

Children of the JVM are treated alike, but Linux also knows the thread that forked a process, as long as that
thread lives. Those of JVM jobs are ended in the JVM (``JobProcesses.scala``).
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import NamedTuple

from jobserver_pyspark import processes
from jobserver_pyspark.host.driver import JVM_VARIABLE

_WORKER_VARIABLE = "PYTHON_WORKER_FACTORY_SECRET"
"""The environment variable that Spark sets for its Python workers; processes of Python tasks inherit it."""
_NAME_LENGTH = 15
"""The characters of a thread's name that Linux keeps."""
_TASK_THREAD = "Executor task l"
"""So much of the name of a thread that runs tasks, which ends the processes of its task by itself."""
_TIMEOUT = 5.0
"""Seconds to kill processes, which may start others; one that hangs in the kernel ends with the context."""


def end_orphans(begun: int, others: Collection[int], *, of_tasks: bool) -> None:
    """Kill a job's orphans until none is left.

    ``begun`` and ``others`` are start times of the job and of other jobs, in ticks of :func:`boot_ticks`.
    ``of_tasks`` selects those of Python tasks, otherwise those of code in the JVM.
    """
    deadline = time.monotonic() + _TIMEOUT
    while (found := _orphans(begun, others, of_tasks=of_tasks)) and time.monotonic() < deadline:
        processes.kill_all(found)


def unassigned_orphans(begun: int, ended: int) -> list[int]:
    """Return the orphans of code in the JVM that were started while a job ran, by it or by another one."""
    return [
        pid
        for pid in _orphans(begun, (), of_tasks=False)
        if (start := processes.start_time(pid)) is not None and start <= ended
    ]


def _orphans(begun: int, others: Collection[int], *, of_tasks: bool) -> list[int]:
    found = []
    for pid, environment in processes.adopted(JVM_VARIABLE).items():
        start = processes.start_time(pid)
        if start is None or start < begun or any(other <= start for other in others):
            continue
        cleared = processes.MARKER not in environment  # so what started it is unknown
        if (cleared or (_WORKER_VARIABLE in environment) == of_tasks) and not processes.is_python_worker(pid):
            found.append(pid)
    return found


class Forked(NamedTuple):
    """A child of the JVM, with its start time in ticks of :func:`boot_ticks`, and the thread that forked it.

    The thread's name is cut, as by :func:`cut`. If the thread has ended, it is that of another one.
    """

    pid: int
    start: int
    thread: str


def cut(thread: str) -> str:
    """Return the name of a thread as Linux shows it."""
    return thread[:_NAME_LENGTH]


def forked(jvm: int, begun: int) -> list[Forked]:
    """Return the children of the JVM that began later, except Spark's Python processes and those of tasks."""
    return [
        Forked(pid, start, thread)
        for pid, thread in processes.forkers(jvm).items()
        if not thread.startswith(_TASK_THREAD)
        and (start := processes.start_time(pid)) is not None
        and start >= begun
        and not processes.is_python_worker(pid)
    ]
