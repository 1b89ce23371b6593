"""Contracts are binding: a subclass cannot remove tests of the shipped suites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobserver_core.testing.contract import Contract


class Suite(Contract):
    def test_one(self) -> None:
        raise NotImplementedError

    def test_two(self) -> None:
        raise NotImplementedError

    def helper(self) -> str:
        return "theirs"


def test_redefining_a_test_of_a_contract_is_a_type_error_that_names_it() -> None:
    with pytest.raises(TypeError, match=r"Emptied replaces tests of its contract: test_one$"):

        class Emptied(Suite):
            def test_one(self) -> None:
                return


def test_setting_a_test_of_a_contract_to_none_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="test_two"):
        type("Emptied", (Suite,), {"test_two": None})


def test_hiding_a_test_of_a_contract_behind_a_mixin_is_a_type_error() -> None:
    mixin = type("Mixin", (), {"test_one": lambda self: None})
    with pytest.raises(TypeError, match="test_one"):
        type("Emptied", (mixin, Suite), {})


def test_redefining_at_the_second_generation_is_a_type_error() -> None:
    class Backend(Suite):
        pass

    with pytest.raises(TypeError, match="test_one, test_two"):
        type("Emptied", (Backend,), {"test_one": None, "test_two": None})


def test_two_contracts_that_disagree_about_a_test_cannot_be_joined() -> None:
    other = type("Other", (Contract,), {"test_one": lambda self: None})
    with pytest.raises(TypeError, match="test_one"):
        type("Both", (Suite, other), {})


def test_a_subclass_may_add_tests_and_replace_what_is_not_a_test() -> None:
    class Backend(Suite):
        def test_three(self) -> None:
            return

        def helper(self) -> str:
            return "ours"

    assert set(Backend.contract_tests()) == {"test_one", "test_two", "test_three"}
    assert Backend().helper() == "ours"


class Scales:
    """A port."""

    def weight(self) -> int:
        """Return the weight in kilograms."""
        return -1

    def limit(self) -> int:
        """Return the greatest weight."""
        return 100

    def reset(self) -> None:
        """Forget the weight."""


class Weighing(Contract):
    def test_the_call_that_failed(self, scales: Scales) -> None:
        assert scales.limit() == 100
        assert scales.weight() >= 0

    def test_the_call_before(self, scales: Scales) -> None:
        scales.reset()
        weight = scales.weight()
        assert weight >= 0

    def test_a_call_that_should_raise(self, scales: Scales) -> None:
        scales.reset()
        with pytest.raises(ValueError, match="no weight"):
            scales.weight()
        scales.limit()


@pytest.mark.parametrize("test", [getattr(Weighing(), name) for name in Weighing.contract_tests()])
def test_a_failure_quotes_what_the_port_says_about_the_call_in_question(test: Callable[..., Any]) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)) as failed:
        test(scales=Scales())
    text = str(failed.value)
    assert text.endswith("\n\nScales.weight: Return the weight in kilograms.")
    assert text.count("Scales.") == 1
