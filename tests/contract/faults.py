"""Runs contract suites directly to find out which tests fail, and makes planted races deterministic."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobserver_core.testing.contract import Contract

DEADLINE = 30.0


class Rendezvous:
    """Holds back the first callers until enough of them have arrived; later callers pass at once.

    A fault that is a race shows only if the racing calls overlap. Left to the scheduler they
    sometimes do not, and a busy machine makes that likely. So the fault waits here between its check
    and its write. If the others never come, callers go on after a deadline: the fault then
    does no harm, and the test that expects it to be caught fails.
    """

    def __init__(self, parties: int) -> None:
        self._missing = parties
        self._changed = threading.Condition()

    def wait(self) -> None:
        """Return once all parties have arrived, this caller included."""
        with self._changed:
            self._missing -= 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._missing <= 0, DEADLINE)


class LeftThreads:
    """Threads that a planted fault leaves behind, until the test of the fault ends them."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self) -> None:
        """Start a thread."""
        thread = threading.Thread(target=self._end.wait, name="left behind", daemon=True)
        self._threads.append(thread)
        thread.start()

    def end(self) -> None:
        """End all threads, and wait for that."""
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._end.clear()


LEFT_THREADS = LeftThreads()


def cases(suite: type[Contract]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every test of a contract, with each of its parameters."""
    for name in suite.contract_tests():
        marks = getattr(getattr(suite, name), "pytestmark", [])
        parametrized = [mark for mark in marks if mark.name == "parametrize"]
        names = [mark.args[0] for mark in parametrized]
        for values in itertools.product(*(mark.args[1] for mark in parametrized)):
            yield name, dict(zip(names, values, strict=True))


def failing(
    suite: type[Contract], fixture: str, make: Callable[[Any], Any], only: str | None = None
) -> Iterator[str]:
    """Run a contract's tests, or only one of them, and yield the names of those that fail.

    ``make`` prepares an instance of the suite, and returns the fixture.
    """
    for name, arguments in cases(suite):
        if only not in (None, name):
            continue
        subject = suite()
        test = getattr(subject, name)
        if fixture not in inspect.signature(test).parameters:
            continue  # it is about the class; test_options_contract_catches_faults.py runs it
        made = make(subject)
        try:
            test(**{fixture: made}, **arguments)
        except (Exception, pytest.fail.Exception):
            yield name
        finally:
            with contextlib.suppress(Exception):
                made.close()
