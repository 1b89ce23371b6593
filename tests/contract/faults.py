"""Runs a contract suite by hand, so that a test can look at which of its tests fail."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobserver_core.testing.contract import Contract


def cases(suite: type[Contract]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every test of a contract, with each of its parameters."""
    for name in suite.contract_tests():
        marks = getattr(getattr(suite, name), "pytestmark", [])
        parametrized = [mark for mark in marks if mark.name == "parametrize"]
        names = [mark.args[0] for mark in parametrized]
        for values in itertools.product(*(mark.args[1] for mark in parametrized)):
            yield name, dict(zip(names, values, strict=True))


def failing(suite: type[Contract], fixture: str, make: Callable[[Any], Any]) -> Iterator[str]:
    """Run a contract's tests and tell which fail; ``make`` prepares a suite's object, returns its fixture."""
    for name, arguments in cases(suite):
        subject = suite()
        test = getattr(subject, name)
        assert fixture in inspect.signature(test).parameters
        made = make(subject)
        try:
            test(**{fixture: made}, **arguments)
        except (Exception, pytest.fail.Exception):
            yield name
        finally:
            with contextlib.suppress(Exception):
                made.close()
