from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from conditions import wait_until
from jobserver_core.running.user_thread import UserThread

WAIT = 30.0


@pytest.fixture
def thread() -> Iterator[UserThread]:
    thread = UserThread("functions-of-a-test")
    yield thread
    assert thread.close(WAIT)


def test_functions_are_called_in_order_on_one_thread(thread: UserThread) -> None:
    seen: list[tuple[int, str]] = []
    for number in range(50):
        thread.run(lambda number=number: seen.append((number, threading.current_thread().name)))  # type: ignore[misc]
    assert thread.close(WAIT)
    assert seen == [(number, "functions-of-a-test") for number in range(50)]


def test_a_function_that_raises_is_logged_and_does_not_affect_the_next(
    thread: UserThread, caplog: pytest.LogCaptureFixture
) -> None:
    called = threading.Event()
    thread.run(lambda: 1 / 0)
    thread.run(sys.exit)
    thread.run(called.set)
    assert called.wait(WAIT)
    assert "ZeroDivisionError" in caplog.text
    assert "SystemExit" in caplog.text


def test_a_thread_without_functions_ends_and_a_new_one_calls_the_next(thread: UserThread) -> None:
    seen: list[threading.Thread] = []
    thread.run(lambda: seen.append(threading.current_thread()))
    wait_until(lambda: bool(seen) and not seen[0].is_alive())
    thread.run(lambda: seen.append(threading.current_thread()))
    wait_until(lambda: len(seen) == 2)
    assert seen[0] is not seen[1]


def test_a_close_waits_only_as_long_as_it_is_told(thread: UserThread) -> None:
    released = threading.Event()
    thread.run(lambda: released.wait(WAIT))
    assert not thread.close(0.01)
    released.set()


def test_a_function_may_close_its_thread_and_later_ones_are_still_called(thread: UserThread) -> None:
    seen: list[object] = []
    thread.run(lambda: seen.append(thread.close(WAIT)))
    wait_until(lambda: seen == [True])
    thread.run(lambda: seen.append("later"))
    wait_until(lambda: seen == [True, "later"])
