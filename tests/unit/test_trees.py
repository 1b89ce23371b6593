from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.config.trees import flatten, merged, nested, overlaid

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
    assert flatten(above).items() <= result.items()


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
