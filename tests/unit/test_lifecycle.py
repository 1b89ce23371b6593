from __future__ import annotations

import itertools
from enum import Enum
from typing import Any

import pytest

from jobserver_core.errors import IllegalTransition
from jobserver_core.models.lifecycle import (
    CONTEXTS,
    DELIVERIES,
    JOBS,
    ContextEvent,
    ContextState,
    DeliveryEvent,
    DeliveryState,
    JobEvent,
    JobState,
    Lifecycle,
)

LIFECYCLES: list[tuple[Lifecycle[Any, Any], type[Enum], type[Enum]]] = [
    (CONTEXTS, ContextState, ContextEvent),
    (JOBS, JobState, JobEvent),
    (DELIVERIES, DeliveryState, DeliveryEvent),
]
PAIRS = [
    pytest.param(cycle, state, event, id=f"{cycle.kind}-{state.value}-{event.value}")
    for cycle, states, events in LIFECYCLES
    for state, event in itertools.product(states, events)
]


@pytest.mark.parametrize(("cycle", "state", "event"), PAIRS)
def test_an_event_leads_where_the_table_says_or_raises(
    cycle: Lifecycle[Any, Any], state: Enum, event: Enum
) -> None:
    if event in cycle.table[state]:
        assert cycle.next(state, event) is cycle.table[state][event]
        assert cycle.allows(state, event)
        return
    assert not cycle.allows(state, event)
    with pytest.raises(IllegalTransition) as caught:
        cycle.next(state, event)
    assert caught.value.state == state.value
    assert caught.value.event == event.value
    assert caught.value.allowed == tuple(e.value for e in cycle.table[state])


@pytest.mark.parametrize(("cycle", "states", "events"), LIFECYCLES)
def test_every_state_is_in_the_table_and_every_event_is_used(
    cycle: Lifecycle[Any, Any], states: type[Enum], events: type[Enum]
) -> None:
    assert set(cycle.table) == set(states)
    assert {event for row in cycle.table.values() for event in row} == set(events)


@pytest.mark.parametrize(("cycle", "states", "events"), LIFECYCLES)
def test_every_state_is_reachable_and_leads_to_a_final_state(
    cycle: Lifecycle[Any, Any], states: type[Enum], events: type[Enum]
) -> None:
    def reached(start: Enum) -> set[Enum]:
        found = {start}
        frontier = [start]
        while frontier:
            for state in cycle.table[frontier.pop()].values():
                if state not in found:
                    found.add(state)
                    frontier.append(state)
        return found

    assert set().union(*map(reached, cycle.first_states)) == set(states)
    for state in states:
        assert any(cycle.final(end) for end in reached(state))


def test_the_final_states_are_those_of_the_contract() -> None:
    assert {s for s in ContextState if s.final} == {
        ContextState.FINISHED,
        ContextState.ERROR,
        ContextState.KILLED,
    }
    assert {s for s in JobState if s.final} == {JobState.FINISHED, JobState.ERROR, JobState.KILLED}
    assert {s for s in DeliveryState if s.final} == {DeliveryState.DELIVERED, DeliveryState.ABANDONED}
    assert JOBS.live_states == (JobState.STARTED, JobState.RUNNING, JobState.RESTARTING)


CONTEXT_ENDS = [ContextEvent.STOPPED, ContextEvent.FAIL, ContextEvent.KILL]
JOB_ENDS = [JobEvent.FINISH, JobEvent.FAIL, JobEvent.KILL]


@pytest.mark.parametrize(
    ("cycle", "state", "end"),
    [
        *((CONTEXTS, *pair) for pair in itertools.product(ContextState, CONTEXT_ENDS)),
        *((JOBS, *pair) for pair in itertools.product(JobState, JOB_ENDS)),
    ],
)
def test_every_end_that_a_launcher_may_report_leads_to_a_final_state(
    cycle: Lifecycle[Any, Any], state: Enum, end: Enum
) -> None:
    if cycle.final(state):
        return
    assert cycle.final(cycle.next(state, end))


def test_a_context_that_stops_before_it_was_ready_has_failed() -> None:
    assert CONTEXTS.next(ContextState.STARTED, ContextEvent.STOPPED) is ContextState.ERROR
    assert CONTEXTS.next(ContextState.STOPPING, ContextEvent.STOPPED) is ContextState.FINISHED


def test_every_job_that_is_not_final_may_be_restarted() -> None:
    assert {state for state in JobState if JOBS.allows(state, JobEvent.RESTART)} == set(JOBS.live_states)


def test_the_diagram_has_an_arrow_for_every_transition() -> None:
    for cycle, _states, _events in LIFECYCLES:
        diagram = cycle.mermaid()
        for state, row in cycle.table.items():
            for event, to in row.items():
                assert f"    {state.value} --> {to.value}: {event.value}\n" in f"{diagram}\n"
