"""Processes that a job started inside the JVM or a Python worker, and whose parents have ended.

The host adopts every orphan of its context. A process does not show which job it belongs to, so an orphan
is assigned to a job if no other running job ran when it was started. A killed JVM job waits until then.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from jobserver_pyspark import processes
from jobserver_pyspark.host.driver import JVM_VARIABLE

_WORKER_VARIABLE = "PYTHON_WORKER_FACTORY_SECRET"
"""The environment variable that Spark sets for its Python workers; processes of Python tasks inherit it."""
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
