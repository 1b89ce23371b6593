from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.config.trees import flatten, merged, nested, overlaid
from jobserver_core.errors import InvalidSetting

KEYS = st.text("abc", min_size=1, max_size=2)
TREES = st.recursive(
    st.dictionaries(KEYS, st.integers(), max_size=3),
    lambda children: st.dictionaries(KEYS, children | st.integers(), max_size=3),
    max_leaves=8,
)


@given(TREES)
def test_nesting_undoes_flattening(tree: dict[str, object]) -> None:
    assert flatten(nested(flatten(tree))) == flatten(tree)


@given(TREES, TREES)
def test_the_later_tree_is_on_top(below: dict[str, object], above: dict[str, object]) -> None:
    result = flatten(merged(below, above))
    values = {
        path: value for path, value in flatten(above).items() if value != {}
    }  # an empty object hides nothing
    assert values.items() <= result.items()


def test_dotted_and_nested_keys_are_the_same_key() -> None:
    below = {"spark": {"executor": {"memory": "1g", "cores": 1}}}
    assert merged(below, {"spark.executor.memory": "2g"}) == {
        "spark": {"executor": {"memory": "2g", "cores": 1}}
    }


def test_a_setting_below_a_setting_is_not_lost() -> None:
    tree = merged({"spark.speculation": True}, {"spark": {"speculation": {"interval": "1s"}}})
    assert flatten(tree) == {"spark.speculation": True, "spark.speculation.interval": "1s"}


def test_lists_are_replaced_as_a_whole() -> None:
    assert merged({"cp": ["a", "b"]}, {"cp": ["c"]}) == {"cp": ["c"]}


def test_overlaying_merges_objects_and_keeps_keys_literal() -> None:
    below = {"a": {"x": 1, "y": [1]}, "b": 1}
    assert overlaid(below, {"a": {"y": [2]}, "b": {"c": 2}, "q.r": 3}) == {
        "a": {"x": 1, "y": [2]},
        "b": {"c": 2},
        "q.r": 3,
    }
    assert below == {"a": {"x": 1, "y": [1]}, "b": 1}


def test_a_merged_tree_shares_nothing_that_can_change_with_the_trees_that_it_is_from() -> None:
    below: dict[str, Any] = {"passthrough": {}, "cp": ["a", {"b": []}]}
    above = merged(below, {"passthrough": {"secret": 1}})
    assert above == {"passthrough": {"secret": 1}, "cp": ["a", {"b": []}]}
    above["cp"].append("c")
    above["cp"][1]["b"].append("d")
    assert below == {"passthrough": {}, "cp": ["a", {"b": []}]}


WIDE = {str(number): number for number in range(10_000)}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"a" * 1001: 1},
            r"setting 'a{40}…': the name of a setting can have at most 1000 characters",
        ),
        ({"a" * 500: {"b" * 500: 1}}, "can have at most 1000 characters"),
        ({"a." * 100 + "a": 1}, r"setting 'a\.a\..*…': the name .* and 100 parts"),
        ({"a": {"a." * 98 + "a": {"b": 1}}}, "and 100 parts"),
        ({"a": WIDE, "b": 1}, "at most 10000 settings"),
        ({"b": 1, "a": WIDE}, "at most 10000 settings"),
    ],
    ids=["key", "path", "dots", "levels", "number", "number, in another order"],
)
def test_settings_that_would_fill_the_memory_are_refused(tree: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        merged(tree)


def test_the_longest_names_and_most_settings_work() -> None:
    tree = {"a." * 99 + "b" * 802: 1, "b": {str(number): number for number in range(9_999)}}
    assert flatten(merged(tree)) == flatten(tree)
    assert len(flatten(merged(tree, {"spark": {"master": "local"}}))) == 10_001
