"""The threads that run jobs in a host: one per running job, and fewer again after a burst."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterable
from queue import SimpleQueue

from conditions import WAIT, wait_until
from jobserver_pyspark.host.job_threads import JobThreads


def _run(threads: JobThreads) -> threading.Thread:
    """Run a task; return the thread that it ran on."""
    ran: SimpleQueue[threading.Thread] = SimpleQueue()
    threads.submit(lambda: ran.put(threading.current_thread()))
    return ran.get(timeout=WAIT)


def _end(pool: JobThreads, used: Iterable[threading.Thread]) -> None:
    """Let idle threads end, each after one more task, because those that wait keep their timeout."""

    def ended() -> bool:
        _run(pool)
        return not any(thread.is_alive() for thread in used)

    pool.idle_timeout = 0.0
    wait_until(ended, "the end of idle threads")


def test_tasks_run_at_the_same_time_and_their_threads_end_after_the_burst() -> None:
    threads = JobThreads("burst", idle_timeout=0.05)
    together = threading.Barrier(21)
    ran: SimpleQueue[threading.Thread] = SimpleQueue()

    def task() -> None:
        ran.put(threading.current_thread())
        together.wait(WAIT)

    for _ in range(20):
        threads.submit(task)
    together.wait(WAIT)
    used = {ran.get(timeout=WAIT) for _ in range(20)}
    assert len(used) == 20
    wait_until(lambda: not any(thread.is_alive() for thread in used), "the end of idle threads")


def test_a_thread_takes_one_task_after_the_other() -> None:
    threads = JobThreads("in turn", idle_timeout=WAIT)
    used: list[threading.Thread] = []

    def again() -> bool:
        used.append(_run(threads))
        return used[-1] in used[:-1]

    wait_until(again, "a thread to take another task")
    _end(threads, used)


def test_an_idle_thread_keeps_no_task() -> None:
    threads = JobThreads("idle", idle_timeout=WAIT)
    ran: SimpleQueue[threading.Thread] = SimpleQueue()

    def task() -> None:
        ran.put(threading.current_thread())

    kept = weakref.ref(task)
    threads.submit(task)
    thread = ran.get(timeout=WAIT)
    del task

    def collected() -> bool:
        gc.collect()
        return kept() is None

    wait_until(collected, "the end of the first task")
    assert thread.is_alive(), "the thread kept its task until its end"
    _end(threads, [thread])


def test_a_task_that_comes_when_a_thread_ends_is_not_lost() -> None:
    threads = JobThreads("no time", idle_timeout=0.0)
    for _ in range(300):
        _run(threads)
