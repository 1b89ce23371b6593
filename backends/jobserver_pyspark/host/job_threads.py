"""Threads that run jobs in the host: as many as there are jobs, and fewer again after a burst."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

_IDLE_TIMEOUT = 20.0
"""Seconds: long enough to survive the pause between two bursts of jobs."""

_Task = Callable[[], None]


class JobThreads:
    """Runs each task on a thread of its own, at once.

    Threads are reused, because each has its own connection to the JVM, which a thread there serves. The one
    that became idle last gets the next task, so that the others stay idle. After ``idle_timeout`` seconds
    without a task, a thread ends, and with it the thread in the JVM.
    """

    def __init__(self, name: str, idle_timeout: float = _IDLE_TIMEOUT) -> None:
        self._name = name
        self.idle_timeout = idle_timeout
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[_Task]] = []

    def submit(self, task: _Task) -> None:
        """Run a task, which must not raise."""
        with self._lock:
            tasks = self._idle.pop() if self._idle else None
        if tasks is not None:
            tasks.put(task)
            return
        tasks = SimpleQueue()
        tasks.put(task)  # not an argument of the thread, which keeps its arguments until it ends
        threading.Thread(target=self._serve, args=(tasks,), name=self._name, daemon=True).start()

    def _serve(self, tasks: SimpleQueue[_Task]) -> None:
        task: _Task | None = tasks.get()
        while task is not None:
            task()
            del task  # or an idle thread would keep its job
            task = self._next(tasks)

    def _next(self, tasks: SimpleQueue[_Task]) -> _Task | None:
        """Wait for another task; return None if none comes in time."""
        with self._lock:
            self._idle.append(tasks)
        try:
            return tasks.get(timeout=self.idle_timeout)
        except Empty:
            pass
        with self._lock:
            if tasks in self._idle:
                self._idle.remove(tasks)
                return None
        return tasks.get()  # it was taken from the list at this moment, and gets its task now
