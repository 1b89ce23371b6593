"""Which receiver gets the next callback."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.callbacks.lanes import Lanes, ReceiverStatus

NEW, PROMPT, FAILING, SLOW = (
    ReceiverStatus.NEW,
    ReceiverStatus.PROMPT,
    ReceiverStatus.FAILING,
    ReceiverStatus.SLOW,
)


def filled(lanes: Lanes, status: ReceiverStatus, prefix: str) -> int:
    """Let receivers of one status in until no more are admitted; return how many were."""
    names = [f"{prefix}-{number}" for number in range(100)]
    for name in names:
        if status is not NEW:
            lanes.leave(name, lanes.enter(name), status)
    admitted = 0
    for name in names:
        if lanes.admits(name):
            lanes.enter(name)
            admitted += 1
    return admitted


def test_prompt_receivers_may_use_every_slot() -> None:
    assert filled(Lanes(concurrency=16, per_receiver=1), PROMPT, "p") == 16


def test_new_receivers_leave_a_quarter() -> None:
    lanes = Lanes(concurrency=16, per_receiver=1)
    assert filled(lanes, NEW, "n") == 12
    assert filled(lanes, PROMPT, "p") == 4


def test_slow_and_failing_receivers_have_a_quarter_each() -> None:
    lanes = Lanes(concurrency=16, per_receiver=1)
    assert (filled(lanes, SLOW, "s"), filled(lanes, FAILING, "f")) == (4, 4)
    assert filled(lanes, NEW, "n") == 4
    assert filled(lanes, PROMPT, "p") == 4


def test_a_single_slot_serves_all_receivers_in_turn() -> None:
    for status in ReceiverStatus:
        assert filled(Lanes(concurrency=1, per_receiver=1), status, "r") == 1


def test_a_receiver_uses_its_own_slots_only() -> None:
    lanes = Lanes(concurrency=16, per_receiver=2)
    entered = [lanes.enter("a"), lanes.enter("a")]
    assert not lanes.admits("a")
    assert lanes.admits("b")
    assert lanes.full() == {"a"}
    lanes.leave("a", entered[0], PROMPT)
    assert lanes.admits("a")


def test_status_follows_the_latest_news() -> None:
    lanes = Lanes(concurrency=4, per_receiver=1)
    for news in (FAILING, SLOW, PROMPT):
        lanes.leave("a", lanes.enter("a"), news)
        assert lanes.status("a") is news
    lanes.leave("a", lanes.enter("a"), None)
    assert lanes.status("a") is PROMPT


def test_the_number_of_remembered_receivers_is_limited() -> None:
    lanes = Lanes(concurrency=4, per_receiver=1, remembered=3)
    for name in "abcabd":
        lanes.leave(name, lanes.enter(name), SLOW)
    assert [lanes.status(name) for name in "abcd"] == [SLOW, SLOW, NEW, SLOW]


Action = tuple[int, ReceiverStatus | None]


@given(
    concurrency=st.integers(1, 20),
    per_receiver=st.integers(1, 3),
    actions=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([*ReceiverStatus, None])), max_size=200),
)
def test_the_limits_always_hold(concurrency: int, per_receiver: int, actions: list[Action]) -> None:
    lanes = Lanes(concurrency=concurrency, per_receiver=per_receiver, remembered=5)
    inside: list[tuple[str, ReceiverStatus]] = []
    for number, news in actions:
        name = f"receiver-{number}"
        assert lanes.free == concurrency - len(inside)
        if lanes.admits(name):
            assert name not in lanes.full()
            inside.append((name, lanes.enter(name)))
        elif inside:
            left, entered = inside.pop(number % len(inside))
            lanes.leave(left, entered, news)
        by_receiver, by_status = Counter(n for n, _ in inside), Counter(s for _, s in inside)
        assert len(inside) <= concurrency
        assert all(count <= per_receiver for count in by_receiver.values())
        quarter = max(1, (concurrency + 2) // 4)
        assert by_status[SLOW] <= quarter
        assert by_status[FAILING] <= quarter
        assert len(inside) - by_status[PROMPT] <= max(1, concurrency - (concurrency + 2) // 4)
    for name, entered in inside:
        lanes.leave(name, entered, None)
    assert lanes.free == concurrency
    assert all(lanes.admits(f"receiver-{number}") for number in range(10))
