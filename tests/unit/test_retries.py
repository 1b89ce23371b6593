"""The queue that repeats changes until the store has taken them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from conditions import wait_until
from jobserver_core import errors
from jobserver_core.running.retries import FIRST_PAUSE, LONGEST_PAUSE, RetryQueue
from jobserver_core.testing.clock import ManualClock
from serving import WAIT


class Line:
    """A queue and a record of the changes that ran."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.queue = RetryQueue(self.clock, "test")
        self.done: list[str] = []
        self.faults = 0
        self.tried = 0

    def change(self, name: str) -> Callable[[], None]:
        def call() -> None:
            self.tried += 1
            if self.faults:
                self.faults -= 1
                raise errors.StorageError(message="no")
            self.done.append(name)

        return call

    def await_timer(self) -> float:
        """Return in how many seconds the next attempt is, once it is known."""
        wait_until(lambda: self.clock.timers, pause=0.001)
        return self.clock.timers[0]


def test_changes_run_at_once_and_in_order() -> None:
    line = Line()
    for name in "abc":
        line.queue.put(line.change(name))
    assert line.done == ["a", "b", "c"]
    assert line.clock.timers == []


def test_the_pause_doubles_up_to_a_limit_and_starts_over_after_a_success() -> None:
    line = Line()
    line.faults = 9
    line.queue.put(line.change("a"))
    pauses = []
    while line.faults:
        pauses.append(line.await_timer())
        line.clock.advance(pauses[-1])
    pauses.append(line.await_timer())
    assert pauses[:3] == pytest.approx([FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE])
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE)
    assert line.queue.failing
    line.clock.advance(LONGEST_PAUSE)
    wait_until(lambda: not line.queue.failing, pause=0.001)
    line.faults = 1
    line.queue.put(line.change("b"))
    assert line.await_timer() == pytest.approx(FIRST_PAUSE)


def test_later_changes_line_up_without_trying_the_store() -> None:
    line = Line()
    line.faults = 1
    for name in "abcd":
        line.queue.put(line.change(name))
    assert line.tried == 1
    line.clock.advance(FIRST_PAUSE)
    wait_until(lambda: len(line.done) == 4, pause=0.001)
    assert line.done == ["a", "b", "c", "d"]


@pytest.mark.parametrize("error", [KeyError, SystemExit, KeyboardInterrupt])
def test_a_change_that_fails_for_another_reason_raises_and_does_not_block_the_next(
    error: type[BaseException],
) -> None:
    line = Line()

    def mistaken() -> None:
        line.queue.put(line.change("after"))
        raise error("mistake")

    with pytest.raises(error, match="mistake"):
        line.queue.put(mistaken)
    line.queue.put(line.change("later"))
    assert line.done == ["after", "later"]


def test_changes_of_many_threads_run_one_at_a_time() -> None:
    line = Line()
    inside = threading.Lock()

    def change() -> None:
        assert inside.acquire(blocking=False), "two changes ran at once"
        line.done.append("x")
        inside.release()

    threads = [
        threading.Thread(target=lambda: [line.queue.put(change) for _ in range(200)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(line.done) == 800
